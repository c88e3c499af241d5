"""The judgement of a wait for other ranks, on a clock of the test's, and the datagrams between two ranks."""

import threading

import mlx.core as mx
import pytest

import ringattn as ra
from ringattn import liveness
from ringattn._call_header import SIZE, Kind, exchange
from ringattn.launch import free_ports
from ringattn.liveness import Heartbeat, PeerLife, Waits, why_stalled

COMPUTES, WAITS, LEAVES = range(3)
TIMEOUT = 10.0


def peer(heard: float | None, state: int = COMPUTES, changed: float = 0.0) -> PeerLife:
    return PeerLife(heard, changed, state)


@pytest.mark.parametrize(
    ("now", "peers", "cause"),
    [
        (9.9, {}, None),
        (10.0, {}, "no answer from a neighbour within 10 s"),
        (10.0, {1: peer(None)}, "no answer from a neighbour within 10 s"),
        (10.0, {1: peer(9.8), 2: peer(None)}, "no answer from a neighbour within 10 s"),
        (99.0, {1: peer(98.8)}, None),
        (9.9, {1: peer(-50.0)}, None),  # a silence counts from the begin of the wait
        (10.0, {1: peer(-50.0), 2: peer(9.9)}, "rank 1 gave no sign of life for 10.0 s"),
        (17.0, {1: peer(7.0), 2: peer(6.0)}, "ranks 1, 2 gave no sign of life"),
        (15.0, {1: peer(14.9, WAITS, 5.1)}, None),
        (15.2, {1: peer(15.0, WAITS, 5.1)}, "every rank waits for another one"),
        (15.2, {1: peer(15.0, WAITS, 5.1), 2: peer(15.0)}, None),  # rank 2 computes
        (15.2, {1: peer(15.0, WAITS, 5.1), 2: peer(3.0, LEAVES, 3.0)}, "every rank waits for another one"),
        (100.0, {1: peer(99.9), 2: peer(99.9, WAITS, 99.0)}, "rank 1 gave signs of life, but no answer"),
    ],
)
def test_wait_ends_by_silence_deadlock_or_a_bound(now: float, peers: dict[int, PeerLife], cause: str | None) -> None:
    said = why_stalled(0.0, now, TIMEOUT, peers)
    assert said is None if cause is None else (said or "").startswith(cause), said


def test_short_timeout_forgives_lost_datagrams() -> None:
    assert why_stalled(0.0, 0.9, 0.1, {1: peer(0.0)}) is None
    assert why_stalled(0.0, 1.0, 0.1, {1: peer(0.0)}) is not None


def test_signs_of_life_carry_the_state_and_a_change_has_its_time() -> None:
    life = PeerLife().hears(1.0, WAITS, 0).hears(2.0, WAITS, 0)
    assert (life.heard, life.changed, life.state) == (2.0, 1.0, WAITS)
    assert life.hears(3.0, WAITS, 1).changed == 3.0
    assert life.hears(3.0, COMPUTES, 0).changed == 3.0


def test_datagrams_reach_the_other_rank_and_strangers_are_ignored() -> None:
    nodes = [("127.0.0.1", port) for port in free_ports(2)]
    first, second = Heartbeat(0, nodes), Heartbeat(1, nodes)
    assert first._socket is not None and second._socket is not None
    first._send(WAITS)
    sign = second._socket.recv(100)
    for stranger in (
        b"",
        sign[:-1],
        b"x" + sign[1:],
        sign[:4] + b"ring" + sign[8:],
        sign[:8] + bytes([0, 7]) + sign[10:],
    ):
        second._receive(stranger)
    assert second.peers()[0].heard is None
    second._receive(sign)
    assert second.peers()[0].heard is not None and second.peers()[0].state == WAITS
    taken = Heartbeat(1, nodes)  # its port belongs to `second`: no channel, so the timeout alone counts
    assert taken.peers() == {}
    first._socket.close()
    second._socket.close()


def test_wait_in_mlx_is_ended_from_outside() -> None:
    nodes = [("127.0.0.1", port) for port in free_ports(2)]
    heartbeat, ended = Heartbeat(0, nodes), threading.Event()
    with heartbeat.watched(TIMEOUT, lambda cause: ended.set()):
        assert heartbeat.state == WAITS
        heartbeat._end_watches(heartbeat._watches[0].began + TIMEOUT - 0.1)
        assert not ended.is_set()
        heartbeat._end_watches(heartbeat._watches[0].began + TIMEOUT)
        assert ended.is_set()
    assert heartbeat.state == COMPUTES and heartbeat.ended == 1


def test_process_that_was_stopped_itself_judges_nobody_by_that_time(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([0.0, 0.2, 500.0, 500.2, 501.0, 502.0, 503.1])
    monkeypatch.setattr(liveness.time, "monotonic", lambda: next(looks))
    cause = Waits().wait(threading.Event(), 3.0)
    assert cause == "no answer from a neighbour within 3 s" and next(looks, None) is None


class StrayData:
    """A transport on which something else than headers arrives."""

    def __init__(self) -> None:
        self.abandoned = ""

    def rank(self) -> int:
        return 0

    def size(self) -> int:
        return 2

    def shift(self, shift, doing: str):
        raise AssertionError

    def all_gather(self, x: mx.array, doing: str):
        return self

    def all_sum(self, x: mx.array, doing: str):
        raise AssertionError

    def wait(self, timeout: float) -> list[mx.array]:
        return [mx.full((2 * SIZE,), 0x3F80_0000, dtype=mx.int32)]

    def abandon(self, doing: str, cause: str) -> None:
        self.abandoned = cause


def test_something_else_than_a_header_is_named_and_ends_the_group() -> None:
    transport = StrayData()
    with pytest.raises(ra.MismatchError, match=r"rank 0, 1: a collective of the program .* still in flight"):
        exchange(Kind.ATTENTION, None, [1, 2], transport, 5.0)
    assert transport.abandoned == "something else than a header arrived"
