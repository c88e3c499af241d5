"""Fuzz the wire: nothing crashes, memory does not grow, and well-behaved workers are served."""

from __future__ import annotations

import gc
import random
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.scheduling.events import WorkerLost
from coordinator.scheduling.rate_limit import RequestBudget
from coordinator.scheduling.records import Done
from coordinator.scheduling.scheduler import Scheduler
from coordinator.server import journal, key_store
from coordinator.server.journal import Journal
from coordinator.wire import auth, codec, messages
from coordinator.wire.filesystem_id import filesystem_id
from coordinator.wire.messages import BadMessage, Lease
from tests.support.fuzz import NAME, frames
from tests.support.serving import Running
from tests.support.waiting import WAIT_S, until

GROWTH = 24 << 20  # bytes of resident memory: allocators and caches, not frames (a million of them are 100 MB)
SCALAR = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=9)
)
PLAIN: Any = st.recursive(
    SCALAR,
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=9) | st.integers(0, 9), inner, max_size=5)
    ),
    max_leaves=20,
)
TYPES = [kind.__name__ for kind in messages.ToCoordinator.__args__]


def decoded(frame: bytes) -> messages.Message | None:
    try:
        return codec.decode(frame, messages.ToCoordinator)
    except BadMessage:
        return None


@given(kind=st.sampled_from(TYPES), fields=st.dictionaries(st.sampled_from(sorted({
    field for kind in messages.ToCoordinator.__args__ for field in kind.__struct_fields__
})), PLAIN))  # fmt: skip
def test_decoded_message_encodes_again(kind: str, fields: dict[str, Any]) -> None:
    """Decode any map with a type's tag: either BadMessage, or a message that round-trips."""
    message = decoded(msgpack.packb({"t": kind, **fields}))
    if message is not None:
        assert repr(decoded(codec.encode(message))) == repr(message)


@given(PLAIN)
def test_accepted_result_survives_the_journal(proof: Any) -> None:
    """A result that `files_in` accepts round-trips through JSON, so that a replay hands out the same result."""
    message = decoded(
        msgpack.packb({"t": "Result", "worker": "w", "task": "t", "attempt": 1, "proof": {"x": proof}, "seconds": 1})
    )
    if message is None:
        return
    assert isinstance(message, messages.Result)
    try:
        list(codec.files_in(message.output))
    except BadMessage:
        return
    record = Done("t", 1, "w", message.seconds, message.output)
    assert journal._decode(journal._encode(record)) == record


def count_decoded(count: int, seed: int) -> int:
    draw = random.Random(seed)
    return sum(decoded(frame) is not None for frame, _ in zip(frames(draw), range(count), strict=False))


def grows(work: Callable[[], object], warm_up: Callable[[], object]) -> int:
    warm_up()
    gc.collect()
    before = psutil.Process().memory_info().rss
    work()
    gc.collect()
    return psutil.Process().memory_info().rss - before


def test_codec_survives_any_frame() -> None:
    good = 0

    def work() -> None:
        nonlocal good
        good = count_decoded(20_000, seed=1)

    assert grows(work, lambda: count_decoded(2_000, seed=2)) < GROWTH
    assert 2_000 < good < 18_000  # the fuzzer makes both kinds


@pytest.mark.long
@pytest.mark.timeout(900)
def test_codec_survives_a_million_frames() -> None:
    assert grows(lambda: count_decoded(1_000_000, seed=3), lambda: count_decoded(50_000, seed=4)) < GROWTH


def bombard(running: Running, count: int, seed: int) -> None:
    """Send `count` messages of one to three frames from one enemy, which reads the replies."""
    draw, before = random.Random(seed), dict(running.server.counters)
    enemy = running.peer(NAME)
    source = frames(draw)
    for number in range(count):
        more = draw.choice((0, 0, 0, 0, 1, 1, 2))
        enemy.socket.send_multipart([next(source) for _ in range(1 + more)])
        if number % 200 == 0:
            while enemy.socket.poll(0):
                enemy.socket.recv_multipart()

    def all_read() -> bool:
        while enemy.socket.poll(0):
            enemy.socket.recv_multipart()
        return running.server.counters["messages"] >= before["messages"] + count

    until(all_read, "the server to read them all")
    assert running.server.counters["bad"] - before["bad"] > count / 4
    running.peers.remove(enemy)
    enemy.close()


