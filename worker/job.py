"""A lease in execution, shared by the network's thread and the lease's."""

from __future__ import annotations

import threading

from coordinator.protocol import Lease
from worker.transfer import Acks


class Job:
    """A lease in execution."""

    def __init__(self, lease: Lease, share_files: bool) -> None:
        self.lease = lease
        self.share_files = share_files
        self.cancelled = threading.Event()
        self.acks = Acks(self.cancelled.is_set)
        self._lock = threading.Lock()
        self._finished = False

    def finish(self) -> bool:
        """The thread has done its part. False: it was taken back before, and somebody else has the thread's place."""
        with self._lock:
            self._finished = True
            return not self.cancelled.is_set()

    def abandon(self) -> bool:
        """Take it back. True: its thread is still at work and needs a replacement."""
        with self._lock:
            running = not self._finished and not self.cancelled.is_set()
            self.cancelled.set()
            return running
