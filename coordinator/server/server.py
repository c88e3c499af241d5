"""The server: a thin loop around a ROUTER socket. Takes what waits, decides, commits the records once, then acts.

What is not a message of a worker about itself is dropped and counted; nothing that arrives can end the loop.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import socket
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import zmq

from coordinator.scheduling.events import (
    Abort,
    AddTasks,
    Confirmed,
    Decision,
    Drain,
    Event,
    Outcome,
    Restart,
    Revoked,
    Send,
    TaskDone,
    TaskQuarantined,
    Tick,
    Undelivered,
    WorkerLost,
)
from coordinator.scheduling.rate_limit import RequestBudget
from coordinator.scheduling.scheduler import Scheduler, TaskSpec
from coordinator.server.hooks import StageHooks
from coordinator.server.journal import Journal
from coordinator.server.key_store import CoordinatorKeys, check_bind
from coordinator.server.transport import AuthenticatedRouter, PeerIdentity
from coordinator.server.uploads import RefusedPath, UploadReceiver, checked_path, missing_files
from coordinator.wire import codec, messages
from coordinator.wire.failures import FailureKind
from coordinator.wire.messages import (
    Ack,
    BadMessage,
    Deregister,
    Failure,
    FileChunk,
    FilePart,
    FileRequest,
    Lease,
    PermitGrant,
    PermitRequest,
    PermitsRevoked,
    Result,
    Shutdown,
    Status,
    StatusRequest,
    ThrottleReport,
    Weights,
    WeightsRequest,
)
from ingest.errors import StorageError
from ingest.files import DISK_FULL

log = logging.getLogger(__name__)

MAX_BATCH = 2_000  # messages taken before one commit
TICK_S = 0.2
CONFIRM_MS = 5  # confirmations wait so long for the next results, whose commit then carries them
LONG_JOURNAL = 100_000  # records: 10 MB. Beyond it, and more than so many a task, the journal is written anew
LONG_FOR_ITS_TASKS = 8  # a task that goes well has 4
HIGH_WATER = 10_000  # messages queued for one worker, either way
PART = 256 << 10  # bytes of a file at once: a lease must not wait long behind them
SHUTDOWN_S = 2.0  # for the workers' goodbyes at the end
LINGER_MS = 500


class Server:
    """Serves one scheduler until all tasks have ended, or it is drained or stopped."""

    def __init__(
        self,
        scheduler: Scheduler,
        journal: Journal,
        budgets: Mapping[str, RequestBudget] | None = None,
        *,
        data_dir: Path,
        bind: str = "tcp://127.0.0.1:0",
        keys: CoordinatorKeys | None = None,
        hooks: StageHooks | None = None,
    ) -> None:
        check_bind(bind, keys)
        self._scheduler, self._journal, self._budgets = scheduler, journal, dict(budgets or {})
        self._data_dir = data_dir
        self._hooks = hooks = hooks or StageHooks()
        self._uploads = UploadReceiver(data_dir, hooks.upload_roots)
        self._download_roots = {**hooks.upload_roots, **hooks.download_roots}
        self._inbox: queue.SimpleQueue[Event | Weights] = queue.SimpleQueue()
        self._frames: dict[
            tuple[str, str, int], tuple[bytes, ...]
        ] = {}  # of results in the batch: worker, task, attempt
        self.counters = {"messages": 0, "bad": 0, "bad_arrays": 0, "undelivered": 0, "commits": 0, "rewrites": 0}
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._began = time.monotonic()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self._socket.setsockopt(zmq.SNDHWM, HIGH_WATER)
        self._socket.setsockopt(zmq.RCVHWM, HIGH_WATER)
        self._socket.setsockopt(zmq.MAXMSGSIZE, messages.MAX_MESSAGE)
        self._socket.setsockopt(zmq.LINGER, LINGER_MS)
        self._socket.setsockopt(zmq.IPV6, int("[" in bind))
        self._router = AuthenticatedRouter(self._socket, self._context, bind, keys)
        self.endpoint = self._router.endpoint
        self._revoked: list[str] = []  # told to stop, to be cut off at the next tick

    # -- from any thread, and from signal handlers -------------------------------------------------------------------

    def post(self, event: Event | Weights) -> None:
        """Have the loop decide `event`; weights are sent to every worker that plays, before what is posted after them."""
        self._inbox.put(event)
        with contextlib.suppress(OSError):  # full: the loop wakes anyway; closed: it has ended
            self._wake_write.send(b"\0")

    def add_tasks(self, tasks: Iterable[TaskSpec], *, whole: bool = False) -> None:
        """Open tasks. `whole`: these are all; open tasks of an earlier run that are not listed are dropped."""
        self.post(AddTasks(tuple(tasks), whole))

    def drain(self) -> None:
        """Finish what is leased, then end."""
        self.post(Drain("drain", "drained; start again to resume"))

    def stop_now(self) -> None:
        """End at once; what was leased is void."""
        self.post(Abort())

    def lost(self, pid: int, reason: str = "died") -> None:
        """A worker process of this host is known to be dead: no need to wait until it counts as silent."""
        for name, worker in list(self._scheduler.workers.items()):
            if worker.registration.pid == pid and worker.shares_filesystem:
                self.post(WorkerLost(name, reason))

    # -- the loop -----------------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Serve until there is an outcome. Tasks added before are taken up together with what the journal holds."""
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._wake_read, zmq.POLLIN)
        events: list[Event] = [Restart()]
        next_tick = 0.0
        try:
            while True:
                events += self._posted()
                events += self._received()
                now = time.monotonic()
                if ticked := now >= next_tick:
                    next_tick = now + TICK_S
                    events += [Tick(), *self._revocations()]
                events = self._step(events)
                if ticked:
                    self._hooks.on_tick()
                if not events and self._inbox.empty() and (outcome := self._finished()) is not None:
                    return outcome
                if all(isinstance(event, Confirmed) for event in events):
                    until_tick = max(0, round((next_tick - time.monotonic()) * 1e3))
                    poller.poll(min(until_tick, CONFIRM_MS) if events else until_tick)
        except (
            StorageError
        ) as error:  # of the journal or of `on_done`: what is not committed is handed out again at the next start
            return Outcome("storage", str(error))
        finally:
            self._close()

    def _finished(self) -> Outcome | None:
        outcome = self._scheduler.outcome()
        return None if outcome is not None and outcome.status != "stopped" and self._hooks.has_more_work() else outcome

    def _step(self, events: list[Event]) -> list[Event]:
        """Decide a batch, commit it, act on it; what follows from the actions is the next batch."""
        now = time.monotonic()
        decisions = [self._scheduler.decide(event, now) for event in events]
        records = [record for decision in decisions for record in decision.records]
        if records:
            self._journal.append(records)
            self.counters["commits"] += 1
            if self._journal.length > LONG_JOURNAL + LONG_FOR_ITS_TASKS * len(self._scheduler.tasks):
                self._journal.rewrite(self._scheduler.store.snapshot())
                self.counters["rewrites"] += 1
        following: list[Event] = []
        for decision in decisions:
            self._act(decision, following)
        self._frames.clear()
        return following

    def _act(self, decision: Decision, following: list[Event]) -> None:
        for action in decision.actions:
            if isinstance(action, Send):
                if not self._send(action.worker.encode(), action.message) and isinstance(action.message, Lease):
                    following.append(Undelivered(action.worker, action.message.task, action.message.attempt))
            elif isinstance(action, TaskDone):
                frames = self._frames.get((action.worker, action.task.id, action.attempt), ())
                if opened := tuple(self._hooks.on_task_done(msgspec.structs.replace(action, arrays=frames)) or ()):
                    following.append(AddTasks(opened))
                following.append(Confirmed(action.task.id, action.attempt))
            elif isinstance(action, TaskQuarantined):
                self._hooks.on_quarantined(action)
            else:
                self._hooks.on_lease_event(action)

    def _revocations(self) -> list[Event]:
        """Workers whose key was revoked: told to stop now, cut off at the next tick."""
        for worker in self._revoked:
            self._router.disconnect(worker)
        self._revoked = self._router.workers_with_revoked_keys(self._scheduler.workers)
        return [Revoked(worker) for worker in self._revoked]

    def _posted(self) -> list[Event]:
        with contextlib.suppress(BlockingIOError):
            self._wake_read.recv(65_536)
        events: list[Event] = []
        with contextlib.suppress(queue.Empty):
            while True:
                posted = self._inbox.get_nowait()
                if isinstance(posted, Weights):
                    self._publish(posted)
                else:
                    events.append(posted)
        return events

    def _publish(self, weights: Weights) -> None:
        for name, worker in self._scheduler.workers.items():
            if worker.registration.wants_weights:
                self._send(name.encode(), weights)

    def _received(self) -> list[Event]:
        """Events of all waiting messages, up to a bound; those that need no decision are answered here."""
        events: list[Event] = []
        for _ in range(MAX_BATCH):
            try:
                identity, sender, frames = self._router.receive()
            except zmq.Again:
                break
            self.counters["messages"] += 1
            try:
                event = self._to_event(identity, sender, frames)
            except (BadMessage, UnicodeDecodeError) as error:
                self.counters["bad"] += 1
                if self.counters["bad"] <= 20:
                    log.warning("dropped %d frames from %r: %s", len(frames), identity[:64], error)
                continue
            if event is not None:
                events.append(event)
        return events

    def _to_event(self, identity: bytes, sender: PeerIdentity, frames: list[bytes]) -> Event | None:
        if not 1 <= len(frames) <= 1 + messages.MAX_ARRAYS:
            raise BadMessage(f"{len(frames)} frames")
        message = codec.decode(frames[0], messages.ToCoordinator)
        self._router.check(message, sender)
        if isinstance(message, StatusRequest):
            self._send(identity, Status(self.snapshot()))
            return None
        if message.worker.encode() != identity:
            raise BadMessage(f"says it is {message.worker!r}")
        if not isinstance(message, Result) and len(frames) != 1 + isinstance(message, FileChunk):
            raise BadMessage(f"{type(message).__name__} with {len(frames)} frames")
        if isinstance(message, FileChunk):
            return self._take_chunk(message, frames[1])
        if isinstance(message, FileRequest):
            self._send_file_part(message)
            return None
        if isinstance(message, PermitRequest):
            budget = self._budgets.get(message.bucket)
            delays = budget.grant(time.monotonic(), message.count) if budget is not None else ()
            self._send(identity, PermitGrant(message.bucket, delays))
            return None
        if isinstance(message, ThrottleReport):
            self._throttled(message)
            return None
        if isinstance(message, WeightsRequest):
            self._send(identity, self._hooks.get_weights(message.sha256) or Weights(0, message.sha256, b""))
            return None
        return self._validate_arrays(message, tuple(frames[1:])) if isinstance(message, Result) else message

    def _validate_arrays(self, result: Result, frames: tuple[bytes, ...]) -> Event:
        """A result, or the failure that it is: no such proof, files that are not there, arrays that its task does not want."""
        task = self._scheduler.tasks.get(result.task)
        if task is not None and (result.arrays or frames or task.spec.arrays):
            sizes = tuple(map(len, frames))
            reason = codec.validate_frames(result.arrays, sizes, task.spec.arrays) or _non_finite_array(result, frames)
            if reason:
                self.counters["bad_arrays"] += 1
                return Failure(result.worker, result.task, result.attempt, FailureKind.BAD_ARRAYS, reason)
            self._frames[result.worker, result.task, result.attempt] = frames
        return self._validate_proof(result)

    def _validate_proof(self, result: Result) -> Event:
        """The result, or the failure that it is when its proof can't be one or names files that are not there."""
        task = self._scheduler.tasks.get(result.task)
        try:
            if task is not None and (kind := self._hooks.result_types.get(task.spec.kind)) is not None:
                msgspec.convert(result.proof, kind)
            error, problem = (
                FailureKind.FILES_MISSING,
                missing_files(self._data_dir, result.proof, self._hooks.upload_roots),
            )
        except (msgspec.ValidationError, BadMessage) as refusal:
            error, problem = FailureKind.BAD_PROOF, str(refusal)
        return Failure(result.worker, result.task, result.attempt, error, problem) if problem else result

    def _take_chunk(self, chunk: FileChunk, data: bytes) -> Event | None:
        worker = self._scheduler.workers.get(chunk.worker)
        lease = worker.held.get(chunk.task) if worker is not None else None
        if lease is None or lease.attempt != chunk.attempt or len(data) > messages.MAX_CHUNK:
            self._send(chunk.worker.encode(), Ack(chunk.task, chunk.attempt, False, chunk.path))
            return None
        try:
            held = self._uploads.take(chunk, data)
        except RefusedPath as error:
            return Failure(chunk.worker, chunk.task, chunk.attempt, FailureKind.REFUSED_PATH, str(error), final=True)
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise StorageError(
                    f"{chunk.path} can't be written in {self._data_dir}: {error.strerror}. Mend the disk or its rights, then "
                    "run the same command again: it goes on where it stopped."
                ) from error
            message = f"the coordinator's disk refused {chunk.path}: {error.strerror}. Free space, then start again."
            self.post(Drain("storage", message))
            return Failure(chunk.worker, chunk.task, chunk.attempt, FailureKind.STORAGE, message, blame=False)
        self._send(chunk.worker.encode(), Ack(chunk.task, chunk.attempt, True, chunk.path, held))
        return None

    def _send_file_part(self, asked: FileRequest) -> None:
        """A piece of a file that the lease lists; no bytes where it lists none of that name and size."""
        worker = self._scheduler.workers.get(asked.worker)
        lease = worker.held.get(asked.task) if worker is not None else None
        if lease is None or lease.attempt != asked.attempt:
            return  # it learns by its next heartbeat that the lease is not its own any more
        listed = self._scheduler.tasks[asked.task].spec.job.get("files", ())
        size = next((file["bytes"] for file in listed if file["path"] == asked.path), None)
        data = b""
        with contextlib.suppress(OSError, RefusedPath):
            path = checked_path(self._data_dir, asked.path, self._download_roots)
            if size is not None and path.stat().st_size == size:
                with path.open("rb") as file:
                    file.seek(asked.offset)
                    data = file.read(PART)
        self._send(asked.worker.encode(), FilePart(asked.task, asked.attempt, asked.path, asked.offset), data)

    def _throttled(self, report: ThrottleReport) -> None:
        budget = self._budgets.get(report.bucket)
        if budget is None:
            return
        budget.throttled(time.monotonic(), report.kind, report.retry_after)
        for name in self._scheduler.workers:
            self._send(name.encode(), PermitsRevoked(report.bucket))

    def _send(self, identity: bytes, message: messages.Message, *data: bytes) -> bool:
        """False when the peer is gone or does not take its messages: it will be heard again, or count as silent."""
        try:
            self._socket.send_multipart([identity, codec.encode(message), *data], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                raise
            self.counters["undelivered"] += 1
            return False
        return True

    def _shutdown_workers(self) -> None:
        """Tell the workers, and read on until they have left: a socket closed on unread messages would lose our last word."""
        for name in self._scheduler.workers:
            self._send(name.encode(), Shutdown(drain=False, reason="the run has ended"))
        until = time.monotonic() + SHUTDOWN_S
        while self._scheduler.workers and time.monotonic() < until:
            self._socket.poll(50)
            for event in self._received():
                if isinstance(event, Deregister):
                    self._scheduler.decide(event, time.monotonic())

    def _close(self) -> None:
        self._shutdown_workers()
        self._socket.close()
        self._router.close()
        self._context.term()
        self._wake_write.close()
        self._wake_read.close()

    # -- a look from outside --------------------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, Any]:
        """Tasks by state, workers, budgets, counters, as plain data."""
        now = time.monotonic()
        return {
            **self._hooks.status_extra(),
            **self._scheduler.snapshot(now),
            "budgets": {name: budget.snapshot(now) for name, budget in self._budgets.items()},
            "counters": {**self.counters, "refused": self._router.refused},
            "elapsed_s": now - self._began,
            "quarantined": [[task.spec.id, task.error, task.message] for task in self._scheduler.quarantined()],
        }


def _non_finite_array(result: Result, frames: tuple[bytes, ...]) -> str:
    """The first array that holds what is no number, or ""."""
    for array, frame in zip(result.arrays, frames, strict=True):
        if not np.isfinite(np.frombuffer(frame, array.dtype)).all():
            return f"array {array.name} has numbers that are not finite"
    return ""
