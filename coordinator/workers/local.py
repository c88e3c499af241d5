"""Workers on this host: started over loopback, watched, started again when one dies, ended with the coordinator."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

RESTARTS = 100  # a worker that dies more often than this is left dead: something is wrong that a restart does not mend
BLAS_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass
class LocalWorkers:
    """`count` worker processes of this coordinator. Each holds a pipe to it, so none outlives it, not even a kill -9."""

    command: tuple[str, ...]  # what a worker is started with; the rest is appended
    endpoint: str
    data_dir: Path
    count: int
    connections: int
    missing_s: float  # a process that the coordinator has lost for this long, though it lives, is stopped or stuck: it is ended
    key: Path | None = None
    restarts: int = 0
    _registered: dict[int, float] = field(default_factory=dict)  # pid → when the coordinator last knew it
    _processes: list[subprocess.Popen[bytes] | None] = field(default_factory=list)

    def start(self) -> None:
        """Start all of them; what they say goes to `logs/` in the data folder."""
        (self.data_dir / "logs").mkdir(parents=True, exist_ok=True)
        self._processes = [self._spawn(index) for index in range(self.count)]

    def _spawn(self, index: int) -> subprocess.Popen[bytes]:
        command = [*self.command, "--coordinator", self.endpoint, "--data", str(self.data_dir)]
        command += ["--connections", str(self.connections), "--stop-with-parent"]
        if self.key is not None:
            command += ["--key", str(self.key)]
        with (self.data_dir / "logs" / f"worker-{index}.log").open("ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**os.environ, **dict.fromkeys(BLAS_THREADS, "1")},
                start_new_session=True,  # Ctrl-C reaches the coordinator alone; it decides what the workers do
            )

    def supervise(self, known: Collection[int], lost: Callable[[int, str], None]) -> list[str]:
        """Start dead workers again; one line for each thing that happened. Call it a few times a second.

        `known`: pids of the workers that the coordinator hears. `lost(pid, reason)` is told of each death, so that its leases
        go out again without waiting for silence.
        """
        said = self._end_the_missing(known)
        for index, process in enumerate(self._processes):
            if process is None or process.poll() is None:
                continue
            how = f"signal {-process.returncode}" if process.returncode < 0 else f"exit code {process.returncode}"
            lost(process.pid, f"ended with {how}")
            if self.restarts < RESTARTS:
                self.restarts += 1
                self._processes[index] = self._spawn(index)
                said.append(f"worker {index} (pid {process.pid}) ended with {how}: started again")
            else:
                self._processes[index] = None
                said.append(
                    f"worker {index} ended with {how}; {RESTARTS} restarts are used up: see logs/worker-{index}.log"
                )
        return said

    def _end_the_missing(self, known: Collection[int]) -> list[str]:
        now, said = time.monotonic(), []
        self._registered.update(dict.fromkeys(known, now))
        for index, process in enumerate(self._processes):
            if process is None or now - self._registered.get(process.pid, now) <= self.missing_s:
                continue
            if process.poll() is None:
                said.append(f"worker {index} (pid {process.pid}) lives, but was not heard: ended by force")
                process.kill()
                process.wait()
        return said

    @property
    def alive(self) -> int:
        """How many run now."""
        return sum(process is not None and process.poll() is None for process in self._processes)

    def stop(self, patience: float = 5.0) -> None:
        """End all: terminate, wait `patience` seconds in all, kill what is left."""
        running = [process for process in self._processes if process is not None and process.poll() is None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + patience
        for process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes = []
