"""The scheduler by example: tasks without retry, as the ranks of a training are."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator.scheduling.events import (
    AddTasks,
    Decision,
    Restart,
    TaskFailed,
    TaskProgress,
    TerminateTasks,
    Tick,
    Undelivered,
    WorkerLost,
)
from coordinator.scheduling.records import CANCELLED
from coordinator.scheduling.scheduler import Scheduler
from coordinator.wire.messages import Deregister, Heartbeat, Progress, ReRegister, TerminateLease
from tests.support.scheduling import HERE, failure, leases, register, sent, spec, started


def failed(decision: Decision) -> list[tuple[str, str, str]]:
    return [(a.task, a.error, a.message) for a in decision.actions if isinstance(a, TaskFailed)]


def test_pinned_task_waits_for_its_worker() -> None:
    scheduler = started(spec("a", worker="w2"), spec("b"))
    assert leases(scheduler.decide(register(), 0.0)) == [("b", 1)]
    assert leases(scheduler.decide(register("w2"), 1.0)) == [("a", 1)]


@pytest.mark.parametrize(
    ("event", "reported"),
    [
        (failure("a", message="x"), ("a", "SourceError", "x")),
        (failure("a", error="UsageError", message="x", final=True), ("a", "UsageError", "x")),
        (Deregister("w1"), ("a", "Returned", "deregistered")),
        (register(), ("a", "Returned", "registered again")),
        (WorkerLost("w1", "died"), ("a", "Returned", "worker lost")),
        (Undelivered("w1", "a", 1), ("a", "Returned", "undelivered")),
    ],
)
def test_no_retry_task_is_cancelled_however_its_lease_ends(event: Any, reported: tuple[str, str, str]) -> None:
    scheduler = started(spec("a", no_retry=True))
    scheduler.decide(register(), 0.0)
    assert failed(scheduler.decide(event, 1.0)) == [reported]
    assert scheduler.tasks["a"].state == CANCELLED
    scheduler.decide(register("w2"), 2.0)
    assert not leases(scheduler.decide(Tick(), 60.0))
    outcome = scheduler.outcome()
    assert outcome is not None and outcome.status == "done"


def test_no_retry_task_reports_the_worker_that_died() -> None:
    scheduler = started(spec("a", no_retry=True))
    scheduler.decide(register(), 0.0)
    scheduler.decide(Heartbeat("w1", (("a", 1),)), 1.0)
    assert failed(scheduler.decide(WorkerLost("w1", "died"), 2.0)) == [
        ("a", "WorkerLost", "w1 died while executing a (attempt 1)")
    ]


def test_restart_leases_no_task_without_retry() -> None:
    scheduler = started(spec("a", no_retry=True))
    records = scheduler.decide(register(), 0.0).records
    again = Scheduler(HERE)
    again.decide(AddTasks((spec("a", no_retry=True),)), 0.0)
    for record in records:
        again.apply(record)
    again.decide(Restart(), 1.0)
    assert not leases(again.decide(register("w9"), 2.0))


def test_terminated_lease_is_held_until_its_worker_answers() -> None:
    scheduler = started(spec("a", no_retry=True), spec("b", no_retry=True, worker="w7"))
    scheduler.decide(register(), 0.0)
    decision = scheduler.decide(TerminateTasks(("a", "b"), 7.0), 1.0)
    assert sent(decision, TerminateLease) == [TerminateLease("a", 1, 7.0)]
    assert failed(decision) == [("b", "Returned", "cancelled")]
    assert scheduler.tasks["a"].state == "leased"
    assert failed(scheduler.decide(failure("a", error="RankEnded", message="asked", blame=False), 2.0)) == [
        ("a", "RankEnded", "asked")
    ]
    assert not scheduler.decide(TerminateTasks(("a", "b"), 7.0), 3.0).actions  # both are over


def test_progress_counts_only_from_the_holder() -> None:
    scheduler = started(spec("a", no_retry=True))
    scheduler.decide(register(), 0.0)
    scheduler.decide(register("w2"), 0.0)
    word = TaskProgress("a", 3, "step", 4, 2, False)
    assert scheduler.decide(Progress("w1", "a", 1, 3, "step", 4, 2), 1.0).actions == [word]
    assert not scheduler.decide(Progress("w2", "a", 1, 3, "step", 4, 2), 1.0).actions
    assert not scheduler.decide(Progress("w1", "a", 2, 3, "step", 4, 2), 1.0).actions
    assert sent(scheduler.decide(Progress("w9", "a", 1, 3, "step", 4, 2), 1.0), ReRegister)
