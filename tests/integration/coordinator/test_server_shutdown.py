"""The server over real sockets: file transfer, a full disk, journal compaction, drain, keys."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import zmq
from zmq.utils.monitor import recv_monitor_message

from coordinator.scheduling.events import TaskDone
from coordinator.scheduling.records import TaskSpec
from coordinator.scheduling.scheduler import Scheduler
from coordinator.server import key_store
from coordinator.server.hooks import StageHooks
from coordinator.server.lease_files import LeaseFiles
from coordinator.server.uploads import UploadReceiver
from coordinator.wire import auth
from coordinator.wire.filesystem_id import filesystem_id
from coordinator.wire.messages import (
    Ack,
    FileChunk,
    FilePart,
    FileRequest,
    Heartbeat,
    HeartbeatAck,
    Lease,
    Register,
    Result,
)
from ingest.errors import StorageError
from tests.support.serving import FAILED, WAIT_MS, Running
from tests.support.waiting import until

BODY = b"page " * 1000
OWN = StageHooks(lease_files=lambda task: LeaseFiles((r"raw/a/[^/]+",), 3, 1 << 20))
FILE = {"path": "raw/a/0.json.gz", "bytes": len(BODY), "sha256": hashlib.sha256(BODY).hexdigest()}


def chunk(task: str = "a", attempt: int = 1, path: str = FILE["path"], offset: int = 0) -> FileChunk:  # type: ignore[assignment]
    return FileChunk("w1", task, attempt, path, offset, len(BODY), FILE["sha256"])  # type: ignore[arg-type]


def test_result_is_accepted_only_with_its_files(serve: Callable[..., Running], tmp_path: Path) -> None:
    running = serve(hooks=OWN)
    peer = running.peer()
    peer.register()
    proof = {"pages": [{"file": FILE, "rows": 1}]}
    peer.finish(peer.receive(Lease), proof)
    lease = peer.receive(Lease)  # after the back-off
    assert lease.attempt == 2
    assert running.scheduler.tasks["a"].error == "FilesMissing"
    for offset, body, held in [(0, b"", 0), (0, BODY[:2000], 2000), (0, b"", 2000), (2000, BODY[2000:], len(BODY))]:
        peer.send(chunk(attempt=2, offset=offset), body)
        assert peer.receive(Ack) == Ack("a", 2, True, FILE["path"], held)  # type: ignore[arg-type]
    assert peer.finish(lease, proof).accepted
    assert running.end().status == "done"
    assert (tmp_path / "raw/a/0.json.gz").read_bytes() == BODY


def test_stale_chunk_or_bad_path_writes_nothing(serve: Callable[..., Running], tmp_path: Path) -> None:
    running = serve()
    peer = running.peer()
    peer.register()
    peer.receive(Lease)
    peer.send(chunk(attempt=9), BODY)
    assert not peer.receive(Ack).accepted
    peer.send(chunk(path="../../evil"), BODY)
    peer.receive(Ack)
    assert running.scheduler.tasks["a"].error == "RefusedPath"
    peer.finish(peer.receive(Lease))
    assert running.end().status == "done"
    assert not list(tmp_path.parent.rglob("evil")) and not (tmp_path / "raw").exists()


def test_download_root_is_read_only_and_limited_to_listed_files(serve: Callable[..., Running], tmp_path: Path) -> None:
    folder = tmp_path / "control" / "tables"
    folder.mkdir(parents=True)
    (folder / "listed").write_bytes(BODY)
    (folder / "other").write_bytes(BODY)
    listed = {"path": "tables/listed", "bytes": len(BODY), "sha256": FILE["sha256"]}
    running = serve(hooks=StageHooks(download_roots={"tables": folder}), job={"files": [listed]})
    peer = running.peer()
    peer.register()
    peer.receive(Lease)
    for path, data in (("tables/listed", BODY[1000:]), ("tables/other", b"")):
        peer.send(FileRequest("w1", "a", 1, path, 1000))
        assert peer.receive(FilePart) == FilePart("a", 1, path, 1000) and peer.frames[1] == data
    peer.send(chunk(path="tables/other", offset=0), BODY[::-1])
    peer.receive(Ack)
    assert running.scheduler.tasks["a"].error == "RefusedPath"
    peer.finish(peer.receive(Lease))
    assert running.end().status == "done"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"listed": BODY, "other": BODY}


def test_full_disk_at_commit_is_resumable_and_repeats_the_result(
    serve: Callable[..., Running],
) -> None:
    def refuse(done: TaskDone) -> None:
        raise StorageError("no space left on the disk")

    running = serve(hooks=StageHooks(on_task_done=refuse))
    peer = running.peer()
    peer.register()
    peer.finish(peer.receive(Lease), {"rows": 7})
    outcome = running.end()
    assert (outcome.status, outcome.exit_code) == ("storage", 75)
    running.journal.close()
    again: list[TaskDone] = []
    resumed = serve(hooks=StageHooks(on_task_done=again.append))
    assert resumed.end().status == "done"
    assert [(done.task.id, done.attempt, done.output) for done in again] == [("a", 1, {"rows": 7})]


def test_long_journal_is_compacted_during_the_run(
    serve: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator.server.server.LONG_JOURNAL", 40)
    monkeypatch.setattr("coordinator.server.server.LONG_FOR_ITS_TASKS", 1)
    running = serve(*(f"t{n}" for n in range(30)))
    peer = running.peer()
    peer.register()
    for _ in range(30):
        assert peer.finish(peer.receive(Lease)).accepted
    assert running.end().status == "done"
    assert running.server.counters["rewrites"] >= 1 and running.journal.length < 4 * 30
    again = Scheduler()
    for record in running.journal.load():
        again.apply(record)
    assert again.tasks == running.scheduler.tasks


def test_finished_task_can_open_tasks(serve: Callable[..., Running]) -> None:
    def then(done: TaskDone) -> list[TaskSpec]:
        return [TaskSpec("build", "noop", {"of": done.task.id})] if done.task.id == "a" else []

    running = serve(hooks=StageHooks(on_task_done=then))
    peer = running.peer()
    peer.register()
    peer.finish(peer.receive(Lease))
    second = peer.receive(Lease)
    assert (second.task, second.job) == ("build", {"of": "a"})
    peer.finish(second)
    assert running.end().status == "done"


def test_drain_finishes_leases_and_reports_a_dead_process(serve: Callable[..., Running]) -> None:
    running = serve("a", "b", "c")
    doomed, peer = running.peer("w1"), running.peer("w2")
    doomed.register(filesystem_id=filesystem_id(running.data_dir), pid=4242, capacity=1)
    assert doomed.receive(Lease).task == "a"
    doomed.send(Heartbeat("w1", (("a", 1),)))
    doomed.receive(HeartbeatAck)
    peer.register(capacity=1)
    lease = peer.receive(Lease)
    running.server.drain()
    running.server.lost(4242)
    assert peer.finish(lease).accepted
    assert running.end().status == "drain"
    assert running.scheduler.tasks["a"].error == "WorkerLost"
    assert running.scheduler.tasks["c"].attempt == 0


def test_only_listed_keys_are_admitted(serve: Callable[..., Running], tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    mine, removed = key_store.add_worker(keys, "mine"), auth.load_worker(key_store.add_worker(keys, "removed"))
    key_store.revoke_worker(keys, "removed")
    running = serve(key=key_store.load_coordinator(keys))
    for name, key in (("stranger", None), ("removed", removed)):
        enemy = running.peer(name, key)
        enemy.send(Register(name, "h", 1, ("noop",), 1, "x", "0", "3"))
        assert enemy.monitor.poll(WAIT_MS)
        assert recv_monitor_message(enemy.monitor)["event"] & (FAILED | zmq.EVENT_DISCONNECTED)
        assert not enemy.socket.poll(0)
    peer = running.peer("w1", auth.load_worker(mine))
    peer.register()
    assert peer.finish(peer.receive(Lease)).accepted
    assert running.end().status == "done"
    assert "stranger" not in running.scheduler.workers and running.server.counters["messages"] <= 3


# -- whatever a worker sends, signals and heartbeats wait for one bounded batch ---------------------------------------------


def test_heartbeat_is_answered_between_many_results(serve: Callable[..., Running]) -> None:
    """Each result takes the stage 20 ms (a manifest on a slow disk); 200 arrive at once."""
    committed: list[TaskDone] = []

    def commit(done: TaskDone) -> None:
        time.sleep(0.02)
        committed.append(done)

    running = serve(*(f"t{n}" for n in range(200)), hooks=StageHooks(on_task_done=commit))
    busy, honest = running.peer("w1"), running.peer("w2")
    busy.register(capacity=200)
    leases = [busy.receive(Lease) for _ in range(200)]
    honest.register()
    for lease in leases:
        busy.send(Result("w1", lease.task, lease.attempt, {}, 0.1))
    until(lambda: committed, "the first commit")
    honest.send(Heartbeat("w2", ()))
    honest.receive(HeartbeatAck)
    assert len(committed) < 200
    assert running.end().status == "done" and len(committed) == 200


@pytest.mark.parametrize("what", ["heartbeat", "stop"])
def test_many_chunks_delay_neither_heartbeats_nor_a_stop(
    serve: Callable[..., Running], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Each chunk takes 20 ms (two syncs); 300 wait when a heartbeat or the second Ctrl-C comes."""
    taken: list[str] = []

    def take(self: UploadReceiver, sent: FileChunk, data: bytes, allowed: LeaseFiles) -> int:
        time.sleep(0.02)
        taken.append(sent.path)
        return 0

    monkeypatch.setattr(UploadReceiver, "take", take)
    running = serve()
    hostile, honest = running.peer("w1"), running.peer("w2")
    hostile.register()
    hostile.receive(Lease)
    honest.register()
    for n in range(300):
        hostile.send(chunk(path=f"raw/a/{n}.json.gz"), BODY)
    until(lambda: taken, "the first chunk")
    if what == "heartbeat":
        honest.send(Heartbeat("w2", ()))
        honest.receive(HeartbeatAck)
    else:
        running.server.stop_now()
        running.thread.join(WAIT_MS / 1e3)
        assert running.outcome is not None and running.outcome.status == "stopped"
    assert len(taken) < 300
