"""Run leases in threads that share the resources of a worker: connections, permits, policies, counters."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coordinator.wire import codec
from coordinator.wire.failures import FailureKind
from coordinator.wire.messages import (
    MAX_PAUSE,
    Array,
    Failure,
    Lease,
    Message,
    PermitRequest,
    Progress,
    Result,
    ThrottleReport,
    WeightsRequest,
)
from coordinator.wire.payloads import FileRef
from ingest.errors import Cancelled
from ingest.files import DigestCache
from worker.agent.file_transfer import FileTransfer
from worker.agent.handlers import Handler, failure_of
from worker.agent.lease import Arrays, LeaseContext, RankProgress, RunningLease
from worker.agent.permits import Permits
from worker.agent.policy_cache import PolicyCache
from worker.agent.waits import Waits

if TYPE_CHECKING:  # imported by the first fetch: see `worker.agent.lease`
    from ingest.outage import Wait
    from ingest.page_request import FetchContext

PAGES = 2  # pages in progress for each connection: one being requested, one being verified and stored


Post = Callable[[Message, Iterable[bytes]], None]  # queues a message and raw frames for the socket's owner


class LeaseExecutor:
    """Run each lease to its Result or Failure in a separate thread.

    Args:
        worker: Name of the worker.
        data_dir: Data folder of this host.
        endpoint: Of the coordinator, `tcp://host:port`.
        address: Of this host in a ring; None for the one that the coordinator's network reaches.
        handlers: Handler by kind of lease.
        connections: Page requests at once, over all leases.
        capacity: Leases at once.
        post: Queues a message for the coordinator; must not block.
        seconds_since_contact: Seconds since the coordinator's last message.
    """

    def __init__(
        self,
        worker: str,
        data_dir: Path,
        endpoint: str,
        address: str | None,
        *,
        handlers: Mapping[str, Handler],
        connections: int,
        capacity: int,
        post: Post,
        seconds_since_contact: Callable[[], float],
    ) -> None:
        self._worker, self._data_dir, self._endpoint, self._address = worker, data_dir, endpoint, address
        self._handlers, self._post, self._seconds_since_contact = handlers, post, seconds_since_contact
        self._api_key = os.environ.get("EIA_API_KEY") or None
        self._connections = connections
        self._fetch_resources: dict[str, Any] = {}  # made by the first fetch
        self._fetch_lock = threading.Lock()
        self._digests = DigestCache()
        self.permits = Permits(lambda bucket, count: post(PermitRequest(worker, bucket, count), ()))
        self.policies = PolicyCache(lambda sha256: post(WeightsRequest(worker, sha256), ()))
        self.rows = self.requests = 0  # verified rows and requests so far
        self._counting = threading.Lock()
        self.waits = Waits(self._api_key)
        self._ready: queue.SimpleQueue[RunningLease] = queue.SimpleQueue()
        for _ in range(capacity):
            self.add_thread()

    def start(self, lease: RunningLease) -> None:
        """Run a lease as soon as a thread is free."""
        self._ready.put(lease)

    def add_thread(self) -> None:
        """Start a thread, at first or in place of one that still runs a cancelled lease."""
        threading.Thread(target=self._lease_thread, name="lease", daemon=True).start()

    def _lease_thread(self) -> None:
        while True:
            lease = self._ready.get()
            answer = self._execute(lease)
            if not lease.finish():
                return  # the thread that replaced this one goes on
            try:
                if answer is not None:
                    self._post(*answer)
            except Exception as error:  # a result over the limit of a message, or no plain data
                self._post(failure_of(error, self._worker, lease.lease, self._api_key), ())

    def _execute(self, running: RunningLease) -> tuple[Message, list[bytes]] | None:
        """Run a lease. Returns its answer, a message and raw frames; None when it was cancelled."""
        lease, began = running.lease, time.monotonic()
        if running.cancelled.is_set():
            return None
        context = self._context(running)
        try:
            answer = self._handlers[lease.kind](lease.job, context)
            if isinstance(answer, Arrays):
                return self._array_result(lease, answer, time.monotonic() - began)
            if context.transfer is not None:
                for path, size, sha256 in codec.files_in(answer):
                    context.transfer.upload(context.proof_root, FileRef(path, size, sha256))
        except Cancelled:
            if running.cancelled.is_set():
                return None
            kind, text = FailureKind.CANCELLED, "the lease cancelled itself"
            return Failure(self._worker, lease.task, lease.attempt, kind, text, blame=False), []
        except Exception as error:
            return failure_of(error, self._worker, lease, self._api_key), []
        finally:
            self.waits.end((lease.task, lease.attempt))
        return Result(self._worker, lease.task, lease.attempt, answer, time.monotonic() - began), []

    def _context(self, running: RunningLease) -> LeaseContext:
        lease = running.lease
        transfer = FileTransfer(
            self._worker, lease.task, lease.attempt, self._post, running.transfer_inbox, self._digests
        )
        return LeaseContext(
            data_dir=self._data_dir,
            cancelled=running.cancelled,
            on_progress=self._count,
            fetch_context=lambda: self._fetch_context(running),
            endpoint=self._endpoint,
            address=self._address,
            proof_root=self._data_dir,
            transfer=None if running.shares_filesystem else transfer,
            silence_s=running.silence_s,
            seconds_since_contact=self._seconds_since_contact,
            grace=running.grace,
            report=lambda progress: self._report_progress(lease, progress),
            weights=lambda sha256: self.policies.get(sha256, running.cancelled),
            on_wait=lambda wait: self._report_wait(lease, wait),
        )

    def _report_wait(self, lease: Lease, wait: Wait | None) -> None:
        key, now = (lease.task, lease.attempt), time.monotonic()
        if wait is not None:
            self.waits.begin(key, now)  # of a lease that is no fetch, too
        self.waits.report(key, wait, now)

    def _fetch_context(self, running: RunningLease) -> FetchContext:
        from ingest.http import make_session
        from ingest.page_request import FetchContext

        with self._fetch_lock:
            if not self._fetch_resources:
                self._fetch_resources = {
                    "accepted_by": set(),
                    "pool": ThreadPoolExecutor(self._connections * PAGES, thread_name_prefix="page"),
                    "connections": threading.Semaphore(self._connections),
                    "session": make_session(self._connections),
                }
        key = (running.lease.task, running.lease.attempt)
        self.waits.begin(key, time.monotonic())
        return FetchContext(
            data_dir=self._data_dir,
            api_key=self._api_key,
            acquire_permit=lambda bucket, check: self.permits.acquire(bucket, running.cancelled, check),
            on_throttle=self._report_throttle,
            on_progress=self._count,
            on_wait=lambda wait: self.waits.report(key, wait, time.monotonic()),
            cancelled=running.cancelled,
            **self._fetch_resources,
        )

    def _array_result(self, lease: Lease, answer: Arrays, seconds: float) -> tuple[Message, list[bytes]]:
        described = tuple(Array(name, str(x.dtype), x.shape) for name, x in answer.arrays.items())
        frames = [x.tobytes() for x in answer.arrays.values()]
        return Result(self._worker, lease.task, lease.attempt, {}, seconds, described), frames

    def _report_progress(self, lease: Lease, rank: RankProgress) -> None:
        self._post(Progress(self._worker, lease.task, lease.attempt, *astuple(rank)), ())

    def _report_throttle(self, bucket: str, kind: str, retry_after: float | None) -> None:
        if bucket:
            pause = None if retry_after is None else min(max(retry_after, 0.0), MAX_PAUSE)
            self._post(ThrottleReport(self._worker, bucket, kind, pause), ())

    def _count(self, rows: int, requests: int) -> None:
        with self._counting:
            self.rows += rows
            self.requests += requests
