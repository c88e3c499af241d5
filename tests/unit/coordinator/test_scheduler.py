"""The scheduler by example: one timing fault a test, with a clock that the test moves."""

from __future__ import annotations

import pytest

from coordinator.scheduling.events import (
    AddTasks,
    Confirmed,
    Send,
    TaskDone,
    TaskQuarantined,
    Tick,
    Undelivered,
    WorkerLost,
)
from coordinator.scheduling.worker_state import LeaseTimings, retry_delay_s
from coordinator.server.status import worker_status
from coordinator.wire import messages
from coordinator.wire.messages import (
    AbandonLease,
    Ack,
    Deregister,
    Heartbeat,
    Register,
    RegisterAck,
    ReRegister,
    Shutdown,
)
from tests.support.scheduling import HERE, failure, leases, register, result, sent, spec, started


def test_leases_follow_plan_order_up_to_capacity() -> None:
    scheduler = started(spec("a"), spec("b"), spec("c"))
    decision = scheduler.decide(register(), 0.0)
    assert sent(decision, RegisterAck)[0].share_files
    assert leases(decision) == [("a", 1), ("b", 1)]
    assert leases(scheduler.decide(result("a"), 1.0)) == [("c", 1)]


def test_engine_and_worker_share_leases_by_what_each_holds_at_once_and_the_status_says_so() -> None:
    scheduler = started(*(spec(f"t{number:02}") for number in range(80)))
    scheduler.decide(register("engine", capacity=64), 0.0)
    scheduler.decide(register("worker"), 0.0)
    engine, worker = scheduler.workers["engine"], scheduler.workers["worker"]
    assert (len(engine.held), len(worker.held)) == (64, 2)
    for task in list(engine.held)[:30]:
        scheduler.decide(result(task, 1, "engine"), 20.0)
    assert (len(engine.held), len(worker.held)) == (48, 2)  # the 14 that were left went where places were free
    told = worker_status("engine", engine, 20.0)
    assert (told.leases, told.capacity, told.done, told.done_per_minute) == (48, 64, 30, 90.0)


def test_lease_is_journaled_with_its_decision() -> None:
    decision = started(spec("a")).decide(register(), 0.0)
    assert [type(record).__name__ for record in decision.records] == ["Leased"]


def test_duplicate_result_is_only_acknowledged() -> None:
    scheduler = started(spec("a"))
    scheduler.decide(register(), 0.0)
    first = scheduler.decide(result("a"), 1.0)
    assert [a.task.id for a in first.actions if isinstance(a, TaskDone)] == ["a"]
    assert scheduler.outcome() is None  # not before the commit is confirmed
    again = scheduler.decide(result("a"), 1.1)
    assert sent(again, Ack) == [Ack("a", 1, False)]
    assert not again.records
    scheduler.decide(Confirmed("a", 1), 1.2)
    assert scheduler.outcome().status == "done"  # type: ignore[union-attr]


def test_silent_worker_loses_leases_and_only_executing_ones_count() -> None:
    scheduler = started(spec("a"), spec("b"))
    scheduler.decide(register(), 0.0)
    scheduler.decide(Heartbeat("w1", (("a", 1),)), 1.0)
    for now in range(2, 11):
        scheduler.decide(Tick(), float(now))
    assert "w1" in scheduler.workers
    scheduler.decide(Tick(), 11.5)
    assert "w1" not in scheduler.workers
    assert (scheduler.tasks["a"].failures, scheduler.tasks["b"].failures) == (1, 0)
    assert scheduler.tasks["a"].error == "WorkerLost"


def test_result_of_a_dead_workers_attempt_is_stale() -> None:
    scheduler = started(spec("a"))
    scheduler.decide(register(), 0.0)
    scheduler.decide(WorkerLost("w1", "died"), 1.0)
    assert leases(scheduler.decide(register("w2"), 2.0)) == [("a", 2)]
    late = scheduler.decide(result("a", 1, "w1"), 3.0)
    assert sent(late, Ack) == [Ack("a", 1, False)]
    assert sent(late, ReRegister)
    assert scheduler.tasks["a"].state == "leased"
    assert scheduler.decide(result("a", 2, "w2"), 4.0).records


