"""The scheduler: a pure state machine, (state, event, now) → (records, actions). No I/O, no clock, no randomness.

What must survive a crash is in the ledger, and only records change it. Who is connected, who holds what and until when is forgotten on purpose: after a restart every lease that was
out is void, and its task is leased again under the next attempt number.

Cost: O(log n) in the number of tasks for each lease and result; nothing scans all tasks but `Restart` and a new plan, and all
that is leased only a tick.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable
from itertools import product
from typing import Any

from coordinator.scheduling.events import (
    AddTasks,
    Confirmed,
    Decision,
    EndTasks,
    Event,
    Halt,
    Outcome,
    PutOut,
    Restart,
    Revoked,
    Send,
    StopNow,
    TaskDone,
    TaskGone,
    TaskProgress,
    TaskQuarantined,
    Tick,
    Undelivered,
    Withdraw,
    WorkerLost,
)
from coordinator.scheduling.task_state import (
    Added,
    AnyRecord,
    Committed,
    Done,
    Dropped,
    Failed,
    Leased,
    Ledger,
    Returned,
    Task,
    TaskSpec,
)
from coordinator.scheduling.worker_state import LeaseState, Limits, WorkerState, backoff
from coordinator.wire import messages
from coordinator.wire.failures import FailureKind
from coordinator.wire.messages import (
    Ack,
    Cancel,
    End,
    Failure,
    Goodbye,
    Heartbeat,
    HeartbeatAck,
    Hello,
    Lease,
    Progress,
    RegisterAgain,
    Result,
    Stop,
    Welcome,
)

__all__ = ["Limits", "Scheduler", "TaskSpec"]


class Scheduler:
    """Which worker does what. See the module's docstring; `docs/internals/protocol.md` draws the states."""

    def __init__(self, data_id: str = "", limits: Limits | None = None) -> None:
        self.data_id = data_id
        self.limits = limits or Limits()
        self.ledger = Ledger()
        self.workers: dict[str, WorkerState] = {}
        self.dropped_results = 0  # stale and duplicate ones
        self.departed = {"rows": 0, "requests": 0}  # counted by workers that have left
        self._ready: dict[tuple[str, bool, str], list[tuple[int, str]]] = {}  # (kind, local, worker) → heap by order
        self._delayed: list[tuple[float, int, str]] = []  # heap by time
        self._not_before: dict[str, float] = {}
        self._queued: set[str] = set()
        self._line: deque[str] = deque()  # workers with a free slot; round robin
        self._last_tick: float | None = None
        self._halt: Halt | None = None
        self._stopped = False
        self._put_out: dict[str, str] = {}  # worker → why it may not come back

    @property
    def tasks(self) -> dict[str, Task]:
        """Journaled tasks by id."""
        return self.ledger.tasks

    @property
    def halted(self) -> bool:
        """No more leases are issued."""
        return self._halt is not None or self._stopped

    def apply(self, record: AnyRecord) -> None:
        """The only thing that changes a `Task`: `Ledger.apply`. Replay the journal with it, then decide `Restart`."""
        self.ledger.apply(record)

    # -- decisions ----------------------------------------------------------------------------------------------------

    def decide(self, event: Event, now: float) -> Decision:
        """One event → what to journal, then what to do. `now`: seconds of any clock that never goes back."""
        decision = Decision([], [])
        _HANDLERS[type(event)](self, event, now, decision)
        for task in self.ledger.ripe:
            self._enqueue(task, now)
        self.ledger.ripe.clear()
        if self._line and self._queued and self._halt is None and not self._stopped:
            self._assign(now, decision)
        return decision

    def outcome(self) -> Outcome | None:
        """None while there is something to do. Ask after the actions of all events were carried out."""
        if self._stopped:
            return Outcome("stopped", "stopped; start again to resume")
        if self.ledger.counts["leased"] or self.ledger.uncommitted:
            return None
        if self._halt is not None and self._halt.reason != "drain":  # even if a stage withdrew all that was open
            return Outcome(self._halt.reason, self._halt.message)
        if (
            not self.ledger.counts["pending"]
            and not self.ledger.counts["quarantined"]
            and not self.ledger.counts["blocked"]
        ):
            return Outcome("done")
        if self._halt is not None:
            return Outcome(self._halt.reason, self._halt.message)
        if self.ledger.counts["pending"]:
            return None
        return Outcome(
            "incomplete",
            f"{self.ledger.counts['quarantined']} tasks quarantined, {self.ledger.counts['blocked']} blocked by them",
        )

    def _record(self, record: AnyRecord, decision: Decision) -> None:
        spec = record.spec if isinstance(record, Added) else self.tasks[record.task].spec
        self.ledger.apply(record)
        if not spec.fleeting:
            decision.records.append(record)

    def _enqueue(self, task: Task, now: float) -> None:
        name = task.spec.id
        if name in self._queued or task.state != "pending" or task.unmet:
            return
        self._queued.add(name)
        at = self._not_before.pop(name, now)
        if at > now:
            heapq.heappush(self._delayed, (at, task.order, name))
        else:
            queue = (task.spec.kind, task.spec.local, task.spec.worker)
            heapq.heappush(self._ready.setdefault(queue, []), (task.order, name))

    def _assign(self, now: float, decision: Decision) -> None:
        without: list[str] = []
        while self._line:
            name = self._line.popleft()
            worker = self.workers.get(name)
            if worker is None:
                continue
            free = worker.reachable and now >= worker.rests_until and len(worker.held) < worker.hello.capacity
            task = self._next_for(name, worker) if free else None
            if task is None:
                without.append(name)
                continue
            attempt = task.attempt + 1
            self._record(Leased(task.spec.id, attempt, name), decision)
            worker.held[task.spec.id] = LeaseState(attempt, now + self.limits.lease_s)
            lease = Lease(task.spec.id, attempt, task.spec.kind, task.spec.job, self.limits.lease_s)
            decision.actions.append(Send(name, lease))
            if len(worker.held) < worker.hello.capacity:
                self._line.append(name)
            else:
                worker.waiting = False
        self._line.extend(without)

    def _next_for(self, worker_name: str, worker: WorkerState) -> Task | None:
        best: list[tuple[int, str]] | None = None
        for key in product(worker.hello.kinds, (False, True) if worker.shares else (False,), ("", worker_name)):
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
        return task is not None and task.state == "pending" and not task.unmet

    def _line_up(self, name: str, worker: WorkerState) -> None:
        if not worker.waiting and worker.reachable and len(worker.held) < worker.hello.capacity:
            worker.waiting = True
            self._line.append(name)

    def _known(self, name: str, now: float, decision: Decision) -> WorkerState | None:
        """The worker that speaks, marked as heard; an unknown one is asked to register again."""
        worker = self.workers.get(name)
        if worker is None:
            decision.actions.append(Send(name, RegisterAgain()))
            return None
        worker.seen = now
        if not worker.reachable:
            worker.reachable = True
            self._line_up(name, worker)
        return worker

    def _forget(self, name: str) -> dict[str, LeaseState]:
        worker = self.workers.pop(name)
        if worker.waiting:
            self._line.remove(name)
        self.departed["rows"] += worker.rows
        self.departed["requests"] += worker.requests
        return worker.held

    def _give_back(self, held: dict[str, LeaseState], reason: str, decision: Decision) -> None:
        for task, lease in held.items():
            self._return(task, lease.attempt, reason, decision)

    def _return(self, name: str, attempt: int, reason: str, decision: Decision) -> None:
        self._record(Returned(name, attempt, reason), decision)
        if self.tasks[name].spec.once:
            decision.actions.append(TaskGone(name, FailureKind.RETURNED, reason))

    def _fail(
        self, task: Task, error: str, message: str, blamed: bool, final: bool, now: float, decision: Decision
    ) -> None:
        if task.spec.once:
            self._record(Failed(task.spec.id, task.attempt, error, message, blamed, quarantined=False), decision)
            decision.actions.append(TaskGone(task.spec.id, error, message))
            return
        failures = task.failures + blamed
        quarantined = final or failures >= self.limits.max_failures
        self._not_before[task.spec.id] = now + backoff(task.spec.id, task.attempt, failures, self.limits)
        self._record(Failed(task.spec.id, task.attempt, error, message, blamed, quarantined), decision)
        if quarantined:
            self._not_before.pop(task.spec.id, None)
            decision.actions.append(TaskQuarantined(task.spec, error, message))

    # -- handlers -----------------------------------------------------------------------------------------------------

    def _on_hello(self, event: Hello, now: float, decision: Decision) -> None:
        if event.protocol != messages.VERSION:
            reason = f"worker speaks protocol {event.protocol}, coordinator {messages.VERSION}: install the same version on both"
            decision.actions.append(Send(event.worker, Stop(drain=False, reason=reason)))
            return
        if event.worker in self._put_out:
            decision.actions.append(Send(event.worker, Stop(drain=False, reason=self._put_out[event.worker])))
            return
        if event.worker in self.workers:  # it starts afresh and holds nothing
            self._give_back(self._forget(event.worker), "hello", decision)
        shares = event.data_id == self.data_id
        worker = self.workers[event.worker] = WorkerState(event, shares, now, {})
        decision.actions.append(Send(event.worker, Welcome(self.limits.heartbeat_s, self.limits.silence_s, shares)))
        self._line_up(event.worker, worker)

    def _on_heartbeat(self, event: Heartbeat, now: float, decision: Decision) -> None:
        worker = self._known(event.worker, now, decision)
        if worker is None:
            return
        worker.rows, worker.requests, worker.rss = event.rows, event.requests, event.rss
        for lease in worker.held.values():
            lease.executing = False
        for name, attempt in event.executing:
            held = worker.held.get(name)
            if held is None or held.attempt != attempt:
                decision.actions.append(Send(event.worker, Cancel(name, attempt)))
            else:
                held.executing = True
                held.deadline = now + self.limits.lease_s
        worker.executing = tuple(name for name, _ in event.executing)
        decision.actions.append(Send(event.worker, HeartbeatAck()))

    def _on_progress(self, event: Progress, now: float, decision: Decision) -> None:
        worker = self._known(event.worker, now, decision)
        held = worker.held.get(event.task) if worker is not None else None
        if held is not None and held.attempt == event.attempt:
            decision.actions.append(
                TaskProgress(event.task, event.step, event.phase, event.beats, event.saved, event.stopped)
            )

    def _on_end(self, event: EndTasks, now: float, decision: Decision) -> None:
        for name in event.tasks:
            task = self.tasks[name]
            if task.state == "leased":
                decision.actions.append(Send(task.worker, End(name, task.attempt, event.grace_s)))
            elif task.state in ("pending", "blocked"):
                self._record(Dropped(name), decision)
                decision.actions.append(TaskGone(name, FailureKind.RETURNED, "withdrawn"))

    def _on_withdraw(self, event: Withdraw, now: float, decision: Decision) -> None:
        for name in event.tasks:
            task = self.tasks.get(name)
            if task is None or not task.spec.fleeting or task.state == "done":
                continue
            worker = self.workers.get(task.worker) if task.state == "leased" else None
            if worker is not None and worker.held.pop(name, None) is not None:
                decision.actions.append(Send(task.worker, Cancel(name, task.attempt)))
                self._line_up(task.worker, worker)
            self._not_before.pop(name, None)
            self._record(Dropped(name), decision)

    def _on_put_out(self, event: PutOut, now: float, decision: Decision) -> None:
        self._put_out[event.worker] = event.reason
        if event.worker in self.workers:
            self._give_back(self._forget(event.worker), "put out", decision)
        decision.actions.append(Send(event.worker, Stop(drain=False, reason=event.reason)))

    def _ended(self, event: Result | Failure, now: float, decision: Decision) -> Task | None:
        """The task whose live lease this answer ends; None, and a refusal, for a stale or duplicate one."""
        worker = self._known(event.worker, now, decision)
        held = worker.held.get(event.task) if worker is not None else None
        accepted = held is not None and held.attempt == event.attempt
        decision.actions.append(Send(event.worker, Ack(event.task, event.attempt, accepted)))
        if worker is None or not accepted:
            self.dropped_results += 1
            return None
        del worker.held[event.task]
        self._line_up(event.worker, worker)
        return self.tasks[event.task]

    def _on_result(self, event: Result, now: float, decision: Decision) -> None:
        task = self._ended(event, now, decision)
        if task is not None:
            self._record(Done(event.task, event.attempt, event.worker, event.seconds, event.proof), decision)
            decision.actions.append(TaskDone(task.spec, event.attempt, event.worker, event.seconds, event.proof))

    def _on_failure(self, event: Failure, now: float, decision: Decision) -> None:
        task = self._ended(event, now, decision)
        if task is None:
            return
        self._fail(task, event.error, event.message, event.blame, event.final, now, decision)
        if event.error == FailureKind.AUTHENTICATION:
            self._on_halt(Halt("authentication", event.message), now, decision)
        elif event.error == FailureKind.STORAGE and not event.blame:
            if (worker := self.workers[event.worker]).shares:
                self._on_halt(Halt("storage", event.message), now, decision)
            else:  # its own disk: others have room
                worker.rests_until = now + self.limits.full_disk_s

    def _on_goodbye(self, event: Goodbye, now: float, decision: Decision) -> None:
        if event.worker in self.workers:
            self._give_back(self._forget(event.worker), "goodbye", decision)

    def _on_restart(self, event: Restart, now: float, decision: Decision) -> None:
        for name, task in self.tasks.items():
            if task.state == "leased":
                self._return(name, task.attempt, "restart", decision)
            elif task.state == "done" and not task.confirmed:
                decision.actions.append(TaskDone(task.spec, task.attempt, task.worker, task.seconds, task.proof or {}))
        self.ledger.ripe[:] = self.tasks.values()

    def _on_add(self, event: AddTasks, now: float, decision: Decision) -> None:
        for spec in event.tasks:
            task = self.tasks.get(spec.id)
            ended = task is not None and (
                task.state in ("quarantined", "dropped") or (task.state == "done" and task.confirmed)
            )
            changed = task is not None and task.state in ("pending", "blocked") and task.spec != spec
            if task is None or ended or changed:
                self._record(Added(spec.id, spec), decision)
        if event.whole:
            listed = {spec.id for spec in event.tasks}
            for name, task in self.tasks.items():
                if task.state in ("pending", "blocked", "quarantined") and not (task.spec.fleeting or name in listed):
                    self._record(Dropped(name), decision)

    def _on_confirmed(self, event: Confirmed, now: float, decision: Decision) -> None:
        task = self.tasks[event.task]
        if task.state == "done" and task.attempt == event.attempt and not task.confirmed:
            self._record(Committed(event.task), decision)

    def _on_worker_lost(self, event: WorkerLost, now: float, decision: Decision) -> None:
        if event.worker not in self.workers:
            return
        for name, lease in self._forget(event.worker).items():
            if lease.executing:
                message = f"{event.worker} {event.reason} while executing {name} (attempt {lease.attempt})"
                self._fail(self.tasks[name], FailureKind.WORKER_LOST, message, True, False, now, decision)
            else:
                self._return(name, lease.attempt, "worker lost", decision)

    def _on_revoked(self, event: Revoked, now: float, decision: Decision) -> None:
        if event.worker in self.workers:
            self._give_back(self._forget(event.worker), "revoked", decision)
            decision.actions.append(Send(event.worker, Stop(drain=False, reason="its key was revoked")))

    def _on_undelivered(self, event: Undelivered, now: float, decision: Decision) -> None:
        worker = self.workers.get(event.worker)
        held = worker.held.get(event.task) if worker is not None else None
        if worker is not None and held is not None and held.attempt == event.attempt:
            worker.reachable = False  # until it is heard again
            del worker.held[event.task]
            self._return(event.task, event.attempt, "undelivered", decision)

    def _on_tick(self, event: Tick, now: float, decision: Decision) -> None:
        away = 0.0 if self._last_tick is None else now - self._last_tick
        self._last_tick = now
        if away > self.limits.silence_s / 2:  # the coordinator was suspended, not the workers: they get the time back
            for worker in self.workers.values():
                worker.seen += away
                for lease in worker.held.values():
                    lease.deadline += away
        for name in [name for name, worker in self.workers.items() if now - worker.seen > self.limits.silence_s]:
            reason = f"was not heard for {self.limits.silence_s:g} s"
            self._on_worker_lost(WorkerLost(name, reason), now, decision)
        for name, worker in self.workers.items():
            self._expire(name, worker, now, decision)
        while self._delayed and self._delayed[0][0] <= now:
            name = heapq.heappop(self._delayed)[2]
            self._queued.discard(name)
            if name in self.tasks:
                self._enqueue(self.tasks[name], now)

    def _expire(self, name: str, worker: WorkerState, now: float, decision: Decision) -> None:
        """Leases lapse that no heartbeat has listed for too long: nobody executes them."""
        for task, attempt in [(task, lease.attempt) for task, lease in worker.held.items() if lease.deadline <= now]:
            del worker.held[task]
            self._return(task, attempt, "expired", decision)
            decision.actions.append(Send(name, Cancel(task, attempt)))
            self._line_up(name, worker)

    def _on_halt(self, event: Halt, now: float, decision: Decision) -> None:
        self._halt = self._halt if self._halt is not None and self._halt.reason != "drain" else event

    def _on_stop(self, event: StopNow, now: float, decision: Decision) -> None:
        self._stopped = True
        for worker in self.workers.values():
            self._give_back(worker.held, "stopped", decision)
            worker.held = {}

    # -- a look from outside ------------------------------------------------------------------------------------------

    def snapshot(self, now: float) -> dict[str, Any]:
        """Plain data for status and progress. O(workers)."""
        return {
            "tasks": dict(self.ledger.counts),
            "uncommitted": self.ledger.uncommitted,
            "halt": "stopped" if self._stopped else self._halt.reason if self._halt is not None else "",
            "dropped_results": self.dropped_results,
            "departed_rows": self.departed["rows"],
            "departed_requests": self.departed["requests"],
            "workers": [
                {
                    "name": name,
                    "host": worker.hello.host,
                    "pid": worker.hello.pid,
                    "shares": worker.shares,
                    "leases": len(worker.held),
                    "executing": list(worker.executing),
                    "rows": worker.rows,
                    "requests": worker.requests,
                    "rss": worker.rss,
                    "silent_s": round(now - worker.seen, 3),
                }
                for name, worker in self.workers.items()
            ],
        }

    def quarantined(self) -> Iterable[Task]:
        """Tasks given up, each with its last error."""
        return (
            ()
            if not self.ledger.counts["quarantined"]
            else (task for task in self.tasks.values() if task.state == "quarantined")
        )


_HANDLERS: dict[type, Any] = {
    Hello: Scheduler._on_hello,
    Heartbeat: Scheduler._on_heartbeat,
    Progress: Scheduler._on_progress,
    Result: Scheduler._on_result,
    Failure: Scheduler._on_failure,
    Goodbye: Scheduler._on_goodbye,
    Restart: Scheduler._on_restart,
    AddTasks: Scheduler._on_add,
    EndTasks: Scheduler._on_end,
    Withdraw: Scheduler._on_withdraw,
    PutOut: Scheduler._on_put_out,
    Confirmed: Scheduler._on_confirmed,
    WorkerLost: Scheduler._on_worker_lost,
    Revoked: Scheduler._on_revoked,
    Undelivered: Scheduler._on_undelivered,
    Tick: Scheduler._on_tick,
    Halt: Scheduler._on_halt,
    StopNow: Scheduler._on_stop,
}
