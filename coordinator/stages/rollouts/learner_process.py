"""The learner's process: `python -m worker.control.learner`, its pipe both ways, each in a thread, so that the server never waits for it."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
from numpy.typing import NDArray

from rl.distributed.protocol import FromLearner, JobResult, receive, send
from rl.errors import DataError

Heard = Callable[[FromLearner | None, Mapping[str, NDArray]], None]
COMMAND = (sys.executable, "-m", "worker.control.learner")


class LearnerProcess:
    """One process. `heard(word, arrays)` is called from a thread of its own; None: it has ended."""

    def __init__(self, command: Sequence[str], log: Path, heard: Heard) -> None:
        self._heard = heard
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env={name: value for name, value in os.environ.items() if name != "EIA_API_KEY"},
                start_new_session=True,  # Ctrl-C reaches the coordinator alone
            )
        self._outbox: queue.SimpleQueue[tuple[JobResult, Mapping[str, NDArray]] | None] = queue.SimpleQueue()
        for what, name in ((self._read, "learner reader"), (self._write, "learner writer")):
            threading.Thread(target=what, name=name, daemon=True).start()

    @property
    def stopped(self) -> bool:
        """Whether it exists, but the system does not run it (SIGSTOP)."""
        with suppress(psutil.Error):
            return psutil.Process(self._process.pid).status() == psutil.STATUS_STOPPED
        return False

    def send_result(self, given: JobResult, arrays: Mapping[str, NDArray]) -> None:
        """Send a result: `arrays` as its job has them, float32 or float64. Never waits."""
        self._outbox.put((given, arrays))

    def end(self) -> None:
        """End it at once; its newest state is whole."""
        self._outbox.put(None)
        self._process.kill()
        self._process.wait()

    @property
    def exit_reason(self) -> str:
        """How it ended, once it has."""
        code = self._process.wait()
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def _read(self) -> None:
        assert self._process.stdout is not None
        try:
            while (found := receive(self._process.stdout, FromLearner)) is not None:
                self._heard(*found)
        except DataError:
            self._process.kill()
        self._heard(None, {})

    def _write(self) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):
            while (found := self._outbox.get()) is not None:
                send(self._process.stdin, *found)
