"""The server over real sockets: leases, bad frames, permits, arrays, weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

import msgpack
import numpy as np
import pytest

from coordinator.scheduling.events import ExcludeWorker, TaskDone
from coordinator.scheduling.rate_limit import RequestBudget
from coordinator.scheduling.records import TaskSpec
from coordinator.server.hooks import StageHooks
from coordinator.wire import codec, messages
from coordinator.wire.messages import (
    Ack,
    FileChunk,
    Heartbeat,
    HeartbeatAck,
    Lease,
    PermitGrant,
    PermitRequest,
    PermitsRevoked,
    Register,
    ReRegister,
    Result,
    Shutdown,
    Status,
    StatusRequest,
    ThrottleReport,
    Weights,
    WeightsRequest,
)
from tests.support.serving import WAIT_MS, Running


def test_a_lease_goes_out_its_result_is_committed_and_the_run_ends(serve: Callable[..., Running]) -> None:
    committed: list[str] = []
    running = serve("a", "b", hooks=StageHooks(on_task_done=lambda done: committed.append(done.task.id)))
    peer = running.peer()
    assert not peer.hello().share_files
    for _ in range(2):
        assert peer.finish(peer.hear(Lease)).accepted
    peer.hear(Shutdown)
    assert running.end().status == "done"
    assert committed == ["a", "b"]


def test_garbage_is_counted_and_dropped_and_the_service_goes_on(serve: Callable[..., Running]) -> None:
    running = serve()
    enemy = running.peer("enemy")
    good = codec.encode(Heartbeat("enemy", ()))
    bad = [
        [b""], [b"\xff" * 50], [b"{}", b"x"], [good, b"", b""], [good, b"tail"], [good[:-1]],
        [codec.encode(Heartbeat("w1", ()))], [codec.encode(Lease("a", 1, "noop", {}, 1.0))],
        [msgpack.packb({"t": "Result", "worker": "enemy", "task": "a", "attempt": "1", "proof": {}, "seconds": 0})],
        [codec.encode(FileChunk("enemy", "a", 1, "raw/x", 0, 1, "0" * 64))], [b"x"] * 50,
    ]  # fmt: skip
    for frames in bad:
        enemy.socket.send_multipart(frames)
    enemy.say(Heartbeat("enemy", ()))  # its answer comes after all of them were read
    enemy.hear(ReRegister)
    assert running.server.counters["bad"] == len(bad)
    peer = running.peer()
    peer.hello()
    assert peer.finish(peer.hear(Lease)).accepted
    assert running.end().status == "done"


def test_an_oversized_frame_ends_its_connection_and_nothing_else(serve: Callable[..., Running]) -> None:
    running = serve()
    enemy, peer = running.peer("enemy"), running.peer()
    peer.hello()
    lease = peer.hear(Lease)
    enemy.socket.send(b"x" * (messages.MAX_MESSAGE + 1))
    assert enemy.monitor.poll(WAIT_MS)  # disconnected by the server
    assert running.server.counters["bad"] == 0  # it never came so far as to be read
    assert peer.finish(lease).accepted
    assert running.end().status == "done"


def test_status_can_be_asked_by_anybody_on_the_host(serve: Callable[..., Running]) -> None:
    running = serve("a", budgets={"source": RequestBudget(2.5, 5)})
    peer, looker = running.peer(), running.peer("looker")
    peer.hello()
    peer.hear(Lease)
    looker.say(StatusRequest())
    snapshot = looker.hear(Status).snapshot
    assert snapshot["tasks"]["leased"] == 1
    assert [worker["name"] for worker in snapshot["workers"]] == ["w1"]
    assert snapshot["budgets"]["source"]["rate"] == 2.5
    json.dumps(snapshot)


def test_permits_come_with_delays_and_a_throttle_voids_them_for_everyone(serve: Callable[..., Running]) -> None:
    running = serve(budgets={"source": RequestBudget(2.0, 1)})
    one, two = running.peer("w1"), running.peer("w2")
    one.hello()
    two.hello()
    one.say(PermitRequest("w1", "source", 3))
    delays = one.hear(PermitGrant).delays
    assert delays == pytest.approx((0.0, 0.5, 1.0), abs=1e-3)
    one.say(PermitRequest("w1", "nonsense", 1))
    assert one.hear(PermitGrant) == PermitGrant("nonsense", ())
    two.say(ThrottleReport("w2", "source", "429", 30.0))
    assert one.hear(PermitsRevoked).bucket == two.hear(PermitsRevoked).bucket == "source"
    one.say(PermitRequest("w1", "source", 1))
    assert one.hear(PermitGrant).delays[0] > 25.0


def test_arrays_are_refused_unless_they_are_what_the_task_wants_and_blamed_on_who_sent_them(
    serve: Callable[..., Running],
) -> None:
    done: list[TaskDone] = []
    running = serve(hooks=StageHooks(on_task_done=done.append))
    spec = TaskSpec("control/1", "noop", {}, ephemeral=True, arrays=(("cost", "float32", (2, 3)),))
    running.server.add_tasks([spec])
    peer = running.peer()
    peer.hello(capacity=1)
    assert peer.finish(peer.hear(Lease)).accepted
    good = np.arange(6, dtype="<f4").tobytes()
    not_finite = np.full(6, np.nan, "<f4").tobytes()
    cost = messages.Array("cost", "float32", (2, 3))
    for arrays, frames in (
        ((messages.Array("cost", "|O", (2, 3)),), (good,)),
        ((messages.Array("cost", "float32", (3, 2)),), (good,)),
        ((cost,), (good[:-1],)),
        ((cost,), (good, good)),
        ((), ()),
        ((cost,), (not_finite,)),
    ):
        lease = peer.hear(Lease)
        assert lease.task == "control/1"
        peer.say(Result("w1", lease.task, lease.attempt, {}, 0.1, arrays), *frames)
        peer.hear(Ack)
        running.scheduler.tasks["control/1"].failures = 0  # it would be quarantined before all were tried
        peer.say(Heartbeat("w1", ()))
    assert running.server.counters["bad_arrays"] == 6
    lease = peer.hear(Lease)
    assert running.scheduler.tasks["control/1"].error == "BadArrays"
    peer.say(Result("w1", lease.task, lease.attempt, {}, 0.1, (cost,)), good)
    assert peer.hear(Ack).accepted
    assert running.end().status == "done"
    assert [(one.task.id, one.arrays) for one in done] == [("a", ()), ("control/1", (good,))]
    assert "control/1" not in running.scheduler.tasks
    assert not any("control/1" in str(record) for record in running.journal.load())


def test_weights_go_to_those_that_play_and_to_those_that_ask(serve: Callable[..., Running]) -> None:
    weights = Weights(7, hashlib.sha256(b"w").hexdigest(), b"w")
    running = serve(hooks=StageHooks(get_weights={weights.sha256: weights}.get))
    player, other = running.peer("w1"), running.peer("w2")
    player.hello(kinds=("rollout", "noop"))
    other.hello()
    running.server.post(weights)
    assert player.hear(Weights) == weights
    other.say(WeightsRequest("w2", weights.sha256))
    assert other.hear(Weights) == weights
    other.say(WeightsRequest("w2", "0" * 64))
    assert other.hear(Weights).data == b""
    other.say(Heartbeat("w2", ()))
    other.hear(HeartbeatAck)
    assert not [kept for kept in other.kept if isinstance(kept, Weights)]  # it does not play: no broadcast for it


def test_who_was_put_out_is_stopped_and_may_not_come_back(serve: Callable[..., Running]) -> None:
    running = serve()
    peer, honest = running.peer("w1"), running.peer("w2")
    peer.hello()
    lease = peer.hear(Lease)
    running.server.post(ExcludeWorker("w1", "its results are wrong"))
    assert peer.hear(Shutdown).reason == "its results are wrong"
    peer.say(Result("w1", lease.task, lease.attempt, {}, 0.1))
    assert not peer.hear(Ack).accepted
    peer.say(Register("w1", "h", 1, ("noop",), 4, "elsewhere", "0", "3"))
    assert not peer.hear(Shutdown).drain
    honest.hello()
    again = honest.hear(Lease)
    assert (again.task, again.attempt) == (lease.task, lease.attempt + 1)
    assert honest.finish(again).accepted
    assert running.end().status == "done"
