"""Wait for a condition or for the end of a process. A wait counts progress, not seconds: a slow machine fails none."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

WAIT_S = 180.0  # without any progress, until a wait fails: only a hang lasts so long, also beside other load
LOOK_S = 1.0  # between two looks at the progress
POLL_S = 0.01  # least time between two tests of a condition
SHARE = 0.1  # of a core at most: a look at the processes of a machine takes milliseconds, and what is waited for needs the core

Progress = Callable[[], object]  # a value that changes while there is progress


def no_progress() -> None:
    """For a wait that has nothing to observe: it fails after `WAIT_S`."""


def until(condition: Callable[[], Any], what: str, progress: Progress = no_progress) -> Any:
    """Return the first true value of `condition`; AssertionError that names `what` when nothing progressed for `WAIT_S`."""
    watch = Watch(what, progress)
    began = time.thread_time()
    while not (found := condition()):
        watch.check()
        time.sleep(max(POLL_S, (time.thread_time() - began) / SHARE))
        began = time.thread_time()
    return found


def end_of(process: subprocess.Popen[Any], what: str, progress: Progress = no_progress) -> tuple[Any, Any]:
    """Wait for the end of a process and return its stdout and stderr where these are pipes, as `communicate` does.

    A process without progress is ended by SIGABRT: with PYTHONFAULTHANDLER in its environment it prints the stack of each thread.
    AssertionError names `what` then.
    """
    watch = Watch(what, progress)
    while True:
        with suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=LOOK_S)
        try:
            watch.check()
        except AssertionError:
            process.send_signal(signal.SIGABRT)
            raise


def await_gone(processes: Iterable[psutil.Process], what: str) -> None:
    """Wait until none of the processes runs."""
    watched = list(processes)
    until(lambda: not any(map(runs, watched)), what)


def runs(process: psutil.Process) -> bool:
    """Return whether a process exists and has not ended: a zombie has."""
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def footprint(*folders: Path) -> tuple[int, int, int]:
    """Return number, bytes and newest change (ns) of the files below `folders`: the progress of a run that writes there."""
    count, size, newest = 0, 0, 0
    for folder in folders:
        for path, _, names in os.walk(folder):
            for name in names:
                with suppress(OSError):  # removed meanwhile
                    status = os.stat(os.path.join(path, name))  # noqa: PTH116, PTH118 - a look at a thousand files
                    count, size, newest = count + 1, size + status.st_size, max(newest, status.st_mtime_ns)
    return count, size, newest


class Watch:
    """Looks at a progress about once a second; looks without a change are counted, so that a test that is suspended loses no time."""

    def __init__(self, what: str, progress: Progress) -> None:
        self._what, self._progress = what, progress
        self._seen: object = None
        self._same = 0  # looks since the last change
        self._next = time.monotonic() + LOOK_S

    def check(self) -> None:
        """Look, if it is time; AssertionError when nothing has changed for `WAIT_S`."""
        if time.monotonic() < self._next:
            return
        seen = self._progress()
        self._same = self._same + 1 if seen == self._seen else 0
        self._seen, self._next = seen, time.monotonic() + LOOK_S
        assert self._same * LOOK_S < WAIT_S, f"waited in vain for {self._what}: no progress for {WAIT_S:.0f} s"