def test_heartbeat_renews_only_listed_leases() -> None:
    scheduler = started(spec("a"), spec("b"), timings=LeaseTimings(lease_s=5.0))
    scheduler.decide(register(), 0.0)
    scheduler.decide(Heartbeat("w1", (("a", 1),)), 4.0)
    scheduler.decide(Tick(), 4.0)
    decision = scheduler.decide(Tick(), 6.0)
    assert sent(decision, AbandonLease) == [AbandonLease("b", 1)]
    assert leases(decision) == [("b", 2)]  # without blame: at once, under the next attempt number
    assert scheduler.tasks["b"].failures == 0
    assert (scheduler.tasks["a"].state, scheduler.tasks["a"].attempt) == ("leased", 1)


def test_lease_that_is_not_held_is_abandoned() -> None:
    scheduler = started(spec("a"))
    scheduler.decide(register(), 0.0)
    assert sent(scheduler.decide(Heartbeat("w1", (("a", 7),)), 1.0), AbandonLease) == [AbandonLease("a", 7)]


def test_unknown_worker_must_reregister() -> None:
    assert sent(started().decide(Heartbeat("ghost", ()), 0.0), ReRegister) == [ReRegister()]


def test_failures_back_off_and_end_in_quarantine() -> None:
    scheduler = started(spec("a"), timings=LeaseTimings(max_failures=3))
    decision, now = scheduler.decide(register(), 0.0), 0.0
    for attempt in (1, 2, 3):
        assert leases(decision) == [("a", attempt)]
        decision = scheduler.decide(failure("a", attempt, message=f"try {attempt}"), now)
        assert not leases(decision)
        if attempt < 3:
            wait = retry_delay_s("a", attempt, attempt, scheduler.timings)
            assert 0.25 * 2 ** (attempt - 1) <= wait <= 0.75 * 2 ** (attempt - 1)
            assert not leases(scheduler.decide(Tick(), now + wait * 0.99))
            now += wait * 1.01
            decision = scheduler.decide(Tick(), now)
    assert [(a.task.id, a.message) for a in decision.actions if isinstance(a, TaskQuarantined)] == [("a", "try 3")]
    outcome = scheduler.outcome()
    assert outcome is not None and (outcome.status, outcome.exit_code) == ("incomplete", 75)


def test_final_failure_quarantines_at_once_and_blocks_dependents() -> None:
    scheduler = started(spec("a"), spec("b", depends_on=("a",)), spec("c", depends_on=("b",)), spec("d"))
    scheduler.decide(register(), 0.0)
    scheduler.decide(failure("a", final=True, error="UsageError"), 1.0)
    assert [scheduler.tasks[name].state for name in "abc"] == ["quarantined", "blocked", "blocked"]
    scheduler.decide(result("d"), 1.0)
    scheduler.decide(Confirmed("d", 1), 1.0)
    assert scheduler.outcome().status == "incomplete"  # type: ignore[union-attr]
    reopened = scheduler.decide(AddTasks((spec("a"),)), 2.0)  # the next start
    assert leases(reopened) == [("a", 2)]
    assert [scheduler.tasks[name].state for name in "bc"] == ["pending", "pending"]


def test_task_waits_for_all_dependencies() -> None:
    scheduler = started(spec("a"), spec("b"), spec("c", depends_on=("a", "b")))
    scheduler.decide(register(capacity=3), 0.0)
    assert not leases(scheduler.decide(result("a"), 1.0))
    assert leases(scheduler.decide(result("b"), 1.0)) == [("c", 1)]
    with pytest.raises(ValueError, match="was not added before"):
        scheduler.decide(AddTasks((spec("y", depends_on=("z",)),)), 1.0)


def test_tasks_go_to_workers_with_shared_folder_and_kind() -> None:
    scheduler = started(spec("a", requires_shared_fs=True), spec("b", kind="build"), spec("c"))
    assert leases(scheduler.decide(register("far", filesystem_id="other"), 0.0)) == [("c", 1)]
    assert leases(scheduler.decide(register("near"), 0.0)) == [("a", 1)]
    assert leases(scheduler.decide(register("builder", kinds=("build",), filesystem_id="other"), 0.0)) == [("b", 1)]


