"""Waits for a source: heartbeats report them, the status shows them over all attempts, a drain ends them at once."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from rich.console import Console

from coordinator.scheduling.events import Drain, Tick
from coordinator.scheduling.waits import MAX_SHOWN, TaskWaits, WaitStatus
from coordinator.scheduling.worker_state import LeaseTimings
from coordinator.stages.display import FOLDED, PlainDisplay, RunView, WorkerView, render, run_view
from coordinator.wire import codec, messages
from coordinator.wire.messages import AbandonLease, BadMessage, Heartbeat, Waiting
from tests.support.scheduling import failure, leases, register, result, sent, spec, started
from tests.unit.coordinator.test_hostile_text import STATUS


def waiting(task: str, attempt: int = 1, since_s: float = 40.0, next_s: float = 12.0, request: int = 4) -> Waiting:
    return Waiting(task, attempt, "api.eia.gov", "sent 503", since_s, next_s, request)


def beat(*held: tuple[str, int], waits: tuple[Waiting, ...] = ()) -> Heartbeat:
    return Heartbeat("w1", held, waiting=waits)


# -- state -----------------------------------------------------------------------------------------------------------------


def test_status_shows_the_longest_wait_and_the_earliest_next_try() -> None:
    scheduler = started(spec("a"), spec("b"))
    scheduler.decide(register(), 0.0)
    scheduler.decide(beat(("a", 1), ("b", 1), waits=(waiting("a"), waiting("b", since_s=5.0, next_s=2.0))), 50.0)
    assert scheduler.waits.status(51.0) == (WaitStatus("api.eia.gov", "sent 503", 41.0, 1.0, 4, 2),)
    scheduler.decide(beat(("a", 1), ("b", 1), waits=(waiting("b", since_s=6.5),)), 51.5)
    assert [wait.tasks for wait in scheduler.waits.status(52.0)] == [1]
    scheduler.decide(result("b"), 52.0)
    assert scheduler.waits.status(52.0) == ()


def test_wait_goes_on_over_back_off_and_the_next_attempt() -> None:
    scheduler = started(spec("a"), timings=LeaseTimings(backoff_s=20.0))
    scheduler.decide(register(), 0.0)
    scheduler.decide(beat(("a", 1), waits=(waiting("a", since_s=100.0),)), 100.0)
    scheduler.decide(failure("a"), 120.0)
    (wait,) = scheduler.waits.status(120.0)
    assert (wait.since_s, wait.reason) == (120.0, "sent 503")
    assert 10.0 <= wait.next_s <= 30.0
    now = 120.0
    while scheduler.tasks["a"].state == "pending":  # at most 30 s: the longest back-off
        now += 1.0
        scheduler.decide(beat(), now)
        scheduler.decide(Tick(), now)
        assert now < 160.0
    scheduler.decide(beat(("a", 2)), now + 1.0)
    assert scheduler.waits.status(now + 1.0)[0].since_s == now + 1.0
    scheduler.decide(beat(("a", 2), waits=(waiting("a", 2, since_s=1.5),)), now + 2.0)
    assert scheduler.waits.status(now + 2.0)[0].since_s == now + 2.0


def test_wait_that_begins_later_in_an_attempt_is_a_new_one() -> None:
    waits = TaskWaits()
    waits.heard("a", 1, 0.0, waiting("a", since_s=50.0), 60.0)
    waits.failed("a", 1, 70.0)
    waits.heard("a", 2, 70.0, waiting("a", 2, since_s=2.0), 100.0)
    assert waits.status(100.0)[0].since_s == 2.0


def test_failure_without_a_wait_shows_none() -> None:
    waits = TaskWaits()
    waits.heard("a", 1, 0.0, waiting("a"), 60.0)
    waits.failed("a", 2, 90.0)
    assert waits.status(90.0) == ()


def test_status_is_bounded() -> None:
    waits = TaskWaits()
    for number in range(100):
        waits.heard(str(number), 1, 0.0, Waiting("a", 1, f"host{number}", "?", number, 1.0, 1), 200.0)
    assert [wait.what for wait in waits.status(200.0)] == [f"host{99 - number}" for number in range(MAX_SHOWN)]


# -- a drain ---------------------------------------------------------------------------------------------------------------


def test_drain_releases_waiting_leases_without_blame_and_leaves_the_others() -> None:
    scheduler = started(spec("a"), spec("b"))
    scheduler.decide(register(), 0.0)
    scheduler.decide(beat(("a", 1), ("b", 1), waits=(waiting("a"),)), 1.0)
    decision = scheduler.decide(Drain("drain", "drained"), 2.0)
    assert sent(decision, AbandonLease) == [AbandonLease("a", 1)]
    assert (scheduler.tasks["a"].state, scheduler.tasks["a"].failures) == ("pending", 0)
    assert scheduler.tasks["b"].state == "leased"
    assert not leases(decision)
    assert scheduler.outcome() is None
    decision = scheduler.decide(beat(("b", 1), waits=(waiting("b"),)), 3.0)
    assert sent(decision, AbandonLease) == [AbandonLease("b", 1)]
    outcome = scheduler.outcome()
    assert outcome is not None
    assert outcome.status == "drain"


# -- on the wire and on the screen -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "told",
    [
        Waiting("a", 1, "", "?", 1.0, 1.0, 1),
        Waiting("a", 1, "h", "\x1b[2J", 1.0, 1.0, 1),
        Waiting("a", 1, "h", "70 of 70 shards verified\n", 1.0, 1.0, 1),
        Waiting("a", 1, "h\u202e", "?", 1.0, 1.0, 1),
        Waiting("a", 1, "h", "x" * (messages.MAX_LINE + 1), 1.0, 1.0, 1),
        Waiting("a", 1, "h", "?", float("inf"), 1.0, 1),
        Waiting("a", 1, "h", "?", 1.0, -1.0, 1),
        Waiting("a", 1, "h", "?", 1.0, 1.0, 0),
    ],
)
def test_wait_that_could_spoil_a_line_is_refused(told: Waiting) -> None:
    with pytest.raises(BadMessage):
        codec.decode(codec.encode(beat(waits=(told,))), messages.ToCoordinator)


def test_every_display_says_what_is_waited_for_since_when_and_the_next_try() -> None:
    wait = WaitStatus("api.eia.gov", "sent 503", 40.2, 12.4, 4, 1)
    view = RunView(
        total=2,
        done=0,
        leased=1,
        quarantined=0,
        rows=0,
        rows_per_s=0.0,
        requests=0,
        requests_per_s=0.0,
        ceiling=None,
        eta_s=None,
        elapsed_s=60.0,
        waits=(wait,),
    )
    says = "waiting for api.eia.gov: sent 503, since 40 s, next try in 12 s (attempt 4)"
    shown = render(view)
    console = Console(width=120)
    with console.capture() as capture:
        console.print(shown.picture())
    lines: list[str] = []
    PlainDisplay(lines.append).update(shown)
    assert says in "\n".join(lines).replace(f"\n{FOLDED}", " ")
    assert says in "\n".join(line.rstrip() for line in capture.get().splitlines()).replace(f"\n{FOLDED}", " ")
    assert max(map(len, lines)) <= 80
    assert json.loads(json.dumps(shown.plain))["waits"] == [
        {"what": "api.eia.gov", "reason": "sent 503", "since_s": 40.2, "next_s": 12.4, "attempt": 4, "tasks": 1}
    ]


@pytest.mark.parametrize(("columns", "shown"), [(120, True), (40, False)])
def test_narrow_terminal_has_no_column_for_what_each_worker_does(columns: int, shown: bool) -> None:
    """In 40 columns its cells were cut to `e…`."""
    worker = WorkerView("m2:10", ("extract eia/PACW",), 1, 4, 2.0, 1_000, 10, 100.0, 0.0)
    console = Console(width=columns)
    with console.capture() as capture:
        console.print(render(replace(run_view(STATUS), workers=(worker,), waits=())).picture())
    (row,) = (line for line in capture.get().splitlines() if line.startswith("m2:10"))
    assert ("doing" in capture.get()) == ("extract eia/PACW" in row) == shown
    assert row.split()[-4:] == ["1/4", "1,000", "10", "100"]
