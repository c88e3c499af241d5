"""End with the parent process: nothing that a coordinator or a worker started may outlive it, not even after a kill -9."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import threading

from coordinator.wire.exit_codes import ExitCode


def set_parent_death_signal() -> None:
    """Have Linux end this process when its parent ends; elsewhere nothing."""
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        parent = os.getppid()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(ExitCode.INCOMPLETE)


def exit_with_parent(watchdog_s: float | None = None) -> None:
    """End this process, at once and however it is busy, when its parent ends: on end of file on stdin, which the parent holds
    open; on Linux by the kernel as well. With a leash also when nothing has come on stdin for so many seconds."""
    set_parent_death_signal()

    def watch() -> None:
        while select.select([0], [], [], watchdog_s)[0] and os.read(0, 4096):
            pass
        os._exit(ExitCode.INCOMPLETE)

    threading.Thread(target=watch, name="parent", daemon=True).start()
