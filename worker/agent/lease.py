"""A lease in execution, shared by the network's thread and the lease's, and what a worker lends to it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coordinator.wire.messages import Lease, Phase
from ingest.fetch import FetchContext
from worker.agent.file_transfer import FileTransfer, TransferInbox


class GraceDeadline:
    """Whether a lease was asked to end, and how long it may take. The earliest deadline counts."""

    def __init__(self) -> None:
        self._until: float | None = None

    def ask(self, grace_s: float) -> None:
        """Ask for an end within `grace_s`; of several, the earliest counts."""
        until = time.monotonic() + grace_s
        self._until = until if self._until is None else min(self._until, until)

    @property
    def left_s(self) -> float | None:
        """Seconds until force; None: not asked."""
        return None if self._until is None else max(0.0, self._until - time.monotonic())


@dataclass(frozen=True)
class Arrays:
    """A result that is arrays alone."""

    arrays: Mapping[str, Any]  # numpy, float32 or float64; in the order that the task asks for


@dataclass
class LeaseContext(FetchContext):
    """What a worker lends to a lease, beyond what a fetch needs."""

    endpoint: str  # of the coordinator
    address: str | None  # of this host in a ring; None: the one that the coordinator's network reaches
    proof_root: Path  # where the files lie that the lease's proof names
    transfer: FileTransfer | None  # to move files with; None: the coordinator shares this host's file system
    silence_s: float  # after which a worker that is not heard counts as lost
    seconds_since_contact: Callable[[], float]  # seconds since the coordinator's last word
    grace: GraceDeadline
    report: Callable[[int, Phase, int, int, bool], None]  # a Progress: (step, phase, beats, saved, stopped)
    weights: Callable[[str], bytes]  # of a sha256, from the coordinator. Cancelled when the lease was taken back


class RunningLease:
    """A lease in execution."""

    def __init__(self, lease: Lease, share_files: bool, silence_s: float) -> None:
        self.lease = lease
        self.share_files = share_files
        self.silence_s = silence_s
        self.cancelled = threading.Event()
        self.grace = GraceDeadline()
        self.answers = TransferInbox(self.cancelled.is_set)
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
