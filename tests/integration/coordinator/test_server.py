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


def test_run_ends_when_all_results_are_committed(serve: Callable[..., Running]) -> None:
    committed: list[str] = []
    running = serve("a", "b", hooks=StageHooks(on_task_done=lambda done: committed.append(done.task.id)))
    peer = running.peer()
    assert not peer.register().share_files
    for _ in range(2):
        assert peer.finish(peer.receive(Lease)).accepted
    peer.receive(Shutdown)
    assert running.end().status == "done"
    assert committed == ["a", "b"]


def test_garbage_is_counted_and_dropped(serve: Callable[..., Running]) -> None:
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
    enemy.send(Heartbeat("enemy", ()))  # its acknowledgement follows after all of them were read
    enemy.receive(ReRegister)
    assert running.server.counters["bad"] == len(bad)
    peer = running.peer()
    peer.register()
    assert peer.finish(peer.receive(Lease)).accepted
    assert running.end().status == "done"


def test_oversized_frame_closes_only_its_connection(serve: Callable[..., Running]) -> None:
    running = serve()
    enemy, peer = running.peer("enemy"), running.peer()
    peer.register()
    lease = peer.receive(Lease)
    enemy.socket.send(b"x" * (messages.MAX_MESSAGE + 1))
    assert enemy.monitor.poll(WAIT_MS)  # disconnected by the server
    assert running.server.counters["bad"] == 0  # the socket rejects it before the server reads it
    assert peer.finish(lease).accepted
    assert running.end().status == "done"


def test_status_on_loopback_needs_no_key(serve: Callable[..., Running]) -> None:
    running = serve("a", budgets={"source": RequestBudget(2.5, 5)})
    peer, looker = running.peer(), running.peer("looker")
    peer.register()
    peer.receive(Lease)
    looker.send(StatusRequest())
    snapshot = looker.receive(Status).snapshot
    assert snapshot["tasks"]["leased"] == 1
    assert [worker["name"] for worker in snapshot["workers"]] == ["w1"]
    assert snapshot["budgets"]["source"]["rate"] == 2.5
    json.dumps(snapshot)


def test_throttle_revokes_the_permits_of_all_workers(serve: Callable[..., Running]) -> None:
    running = serve(budgets={"source": RequestBudget(2.0, 1)})
    one, two = running.peer("w1"), running.peer("w2")
    one.register()
    two.register()
    one.send(PermitRequest("w1", "source", 3))
    delays = one.receive(PermitGrant).delays
    assert delays == pytest.approx((0.0, 0.5, 1.0), abs=1e-3)
    one.send(PermitRequest("w1", "nonsense", 1))
    assert one.receive(PermitGrant) == PermitGrant("nonsense", ())
    two.send(ThrottleReport("w2", "source", "429", 30.0))
    assert one.receive(PermitsRevoked).bucket == two.receive(PermitsRevoked).bucket == "source"
    one.send(PermitRequest("w1", "source", 1))
    assert one.receive(PermitGrant).delays[0] > 25.0


def test_wrong_arrays_are_rejected_and_blamed_on_their_worker(
    serve: Callable[..., Running],
) -> None:
    done: list[TaskDone] = []
    running = serve(hooks=StageHooks(on_task_done=done.append))
    spec = TaskSpec("control/1", "noop", {}, ephemeral=True, arrays=(("cost", "float32", (2, 3)),))
    running.server.add_tasks([spec])
    peer = running.peer()
    peer.register(capacity=1)
    assert peer.finish(peer.receive(Lease)).accepted
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
        lease = peer.receive(Lease)
        assert lease.task == "control/1"
        peer.send(Result("w1", lease.task, lease.attempt, {}, 0.1, arrays), *frames)
        peer.receive(Ack)
        running.scheduler.tasks["control/1"].failures = 0  # otherwise it would be quarantined before all were tried
        peer.send(Heartbeat("w1", ()))
    assert running.server.counters["bad_arrays"] == 6
    lease = peer.receive(Lease)
    assert running.scheduler.tasks["control/1"].error == "BadArrays"
    peer.send(Result("w1", lease.task, lease.attempt, {}, 0.1, (cost,)), good)
    assert peer.receive(Ack).accepted
    assert running.end().status == "done"
    assert [(one.task.id, one.arrays) for one in done] == [("a", ()), ("control/1", (good,))]
    assert "control/1" not in running.scheduler.tasks
    assert not any("control/1" in str(record) for record in running.journal.load())


def test_weights_go_to_rollout_workers_and_on_request(serve: Callable[..., Running]) -> None:
    weights = Weights(7, hashlib.sha256(b"w").hexdigest(), b"w")
    running = serve(hooks=StageHooks(get_weights={weights.sha256: weights}.get))
    player, other = running.peer("w1"), running.peer("w2")
    player.register(kinds=("rollout", "noop"))
    other.register()
    running.server.post(weights)
    assert player.receive(Weights) == weights
    other.send(WeightsRequest("w2", weights.sha256))
    assert other.receive(Weights) == weights
    other.send(WeightsRequest("w2", "0" * 64))
    assert other.receive(Weights).data == b""
    other.send(Heartbeat("w2", ()))
    other.receive(HeartbeatAck)
    assert not [kept for kept in other.kept if isinstance(kept, Weights)]  # it runs no rollouts: no broadcast


def test_excluded_worker_cannot_reregister(serve: Callable[..., Running]) -> None:
    running = serve()
    peer, honest = running.peer("w1"), running.peer("w2")
    peer.register()
    lease = peer.receive(Lease)
    running.server.post(ExcludeWorker("w1", "its results are wrong"))
    assert peer.receive(Shutdown).reason == "its results are wrong"
    peer.send(Result("w1", lease.task, lease.attempt, {}, 0.1))
    assert not peer.receive(Ack).accepted
    peer.send(Register("w1", "h", 1, ("noop",), 4, "elsewhere", "0", "3"))
    assert not peer.receive(Shutdown).drain
    honest.register()
    again = honest.receive(Lease)
    assert (again.task, again.attempt) == (lease.task, lease.attempt + 1)
    assert honest.finish(again).accepted
    assert running.end().status == "done"
