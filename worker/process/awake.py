"""Keep a Mac awake while a worker runs: a sleeping host loses its leases, and nothing names the cause afterwards."""

import os
import subprocess
import sys


def stay_awake(system: str = "") -> subprocess.Popen[bytes] | None:
    """Hold macOS awake until this process ends, also by kill -9; does nothing on other systems.

    `caffeinate -i -s -w` prevents idle sleep, and on mains power system sleep, and needs no root. Written from its manual page;
    never run on a Mac.

    Args:
        system: `sys.platform` of this host; "" asks Python.

    Returns:
        The running `caffeinate`, or None.
    """
    if (system or sys.platform) != "darwin":
        return None
    quiet = subprocess.DEVNULL
    try:
        # A session of its own: Ctrl-C and the end of ssh's session must not let the Mac sleep before the worker has ended.
        return subprocess.Popen(
            ["caffeinate", "-i", "-s", "-w", str(os.getpid())],
            stdin=quiet,
            stdout=quiet,
            stderr=quiet,
            start_new_session=True,
        )
    except OSError as error:
        print(
            f"this Mac may fall asleep during the run: caffeinate: {error.strerror}; see `man pmset`", file=sys.stderr
        )
        return None
