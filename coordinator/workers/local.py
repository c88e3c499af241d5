"""Start worker processes on this host, restart them when they die, and end them with the coordinator."""

import errno
import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from ingest.errors import StorageError
from ingest.files import DESCRIPTORS_S, NO_DESCRIPTORS, storage_errors

MAX_RESTARTS = 100  # of all workers together; more deaths have a cause that a restart does not remove
SCARCE = (*NO_DESCRIPTORS, errno.EAGAIN, errno.ENOMEM)  # what a new process lacks: descriptors, processes, memory
BLAS_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def describe_end(code: int) -> str:
    """Return how a process ended. SIGKILL has no other sender than the system, unless a user sent it."""
    if code == -signal.SIGKILL:
        return "signal 9 (killed; by the system if memory ran out: see `dmesg`)"
    return f"signal {-code}" if code < 0 else f"exit code {code}"


@dataclass
class LocalWorkerPool:
    """`count` worker processes. Each holds a pipe to this process, so none outlives it, not even after `kill -9`."""

    command: tuple[str, ...]  # how to start a worker; its options are appended
    endpoint: str
    data_dir: Path
    count: int
    connections: int
    unresponsive_timeout_s: (
        float  # a registered process without a heartbeat for this long is stopped or stuck: it is killed
    )
    key: Path | None = None
    engine: str = ""  # MODULE:FACTORY of the executor that runs in the worker; "": none does
    restarts: int = 0
    _last_heard: dict[int, float] = field(default_factory=dict)  # pid → when the coordinator last knew it
    _processes: list[subprocess.Popen[bytes] | None] = field(default_factory=list)
    _lacking_since: dict[int, float] = field(default_factory=dict)  # index of a worker that waits for its process

    def start(self) -> None:
        """Start all workers. Their output goes to `logs/` in the data folder.

        StorageError is raised when a log cannot be written, or a process lacks a resource for `DESCRIPTORS_S`.
        """
        logs = self.data_dir / "logs"
        with storage_errors(logs):
            logs.mkdir(parents=True, exist_ok=True)
        for index in range(self.count):
            while (process := self._try_spawn(index)) is None:
                time.sleep(0.05)
            self._processes.append(process)

    def _try_spawn(self, index: int) -> subprocess.Popen[bytes] | None:
        """Start a worker. None: the system lacks a resource for it; try again.

        Raises:
            StorageError: Its log cannot be written, or a resource has been lacking for `DESCRIPTORS_S`.
        """
        try:
            process = self._spawn(index)
        except OSError as error:
            since = self._lacking_since.setdefault(index, time.monotonic())
            if error.errno in SCARCE and time.monotonic() - since < DESCRIPTORS_S:
                return None
            raise StorageError(
                f"can't start worker {index}: {error.strerror}. Raise the limits of this user (`ulimit -n`, `ulimit -u`) or free "
                "memory, then run the same command again to resume."
            ) from error
        self._lacking_since.pop(index, None)
        return process

    def _spawn(self, index: int) -> subprocess.Popen[bytes]:
        command = [*self.command, "--coordinator", self.endpoint, "--data", str(self.data_dir)]
        command += ["--connections", str(self.connections), "--stop-with-parent"]
        if self.key is not None:
            command += ["--key", str(self.key)]
        with self._open_log(index) as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**os.environ, **dict.fromkeys(BLAS_THREADS, "1")},
                start_new_session=True,  # Ctrl-C reaches the coordinator alone, which decides what the workers do
            )

    def _open_log(self, index: int) -> IO[bytes]:
        path = self.data_dir / "logs" / f"worker-{index}.log"
        try:
            return path.open("ab")
        except OSError as error:
            if error.errno in NO_DESCRIPTORS:
                raise
            with storage_errors(path):
                raise

    def supervise(self, heard: Collection[int], lost: Callable[[int, str], None]) -> list[str]:
        """Restart dead and unresponsive workers. Call it a few times a second.

        Args:
            heard: Process ids of the workers that send heartbeats.
            lost: Called with (pid, reason) at each death, so that the worker's leases are released at once.

        Returns:
            One line for each event.

        StorageError is raised as by `start`.
        """
        events = self._kill_unresponsive(heard)
        for index in list(self._lacking_since):
            if (started := self._try_spawn(index)) is not None:
                self._processes[index] = started
        for index, process in enumerate(self._processes):
            if process is None or process.poll() is None:
                continue
            how = describe_end(process.returncode)
            if self.engine:
                how += f" (--engine {self.engine} runs in it)"
            lost(process.pid, f"ended with {how}")
            if self.restarts < MAX_RESTARTS:
                self.restarts += 1
                self._processes[index] = self._try_spawn(index)
                events.append(f"worker {index} (pid {process.pid}) ended with {how}: restarted")
            else:
                self._processes[index] = None
                events.append(
                    f"worker {index} ended with {how}; not restarted after {MAX_RESTARTS} restarts: see logs/worker-{index}.log"
                )
        return events

    def _kill_unresponsive(self, heard: Collection[int]) -> list[str]:
        now, events = time.monotonic(), []
        self._last_heard.update(dict.fromkeys(heard, now))
        for index, process in enumerate(self._processes):
            if process is None or now - self._last_heard.get(process.pid, now) <= self.unresponsive_timeout_s:
                continue
            if process.poll() is None:
                events.append(f"worker {index} (pid {process.pid}) runs but sends no heartbeat: killed")
                process.kill()
                process.wait()
        return events

    def stop(self, timeout_s: float = 5.0) -> None:
        """Terminate all workers; kill those that still run after `timeout_s` in total."""
        running = [process for process in self._processes if process is not None and process.poll() is None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + timeout_s
        for process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes = []
