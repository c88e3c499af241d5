"""The scheduler by example: one timing fault a test, with a clock that the test moves."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator import protocol
from coordinator.events import (
    AddTasks,
    Confirmed,
    Decision,
    EndTasks,
    Halt,
    Restart,
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
from coordinator.protocol import (
    Ack,
    Cancel,
    End,
    Failure,
    Goodbye,
    Heartbeat,
    Hello,
    Lease,
    Progress,
    RegisterAgain,
    Result,
    Stop,
    Welcome,
)
from coordinator.scheduler import Limits, Scheduler, TaskSpec
from coordinator.workers import backoff

HERE = "this-folder"


def hello(name: str = "w1", *, kinds: tuple[str, ...] = ("fetch",), capacity: int = 2, data_id: str = HERE) -> Hello:
    return Hello(name, "host", 1, kinds, capacity, data_id, "0.1.0", "3.11")


def started(*tasks: TaskSpec, limits: Limits | None = None) -> Scheduler:
    scheduler = Scheduler(HERE, limits)
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


def test_leases_go_out_in_plan_order_up_to_capacity() -> None:
    scheduler = started(spec("a"), spec("b"), spec("c"))
    decision = scheduler.decide(hello(), 0.0)
    assert sent(decision, Welcome)[0].share_files
    assert leases(decision) == [("a", 1), ("b", 1)]
    assert leases(scheduler.decide(result("a"), 1.0)) == [("c", 1)]


def test_the_record_of_a_lease_comes_with_the_lease() -> None:
    decision = started(spec("a")).decide(hello(), 0.0)
    assert [type(record).__name__ for record in decision.records] == ["Leased"]


def test_a_result_is_committed_once_and_a_duplicate_is_only_acknowledged() -> None:
    scheduler = started(spec("a"))
    scheduler.decide(hello(), 0.0)
    first = scheduler.decide(result("a"), 1.0)
    assert [a.task.id for a in first.actions if isinstance(a, TaskDone)] == ["a"]
    assert scheduler.outcome() is None  # not before the commit is confirmed
    again = scheduler.decide(result("a"), 1.1)
    assert sent(again, Ack) == [Ack("a", 1, False)]
    assert not again.records
    scheduler.decide(Confirmed("a", 1), 1.2)
    assert scheduler.outcome().status == "done"  # type: ignore[union-attr]


def test_a_silent_worker_loses_its_leases_and_only_the_executing_one_is_blamed() -> None:
    scheduler = started(spec("a"), spec("b"))
    scheduler.decide(hello(), 0.0)
    scheduler.decide(Heartbeat("w1", (("a", 1),)), 1.0)
    for now in range(2, 11):
        scheduler.decide(Tick(), float(now))
    assert "w1" in scheduler.workers
    scheduler.decide(Tick(), 11.5)
    assert "w1" not in scheduler.workers
    assert (scheduler.tasks["a"].failures, scheduler.tasks["b"].failures) == (1, 0)
    assert scheduler.tasks["a"].error == "WorkerLost"


def test_after_the_death_the_next_attempt_counts_and_the_old_one_is_stale() -> None:
    scheduler = started(spec("a"))
    scheduler.decide(hello(), 0.0)
    scheduler.decide(WorkerLost("w1", "died"), 1.0)
    assert leases(scheduler.decide(hello("w2"), 2.0)) == [("a", 2)]
    late = scheduler.decide(result("a", 1, "w1"), 3.0)
    assert sent(late, Ack) == [Ack("a", 1, False)]
    assert sent(late, RegisterAgain)
    assert scheduler.tasks["a"].state == "leased"
    assert scheduler.decide(result("a", 2, "w2"), 4.0).records


def test_heartbeats_renew_only_what_they_list() -> None:
    scheduler = started(spec("a"), spec("b"), limits=Limits(lease_s=5.0))
    scheduler.decide(hello(), 0.0)
    scheduler.decide(Heartbeat("w1", (("a", 1),)), 4.0)
    scheduler.decide(Tick(), 4.0)
    decision = scheduler.decide(Tick(), 6.0)
    assert sent(decision, Cancel) == [Cancel("b", 1)]
    assert leases(decision) == [("b", 2)]  # nobody is to blame: at once, under the next number
    assert scheduler.tasks["b"].failures == 0
    assert (scheduler.tasks["a"].state, scheduler.tasks["a"].attempt) == ("leased", 1)


def test_a_heartbeat_that_lists_what_is_not_held_is_told_to_stop_it() -> None:
    scheduler = started(spec("a"))
    scheduler.decide(hello(), 0.0)
    assert sent(scheduler.decide(Heartbeat("w1", (("a", 7),)), 1.0), Cancel) == [Cancel("a", 7)]


def test_an_unknown_heartbeat_is_asked_to_register_again() -> None:
    assert sent(started().decide(Heartbeat("ghost", ()), 0.0), RegisterAgain) == [RegisterAgain()]


def test_failures_back_off_and_end_in_quarantine_with_the_last_error() -> None:
    scheduler = started(spec("a"), limits=Limits(max_failures=3))
    decision, now = scheduler.decide(hello(), 0.0), 0.0
    for attempt in (1, 2, 3):
        assert leases(decision) == [("a", attempt)]
        decision = scheduler.decide(failure("a", attempt, message=f"try {attempt}"), now)
        assert not leases(decision)
        if attempt < 3:
            wait = backoff("a", attempt, attempt, scheduler.limits)
            assert 0.25 * 2 ** (attempt - 1) <= wait <= 0.75 * 2 ** (attempt - 1)
            assert not leases(scheduler.decide(Tick(), now + wait * 0.99))
            now += wait * 1.01
            decision = scheduler.decide(Tick(), now)
    assert [(a.task.id, a.message) for a in decision.actions if isinstance(a, TaskQuarantined)] == [("a", "try 3")]
    outcome = scheduler.outcome()
    assert outcome is not None and (outcome.status, outcome.exit_code) == ("incomplete", 75)


def test_a_final_failure_is_quarantined_at_once_and_blocks_what_needs_it() -> None:
    scheduler = started(spec("a"), spec("b", after=("a",)), spec("c", after=("b",)), spec("d"))
    scheduler.decide(hello(), 0.0)
    scheduler.decide(failure("a", final=True, error="UsageError"), 1.0)
    assert [scheduler.tasks[name].state for name in "abc"] == ["quarantined", "blocked", "blocked"]
    scheduler.decide(result("d"), 1.0)
    scheduler.decide(Confirmed("d", 1), 1.0)
    assert scheduler.outcome().status == "incomplete"  # type: ignore[union-attr]
    reopened = scheduler.decide(AddTasks((spec("a"),)), 2.0)  # the next start
    assert leases(reopened) == [("a", 2)]
    assert [scheduler.tasks[name].state for name in "bc"] == ["pending", "pending"]


def test_a_task_waits_for_all_that_it_comes_after() -> None:
    scheduler = started(spec("a"), spec("b"), spec("c", after=("a", "b")))
    scheduler.decide(hello(capacity=3), 0.0)
    assert not leases(scheduler.decide(result("a"), 1.0))
    assert leases(scheduler.decide(result("b"), 1.0)) == [("c", 1)]
    with pytest.raises(ValueError, match="was not added before"):
        scheduler.decide(AddTasks((spec("y", after=("z",)),)), 1.0)


def test_local_tasks_go_to_workers_that_share_the_folder_and_kinds_to_those_that_know_them() -> None:
    scheduler = started(spec("a", local=True), spec("b", kind="build"), spec("c"))
    assert leases(scheduler.decide(hello("far", data_id="other"), 0.0)) == [("c", 1)]
    assert leases(scheduler.decide(hello("near"), 0.0)) == [("a", 1)]
    assert leases(scheduler.decide(hello("builder", kinds=("build",), data_id="other"), 0.0)) == [("b", 1)]


def test_work_is_spread_over_the_workers() -> None:
    scheduler = started()
    scheduler.decide(hello("w1"), 0.0)
    scheduler.decide(hello("w2"), 0.0)
    decision = scheduler.decide(AddTasks((spec("a"), spec("b"))), 0.0)
    assert {a.worker for a in decision.actions if isinstance(a, Send)} == {"w1", "w2"}


def test_goodbye_and_a_second_hello_give_back_without_blame() -> None:
    scheduler = started(spec("a"))
    scheduler.decide(hello(), 0.0)
    scheduler.decide(Heartbeat("w1", (("a", 1),)), 0.5)
    assert leases(scheduler.decide(hello(), 1.0)) == [("a", 2)]
    scheduler.decide(Goodbye("w1"), 2.0)
    assert (scheduler.tasks["a"].state, scheduler.tasks["a"].failures) == ("pending", 0)


def test_a_lease_that_can_t_be_sent_goes_back_and_the_worker_waits_until_it_is_heard() -> None:
    scheduler = started(spec("a"))
    scheduler.decide(hello(), 0.0)
    assert not leases(scheduler.decide(Undelivered("w1", "a", 1), 0.1))
    assert leases(scheduler.decide(Heartbeat("w1", ()), 0.2)) == [("a", 2)]


def test_a_coordinator_that_was_suspended_does_not_call_its_workers_dead() -> None:
    scheduler = started(spec("a"))
    scheduler.decide(hello(), 0.0)
    scheduler.decide(Tick(), 0.1)
    scheduler.decide(Tick(), 3_600.0)
    assert scheduler.tasks["a"].attempt == 1 and "w1" in scheduler.workers


def test_drain_issues_nothing_more_and_ends_when_the_last_lease_has() -> None:
    scheduler = started(spec("a"), spec("b"))
    scheduler.decide(hello(capacity=1), 0.0)
    scheduler.decide(Halt("drain"), 1.0)
    assert scheduler.outcome() is None
    assert not leases(scheduler.decide(result("a"), 2.0))
    scheduler.decide(Confirmed("a", 1), 2.0)
    outcome = scheduler.outcome()
    assert outcome is not None and (outcome.status, outcome.exit_code) == ("drain", 130)


def test_stop_now_ends_at_once_and_a_replay_finds_nothing_leased() -> None:
    scheduler = started(spec("a"))
    scheduler.decide(hello(), 0.0)
    scheduler.decide(StopNow(), 1.0)
    assert scheduler.outcome().exit_code == 130  # type: ignore[union-attr]
    assert scheduler.tasks["a"].state == "pending"


def test_a_full_disk_is_the_outcome_even_if_the_stage_withdraws_what_was_open() -> None:
    scheduler = started(spec("a", fleeting=True))
    scheduler.decide(hello(), 0.0)
    scheduler.decide(failure("a", error="StorageError", message="no space", blame=False), 1.0)
    scheduler.decide(Withdraw(("a",)), 1.0)
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
    assert leases(scheduler.decide(hello("far", data_id="other"), 0.0)) == [("a", 1)]
    assert not leases(scheduler.decide(Failure("far", "a", 1, "StorageError", "why", blame=False), 1.0))
    assert scheduler.outcome() is None
    rest = scheduler.limits.full_disk_s
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
    assert [(a.task.id, a.proof) for a in decision.actions if isinstance(a, TaskDone)] == [("b", {"rows": 1})]
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


def test_another_protocol_is_refused_with_the_reason() -> None:
    stranger = Hello("w1", "host", 1, ("fetch",), 1, HERE, "0.1.0", "3.11", protocol.VERSION + 1)
    stops = sent(started(spec("a")).decide(stranger, 0.0), Stop)
    assert stops and "install the same version" in stops[0].reason


def test_an_older_attempt_of_the_same_worker_is_stale_too() -> None:
    scheduler = started(spec("a"), limits=Limits(lease_s=5.0))
    scheduler.decide(hello(), 0.0)
    scheduler.decide(Tick(), 4.0)
    scheduler.decide(Heartbeat("w1", ()), 5.5)
    assert leases(scheduler.decide(Tick(), 6.0)) == [("a", 2)]
    late = scheduler.decide(result("a", 1), 6.5)
    assert sent(late, Ack) == [Ack("a", 1, False)] and not late.records
    assert sent(scheduler.decide(result("a", 2), 7.0), Ack) == [Ack("a", 2, True)]


def test_a_renewed_lease_still_lapses_once_it_is_no_longer_listed() -> None:
    scheduler = started(spec("a"), limits=Limits(lease_s=5.0))
    scheduler.decide(hello(), 0.0)
    for now in (2.0, 4.0, 6.0, 8.0):
        scheduler.decide(Heartbeat("w1", (("a", 1),)), now)
        assert not leases(scheduler.decide(Tick(), now))
    for now in (10.0, 12.0):
        scheduler.decide(Heartbeat("w1", ()), now)
        assert not leases(scheduler.decide(Tick(), now))
    scheduler.decide(Heartbeat("w1", ()), 13.5)
    assert leases(scheduler.decide(Tick(), 13.5)) == [("a", 2)]


def test_failures_without_blame_are_tried_again_for_ever_but_not_at_once() -> None:
    scheduler = started(spec("a"), limits=Limits(max_failures=2))
    scheduler.decide(hello(), 0.0)
    for attempt in range(1, 9):
        assert not leases(scheduler.decide(failure("a", attempt, blame=attempt == 1), float(attempt)))
        assert leases(scheduler.decide(Tick(), attempt + 0.9)) == [("a", attempt + 1)]
    assert scheduler.tasks["a"].failures == 1


def test_what_waits_for_a_task_that_is_opened_again_waits_once_more() -> None:
    scheduler = started(spec("a"), spec("b", kind="build", after=("a",)))
    scheduler.decide(hello(), 0.0)
    scheduler.decide(result("a"), 1.0)
    scheduler.decide(Confirmed("a", 1), 1.0)
    assert leases(scheduler.decide(AddTasks((spec("a"),)), 2.0)) == [("a", 2)]  # b was ready: nobody could take it yet
    assert not leases(scheduler.decide(hello("w2", kinds=("build",)), 3.0))
    assert leases(scheduler.decide(result("a", 2), 4.0)) == [("b", 1)]


def gone(decision: Decision) -> list[tuple[str, str, str]]:
    return [(a.task, a.error, a.message) for a in decision.actions if isinstance(a, TaskGone)]


def test_a_task_that_names_its_worker_waits_for_it() -> None:
    scheduler = started(spec("a", worker="w2"), spec("b"))
    assert leases(scheduler.decide(hello(), 0.0)) == [("b", 1)]
    assert leases(scheduler.decide(hello("w2"), 1.0)) == [("a", 1)]


@pytest.mark.parametrize(
    ("event", "told"),
    [
        (failure("a", message="x"), ("a", "SourceError", "x")),
        (failure("a", error="UsageError", message="x", final=True), ("a", "UsageError", "x")),
        (Goodbye("w1"), ("a", "Returned", "goodbye")),
        (hello(), ("a", "Returned", "hello")),
        (WorkerLost("w1", "died"), ("a", "Returned", "worker lost")),
        (Undelivered("w1", "a", 1), ("a", "Returned", "undelivered")),
    ],
)
def test_a_task_that_is_leased_once_is_dropped_however_its_lease_ended(event: Any, told: tuple[str, str, str]) -> None:
    scheduler = started(spec("a", once=True))
    scheduler.decide(hello(), 0.0)
    assert gone(scheduler.decide(event, 1.0)) == [told]
    assert scheduler.tasks["a"].state == "dropped"
    scheduler.decide(hello("w2"), 2.0)
    assert not leases(scheduler.decide(Tick(), 60.0))
    outcome = scheduler.outcome()
    assert outcome is not None and outcome.status == "done"


def test_a_dead_worker_is_named_for_the_once_leased_task_that_it_executed() -> None:
    scheduler = started(spec("a", once=True))
    scheduler.decide(hello(), 0.0)
    scheduler.decide(Heartbeat("w1", (("a", 1),)), 1.0)
    assert gone(scheduler.decide(WorkerLost("w1", "died"), 2.0)) == [
        ("a", "WorkerLost", "w1 died while executing a (attempt 1)")
    ]


def test_a_restart_tells_nobody_of_a_round_but_leases_none_of_it() -> None:
    scheduler = started(spec("a", once=True))
    records = scheduler.decide(hello(), 0.0).records
    again = Scheduler(HERE)
    again.decide(AddTasks((spec("a", once=True),)), 0.0)
    for record in records:
        again.apply(record)
    again.decide(Restart(), 1.0)
    assert not leases(again.decide(hello("w9"), 2.0))


def test_an_end_is_asked_of_the_holder_and_kept_until_it_answers() -> None:
    scheduler = started(spec("a", once=True), spec("b", once=True, worker="w7"))
    scheduler.decide(hello(), 0.0)
    decision = scheduler.decide(EndTasks(("a", "b"), 7.0), 1.0)
    assert sent(decision, End) == [End("a", 1, 7.0)]
    assert gone(decision) == [("b", "Returned", "withdrawn")]
    assert scheduler.tasks["a"].state == "leased"
    assert gone(scheduler.decide(failure("a", error="RankEnded", message="asked", blame=False), 2.0)) == [
        ("a", "RankEnded", "asked")
    ]
    assert not scheduler.decide(EndTasks(("a", "b"), 7.0), 3.0).actions  # both are over


def test_progress_counts_only_from_the_holder_of_the_live_lease() -> None:
    scheduler = started(spec("a", once=True))
    scheduler.decide(hello(), 0.0)
    scheduler.decide(hello("w2"), 0.0)
    word = TaskProgress("a", 3, "step", 4, 2, False)
    assert scheduler.decide(Progress("w1", "a", 1, 3, "step", 4, 2), 1.0).actions == [word]
    assert not scheduler.decide(Progress("w2", "a", 1, 3, "step", 4, 2), 1.0).actions
    assert not scheduler.decide(Progress("w1", "a", 2, 3, "step", 4, 2), 1.0).actions
    assert sent(scheduler.decide(Progress("w9", "a", 1, 3, "step", 4, 2), 1.0), RegisterAgain)
