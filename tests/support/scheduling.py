"""Build schedulers, events, and views of their decisions."""

from __future__ import annotations

from typing import Any

from coordinator.scheduling.events import AddTasks, Decision, Restart, Send
from coordinator.scheduling.records import TaskSpec
from coordinator.scheduling.scheduler import Scheduler
from coordinator.scheduling.worker_state import LeaseTimings
from coordinator.wire.messages import Failure, Lease, Register, Result

HERE = "this-folder"


def register(
    name: str = "w1", *, kinds: tuple[str, ...] = ("fetch",), capacity: int = 2, filesystem_id: str = HERE
) -> Register:
    return Register(name, "host", 1, kinds, capacity, filesystem_id, "0.1.0", "3.11")


def started(*tasks: TaskSpec, timings: LeaseTimings | None = None) -> Scheduler:
    scheduler = Scheduler(HERE, timings)
    scheduler.decide(Restart(), 0.0)
    scheduler.decide(AddTasks(tasks), 0.0)
    return scheduler


def spec(name: str, **more: Any) -> TaskSpec:
    return TaskSpec(name, more.pop("kind", "fetch"), {"n": name}, **more)


def sent(decision: Decision, kind: type) -> list[Any]:
    return [a.message for a in decision.actions if isinstance(a, Send) and isinstance(a.message, kind)]


def leases(decision: Decision) -> list[tuple[str, int]]:
    return [(lease.task, lease.attempt) for lease in sent(decision, Lease)]


def result(task: str, attempt: int = 1, worker: str = "w1") -> Result:
    return Result(worker, task, attempt, {"rows": 1}, 0.5)


def failure(task: str, attempt: int = 1, **more: Any) -> Failure:
    return Failure("w1", task, attempt, more.pop("error", "SourceError"), more.pop("message", "why"), **more)
