"""A running lease: its cancellation and grace period, and the context that its handler works with."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coordinator.wire.messages import Lease, Phase
from worker.agent.file_transfer import FileTransfer, TransferInbox

if TYPE_CHECKING:  # pyarrow and requests take 0.6 s of processor time to load; only a fetch needs them
    from ingest.outage import Wait
    from ingest.page_request import FetchContext


class GraceDeadline:
    """The time until which a lease that was asked to terminate may still work."""

    def __init__(self) -> None:
        self._until: float | None = None

    def start(self, grace_s: float) -> None:
        """Ask the lease to terminate within `grace_s`. Of several calls the earliest deadline counts."""
        until = time.monotonic() + grace_s
        self._until = until if self._until is None else min(self._until, until)

    @property
    def left_s(self) -> float | None:
        """Seconds until the lease is terminated by force; None when it was not asked to terminate."""
        return None if self._until is None else max(0.0, self._until - time.monotonic())


@dataclass(frozen=True)
class Arrays:
    """A result that consists of arrays: numpy, float32 or float64, in the order that the task lists."""

    arrays: Mapping[str, Any]


@dataclass(frozen=True)
class RankProgress:
    """Progress of a rank, as its heartbeat file and the system show it.

    Attributes:
        step: Newest step.
        phase: Phase of the training that the rank is in.
        heartbeat_count: Heartbeats so far; 0 before the first. While files are downloaded: pieces received.
        checkpoint_step: Step of the newest checkpoint that the coordinator can read; 0 before the first.
        is_stopped: The process exists, but the system does not run it (SIGSTOP).
    """

    step: int = 0
    phase: Phase = "start"
    heartbeat_count: int = 0
    checkpoint_step: int = 0
    is_stopped: bool = False


@dataclass
class LeaseContext:
    """Context of one lease: what a handler needs of its worker.

    Attributes:
        data_dir: Data folder of this host.
        cancelled: Set when the lease was cancelled.
        on_progress: Adds to the worker's counts of (rows verified, requests).
        fetch_context: Returns the resources that all fetches of this worker share.
        endpoint: Of the coordinator, `tcp://host:port`.
        address: Of this host in a ring; None for the one that the coordinator's network reaches.
        proof_root: Folder below which the files lie that the lease's result names.
        transfer: Moves files to and from the coordinator; None when both share a file system.
        silence_s: Seconds without a message after which the coordinator counts a worker as lost.
        seconds_since_contact: Returns the seconds since the coordinator's last message.
        grace: Deadline of a lease that was asked to terminate.
        report: Sends progress to the coordinator.
        weights: Returns the policy with a given SHA-256; raises Cancelled when the lease was cancelled meanwhile.
        on_wait: Reports what the lease waits for outside the cluster; None: for nothing any more.
    """

    data_dir: Path
    cancelled: threading.Event
    on_progress: Callable[[int, int], None]
    fetch_context: Callable[[], FetchContext]
    endpoint: str
    address: str | None
    proof_root: Path
    transfer: FileTransfer | None
    silence_s: float
    seconds_since_contact: Callable[[], float]
    grace: GraceDeadline
    report: Callable[[RankProgress], None]
    weights: Callable[[str], bytes]
    on_wait: Callable[[Wait | None], None] = lambda wait: None


class RunningLease:
    """A lease of this worker, shared by the thread that owns the socket and the thread that runs it."""

    def __init__(self, lease: Lease, shares_filesystem: bool, silence_s: float) -> None:
        self.lease = lease
        self.shares_filesystem = shares_filesystem
        self.silence_s = silence_s
        self.cancelled = threading.Event()
        self.grace = GraceDeadline()
        self.transfer_inbox = TransferInbox(self.cancelled.is_set)
        self._lock = threading.Lock()
        self._finished = False

    def finish(self) -> bool:
        """Record that the thread is done. Returns False when the lease was cancelled and the thread replaced before."""
        with self._lock:
            self._finished = True
            return not self.cancelled.is_set()

    def cancel(self) -> bool:
        """Cancel the lease. Returns True when its thread still runs it and needs a replacement."""
        with self._lock:
            running = not self._finished and not self.cancelled.is_set()
            self.cancelled.set()
            return running
