"""The scheduler: assign tasks to workers, detect lost workers by heartbeat, retry with back-off, quarantine failing tasks.

Deterministic, no I/O, no clock, no randomness (sans-I/O): (state, event, now) → (records, actions).

What must survive a crash is in the `TaskStore`, which only records change. Who is connected, who holds which lease and until when is
deliberately not stored: after a restart every lease is void, and its task is leased again under the next attempt number.

Cost: O(log n) in the number of tasks for each lease and result. Only `Restart` and a new plan scan all tasks; only a tick scans
all leases.

The file is longer than 450 lines because its handlers share the indexes of one state machine.
"""

import heapq
from collections import deque
from collections.abc import Callable, Iterable
from itertools import product
from typing import Any

from coordinator.scheduling.events import (
    Abort,
    AddTasks,
    CancelTasks,
    Confirmed,
    Decision,
    Drain,
    Event,
    ExcludeWorker,
    Outcome,
    Restart,
    Revoked,
    Send,
    TaskDone,
    TaskFailed,
    TaskProgress,
    TaskQuarantined,
    TerminateTasks,
    Tick,
    Undelivered,
    WorkerLost,
)
from coordinator.scheduling.records import (
    CANCELLED,
    Added,
    AnyRecord,
    Cancelled,
    Committed,
    Done,
    Failed,
    Leased,
    Released,
    Task,
)
from coordinator.scheduling.task_state import TaskStore
from coordinator.scheduling.waits import TaskWaits
from coordinator.scheduling.worker_state import LeaseState, LeaseTimings, WorkerState, retry_delay_s
from coordinator.wire import messages
from coordinator.wire.failures import FailureKind
from coordinator.wire.messages import (
    AbandonLease,
    Ack,
    Deregister,
    Failure,
    Heartbeat,
    HeartbeatAck,
    Lease,
    Progress,
    Register,
    RegisterAck,
    ReRegister,
    Result,
    Shutdown,
    TerminateLease,
)

# Failures that the coordinator found: an honest worker never sends what leads to them.
UNTRUE = (FailureKind.BAD_RESULT, FailureKind.FILES_MISSING, FailureKind.REFUSED_PATH)


