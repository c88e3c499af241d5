"""The scheduler by example: tasks that are leased once, as the rounds of a training are."""

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
from coordinator.scheduling.scheduler import Scheduler
from coordinator.wire.messages import Deregister, Heartbeat, Progress, ReRegister, TerminateLease
from tests.support.scheduling import HERE, failure, hello, leases, sent, spec, started


def gone(decision: Decision) -> list[tuple[str, str, str]]:
    return [(a.task, a.error, a.message) for a in decision.actions if isinstance(a, TaskFailed)]


def test_a_task_that_names_its_worker_waits_for_it() -> None:
    scheduler = started(spec("a", worker="w2"), spec("b"))
    assert leases(scheduler.decide(hello(), 0.0)) == [("b", 1)]
    assert leases(scheduler.decide(hello("w2"), 1.0)) == [("a", 1)]


@pytest.mark.parametrize(
    ("event", "told"),
    [
        (failure("a", message="x"), ("a", "SourceError", "x")),
        (failure("a", error="UsageError", message="x", final=True), ("a", "UsageError", "x")),
        (Deregister("w1"), ("a", "Returned", "deregistered")),
        (hello(), ("a", "Returned", "registered again")),
        (WorkerLost("w1", "died"), ("a", "Returned", "worker lost")),
        (Undelivered("w1", "a", 1), ("a", "Returned", "undelivered")),
    ],
)
def test_a_task_that_is_leased_once_is_dropped_however_its_lease_ended(event: Any, told: tuple[str, str, str]) -> None:
    scheduler = started(spec("a", no_retry=True))
    scheduler.decide(hello(), 0.0)
    assert gone(scheduler.decide(event, 1.0)) == [told]
    assert scheduler.tasks["a"].state == "dropped"
    scheduler.decide(hello("w2"), 2.0)
    assert not leases(scheduler.decide(Tick(), 60.0))
    outcome = scheduler.outcome()
    assert outcome is not None and outcome.status == "done"


def test_a_dead_worker_is_named_for_the_once_leased_task_that_it_executed() -> None:
    scheduler = started(spec("a", no_retry=True))
    scheduler.decide(hello(), 0.0)
    scheduler.decide(Heartbeat("w1", (("a", 1),)), 1.0)
    assert gone(scheduler.decide(WorkerLost("w1", "died"), 2.0)) == [
        ("a", "WorkerLost", "w1 died while executing a (attempt 1)")
    ]


def test_a_restart_tells_nobody_of_a_round_but_leases_none_of_it() -> None:
    scheduler = started(spec("a", no_retry=True))
    records = scheduler.decide(hello(), 0.0).records
    again = Scheduler(HERE)
    again.decide(AddTasks((spec("a", no_retry=True),)), 0.0)
    for record in records:
        again.apply(record)
    again.decide(Restart(), 1.0)
    assert not leases(again.decide(hello("w9"), 2.0))


def test_an_end_is_asked_of_the_holder_and_kept_until_it_answers() -> None:
    scheduler = started(spec("a", no_retry=True), spec("b", no_retry=True, worker="w7"))
    scheduler.decide(hello(), 0.0)
    decision = scheduler.decide(TerminateTasks(("a", "b"), 7.0), 1.0)
    assert sent(decision, TerminateLease) == [TerminateLease("a", 1, 7.0)]
    assert gone(decision) == [("b", "Returned", "cancelled")]
    assert scheduler.tasks["a"].state == "leased"
    assert gone(scheduler.decide(failure("a", error="RankEnded", message="asked", blame=False), 2.0)) == [
        ("a", "RankEnded", "asked")
    ]
    assert not scheduler.decide(TerminateTasks(("a", "b"), 7.0), 3.0).actions  # both are over


def test_progress_counts_only_from_the_holder_of_the_live_lease() -> None:
    scheduler = started(spec("a", no_retry=True))
    scheduler.decide(hello(), 0.0)
    scheduler.decide(hello("w2"), 0.0)
    word = TaskProgress("a", 3, "step", 4, 2, False)
    assert scheduler.decide(Progress("w1", "a", 1, 3, "step", 4, 2), 1.0).actions == [word]
    assert not scheduler.decide(Progress("w2", "a", 1, 3, "step", 4, 2), 1.0).actions
    assert not scheduler.decide(Progress("w1", "a", 2, 3, "step", 4, 2), 1.0).actions
    assert sent(scheduler.decide(Progress("w9", "a", 1, 3, "step", 4, 2), 1.0), ReRegister)
