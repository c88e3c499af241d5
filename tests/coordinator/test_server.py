"""The server over real sockets: bad frames, keys, permits, files, drain, a full disk."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgpack
import numpy as np
import pytest
import zmq
from zmq.utils.monitor import recv_monitor_message

from coordinator import curve, protocol
from coordinator.budget import Budget
from coordinator.curve import Curve
from coordinator.events import Outcome, PutOut, TaskDone
from coordinator.journal import Journal
from coordinator.protocol import (
    Ack,
    FileChunk,
    Goodbye,
    Heartbeat,
    HeartbeatAck,
    Hello,
    Lease,
    PermitGrant,
    PermitRequest,
    PermitsVoid,
    RegisterAgain,
    Result,
    Status,
    StatusRequest,
    Stop,
    ThrottleReport,
    Weights,
    WeightsRequest,
    Welcome,
)
from coordinator.scheduler import Limits, Scheduler, TaskSpec
from coordinator.server import Server
from ingest.errors import StorageError

WAIT_MS = 20_000  # bound of every wait: reached only when something is broken
FAILED = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
M = TypeVar("M", bound=protocol.Message)


class Peer:
    """A worker, or an enemy, made of one socket."""

    def __init__(self, endpoint: str, name: str = "w1", key: Curve | None = None) -> None:
        self.name = name
        self.kept: list[protocol.Message] = []
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.IDENTITY, name.encode())
        self.socket.setsockopt(zmq.LINGER, 0)
        if key is not None:
            key.connect(self.socket)
        self.monitor = self.socket.get_monitor_socket(FAILED | zmq.EVENT_DISCONNECTED)
        self.socket.connect(endpoint)

    def say(self, message: protocol.Message, *more: bytes) -> None:
        self.socket.send_multipart([protocol.encode(message), *more])

    def hear(self, kind: type[M]) -> M:
        """The next message of a kind; others are kept for later."""
        for index, message in enumerate(self.kept):
            if isinstance(message, kind):
                del self.kept[index]
                return message
        while self.socket.poll(WAIT_MS):
            message = protocol.decode(self.socket.recv_multipart()[0], protocol.ToWorker)
            if isinstance(message, kind):
                return message
            self.kept.append(message)
        raise AssertionError(f"{self.name} waited in vain for {kind.__name__}")

    def hello(self, data_id: str = "elsewhere", **more: Any) -> Welcome:
        kinds = more.get("kinds", ("noop",))
        self.say(Hello(self.name, "h", more.get("pid", 1), kinds, more.get("capacity", 4), data_id, "0", "3"))
        return self.hear(Welcome)

    def finish(self, lease: Lease, proof: dict[str, Any] | None = None) -> Ack:
        self.say(Result(self.name, lease.task, lease.attempt, proof or {}, 0.1))
        return self.hear(Ack)

    def close(self) -> None:
        self.socket.disable_monitor()
        self.monitor.close(0)
        self.socket.close(0)
        self.context.term()


@dataclass
class Running:
    """A server in a thread, and who speaks with it."""

    data_dir: Path
    tasks: tuple[str, ...] = ("a",)
    key: Curve | None = None
    on_done: Callable[[TaskDone], None] = lambda done: None
    budgets: dict[str, Budget] = field(default_factory=dict)
    weights: Callable[[str], Weights | None] = lambda sha256: None
    peers: list[Peer] = field(default_factory=list)
    outcome: Outcome | None = None

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(protocol.data_id(self.data_dir), Limits(heartbeat_s=0.2))
        self.journal = Journal(self.data_dir / "journal.sqlite")
        for record in self.journal.load():
            self.scheduler.apply(record)
        self.server = Server(
            self.scheduler,
            self.journal,
            self.budgets,
            data_dir=self.data_dir,
            curve=self.key,
            on_done=self.on_done,
            weights=self.weights,
        )
        self.server.add_tasks(TaskSpec(name, "noop", {}) for name in self.tasks)
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        self.outcome = self.server.run()

    def peer(self, name: str = "w1", key: Curve | None = None) -> Peer:
        self.peers.append(Peer(self.server.endpoint, name, key))
        return self.peers[-1]

    def end(self) -> Outcome:
        for peer in self.peers:
            if peer.name in self.scheduler.workers:
                peer.say(Goodbye(peer.name))
        self.thread.join(WAIT_MS / 1e3)
        assert self.outcome is not None
        return self.outcome

    def close(self) -> None:
        self.server.stop_now()
        self.end()
        for peer in self.peers:
            peer.close()
        self.journal.close()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    running: list[Running] = []

    def start(*tasks: str, **more: Any) -> Running:
        running.append(Running(tmp_path, tasks or ("a",), **more))
        return running[-1]

    yield start
    for one in running:
        one.close()


def test_a_lease_goes_out_its_result_is_committed_and_the_run_ends(serve: Callable[..., Running]) -> None:
    committed: list[str] = []
    running = serve("a", "b", on_done=lambda done: committed.append(done.task.id))
    peer = running.peer()
    assert not peer.hello().share_files
    for _ in range(2):
        assert peer.finish(peer.hear(Lease)).accepted
    peer.hear(Stop)
    assert running.end().status == "done"
    assert committed == ["a", "b"]


def test_garbage_is_counted_and_dropped_and_the_service_goes_on(serve: Callable[..., Running]) -> None:
    running = serve()
    enemy = running.peer("enemy")
    good = protocol.encode(Heartbeat("enemy", ()))
    bad = [
        [b""], [b"\xff" * 50], [b"{}", b"x"], [good, b"", b""], [good, b"tail"], [good[:-1]],
        [protocol.encode(Heartbeat("w1", ()))], [protocol.encode(Lease("a", 1, "noop", {}, 1.0))],
        [msgpack.packb({"t": "Result", "worker": "enemy", "task": "a", "attempt": "1", "proof": {}, "seconds": 0})],
        [protocol.encode(FileChunk("enemy", "a", 1, "raw/x", 0, 1, "0" * 64))], [b"x"] * 50,
    ]  # fmt: skip
    for frames in bad:
        enemy.socket.send_multipart(frames)
    enemy.say(Heartbeat("enemy", ()))  # its answer comes after all of them were read
    enemy.hear(RegisterAgain)
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
    enemy.socket.send(b"x" * (protocol.MAX_MESSAGE + 1))
    assert enemy.monitor.poll(WAIT_MS)  # disconnected by the server
    assert running.server.counters["bad"] == 0  # it never came so far as to be read
    assert peer.finish(lease).accepted
    assert running.end().status == "done"


def test_status_can_be_asked_by_anybody_on_the_host(serve: Callable[..., Running]) -> None:
    running = serve("a", budgets={"source": Budget(2.5, 5)})
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
    running = serve(budgets={"source": Budget(2.0, 1)})
    one, two = running.peer("w1"), running.peer("w2")
    one.hello()
    two.hello()
    one.say(PermitRequest("w1", "source", 3))
    delays = one.hear(PermitGrant).delays
    assert delays == pytest.approx((0.0, 0.5, 1.0), abs=1e-3)
    one.say(PermitRequest("w1", "nonsense", 1))
    assert one.hear(PermitGrant) == PermitGrant("nonsense", ())
    two.say(ThrottleReport("w2", "source", "429", 30.0))
    assert one.hear(PermitsVoid).bucket == two.hear(PermitsVoid).bucket == "source"
    one.say(PermitRequest("w1", "source", 1))
    assert one.hear(PermitGrant).delays[0] > 25.0


def test_arrays_are_refused_unless_they_are_what_the_task_wants_and_blamed_on_who_sent_them(
    serve: Callable[..., Running],
) -> None:
    done: list[TaskDone] = []
    running = serve(on_done=done.append)
    spec = TaskSpec("control/1", "noop", {}, fleeting=True, arrays=(("cost", "float32", (2, 3)),))
    running.server.add_tasks([spec])
    peer = running.peer()
    peer.hello(capacity=1)
    assert peer.finish(peer.hear(Lease)).accepted
    good = np.arange(6, dtype="<f4").tobytes()
    not_finite = np.full(6, np.nan, "<f4").tobytes()
    cost = protocol.Array("cost", "float32", (2, 3))
    for arrays, frames in (
        ((protocol.Array("cost", "|O", (2, 3)),), (good,)),
        ((protocol.Array("cost", "float32", (3, 2)),), (good,)),
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
    running = serve(weights={weights.sha256: weights}.get)
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
    running.server.post(PutOut("w1", "its results are wrong"))
    assert peer.hear(Stop).reason == "its results are wrong"
    peer.say(Result("w1", lease.task, lease.attempt, {}, 0.1))
    assert not peer.hear(Ack).accepted
    peer.say(Hello("w1", "h", 1, ("noop",), 4, "elsewhere", "0", "3"))
    assert not peer.hear(Stop).drain
    honest.hello()
    again = honest.hear(Lease)
    assert (again.task, again.attempt) == (lease.task, lease.attempt + 1)
    assert honest.finish(again).accepted
    assert running.end().status == "done"


BODY = b"page " * 1000
FILE = {"path": "raw/a/0.json.gz", "bytes": len(BODY), "sha256": hashlib.sha256(BODY).hexdigest()}


def chunk(task: str = "a", attempt: int = 1, path: str = FILE["path"], offset: int = 0) -> FileChunk:  # type: ignore[assignment]
    return FileChunk("w1", task, attempt, path, offset, len(BODY), FILE["sha256"])  # type: ignore[arg-type]


def test_a_result_without_its_files_is_refused_and_with_them_accepted(
    serve: Callable[..., Running], tmp_path: Path
) -> None:
    running = serve()
    peer = running.peer()
    peer.hello()
    proof = {"pages": [{"file": FILE, "rows": 1}]}
    peer.finish(peer.hear(Lease), proof)
    lease = peer.hear(Lease)  # after the back-off
    assert lease.attempt == 2
    assert running.scheduler.tasks["a"].error == "FilesMissing"
    for offset, body, held in [(0, b"", 0), (0, BODY[:2000], 2000), (0, b"", 2000), (2000, BODY[2000:], len(BODY))]:
        peer.say(chunk(attempt=2, offset=offset), body)
        assert peer.hear(Ack) == Ack("a", 2, True, FILE["path"], held)  # type: ignore[arg-type]
    assert peer.finish(lease, proof).accepted
    assert running.end().status == "done"
    assert (tmp_path / "raw/a/0.json.gz").read_bytes() == BODY


def test_chunks_of_a_lease_that_is_not_held_and_of_a_bad_path_write_nothing(
    serve: Callable[..., Running], tmp_path: Path
) -> None:
    running = serve()
    peer = running.peer()
    peer.hello()
    peer.hear(Lease)
    peer.say(chunk(attempt=9), BODY)
    assert not peer.hear(Ack).accepted
    peer.say(chunk(path="../../evil"), BODY)
    peer.hear(Ack)
    assert running.scheduler.tasks["a"].error == "RefusedPath"
    assert running.end().exit_code == 75
    assert not list(tmp_path.parent.rglob("evil")) and not (tmp_path / "raw").exists()


def test_a_full_disk_at_the_commit_ends_resumable_and_the_proof_is_handed_out_again(
    serve: Callable[..., Running],
) -> None:
    def refuse(done: TaskDone) -> None:
        raise StorageError("no space left on the disk")

    running = serve(on_done=refuse)
    peer = running.peer()
    peer.hello()
    peer.finish(peer.hear(Lease), {"rows": 7})
    outcome = running.end()
    assert (outcome.status, outcome.exit_code) == ("storage", 75)
    running.journal.close()
    again: list[TaskDone] = []
    resumed = serve(on_done=again.append)
    assert resumed.end().status == "done"
    assert [(done.task.id, done.attempt, done.proof) for done in again] == [("a", 1, {"rows": 7})]


def test_a_long_journal_is_written_anew_while_the_run_goes_on(
    serve: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator.server.LONG_JOURNAL", 40)
    monkeypatch.setattr("coordinator.server.LONG_FOR_ITS_TASKS", 1)
    running = serve(*(f"t{n}" for n in range(30)))
    peer = running.peer()
    peer.hello()
    for _ in range(30):
        assert peer.finish(peer.hear(Lease)).accepted
    assert running.end().status == "done"
    assert running.server.counters["rewrites"] >= 1 and running.journal.length < 4 * 30
    again = Scheduler()
    for record in running.journal.load():
        again.apply(record)
    assert again.tasks == running.scheduler.tasks


def test_a_finished_task_can_open_others(serve: Callable[..., Running]) -> None:
    def then(done: TaskDone) -> list[TaskSpec]:
        return [TaskSpec("build", "noop", {"of": done.task.id})] if done.task.id == "a" else []

    running = serve(on_done=then)
    peer = running.peer()
    peer.hello()
    peer.finish(peer.hear(Lease))
    second = peer.hear(Lease)
    assert (second.task, second.job) == ("build", {"of": "a"})
    peer.finish(second)
    assert running.end().status == "done"


def test_drain_finishes_what_is_leased_and_a_dead_process_is_known_at_once(serve: Callable[..., Running]) -> None:
    running = serve("a", "b", "c")
    doomed, peer = running.peer("w1"), running.peer("w2")
    doomed.hello(data_id=protocol.data_id(running.data_dir), pid=4242, capacity=1)
    assert doomed.hear(Lease).task == "a"
    doomed.say(Heartbeat("w1", (("a", 1),)))
    doomed.hear(HeartbeatAck)
    peer.hello(capacity=1)
    lease = peer.hear(Lease)
    running.server.drain()
    running.server.lost(4242)
    assert peer.finish(lease).accepted
    assert running.end().status == "drain"
    assert running.scheduler.tasks["a"].error == "WorkerLost"
    assert running.scheduler.tasks["c"].attempt == 0


def test_only_keys_on_the_list_are_let_in(serve: Callable[..., Running], tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    mine, removed = curve.add_worker(keys, "mine"), curve.load_worker(curve.add_worker(keys, "removed"))
    curve.revoke_worker(keys, "removed")
    running = serve(key=curve.load_coordinator(keys))
    for name, key in (("stranger", None), ("removed", removed)):
        enemy = running.peer(name, key)
        enemy.say(Hello(name, "h", 1, ("noop",), 1, "x", "0", "3"))
        assert enemy.monitor.poll(WAIT_MS)
        assert recv_monitor_message(enemy.monitor)["event"] & (FAILED | zmq.EVENT_DISCONNECTED)
        assert not enemy.socket.poll(0)
    peer = running.peer("w1", curve.load_worker(mine))
    peer.hello()
    assert peer.finish(peer.hear(Lease)).accepted
    assert running.end().status == "done"
    assert "stranger" not in running.scheduler.workers and running.server.counters["messages"] <= 3