def test_leases_are_spread_over_workers() -> None:
    scheduler = started()
    scheduler.decide(register("w1"), 0.0)
    scheduler.decide(register("w2"), 0.0)
    decision = scheduler.decide(AddTasks((spec("a"), spec("b"))), 0.0)
    assert {a.worker for a in decision.actions if isinstance(a, Send)} == {"w1", "w2"}


def test_deregistering_and_reregistering_release_without_blame() -> None:
    scheduler = started(spec("a"))
    scheduler.decide(register(), 0.0)
    scheduler.decide(Heartbeat("w1", (("a", 1),)), 0.5)
    assert leases(scheduler.decide(register(), 1.0)) == [("a", 2)]
    scheduler.decide(Deregister("w1"), 2.0)
    assert (scheduler.tasks["a"].state, scheduler.tasks["a"].failures) == ("pending", 0)


def test_undelivered_lease_is_released_and_worker_gets_no_more() -> None:
    scheduler = started(spec("a"))
    scheduler.decide(register(), 0.0)
    assert not leases(scheduler.decide(Undelivered("w1", "a", 1), 0.1))
    assert leases(scheduler.decide(Heartbeat("w1", ()), 0.2)) == [("a", 2)]


def test_suspended_coordinator_does_not_lose_its_workers() -> None:
    scheduler = started(spec("a"))
    scheduler.decide(register(), 0.0)
    scheduler.decide(Tick(), 0.1)
    scheduler.decide(Tick(), 3_600.0)
    assert scheduler.tasks["a"].attempt == 1 and "w1" in scheduler.workers


def test_other_protocol_version_is_refused_with_reason() -> None:
    stranger = Register("w1", "host", 1, ("fetch",), 1, HERE, "0.1.0", "3.11", messages.VERSION + 1)
    stops = sent(started(spec("a")).decide(stranger, 0.0), Shutdown)
    assert stops and "install the same version" in stops[0].reason


def test_older_attempt_of_the_same_worker_is_stale() -> None:
    scheduler = started(spec("a"), timings=LeaseTimings(lease_s=5.0))
    scheduler.decide(register(), 0.0)
    scheduler.decide(Tick(), 4.0)
    scheduler.decide(Heartbeat("w1", ()), 5.5)
    assert leases(scheduler.decide(Tick(), 6.0)) == [("a", 2)]
    late = scheduler.decide(result("a", 1), 6.5)
    assert sent(late, Ack) == [Ack("a", 1, False)] and not late.records
    assert sent(scheduler.decide(result("a", 2), 7.0), Ack) == [Ack("a", 2, True)]


def test_renewed_lease_expires_once_unlisted() -> None:
    scheduler = started(spec("a"), timings=LeaseTimings(lease_s=5.0))
    scheduler.decide(register(), 0.0)
    for now in (2.0, 4.0, 6.0, 8.0):
        scheduler.decide(Heartbeat("w1", (("a", 1),)), now)
        assert not leases(scheduler.decide(Tick(), now))
    for now in (10.0, 12.0):
        scheduler.decide(Heartbeat("w1", ()), now)
        assert not leases(scheduler.decide(Tick(), now))
    scheduler.decide(Heartbeat("w1", ()), 13.5)
    assert leases(scheduler.decide(Tick(), 13.5)) == [("a", 2)]


def test_blameless_failures_are_retried_with_back_off() -> None:
    scheduler = started(spec("a"), timings=LeaseTimings(max_failures=2))
    scheduler.decide(register(), 0.0)
    for attempt in range(1, 9):
        assert not leases(scheduler.decide(failure("a", attempt, blame=attempt == 1), float(attempt)))
        assert leases(scheduler.decide(Tick(), attempt + 0.9)) == [("a", attempt + 1)]
    assert scheduler.tasks["a"].failures == 1


def test_dependents_of_a_reopened_task_wait_again() -> None:
    scheduler = started(spec("a"), spec("b", kind="build", depends_on=("a",)))
    scheduler.decide(register(), 0.0)
    scheduler.decide(result("a"), 1.0)
    scheduler.decide(Confirmed("a", 1), 1.0)
    assert leases(scheduler.decide(AddTasks((spec("a"),)), 2.0)) == [
        ("a", 2)
    ]  # b was ready, but no worker could take it yet
    assert not leases(scheduler.decide(register("w2", kinds=("build",)), 3.0))
    assert leases(scheduler.decide(result("a", 2), 4.0)) == [("b", 1)]
