"""The scheduler by example: how a run ends, and what a restart finds."""

from __future__ import annotations

import pytest

from coordinator.scheduling.events import Abort, AddTasks, CancelTasks, Confirmed, Drain, Restart, TaskDone, Tick
from coordinator.scheduling.scheduler import Scheduler
from coordinator.wire.messages import Failure, Heartbeat
from tests.support.scheduling import HERE, failure, hello, leases, result, spec, started


def test_drain_issues_nothing_more_and_ends_when_the_last_lease_has() -> None:
    scheduler = started(spec("a"), spec("b"))
    scheduler.decide(hello(capacity=1), 0.0)
    scheduler.decide(Drain("drain"), 1.0)
    assert scheduler.outcome() is None
    assert not leases(scheduler.decide(result("a"), 2.0))
    scheduler.decide(Confirmed("a", 1), 2.0)
    outcome = scheduler.outcome()
    assert outcome is not None and (outcome.status, outcome.exit_code) == ("drain", 130)


def test_stop_now_ends_at_once_and_a_replay_finds_nothing_leased() -> None:
    scheduler = started(spec("a"))
    scheduler.decide(hello(), 0.0)
    scheduler.decide(Abort(), 1.0)
    assert scheduler.outcome().exit_code == 130  # type: ignore[union-attr]
    assert scheduler.tasks["a"].state == "pending"


def test_a_full_disk_is_the_outcome_even_if_the_stage_withdraws_what_was_open() -> None:
    scheduler = started(spec("a", ephemeral=True))
    scheduler.decide(hello(), 0.0)
    scheduler.decide(failure("a", error="StorageError", message="no space", blame=False), 1.0)
    scheduler.decide(CancelTasks(("a",)), 1.0)
    outcome = scheduler.outcome()
    assert outcome is not None
    assert (outcome.status, outcome.message, outcome.exit_code) == ("storage", "no space", 75)


@pytest.mark.parametrize(
    ("error", "blame", "final", "status", "code"),
    [("StorageError", False, False, "storage", 75), ("AuthenticationError", True, True, "authentication", 4)],
)
def test_a_full_disk_and_a_refused_key_stop_the_run(
    error: str, blame: bool, final: bool, status: str, code: int
) -> None:
    scheduler = started(spec("a"), spec("b"))
    scheduler.decide(hello(capacity=1), 0.0)
    assert not leases(scheduler.decide(failure("a", error=error, blame=blame, final=final), 1.0))
    outcome = scheduler.outcome()
    assert outcome is not None and (outcome.status, outcome.exit_code, outcome.message) == (status, code, "why")


def test_a_full_disk_of_another_host_leaves_its_worker_out_for_a_while_and_the_run_goes_on() -> None:
    scheduler = started(spec("a"))
    assert leases(scheduler.decide(hello("far", filesystem_id="other"), 0.0)) == [("a", 1)]
    assert not leases(scheduler.decide(Failure("far", "a", 1, "StorageError", "why", blame=False), 1.0))
    assert scheduler.outcome() is None
    rest = scheduler.timings.full_disk_s
    for now in range(2, int(rest), 5):
        assert not leases(scheduler.decide(Heartbeat("far", ()), float(now)))
        assert not leases(scheduler.decide(Tick(), float(now)))
    assert leases(scheduler.decide(Heartbeat("far", ()), rest + 1)) == [("a", 2)]


def test_restart_voids_leases_keeps_what_is_done_and_hands_out_unconfirmed_proofs_again() -> None:
    scheduler = started()
    records = scheduler.decide(AddTasks((spec("a"), spec("b"), spec("c"))), 0.0).records
    records += scheduler.decide(hello(capacity=3), 0.0).records
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
    assert leases(replayed.decide(hello("w9"), 101.0)) == [("c", 2)]


def test_a_whole_plan_drops_what_it_does_not_list() -> None:
    scheduler = started(spec("a"), spec("b"))
    scheduler.decide(AddTasks((spec("b"),), whole=True), 0.0)
    assert leases(scheduler.decide(hello(), 0.0)) == [("b", 1)]
    assert scheduler.tasks["a"].state == "dropped"
    assert leases(scheduler.decide(AddTasks((spec("a"),)), 1.0)) == [("a", 1)]
