"""The server loop: receive messages, decide, commit the journal once a batch, then act.

Invalid or spoofed messages are counted and dropped. No input can stop the loop.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
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
    TaskFailed,
    TaskProgress,
    TaskQuarantined,
    Tick,
    Undelivered,
    WorkerLost,
)
from coordinator.scheduling.rate_limit import RequestBudget
from coordinator.scheduling.records import TaskSpec
from coordinator.scheduling.scheduler import Scheduler
from coordinator.server.auth_proxy import CLOSE_S
from coordinator.server.background import BackgroundThread, Continuation
from coordinator.server.hooks import StageHooks
from coordinator.server.journal import Journal
from coordinator.server.key_store import CoordinatorKeys, check_bind
from coordinator.server.results import convert_output, validate_result
from coordinator.server.status import RunStatus, worker_status
from coordinator.server.transport import AuthenticatedRouter, PeerIdentity
from coordinator.server.uploads import LeaseKey, UploadReceiver, lease_of, read_part
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
from coordinator.wire.paths import RefusedPath
from ingest.errors import StorageError
from ingest.files import DISK_FULL

log = logging.getLogger(__name__)

MAX_BATCH = 2_000  # messages taken before one commit
BATCH_S = 0.2  # for taking them, and for the stage's part of their decisions: signals and heartbeats wait for both
TICK_S = 0.2
CONFIRM_MS = 5  # how long confirmations wait for the next results, to share their commit
LONG_JOURNAL = 100_000  # records: 10 MB. A journal longer than this plus the next number per task is compacted
LONG_FOR_ITS_TASKS = 8  # a task without failures has 4
SHUTDOWN_S = 2.0  # for the workers to deregister at the end
STOP_S = 0.3  # the same after a second Ctrl-C
MAX_LOGGED = 20  # bad messages that are logged; further ones are only counted


class Server:
    """Serve one scheduler until all tasks have ended, or the run is drained or aborted.

    UsageError is raised when the address cannot be bound, CurveError when other hosts can reach it and there are no keys.
    """

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
        self._background = BackgroundThread(self.post)
        self._uploads = UploadReceiver(data_dir, hooks.upload_roots, self._background.submit, self._answer_chunk)
        self._validating: set[LeaseKey] = set()  # leases whose result the background thread validates
        self._download_roots = {**hooks.upload_roots, **hooks.download_roots}
        self._inbox: queue.SimpleQueue[Event | Weights | Continuation] = queue.SimpleQueue()
        # Of the results in the batch: (worker, task, attempt) → output in the stage's type, raw frames.
        self._results: dict[tuple[str, str, int], tuple[Any, tuple[bytes, ...]]] = {}
        self.counters = {"messages": 0, "bad": 0, "bad_arrays": 0, "undelivered": 0, "commits": 0, "rewrites": 0}
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._began = time.monotonic()
        self._router = AuthenticatedRouter(bind, keys)
        self.endpoint = self._router.endpoint
        scheduler.owner_of = self._router.owner_of
        # Actions that the stage carries out, in order; their records are in the journal.
        self._stage_actions: deque[TaskDone | TaskQuarantined | TaskProgress | TaskFailed] = deque()
        self._stopped = False
        self._revoked: list[str] = []  # shut down, to be disconnected at the next tick

    # -- from any thread, and from signal handlers -------------------------------------------------------------------

    def post(self, event: Event | Weights | Continuation) -> None:
        """Have the loop decide an event, or one that a call returns, or send weights to all that want them before later events."""
        self._inbox.put(event)
        with contextlib.suppress(OSError):  # full: the loop wakes anyway; closed: the run has ended
            self._wake_write.send(b"\0")

    def add_tasks(self, tasks: Iterable[TaskSpec], *, whole: bool = False) -> None:
        """Open tasks. `whole`: these are all; cancel open tasks of an earlier run that are not listed."""
        self.post(AddTasks(tuple(tasks), whole))

    def drain(self) -> None:
        """End the run when the running leases have ended."""
        self.post(Drain("drain", "stopped; start again to resume"))

    def stop_now(self) -> None:
        """End the run at once; running leases are void."""
        self.post(Abort())

    def lost(self, pid: int, reason: str = "died") -> None:
        """Report that a worker process of this host is dead, without waiting for its heartbeats to time out."""
        for name, worker in list(self._scheduler.workers.items()):
            if worker.registration.pid == pid and worker.shares_filesystem:
                self.post(WorkerLost(name, reason))

    # -- the loop -----------------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Serve until the run has an outcome, and return it. Tasks that were added before join those of the journal."""
        poller = zmq.Poller()
        poller.register(self._router.socket, zmq.POLLIN)
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
                    self._uploads.end_leases(self._held_leases())
                    self._hooks.on_tick()
                if (outcome := self._finished(events)) is not None:
                    return outcome
                if not self._stage_actions and all(isinstance(event, Confirmed) for event in events):
                    until_tick = max(0, round((next_tick - time.monotonic()) * 1e3))
                    poller.poll(min(until_tick, CONFIRM_MS) if events else until_tick)
        except StorageError as error:  # of the journal or a hook: the next start hands out uncommitted results again
            return Outcome("storage", str(error))
        finally:
            self._close()

    def _finished(self, events: list[Event]) -> Outcome | None:
        """Return the outcome of a run that has ended. One that was stopped ends at once: the next start repeats what is left."""
        outcome = self._scheduler.outcome()
        if outcome is not None and outcome.status == "stopped":
            self._stopped = True
            return outcome
        if events or self._stage_actions or not self._inbox.empty() or outcome is None or self._hooks.has_more_work():
            return None
        return outcome

    def _step(self, events: list[Event]) -> list[Event]:
        """Decide a batch, commit its records, carry out its actions. Return the events that follow from these."""
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
        self._act_for_stage(following)
        return following

    def _act(self, decision: Decision, following: list[Event]) -> None:
        """Send the messages of a decision; queue what the stage has to do."""
        for action in decision.actions:
            if not isinstance(action, Send):
                self._stage_actions.append(action)
            elif not self._send(action.worker.encode(), action.message) and isinstance(action.message, Lease):
                following.append(Undelivered(action.worker, action.message.task, action.message.attempt))

    def _act_for_stage(self, following: list[Event]) -> None:
        """Have the stage carry out its actions, for `BATCH_S`: each result may sync files, and a worker can send a thousand at once."""
        until = time.monotonic() + BATCH_S
        while self._stage_actions and time.monotonic() < until:
            action = self._stage_actions.popleft()
            if isinstance(action, TaskDone):
                received = self._results.pop((action.worker, action.task.id, action.attempt), None)
                # None: handed out again, from the journal.
                output, frames = received or (convert_output(action.output, action.task, self._hooks), ())
                done = msgspec.structs.replace(action, output=output, arrays=frames)
                if opened := tuple(self._hooks.on_task_done(done) or ()):
                    following.append(AddTasks(opened))
                following.append(Confirmed(action.task.id, action.attempt))
            elif isinstance(action, TaskQuarantined):
                self._hooks.on_quarantined(action)
            else:
                self._hooks.on_lease_event(action)
        if not self._stage_actions:
            self._results.clear()  # of results that were stale

    def _revocations(self) -> list[Event]:
        """Shut down workers whose key was revoked; disconnect them at the next tick."""
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
                elif not callable(posted):
                    events.append(posted)
                elif (event := posted()) is not None:
                    events.append(event)
        return events

    def _publish(self, weights: Weights) -> None:
        for name, worker in self._scheduler.workers.items():
            if worker.registration.wants_weights:
                self._send(name.encode(), weights)

    def _received(self) -> list[Event]:
        """Return the events of waiting messages; answer messages that need no decision.

        A batch ends after `MAX_BATCH` messages or `BATCH_S`, and when an event was posted, which a signal does.
        """
        events: list[Event] = []
        until = time.monotonic() + BATCH_S
        for _ in range(MAX_BATCH):
            if time.monotonic() >= until or not self._inbox.empty():
                break
            try:
                identity, sender, frames = self._router.receive()
            except zmq.Again:
                break
            self.counters["messages"] += 1
            try:
                event = self._to_event(identity, sender, frames)
            except (BadMessage, UnicodeDecodeError) as error:
                self.counters["bad"] += 1
                if self.counters["bad"] <= MAX_LOGGED:
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
            self._send(identity, Status(msgspec.to_builtins(self.status())))
            return None
        if message.worker.encode() != identity:
            raise BadMessage(f"the sender claims to be {message.worker!r}")
        if not isinstance(message, Result) and len(frames) != 1 + isinstance(message, FileChunk):
            raise BadMessage(f"{type(message).__name__} with {len(frames)} frames")
        if isinstance(message, FileChunk):
            return self._take_chunk(message, frames[1])
        if isinstance(message, FileRequest):
            self._send_file_part(message)
        elif isinstance(message, PermitRequest):
            budget = self._budgets.get(message.bucket)
            delays = budget.grant(time.monotonic(), message.count) if budget is not None else ()
            self._send(identity, PermitGrant(message.bucket, delays))
        elif isinstance(message, ThrottleReport):
            self._throttled(message)
        elif isinstance(message, WeightsRequest):
            self._send(identity, self._hooks.get_weights(message.sha256) or Weights(0, message.sha256, b""))
        else:
            return self._validated(message, tuple(frames[1:])) if isinstance(message, Result) else message
        return None

    def _validated(self, result: Result, frames: tuple[bytes, ...]) -> Result | Failure | None:
        """Return the result, or the failure that it amounts to; None: a thread reads its files first.

        The scheduler drops a result whose sender does not hold the lease.
        """
        if not self._holds(result):
            return result
        spec, lease = self._scheduler.tasks[result.task].spec, lease_of(result)
        validate = partial(validate_result, result, frames, spec, self._hooks, self._data_dir)
        if not self._hooks.lease_files(spec).max_files:
            return self._on_validated(result, frames, validate)
        if lease not in self._validating:
            self._validating.add(lease)
            self._background.submit(validate, partial(self._on_validated, result, frames))
        return None

    def _on_validated(self, result: Result, frames: tuple[bytes, ...], outcome: Callable[[], Any]) -> Result | Failure:
        self._validating.discard(lease_of(result))
        output = outcome()
        if isinstance(output, Failure):
            self.counters["bad_arrays"] += output.error == FailureKind.BAD_ARRAYS
            return output
        self._results[result.worker, result.task, result.attempt] = output, frames
        return result

    def _held_leases(self) -> set[tuple[str, str, int]]:
        workers = self._scheduler.workers.items()
        return {(name, task, lease.attempt) for name, worker in workers for task, lease in worker.held.items()}

    def _holds(self, message: FileChunk | FileRequest | Result) -> bool:
        """Return whether the sender holds the lease that its message names."""
        worker = self._scheduler.workers.get(message.worker)
        lease = worker.held.get(message.task) if worker is not None else None
        return lease is not None and lease.attempt == message.attempt

    def _take_chunk(self, chunk: FileChunk, data: bytes) -> Event | None:
        if not self._holds(chunk) or len(data) > messages.MAX_CHUNK:
            self._send(chunk.worker.encode(), Ack(chunk.task, chunk.attempt, False, chunk.path))
            return None
        if lease_of(chunk) in self._validating:
            return None  # the files that its result names do not change any more
        allowed = self._hooks.lease_files(self._scheduler.tasks[chunk.task].spec)
        return self._answer_chunk(chunk, lambda: self._uploads.take(chunk, data, allowed))

    def _answer_chunk(self, chunk: FileChunk, take: Callable[[], int | None]) -> Event | None:
        """Acknowledge the bytes that `take` returns; None: it is answered later."""
        try:
            held = take()
        except RefusedPath as error:
            return Failure(chunk.worker, chunk.task, chunk.attempt, FailureKind.REFUSED_PATH, str(error))
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise StorageError(
                    f"cannot write {chunk.path} in {self._data_dir}: {error.strerror}. Repair the disk or its permissions, "
                    "then run the same command again to resume."
                ) from error
            message = (
                f"cannot write {chunk.path} on the coordinator's disk: {error.strerror}. Free space, then start again."
            )
            self.post(Drain("storage", message))
            return Failure(chunk.worker, chunk.task, chunk.attempt, FailureKind.STORAGE, message, blame=False)
        if held is not None:
            self._send(chunk.worker.encode(), Ack(chunk.task, chunk.attempt, True, chunk.path, held))
        return None

    def _send_file_part(self, request: FileRequest) -> None:
        """Send a part of a file that the lease lists."""
        if not self._holds(request):
            return  # the worker learns from its next heartbeat that the lease is not its own any more
        listed = self._scheduler.tasks[request.task].spec.job.get("files", ())
        part = FilePart(request.task, request.attempt, request.path, request.offset)
        self._send(request.worker.encode(), part, read_part(self._data_dir, self._download_roots, request, listed))

    def _throttled(self, report: ThrottleReport) -> None:
        budget = self._budgets.get(report.bucket)
        if budget is None:
            return
        budget.throttled(time.monotonic(), report.retry_after)
        for name in self._scheduler.workers:
            self._send(name.encode(), PermitsRevoked(report.bucket))

    def _send(self, identity: bytes, message: messages.Message, *data: bytes) -> bool:
        """Send a message; return whether it was delivered. Undelivered ones are counted: their peer sends again, or counts as silent."""
        delivered = self._router.send(identity, message, *data)
        self.counters["undelivered"] += not delivered
        return delivered

    def _shutdown_workers(self) -> None:
        """Shut down the workers and read until they have left: a socket closed on unread messages would lose the Shutdown."""
        for name in self._scheduler.workers:
            self._send(name.encode(), Shutdown(drain=False, reason="the run has ended"))
        until = time.monotonic() + (STOP_S if self._stopped else SHUTDOWN_S)
        while self._scheduler.workers and time.monotonic() < until:
            self._router.socket.poll(50)
            for event in self._received():
                if isinstance(event, Deregister):
                    self._scheduler.decide(event, time.monotonic())

    def _close(self) -> None:
        self._background.stop()
        self._shutdown_workers()
        self._uploads.end_leases(())
        self._router.close(STOP_S if self._stopped else CLOSE_S)
        self._wake_write.close()
        self._wake_read.close()

    def status(self) -> RunStatus:
        """Return the status of the run. The time is O(workers), and O(tasks) only while a task is quarantined."""
        now, scheduler, departed = time.monotonic(), self._scheduler, self._scheduler.totals_of_departed_workers
        return RunStatus(
            training=self._hooks.status_line() or msgspec.UNSET,
            progress=self._hooks.progress(),
            tasks=dict(scheduler.store.counts),
            uncommitted=scheduler.store.uncommitted,
            halt=scheduler.halt_reason,
            dropped_results=scheduler.dropped_results,
            departed_rows=departed["rows"],
            departed_requests=departed["requests"],
            workers=tuple(worker_status(name, worker, now) for name, worker in scheduler.workers.items()),
            waits=scheduler.waits.status(now),
            budgets={name: budget.status(now) for name, budget in self._budgets.items()},
            counters={**self.counters, "refused": self._router.refused},
            elapsed_s=now - self._began,
            quarantined=tuple((task.spec.id, task.error, task.message) for task in scheduler.quarantined()),
        )