class Scheduler:
    """Decide which worker runs which task. `docs/internals/protocol.md` draws the states of a task."""

    def __init__(self, filesystem_id: str = "", timings: LeaseTimings | None = None) -> None:
        self.filesystem_id = filesystem_id
        self.timings = timings or LeaseTimings()
        self.store = TaskStore()
        self.workers: dict[str, WorkerState] = {}
        self.waits = TaskWaits()  # of tasks for the source
        self.dropped_results = 0  # stale and duplicate ones
        self.engine_loss = ""  # what a worker's `--engine` reported last; each loss has a text of its own
        self.totals_of_departed_workers = {"rows": 0, "requests": 0}
        self._ready: dict[
            tuple[str, bool, str], list[tuple[int, str]]
        ] = {}  # (kind, shared fs, worker) → heap by order
        self._delayed: list[tuple[float, int, str]] = []  # heap by time
        self._not_before: dict[str, float] = {}
        self._queued: set[str] = set()
        self._idle_workers: deque[str] = deque()  # workers with a free slot; round robin
        self._last_tick: float | None = None
        self._drain: Drain | None = None
        self._aborted = False
        self._excluded: dict[str, str] = {}  # worker → reason
        self.owner_of: Callable[[str], str] = lambda worker: ""  # name of a worker's key; the same for all without keys
        self.resident_owner = ""  # key of the workers that the coordinator itself starts: they come, if not yet there
        self._failed_by: dict[str, set[str]] = {}  # task → owners whose workers failed it since it was opened
        self._suspensions: dict[str, tuple[int, float]] = {}  # owner → how often it was suspended, until when

    @property
    def tasks(self) -> dict[str, Task]:
        """Tasks by id."""
        return self.store.tasks

    @property
    def halt_reason(self) -> str:
        """Why no more leases are issued: "stopped", or the reason of the `Drain`; "" while leases are issued."""
        return "stopped" if self._aborted else self._drain.reason if self._drain is not None else ""

    @property
    def is_draining(self) -> bool:
        """Whether no more leases are issued."""
        return bool(self.halt_reason)

    def apply(self, record: AnyRecord) -> None:
        """Apply a record of the journal. After a replay of all, decide `Restart`."""
        self.store.apply(record)

    def outcome(self) -> Outcome | None:
        """Return how the run ended, or None while tasks are open. Ask after the actions of all events were carried out."""
        counts = self.store.counts
        if self._aborted:
            return Outcome("stopped", "stopped; start again to resume")
        if counts["leased"] or self.store.uncommitted:
            return None
        if self._drain is not None and self._drain.reason != "drain":  # even if a stage cancelled all open tasks
            return Outcome(self._drain.reason, self._drain.message)
        if not counts["pending"] and not counts["quarantined"] and not counts["blocked"]:
            return Outcome("done")
        if self._drain is not None:
            return Outcome(self._drain.reason, self._drain.message)
        if counts["pending"]:
            return None
        return Outcome(
            "incomplete", f"tasks quarantined: {counts['quarantined']}, blocked by them: {counts['blocked']}"
        )

    def quarantined(self) -> Iterable[Task]:
        """Return the quarantined tasks, each with its last error."""
        if not self.store.counts["quarantined"]:
            return ()
        return (task for task in self.tasks.values() if task.state == "quarantined")

    # -- decisions ----------------------------------------------------------------------------------------------------

    def decide(self, event: Event, now: float) -> Decision:
        """Decide an event at `now`, in seconds of any monotonic clock."""
        decision = Decision([], [])
        _HANDLERS[type(event)](self, event, now, decision)
        for task in self.store.newly_ready:
            self._enqueue(task, now)
        self.store.newly_ready.clear()
        if self._idle_workers and self._queued and self._drain is None and not self._aborted:
            self._assign(now, decision)
        return decision

    def _record(self, record: AnyRecord, decision: Decision) -> None:
        spec = record.spec if isinstance(record, Added) else self.tasks[record.task].spec
        self.store.apply(record)
        if not isinstance(record, Leased | Failed):
            self.waits.ended(record.task)
        if not spec.ephemeral:
            decision.records.append(record)

    def _enqueue(self, task: Task, now: float) -> None:
        name = task.spec.id
        if name in self._queued or task.state != "pending" or task.pending_deps:
            return
        self._queued.add(name)
        at = self._not_before.pop(name, now)
        if at > now:
            heapq.heappush(self._delayed, (at, task.order, name))
        else:
            queue = (task.spec.kind, task.spec.requires_shared_fs, task.spec.worker)
            heapq.heappush(self._ready.setdefault(queue, []), (task.order, name))

    def _assign(self, now: float, decision: Decision) -> None:
        without: list[str] = []
        while self._idle_workers:
            name = self._idle_workers.popleft()
            worker = self.workers.get(name)
            if worker is None:
                continue
            capacity = worker.registration.capacity
            free = worker.reachable and now >= worker.no_leases_until and len(worker.held) < capacity
            task = self._next_for(name, worker) if free else None
            if task is None:
                without.append(name)
                continue
            attempt = task.attempt + 1
            self._record(Leased(task.spec.id, attempt, name), decision)
            worker.held[task.spec.id] = LeaseState(attempt, now + self.timings.lease_s, now)
            lease = Lease(task.spec.id, attempt, task.spec.kind, task.spec.job, self.timings.lease_s)
            decision.actions.append(Send(name, lease))
            if len(worker.held) < capacity:
                self._idle_workers.append(name)
            else:
                worker.is_queued = False
        self._idle_workers.extend(without)

    def _next_for(self, worker_name: str, worker: WorkerState) -> Task | None:
        best: list[tuple[int, str]] | None = None
        shared = (False, True) if worker.shares_filesystem else (False,)
        for key in product(worker.registration.kinds, shared, ("", worker_name)):
            queue = self._ready.get(key)
            while queue and not self._runnable(queue[0][1]):
                self._queued.discard(heapq.heappop(queue)[1])
            if queue and (best is None or queue[0] < best[0]):
                best = queue
        if best is None:
            return None
        name = heapq.heappop(best)[1]
        self._queued.discard(name)
        return self.tasks[name]

    def _runnable(self, name: str) -> bool:
        task = self.tasks.get(name)
        return task is not None and task.state == "pending" and not task.pending_deps

    def _mark_idle(self, name: str, worker: WorkerState) -> None:
        if not worker.is_queued and worker.reachable and len(worker.held) < worker.registration.capacity:
            worker.is_queued = True
            self._idle_workers.append(name)

    def _touch_worker(self, name: str, now: float, decision: Decision) -> WorkerState | None:
        """Return the sender of a message, marked as seen now; ask an unknown one to register again."""
        worker = self.workers.get(name)
        if worker is None:
            decision.actions.append(Send(name, ReRegister()))
            return None
        worker.last_seen = now
        if not worker.reachable:
            worker.reachable = True
            self._mark_idle(name, worker)
        return worker

    def _remove_worker(self, name: str) -> dict[str, LeaseState]:
        """Forget a worker and return its leases; nothing for an unknown one."""
        worker = self.workers.pop(name, None)
        if worker is None:
            return {}
        if worker.is_queued:
            self._idle_workers.remove(name)
        self.totals_of_departed_workers["rows"] += worker.rows
        self.totals_of_departed_workers["requests"] += worker.requests
        return worker.held

    def _release_leases(self, held: dict[str, LeaseState], reason: str, decision: Decision) -> None:
        for task, lease in held.items():
            self._release(task, lease.attempt, reason, decision)

    def _release(self, name: str, attempt: int, reason: str, decision: Decision) -> None:
        self._record(Released(name, attempt, reason), decision)
        if self.tasks[name].spec.no_retry:
            decision.actions.append(TaskFailed(name, FailureKind.RELEASED, reason))

    def _fail(self, task: Task, failure: Failure, now: float, decision: Decision) -> bool:
        """Record a failure and decide what follows; return whether it may end more than its own attempt.

        A worker can lie. While workers of other keys could still run the task, one key's failures count once and end nothing.
        """
        name, error, message = task.spec.id, failure.error, failure.message
        owner = self.owner_of(failure.worker)
        failed_by = self._failed_by.setdefault(name, set())
        again = owner in failed_by
        failed_by.add(owner)
        conclusive = not self._others_can_run(task, failed_by)
        blame = failure.blame and (conclusive or not again)
        failures = task.failures + blame
        final = failure.final and conclusive
        quarantined = not task.spec.no_retry and (final or (conclusive and failures >= self.timings.max_failures))
        self._record(Failed(name, task.attempt, error, message, blame, quarantined), decision)
        if not conclusive and (failure.final or error in UNTRUE):
            self._suspend(owner, now)
        if task.spec.no_retry or quarantined:
            del self._failed_by[name]
            self.waits.ended(name)
        if task.spec.no_retry:
            decision.actions.append(TaskFailed(name, error, message))
        elif quarantined:
            decision.actions.append(TaskQuarantined(task.spec, error, message))
        else:
            doublings = failures if conclusive else max(failures, task.attempt)
            self._not_before[name] = now + retry_delay_s(name, task.attempt, doublings, self.timings)
            self.waits.failed(name, task.attempt, self._not_before[name])
        return conclusive

    def _others_can_run(self, task: Task, owners: set[str]) -> bool:
        """Return whether a worker of none of these owners can take the task."""
        spec = task.spec
        if self.resident_owner and self.resident_owner not in owners and not spec.worker:
            return True
        return any(
            spec.kind in worker.registration.kinds
            and (worker.shares_filesystem or not spec.requires_shared_fs)
            and spec.worker in ("", name)
            and self.owner_of(name) not in owners
            for name, worker in self.workers.items()
        )

    def _suspend(self, owner: str, now: float) -> None:
        """Lease nothing to an owner's workers for a while, twice as long each time: others take its tasks meanwhile."""
        times, _ = self._suspensions.get(owner, (0, now))
        until = now + min(self.timings.suspend_s * 2**times, self.timings.suspend_max_s)
        self._suspensions[owner] = times + 1, until
        for name, worker in self.workers.items():
            if self.owner_of(name) == owner:
                worker.no_leases_until = max(worker.no_leases_until, until)

    # -- messages of workers ------------------------------------------------------------------------------------------

    def _on_register(self, event: Register, now: float, decision: Decision) -> None:
        refusal = self._excluded.get(event.worker)
        if event.protocol != messages.VERSION:
            refusal = (
                f"the worker speaks protocol {event.protocol}, the coordinator {messages.VERSION}: "
                "install the same version on both"
            )
        if refusal is not None:
            decision.actions.append(Send(event.worker, Shutdown(drain=False, reason=refusal)))
            return
        # A worker that registers holds no lease.
        self._release_leases(self._remove_worker(event.worker), "registered again", decision)
        shares = event.filesystem_id == self.filesystem_id
        worker = self.workers[event.worker] = WorkerState(event, shares, now, {}, now)
        worker.no_leases_until = self._suspensions.get(self.owner_of(event.worker), (0, 0.0))[1]
        ack = RegisterAck(self.timings.heartbeat_s, self.timings.silence_s, shares)
        decision.actions.append(Send(event.worker, ack))
        self._mark_idle(event.worker, worker)

    def _on_heartbeat(self, event: Heartbeat, now: float, decision: Decision) -> None:
        worker = self._touch_worker(event.worker, now, decision)
        if worker is None:
            return
        worker.rows, worker.requests, worker.rss = event.rows, event.requests, event.rss
        for lease in worker.held.values():
            lease.executing = False
        waiting = {(wait.task, wait.attempt): wait for wait in event.waiting}
        for name, attempt in event.executing:
            held = worker.held.get(name)
            if held is None or held.attempt != attempt:
                decision.actions.append(Send(event.worker, AbandonLease(name, attempt)))
            else:
                held.executing = True
                held.deadline = now + self.timings.lease_s
                self.waits.heard(name, attempt, held.leased, waiting.get((name, attempt)), now)
        worker.executing = tuple(name for name, _ in event.executing)
        if self.is_draining:
            self._end_waits(event.worker, worker, decision)
        decision.actions.append(Send(event.worker, HeartbeatAck()))

    def _end_waits(self, name: str, worker: WorkerState, decision: Decision) -> None:
        """Release the leases of a draining run that wait for the source: nobody knows for how long."""
        for task in [task for task in worker.held if task in self.waits]:
            attempt = worker.held.pop(task).attempt
            self._release(task, attempt, "waiting when the run was drained", decision)
            decision.actions.append(Send(name, AbandonLease(task, attempt)))
            self._mark_idle(name, worker)

    def _on_progress(self, event: Progress, now: float, decision: Decision) -> None:
        worker = self._touch_worker(event.worker, now, decision)
        held = worker.held.get(event.task) if worker is not None else None
        if held is not None and held.attempt == event.attempt:
            decision.actions.append(
                TaskProgress(
                    event.task, event.step, event.phase, event.heartbeat_count, event.checkpoint_step, event.is_stopped
                )
            )

    def _end_lease(self, event: Result | Failure, now: float, decision: Decision) -> Task | None:
        """Acknowledge a result or failure and return its task; None if the message is stale or a duplicate."""
        worker = self._touch_worker(event.worker, now, decision)
        held = worker.held.get(event.task) if worker is not None else None
        accepted = held is not None and held.attempt == event.attempt
        decision.actions.append(Send(event.worker, Ack(event.task, event.attempt, accepted)))
        if worker is None or not accepted:
            self.dropped_results += 1
            return None
        del worker.held[event.task]
        self._mark_idle(event.worker, worker)
        return self.tasks[event.task]

    def _on_result(self, event: Result, now: float, decision: Decision) -> None:
        task = self._end_lease(event, now, decision)
        if task is not None:
            self._failed_by.pop(event.task, None)
            self.workers[event.worker].done += 1
            self._record(Done(event.task, event.attempt, event.worker, event.seconds, event.output), decision)
            decision.actions.append(TaskDone(task.spec, event.attempt, event.worker, event.seconds, event.output))

    def _on_failure(self, event: Failure, now: float, decision: Decision) -> None:
        task = self._end_lease(event, now, decision)
        if task is None:
            return
        conclusive = self._fail(task, event, now, decision)
        if event.error == FailureKind.ENGINE_LOST and not event.final:
            self.engine_loss = event.message
        if event.error == FailureKind.AUTHENTICATION and conclusive:
            self._on_drain(Drain("authentication", event.message), now, decision)
        elif event.error == FailureKind.STORAGE and not event.blame:
            if (worker := self.workers[event.worker]).shares_filesystem:
                self._on_drain(Drain("storage", event.message), now, decision)
            else:  # its own disk: others have room
                worker.no_leases_until = max(worker.no_leases_until, now + self.timings.full_disk_s)

    def _on_deregister(self, event: Deregister, now: float, decision: Decision) -> None:
        self._release_leases(self._remove_worker(event.worker), "deregistered", decision)

    # -- events of the stage and the server ---------------------------------------------------------------------------

    def _on_restart(self, event: Restart, now: float, decision: Decision) -> None:
        for name, task in self.tasks.items():
            if task.state == "leased":
                self._release(name, task.attempt, "restart", decision)
            elif task.state == "done" and not task.confirmed:
                decision.actions.append(TaskDone(task.spec, task.attempt, task.worker, task.seconds, task.output or {}))
        self.store.newly_ready[:] = self.tasks.values()

    def _on_add(self, event: AddTasks, now: float, decision: Decision) -> None:
        for spec in event.tasks:
            task = self.tasks.get(spec.id)
            ended = task is not None and (
                task.state in ("quarantined", CANCELLED) or (task.state == "done" and task.confirmed)
            )
            changed = task is not None and task.state in ("pending", "blocked") and task.spec != spec
            if task is None or ended or changed:
                self._record(Added(spec.id, spec), decision)
        if event.whole:
            listed = {spec.id for spec in event.tasks}
            for name, task in self.tasks.items():
                if task.state in ("pending", "blocked", "quarantined") and not (task.spec.ephemeral or name in listed):
                    self._record(Cancelled(name), decision)

    def _on_terminate(self, event: TerminateTasks, now: float, decision: Decision) -> None:
        for name in event.tasks:
            task = self.tasks[name]
            if task.state == "leased":
                decision.actions.append(Send(task.worker, TerminateLease(name, task.attempt, event.grace_s)))
            elif task.state in ("pending", "blocked"):
                self._record(Cancelled(name), decision)
                decision.actions.append(TaskFailed(name, FailureKind.RELEASED, "cancelled"))

    def _on_cancel(self, event: CancelTasks, now: float, decision: Decision) -> None:
        for name in event.tasks:
            task = self.tasks.get(name)
            if task is None or not task.spec.ephemeral or task.state == "done":
                continue
            worker = self.workers.get(task.worker) if task.state == "leased" else None
            if worker is not None and worker.held.pop(name, None) is not None:
                decision.actions.append(Send(task.worker, AbandonLease(name, task.attempt)))
                self._mark_idle(task.worker, worker)
            self._not_before.pop(name, None)
            self._failed_by.pop(name, None)
            self._record(Cancelled(name), decision)

    def _on_exclude(self, event: ExcludeWorker, now: float, decision: Decision) -> None:
        self._excluded[event.worker] = event.reason
        self._release_leases(self._remove_worker(event.worker), "excluded", decision)
        decision.actions.append(Send(event.worker, Shutdown(drain=False, reason=event.reason)))

    def _on_confirmed(self, event: Confirmed, now: float, decision: Decision) -> None:
        task = self.tasks[event.task]
        if task.state == "done" and task.attempt == event.attempt and not task.confirmed:
            self._record(Committed(event.task), decision)

    def _on_worker_lost(self, event: WorkerLost, now: float, decision: Decision) -> None:
        for name, lease in self._remove_worker(event.worker).items():
            if lease.executing:
                message = f"{event.worker} {event.reason} while executing {name} (attempt {lease.attempt})"
                failure = Failure(event.worker, name, lease.attempt, FailureKind.WORKER_LOST, message)
                self._fail(self.tasks[name], failure, now, decision)
            else:
                self._release(name, lease.attempt, "worker lost", decision)

    def _on_revoked(self, event: Revoked, now: float, decision: Decision) -> None:
        if event.worker in self.workers:
            self._release_leases(self._remove_worker(event.worker), "revoked", decision)
            decision.actions.append(Send(event.worker, Shutdown(drain=False, reason="its key was revoked")))

    def _on_undelivered(self, event: Undelivered, now: float, decision: Decision) -> None:
        worker = self.workers.get(event.worker)
        held = worker.held.get(event.task) if worker is not None else None
        if worker is not None and held is not None and held.attempt == event.attempt:
            worker.reachable = False  # until its next message
            del worker.held[event.task]
            self._release(event.task, event.attempt, "undelivered", decision)

    def _on_tick(self, event: Tick, now: float, decision: Decision) -> None:
        away = 0.0 if self._last_tick is None else now - self._last_tick
        self._last_tick = now
        if away > self.timings.silence_s / 2:  # the coordinator was suspended, not the workers: they get the time back
            for worker in self.workers.values():
                worker.last_seen += away
                for lease in worker.held.values():
                    lease.deadline += away
        silent = [name for name, worker in self.workers.items() if now - worker.last_seen > self.timings.silence_s]
        for name in silent:
            reason = f"sent nothing for {self.timings.silence_s:g} s"
            self._on_worker_lost(WorkerLost(name, reason), now, decision)
        for name, worker in self.workers.items():
            self._expire(name, worker, now, decision)
        while self._delayed and self._delayed[0][0] <= now:
            name = heapq.heappop(self._delayed)[2]
            self._queued.discard(name)
            if name in self.tasks:
                self._enqueue(self.tasks[name], now)

    def _expire(self, name: str, worker: WorkerState, now: float, decision: Decision) -> None:
        """Release leases that no heartbeat has listed for `lease_s`: the worker does not execute them."""
        for task, attempt in [(task, lease.attempt) for task, lease in worker.held.items() if lease.deadline <= now]:
            del worker.held[task]
            self._release(task, attempt, "expired", decision)
            decision.actions.append(Send(name, AbandonLease(task, attempt)))
            self._mark_idle(name, worker)

    def _on_drain(self, event: Drain, now: float, decision: Decision) -> None:
        self._drain = self._drain if self._drain is not None and self._drain.reason != "drain" else event
        for name, worker in self.workers.items():
            self._end_waits(name, worker, decision)

    def _on_abort(self, event: Abort, now: float, decision: Decision) -> None:
        self._aborted = True
        for worker in self.workers.values():
            self._release_leases(worker.held, "stopped", decision)
            worker.held = {}


_HANDLERS: dict[type, Any] = {
    Register: Scheduler._on_register,
    Heartbeat: Scheduler._on_heartbeat,
    Progress: Scheduler._on_progress,
    Result: Scheduler._on_result,
    Failure: Scheduler._on_failure,
    Deregister: Scheduler._on_deregister,
    Restart: Scheduler._on_restart,
    AddTasks: Scheduler._on_add,
    TerminateTasks: Scheduler._on_terminate,
    CancelTasks: Scheduler._on_cancel,
    ExcludeWorker: Scheduler._on_exclude,
    Confirmed: Scheduler._on_confirmed,
    WorkerLost: Scheduler._on_worker_lost,
    Revoked: Scheduler._on_revoked,
    Undelivered: Scheduler._on_undelivered,
    Tick: Scheduler._on_tick,
    Drain: Scheduler._on_drain,
    Abort: Scheduler._on_abort,
}
