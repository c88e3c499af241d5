"""Have an engine's factory checked in a process of its own (`worker.engine.check`), before a run depends on it."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from coordinator.wire.engines import PASSED, REFUSED
from coordinator.workers.local import describe_end
from ingest.errors import UsageError

CHECK_S = 60.0  # for the factory and a first task; one that waits longer, e.g. for an allocation, is left to the run
TOLD_S = 3.0  # after which a line says what is waited for
END_S = 5.0  # more, for the checking process to report a task that got no answer, and to end
KILL_S = 1.0  # for it to end after SIGTERM
PROGRAM = "worker.engine.check"
_checked: set[str] = set()  # by this process


def check_engine(name: str, note: Callable[[str], None]) -> None:
    """Check that the factory `MODULE:FACTORY` returns an executor that runs a task. Once in a process: `follow` builds many fleets.

    Args:
        name: The factory.
        note: Takes a line where the check takes long.

    Raises:
        UsageError: it raised, returned something else, or its hosts cannot run this project; the message says which.
    """
    if name not in _checked:
        _check(name, note)
    _checked.add(name)


def _check(name: str, note: Callable[[str], None]) -> None:
    with (
        tempfile.TemporaryFile() as told,
        sigterm_as_interrupt(),
    ):  # no pipe: a process that the engine leaves behind would hold it open
        command = [sys.executable, "-m", PROGRAM, name]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=told, stderr=subprocess.DEVNULL)
        try:
            code = _ended(process, TOLD_S)
            if code is None:
                note(f"--engine {name}: its factory and a first task are waited for, up to {CHECK_S:.0f} s")
                code = _ended(process, CHECK_S + END_S - TOLD_S)
            if code is None:
                note(f"--engine {name}: no answer after {CHECK_S:.0f} s; the run begins, and waits for it")
        finally:
            end(process)
        told.seek(0)
        problem = told.read().decode(errors="replace")
    if code == REFUSED:
        raise UsageError(f"--engine {name} {problem}; correct it, then run the same command again.")
    if code is not None and problem != PASSED.decode():
        raise UsageError(
            f"--engine {name} ended its process with {describe_end(code)}, in the factory or in a first task; correct it, then "
            "run the same command again."
        )


def _ended(process: subprocess.Popen[bytes], timeout_s: float) -> int | None:
    """Return the exit code of a process; None: it still runs."""
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return None


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process, whatever its libraries do with SIGTERM."""
    process.terminate()
    if _ended(process, KILL_S) is None:
        process.kill()
        process.wait()


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Inside, SIGTERM does what Ctrl-C does; in the main thread only, where signals can be handled."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
