"""The scheduler by example: how a run ends, and the state after a restart."""

from __future__ import annotations

import pytest

from coordinator.scheduling.events import Abort, AddTasks, CancelTasks, Confirmed, Drain, Restart, TaskDone, Tick
from coordinator.scheduling.records import CANCELLED
from coordinator.scheduling.scheduler import Scheduler
from coordinator.wire.messages import Failure, Heartbeat
from tests.support.scheduling import HERE, failure, leases, register, result, spec, started


def test_drain_ends_the_run_with_the_last_lease() -> None:
    scheduler = started(spec("a"), spec("b"))
    scheduler.decide(register(capacity=1), 0.0)
    scheduler.decide(Drain("drain"), 1.0)
    assert scheduler.outcome() is None
    assert not leases(scheduler.decide(result("a"), 2.0))
    scheduler.decide(Confirmed("a", 1), 2.0)
    outcome = scheduler.outcome()
    assert outcome is not None and (outcome.status, outcome.exit_code) == ("drain", 130)


def test_abort_ends_the_run_at_once_without_leases() -> None:
    scheduler = started(spec("a"))
    scheduler.decide(register(), 0.0)
    scheduler.decide(Abort(), 1.0)
    assert scheduler.outcome().exit_code == 130  # type: ignore[union-attr]
    assert scheduler.tasks["a"].state == "pending"


def test_full_disk_is_the_outcome_even_if_open_tasks_are_cancelled() -> None:
    scheduler = started(spec("a", ephemeral=True))
    scheduler.decide(register(), 0.0)
    scheduler.decide(failure("a", error="StorageError", message="no space", blame=False), 1.0)
    scheduler.decide(CancelTasks(("a",)), 1.0)
    outcome = scheduler.outcome()
    assert outcome is not None
    assert (outcome.status, outcome.message, outcome.exit_code) == ("storage", "no space", 75)


@pytest.mark.parametrize(
    ("error", "blame", "final", "status", "code"),
    [("StorageError", False, False, "storage", 75), ("AuthenticationError", True, True, "authentication", 4)],
)
def test_full_disk_or_refused_key_drains_the_run(error: str, blame: bool, final: bool, status: str, code: int) -> None:
    scheduler = started(spec("a"), spec("b"))
    scheduler.decide(register(capacity=1), 0.0)
    assert not leases(scheduler.decide(failure("a", error=error, blame=blame, final=final), 1.0))
    outcome = scheduler.outcome()
    assert outcome is not None and (outcome.status, outcome.exit_code, outcome.message) == (status, code, "why")


def test_full_disk_of_another_host_pauses_only_its_worker() -> None:
    scheduler = started(spec("a"))
    assert leases(scheduler.decide(register("far", filesystem_id="other"), 0.0)) == [("a", 1)]
    assert not leases(scheduler.decide(Failure("far", "a", 1, "StorageError", "why", blame=False), 1.0))
    assert scheduler.outcome() is None
    rest = scheduler.timings.full_disk_s
    for now in range(2, int(rest), 5):
        assert not leases(scheduler.decide(Heartbeat("far", ()), float(now)))
        assert not leases(scheduler.decide(Tick(), float(now)))
    assert leases(scheduler.decide(Heartbeat("far", ()), rest + 1)) == [("a", 2)]


def test_restart_voids_leases_and_repeats_unconfirmed_results() -> None:
    scheduler = started()
    records = scheduler.decide(AddTasks((spec("a"), spec("b"), spec("c"))), 0.0).records
    records += scheduler.decide(register(capacity=3), 0.0).records
    records += scheduler.decide(result("a"), 1.0).records
    records += scheduler.decide(Confirmed("a", 1), 1.0).records
    records += scheduler.decide(result("b"), 1.0).records
    replayed = Scheduler(HERE)
    for record in records:
        replayed.apply(record)
    assert replayed.tasks == scheduler.tasks
    decision = replayed.decide(Restart(), 100.0)
    assert [(a.task.id, a.output) for a in decision.actions if isinstance(a, TaskDone)] == [("b", {"rows": 1})]
    assert not replayed.decide(
        AddTasks((spec("b"), spec("c"))), 100.0
    ).records  # open or about to be confirmed: nothing new
    assert leases(replayed.decide(register("w9"), 101.0)) == [("c", 2)]


def test_whole_plan_cancels_unlisted_tasks() -> None:
    scheduler = started(spec("a"), spec("b"))
    scheduler.decide(AddTasks((spec("b"),), whole=True), 0.0)
    assert leases(scheduler.decide(register(), 0.0)) == [("b", 1)]
    assert scheduler.tasks["a"].state == CANCELLED
    assert leases(scheduler.decide(AddTasks((spec("a"),)), 1.0)) == [("a", 1)]
