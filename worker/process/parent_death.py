"""End with the parent process, so that nothing that a coordinator or a worker started outlives it, even after kill -9.

`ringattn._rank` and the emulator have their own few lines for this: neither package may import a worker.
"""

import ctypes
import os
import select
import signal
import sys
import threading

from coordinator.wire.exit_codes import ExitCode

PR_SET_PDEATHSIG = 1  # prctl(2)


def set_parent_death_signal() -> None:
    """Make Linux kill this process when its parent ends; does nothing elsewhere."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it ended before the call
            os._exit(ExitCode.INCOMPLETE)


def exit_with_parent(watchdog_s: float | None = None) -> None:
    """End this process, however busy it is, when its parent ends.

    A thread waits for the end of file on stdin, which the parent holds open; on Linux the kernel ends the process too.

    Args:
        watchdog_s: Also end when nothing arrived on stdin for so many seconds; None for no watchdog.
    """
    set_parent_death_signal()

    def watch() -> None:
        while select.select([0], [], [], watchdog_s)[0] and os.read(0, 4096):
            pass
        os._exit(ExitCode.INCOMPLETE)

    threading.Thread(target=watch, name="parent", daemon=True).start()
