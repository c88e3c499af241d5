"""Write a file and a journal, open another journal and start a worker, in a process that has no free file descriptor for a while."""

from __future__ import annotations

import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from coordinator.scheduling.records import Committed
from coordinator.server.journal import Journal
from coordinator.workers.local import LocalWorkerPool
from ingest.files import atomic_write

folder = Path(sys.argv[1])
journal = Journal(folder / "journal.sqlite")
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
taken: list[int] = []


def take_all() -> None:
    """Take every descriptor, and free them half a second later."""
    try:
        while True:
            taken.append(os.dup(0))
    except OSError:
        threading.Timer(0.5, free).start()


def free() -> None:
    while taken:
        os.close(taken.pop())


def timed(what: str, action: Callable[[], object]) -> None:
    take_all()
    began = time.monotonic()
    action()
    print(what, "after a wait" if time.monotonic() - began >= 0.4 else "at once")


sleeper = (sys.executable, "-c", "import sys; sys.stdin.read()")
workers = LocalWorkerPool(sleeper, "tcp://127.0.0.1:1", folder, 1, 1, unresponsive_timeout_s=60.0)
timed("manifest", lambda: atomic_write(folder / "manifest.json", b"{}"))
timed("journal", lambda: journal.append([Committed("a")]))
timed("second journal", lambda: Journal(folder / "second.sqlite"))
timed("worker", workers.start)
(worker,) = workers._processes
assert worker is not None
worker.kill()
worker.wait()
take_all()
lost: list[int] = []
workers.supervise([], lambda pid, reason: lost.append(pid))  # returns at once: the server's loop calls it
print("restart", workers._processes)
while not any(workers._processes):
    workers.supervise([], lambda pid, reason: lost.append(pid))
    time.sleep(0.01)
print("restarts", workers.restarts, "losses", len(lost))
workers.stop(0.0)