def besieged(folder: Path, warm_up: int, count: int) -> None:
    running = Running(folder, ("a", "b", "c"), budgets={"source": RequestBudget(1e6, 5)})
    # Tasks that the enemy made fail are retried at once: the next worker need not wait.
    running.scheduler.timings = replace(running.scheduler.timings, backoff_s=0.01)
    try:
        grown = grows(lambda: bombard(running, count, seed=5), lambda: bombard(running, warm_up, seed=6))
        assert grown < GROWTH
        assert running.thread.is_alive(), "the server's loop has ended"
        running.server.post(WorkerLost(NAME, "his connection is gone"))
        until(lambda: NAME not in running.scheduler.workers, "the enemy to leave")
        left = [task.spec.id for task in running.scheduler.tasks.values() if task.state == "pending"]
        peer = running.peer("w-good")
        peer.register(capacity=8)
        for _ in left:
            assert peer.finish(peer.receive(Lease)).accepted
    finally:
        running.close()
    again = Scheduler(filesystem_id(folder))
    kept = Journal(folder / "journal.sqlite")
    for record in kept.load():
        again.apply(record)
    kept.close()
    assert again.tasks == running.scheduler.tasks


def test_server_under_fuzzing_serves_and_keeps_its_journal(tmp_path: Path) -> None:
    besieged(tmp_path, warm_up=2_000, count=10_000)


@pytest.mark.long
@pytest.mark.timeout(1_800)
def test_server_survives_a_million_frames(tmp_path: Path) -> None:
    besieged(tmp_path, warm_up=100_000, count=1_000_000)


def storm(running: Running, count: int, seed: int) -> None:
    """Open raw connections to the public port and send noise or a part of a greeting."""
    draw = random.Random(seed)
    address = ("127.0.0.1", int(running.server.endpoint.rpartition(":")[2]))
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x01CURVE" + bytes(47) + b"\x04\xc8\x05HELLO"
    for _ in range(count):
        with socket.create_connection(address, timeout=WAIT_S) as connection:
            noise = draw.randbytes(draw.randint(1, 400))
            connection.sendall(draw.choice((noise, greeting[: draw.randint(1, 72)] + noise, greeting + noise)))
            connection.shutdown(socket.SHUT_WR)
            try:
                while connection.recv(4096):
                    pass
            except ConnectionResetError:
                pass


def test_proxy_under_flood_admits_its_worker(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    key = auth.load_worker(key_store.add_worker(keys, "mine"))
    running = Running(tmp_path, ("a",), key=key_store.load_coordinator(keys))
    try:
        assert grows(lambda: storm(running, 200, seed=8), lambda: storm(running, 50, seed=9)) < GROWTH
        assert until(lambda: running.server.status().counters["refused"] == 250, "all to be counted")
        peer = running.peer("w1", key)
        peer.register()
        assert peer.finish(peer.receive(Lease)).accepted
        assert running.end().status == "done"
    finally:
        running.close()


def test_misbehaving_listed_worker_cannot_end_the_run(tmp_path: Path) -> None:
    """Paths too long for a file system, results too deep for a journal, NaN: each is refused."""
    running = Running(tmp_path, ("a",))
    try:
        peer = running.peer()
        peer.register()
        lease = peer.receive(Lease)
        name = "raw/" + "é" * 250
        file = {"path": name, "bytes": 3, "sha256": "0" * 64}
        bad: list[Any] = [{"n": float("nan")}, {"f": {**file, "bytes": "3"}}, {"f": file}]
        deep: Any = {}
        for _ in range(150):
            deep = {"x": deep}
        for proof in [*bad, deep]:
            peer.send(messages.FileChunk("w1", "a", lease.attempt, name[:250], 0, 3, "0" * 64), b"abc")
            peer.receive(messages.Ack)
            peer.send(messages.Result("w1", "a", lease.attempt, proof, 0.1))
            until(lambda: running.scheduler.tasks["a"].state != "leased", "the refusal")
            if running.scheduler.tasks["a"].state == "quarantined":
                break
            lease = peer.receive(Lease)
        assert running.scheduler.tasks["a"].error in ("RefusedPath", "BadProof", "FilesMissing")
        assert running.thread.is_alive() or running.outcome is not None
    finally:
        running.close()
