"""Write a file and a journal in a process that has no free file descriptor for half a second."""

from __future__ import annotations

import os
import resource
import sys
import threading
import time
from pathlib import Path

from coordinator.scheduling.records import Committed
from coordinator.server.journal import Journal
from ingest.files import atomic_write

folder = Path(sys.argv[1])
journal = Journal(folder / "journal.sqlite")
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
taken: list[int] = []
try:
    while True:
        taken.append(os.dup(0))
except OSError:
    pass


def free() -> None:
    for descriptor in taken:
        os.close(descriptor)


began = time.monotonic()
threading.Timer(0.5, free).start()
atomic_write(folder / "manifest.json", b"{}")
journal.append([Committed("a")])
print("written after a wait" if time.monotonic() - began >= 0.5 else "written at once")
