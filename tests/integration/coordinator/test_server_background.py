"""Work on files that takes long: the server answers heartbeats while a thread hashes a file or validates a result."""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coordinator.server import uploads
from coordinator.server.background import BackgroundThread
from coordinator.server.hooks import StageHooks
from coordinator.server.lease_files import LeaseFiles
from coordinator.server.uploads import UploadReceiver
from coordinator.wire.messages import MAX_CHUNK, Ack, FileChunk, Heartbeat, HeartbeatAck, Lease
from coordinator.wire.paths import RefusedPath
from ingest.files import file_sha256
from tests.support.serving import Peer, Running
from tests.support.waiting import until

BODY = bytes(range(256)) * ((uploads.INLINE_BYTES + MAX_CHUNK) // 256)  # over the limit of what is hashed at once
SHA = hashlib.sha256(BODY).hexdigest()
NAMES = LeaseFiles((r"raw/a/[^/]+",), 3, 1 << 30)
FILE = {"path": "raw/a/0.bin", "bytes": len(BODY), "sha256": SHA}


def chunks(attempt: int = 1) -> list[tuple[FileChunk, bytes]]:
    return [
        (FileChunk("w1", "a", attempt, "raw/a/0.bin", offset, len(BODY), SHA), BODY[offset : offset + MAX_CHUNK])
        for offset in range(0, len(BODY), MAX_CHUNK)
    ]


class Gate:
    """Wraps a function that then waits, in whatever thread calls it, until the test opens the gate."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.reached, self.opened, self.calls = function, threading.Event(), threading.Event(), 0

    def __call__(self, *arguments: Any) -> Any:
        self.calls += 1
        self.reached.set()
        assert self.opened.wait(60)
        return self.function(*arguments)


def heartbeat(peer: Peer) -> None:
    peer.send(Heartbeat(peer.name, ()))
    peer.receive(HeartbeatAck)


def test_heartbeats_are_answered_while_a_file_is_hashed_and_a_result_validated(
    serve: Callable[..., Running], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The digest of a 1 GiB file took 0.8 s in the loop; the check of a result may read gigabytes."""
    hashing = Gate(file_sha256)
    monkeypatch.setattr(uploads, "file_sha256", hashing)
    validating = Gate(lambda task, output: None)
    running = serve(hooks=StageHooks(lease_files=lambda task: NAMES, check_result=validating))
    busy, honest = running.peer("w1"), running.peer("w2")
    busy.register()
    lease = busy.receive(Lease)
    honest.register()
    for chunk, data in chunks():
        busy.send(chunk, data)
    assert hashing.reached.wait(60)
    heartbeat(honest)
    busy.send(chunks()[0][0], b"")  # asks again: there is one check of a file at a time
    heartbeat(busy)
    hashing.opened.set()
    until(lambda: busy.receive(Ack).offset == len(BODY), "the last acknowledgement")
    assert hashing.calls == 1 and (tmp_path / "raw/a/0.bin").read_bytes() == BODY

    for _ in range(2):  # sent again before its answer
        busy.send_result(lease, {"file": FILE})
    assert validating.reached.wait(60)
    heartbeat(honest)
    forged = FileChunk("w1", "a", 1, "raw/a/0.bin", 0, 3, "0" * 64)
    busy.send(forged, b"new")  # the file that is being validated
    heartbeat(busy)
    validating.opened.set()
    assert busy.receive(Ack).accepted
    assert running.end().status == "done"
    assert validating.calls == 1 and (tmp_path / "raw/a/0.bin").read_bytes() == BODY


def test_lease_may_end_while_its_file_is_hashed(
    serve: Callable[..., Running], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hashing = Gate(file_sha256)
    monkeypatch.setattr(uploads, "file_sha256", hashing)
    running = serve(hooks=StageHooks(lease_files=lambda task: NAMES))
    busy = running.peer("w1")
    busy.register()
    busy.receive(Lease)
    for chunk, data in chunks():
        busy.send(chunk, data)
    assert hashing.reached.wait(60)
    running.server.lost(1)
    busy.send(Heartbeat("w1", ()))
    running.server.stop_now()
    assert running.end().status == "stopped"  # does not wait for the hash
    hashing.opened.set()
    assert not (tmp_path / "raw/a/0.bin").exists()


def test_file_of_another_content_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker sends chunks for a name that holds another file of this size: each of them had the whole file hashed."""
    calls: list[Path] = []

    def count(path: Path) -> str:
        calls.append(path)
        return file_sha256(path)

    monkeypatch.setattr(uploads, "file_sha256", count)
    old = tmp_path / "raw/a/0.bin"
    old.parent.mkdir(parents=True)
    old.write_bytes(BODY[::-1])
    receiver = UploadReceiver(tmp_path)
    for chunk, data in chunks():
        receiver.take(chunk, data, NAMES)
    assert calls == [old, old.with_name(f"0.bin.{SHA[:16]}.part")] and old.read_bytes() == BODY


def test_result_names_at_most_the_files_of_its_lease(tmp_path: Path) -> None:
    (tmp_path / "raw/a").mkdir(parents=True)
    files = []
    for n in range(4):
        (tmp_path / f"raw/a/{n}").write_bytes(b"x")
        files.append({"path": f"raw/a/{n}", "bytes": 1, "sha256": "0" * 64})
    assert uploads.missing_files(tmp_path, {"files": files[:3]}, NAMES) == ""
    with pytest.raises(RefusedPath, match="at most 3 files"):
        uploads.missing_files(tmp_path, {"files": files}, NAMES)


def test_error_in_the_background_is_raised_in_the_loop() -> None:
    posted: queue.SimpleQueue[Callable[[], Any]] = queue.SimpleQueue()
    background = BackgroundThread(posted.put)
    received: list[float] = []

    def take(outcome: Callable[[], float]) -> None:
        received.append(outcome())

    background.submit(lambda: 1 / 0, take)
    background.submit(lambda: 7.0, take)
    with pytest.raises(ZeroDivisionError):
        posted.get(timeout=60)()
    posted.get(timeout=60)()
    assert received == [7.0]
    background.stop()
