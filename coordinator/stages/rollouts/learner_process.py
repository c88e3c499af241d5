"""The learner as a child process: `python -m worker.control.learner`, with a thread for each direction of its pipe.

The server's thread never waits for the learner: messages to it are queued, and only the reading thread waits for its exit.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from coordinator.workers.local import describe_end
from rl.distributed.protocol import FromLearner, JobResult, receive, send
from rl.errors import DataError

COMMAND = (sys.executable, "-m", "worker.control.learner")
EXIT_S = 5.0  # from the end of the learner's output to its exit, else it is killed


class LearnerProcess:
    """One learner, from its start to its exit."""

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        on_message: Callable[[LearnerProcess, FromLearner | None, tuple[bytes, ...]], None],
    ) -> None:
        """Start `command`, with its stderr in the file `log`.

        `on_message(self, message, frames)` runs in the reading thread; message None: the process has exited.
        """
        self._on_message = on_message
        self.exit_reason = ""  # once it has exited
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
        self._outbox: queue.SimpleQueue[tuple[JobResult, tuple[bytes, ...]] | None] = queue.SimpleQueue()
        for target, name in ((self._read, "learner reader"), (self._write, "learner writer")):
            threading.Thread(target=target, name=name, daemon=True).start()

    @property
    def stopped(self) -> bool:
        """Whether the process exists, but the system does not run it (SIGSTOP)."""
        with suppress(psutil.Error):
            return psutil.Process(self._process.pid).status() == psutil.STATUS_STOPPED
        return False

    def send_result(self, result: JobResult, frames: tuple[bytes, ...]) -> None:
        """Queue a result for the learner."""
        self._outbox.put((result, frames))

    def kill(self) -> None:
        """End the process at once, without waiting for it. Its newest state on disk is complete."""
        self._outbox.put(None)
        self._process.kill()

    def join(self) -> None:
        """Wait for the exit of a killed process, at most `EXIT_S`."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(EXIT_S)

    def _read(self) -> None:
        assert self._process.stdout is not None
        with suppress(DataError):  # not a message: the process is killed below
            while (received := receive(self._process.stdout, FromLearner)) is not None:
                self._on_message(self, *received)
        self.join()
        self.kill()
        code = self._process.wait()
        self.exit_reason = describe_end(code)
        self._on_message(self, None, ())

    def _write(self) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):
            while (result := self._outbox.get()) is not None:
                send(self._process.stdin, *result)
