"""The waits that a worker's heartbeats report."""

from __future__ import annotations

from coordinator.wire import codec, messages
from coordinator.wire.messages import Heartbeat
from ingest.console import REDACTED
from ingest.outage import Wait
from worker.agent.waits import Waits

KEY = "Se/cret-KEY-0123456789"


def test_wait_is_reported_when_it_is_a_second_old_until_a_usable_response() -> None:
    waits = Waits(None)
    waits.begin(("a", 1), 10.0)
    waits.report(("a", 1), Wait("host", "sent 503", since=10.0, next_try=30.0, attempt=2), 10.5)
    assert waits.current(10.9) == ()
    (told,) = waits.current(12.0)
    assert (told.task, told.attempt, told.what, told.reason) == ("a", 1, "host", "sent 503")
    assert (told.since_s, told.next_s, told.request) == (2.0, 18.0, 2)
    waits.report(("a", 1), None, 13.0)
    assert waits.current(20.0) == ()


def test_fetch_that_queues_behind_a_waiting_one_waits_too() -> None:
    """Its requests have no free connection: without this, a drain would wait for it."""
    waits = Waits(None)
    waits.begin(("a", 1), 10.0)
    waits.begin(("b", 1), 11.0)
    waits.report(("a", 1), Wait("host", "no response yet", 10.0, 40.0, 1), 12.0)
    assert [(told.task, told.since_s) for told in waits.current(15.0)] == [("a", 5.0), ("b", 4.0)]
    waits.report(("b", 1), None, 14.5)  # it has a response
    assert [told.task for told in waits.current(15.0)] == ["a"]


def test_end_of_a_lease_ends_its_wait() -> None:
    waits = Waits(None)
    waits.begin(("a", 1), 10.0)
    waits.end(("a", 1))
    waits.report(("a", 1), Wait("host", "sent 503", 10.0, 30.0, 1), 12.0)
    assert waits.current(20.0) == ()


def test_report_is_one_valid_line_without_the_key() -> None:
    waits = Waits(KEY)
    waits.begin(("a", 1), 0.0)
    reason = f"{KEY} \x1b[2J\n Straße " + "x" * 1000
    waits.report(("a", 1), Wait("hôst", reason, 0.0, 1e12, 1), 1.0)
    frame = codec.encode(Heartbeat("w", (("a", 1),), waiting=waits.current(5.0)))
    (told,) = codec.decode(frame, messages.Heartbeat).waiting
    assert KEY not in told.reason
    assert told.reason.startswith(REDACTED + r" \x1b[2J\n Stra\xdfe x")
    assert told.next_s == messages.MAX_PAUSE
