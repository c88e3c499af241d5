"""Bootstrap of a local rank: `python -m ringattn.blas ringattn._rank script.py args…` (or `-m module args…`), started only by `ringattn.launch`.

Joins the ring with a deadline, reports it on a pipe, then runs the program as `__main__`. Ends when its launcher is gone.
"""

import ctypes
import os
import runpy
import signal
import sys
import threading
from pathlib import Path

READY_FD = "RINGATTN_READY_FD"
START_TIMEOUT = "RINGATTN_START_TIMEOUT"


def _exit_with_launcher() -> None:
    """End this process when the launcher is gone: it holds the other end of stdin, which closes when it ends for any reason.

    Linux also kills a rank that is stopped and cannot read: its parent is the launcher's thread, which lives as long as
    the ranks do.
    """
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    pipe = os.dup(0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)

    def watch() -> None:
        os.read(pipe, 1)
        os._exit(1)

    threading.Thread(target=watch, name="ringattn-launcher-watch", daemon=True).start()


def main() -> None:
    """Join the ring, send the launcher one byte, run the program."""
    _exit_with_launcher()
    from ringattn._errors import RingError
    from ringattn.process_group import init

    try:
        init(float(os.environ[START_TIMEOUT]))
    except RingError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    ready = int(os.environ.pop(READY_FD))
    os.write(ready, b"!")
    os.close(ready)
    sys.argv = sys.argv[1:]
    if sys.argv[0] == "-m":
        _, module, *_ = sys.argv
        del sys.argv[0]
        sys.path[0] = str(Path.cwd())  # as with `python -m module`
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        return
    # As with `python script.py`: the script's folder is first on the path.
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
