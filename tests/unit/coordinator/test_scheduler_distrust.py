"""One key's failures end nothing while workers of other keys can run the task: a worker can lie."""

from typing import Any

import pytest

from coordinator.scheduling.events import AddTasks, Tick
from coordinator.scheduling.scheduler import Scheduler
from coordinator.wire.failures import FailureKind
from coordinator.wire.messages import Failure
from tests.support.scheduling import failure, leases, register, result, spec, started


def keyed(*names: str) -> Scheduler:
    """Return a scheduler in which the first part of a worker's name is the name of its key."""
    scheduler = started(spec("a"))
    scheduler.owner_of = lambda worker: worker.partition("-")[0]
    for name in names:
        scheduler.decide(register(name, capacity=1), 0.0)
    return scheduler


def say(scheduler: Scheduler, worker: str, now: float, **more: Any) -> None:
    task = scheduler.tasks["a"]
    scheduler.decide(Failure(worker, "a", task.attempt, more.pop("error", "SourceError"), "why", **more), now)


def lease(scheduler: Scheduler, now: float) -> str:
    """Return who gets the task next, at `now` or later."""
    for _ in range(2_000):
        for worker in scheduler.workers.values():
            worker.last_seen = now
            for held in worker.held.values():
                held.deadline = now + 60.0
        if leases(scheduler.decide(Tick(), now)):
            return scheduler.tasks["a"].worker
        now += 1.0
    raise AssertionError("nobody")


def test_failures_of_one_key_never_quarantine_while_another_could_run_the_task() -> None:
    scheduler = keyed("honest-1")
    say(scheduler, "honest-1", 0.0, blame=False)  # it takes another task
    scheduler.decide(AddTasks((spec("long"),)), 0.0)
    assert list(scheduler.workers["honest-1"].held) == ["long"]
    scheduler._failed_by.clear()
    scheduler.decide(register("liar-1", capacity=1), 0.0)
    now = 1.0
    for _ in range(8):
        assert lease(scheduler, now) == "liar-1"
        now = max(now, scheduler.workers["liar-1"].last_seen)
        say(scheduler, "liar-1", now, final=True)
    task = scheduler.tasks["a"]
    assert (task.state, task.failures) == ("pending", 1)
    scheduler.decide(result("long", 1, "honest-1"), now)
    assert lease(scheduler, now) == "honest-1"


@pytest.mark.parametrize("error", [FailureKind.BAD_RESULT, FailureKind.REFUSED_PATH, FailureKind.FILES_MISSING])
def test_key_whose_results_are_untrue_is_suspended_under_every_name(error: FailureKind) -> None:
    scheduler = keyed("liar-1", "honest-1")
    assert scheduler.tasks["a"].worker == "liar-1"
    say(scheduler, "liar-1", 0.0, error=error)
    scheduler.decide(register("liar-2", capacity=1), 0.1)
    assert lease(scheduler, 0.1) == "honest-1"
    assert all(scheduler.workers[name].no_leases_until == 5.0 for name in ("liar-1", "liar-2"))
    scheduler.decide(result("a", 2, "honest-1"), 3.0)
    assert scheduler.tasks["a"].state == "done"


def test_final_failure_is_believed_once_every_key_reports_it() -> None:
    scheduler = keyed("one-1", "two-1")
    say(scheduler, "one-1", 0.0, final=True)
    assert scheduler.tasks["a"].state == "pending" and lease(scheduler, 0.5) == "two-1"
    say(scheduler, "two-1", 3.0, final=True)
    assert scheduler.tasks["a"].state == "quarantined"


def test_wrong_api_key_of_one_host_does_not_end_the_run() -> None:
    scheduler = keyed("one-1", "two-1")
    say(scheduler, "one-1", 0.0, error=FailureKind.AUTHENTICATION, final=True)
    assert not scheduler.is_draining
    lease(scheduler, 0.5)
    say(scheduler, "two-1", 3.0, error=FailureKind.AUTHENTICATION, final=True)
    assert scheduler.halt_reason == "authentication"


def test_without_keys_a_final_failure_counts_at_once() -> None:
    scheduler = started(spec("a"))
    scheduler.decide(register("w1"), 0.0)
    scheduler.decide(register("w2"), 0.0)
    scheduler.decide(failure("a", final=True), 0.0)
    assert scheduler.tasks["a"].state == "quarantined"


def test_worker_that_comes_before_those_of_the_coordinator_ends_nothing() -> None:
    scheduler = keyed("liar-1")
    scheduler.resident_owner = "local"
    say(scheduler, "liar-1", 0.0, error=FailureKind.AUTHENTICATION, final=True)
    assert scheduler.tasks["a"].state == "pending" and not scheduler.is_draining
    scheduler.decide(register("local-1", capacity=1), 0.1)
    assert lease(scheduler, 0.5) == "local-1"
