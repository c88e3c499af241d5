"""File transfer between worker and coordinator: only missing parts move, transfers resume, damage is detected."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from coordinator.server.lease_files import LeaseFiles
from coordinator.server.uploads import UploadReceiver
from coordinator.stages.train.inputs import TrainingFiles
from coordinator.wire.messages import Ack, FileChunk, FilePart, FileRequest, Message
from coordinator.wire.payloads import FileRef
from ingest.errors import Cancelled, VerificationError
from tests.support.data_folder import shard
from worker.agent import handlers
from worker.agent.file_transfer import CHUNK, FileTransfer, TransferInbox, file_ref
from worker.training import replica

ANY = LeaseFiles((r"run/.+",), 100, 1 << 30)
BODY = bytes(range(256)) * 5_000  # five chunks


class Wire:
    """A coordinator that answers at once, from and to `folder`; its first `drop` answers are lost."""

    def __init__(self, folder: Path, drop: int = 0) -> None:
        self.folder, self.drop = folder, drop
        self.inbox = UploadReceiver(folder, {"run": folder / "run"})
        self.cancelled = False
        self.moved = 0  # bytes of files
        self.transfer_inbox = TransferInbox(lambda: self.cancelled)
        self.transfer = FileTransfer("w", "t", 1, self.say, self.transfer_inbox)

    def say(self, message: Message, frames: Iterable[bytes]) -> None:
        if self.drop:
            self.drop -= 1
        elif isinstance(message, FileRequest):
            with (self.folder / message.path).open("rb") as file:
                file.seek(message.offset)
                part = file.read(CHUNK)
            self.moved += len(part)
            self.transfer_inbox.parts.put((FilePart("t", 1, message.path, message.offset), part))
        elif isinstance(message, FileChunk):
            (data,) = frames
            self.moved += len(data)
            held = self.inbox.take(message, data, ANY)
            assert held is not None
            self.transfer_inbox.acks.put(Ack("t", 1, not self.cancelled, message.path, held))


def write(folder: Path, path: str, body: bytes = BODY) -> FileRef:
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_bytes(body)
    return file_ref(folder, path)


def nothing() -> None:
    pass


def test_sync_downloads_missing_files_and_removes_unlisted_ones(tmp_path: Path) -> None:
    wire, here = Wire(tmp_path / "there"), tmp_path / "here"
    listed = [write(wire.folder, path) for path in ("series/A/2021/wide.parquet", "run/checkpoints/000020/state.json")]
    replica.sync_replica(here, listed, wire.transfer, nothing)
    assert wire.moved == 2 * len(BODY)
    other = write(here, "run/checkpoints/000030/state.json")  # of a round that the coordinator has no files of
    for kept in ("run/logs/rank-0.log", "tokens/A.npy"):
        write(here, kept)
    replica.sync_replica(here, listed, wire.transfer, nothing)
    assert wire.moved == 2 * len(BODY)
    assert not (here / other.path).parent.exists()
    assert (here / "run/logs/rank-0.log").exists() and (here / "tokens/A.npy").exists()
    (here / listed[0].path).write_bytes(BODY[::-1])  # as long as before
    replica.sync_replica(here, listed, wire.transfer, nothing)
    assert (here / listed[0].path).read_bytes() == BODY and wire.moved == 3 * len(BODY)


def test_partial_download_resumes_and_is_verified(tmp_path: Path) -> None:
    wire, here = Wire(tmp_path / "there"), tmp_path / "here"
    file = write(wire.folder, "series/A/2021/wide.parquet")
    half = here / f"{file.path}.{file.sha256[:16]}.part"
    half.parent.mkdir(parents=True)
    half.write_bytes(BODY[: 2 * CHUNK])
    replica.sync_replica(here, [file], wire.transfer, nothing)
    assert wire.moved == len(BODY) - 2 * CHUNK and (here / file.path).read_bytes() == BODY
    (here / file.path).unlink()
    half.write_bytes(b"x" * CHUNK)  # damaged: the SHA-256 differs at the end, and the file is transferred again
    replica.sync_replica(here, [file], wire.transfer, nothing)
    assert (here / file.path).read_bytes() == BODY and not half.exists()


def test_changed_file_is_refused(tmp_path: Path) -> None:
    wire = Wire(tmp_path / "there")
    file = write(wire.folder, "series/A/2021/wide.parquet")
    write(wire.folder, file.path, BODY[::-1])
    with pytest.raises(VerificationError, match="wrong SHA-256"):
        wire.transfer.download(tmp_path / "here", file, nothing)


def test_lost_requests_are_sent_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.agent.file_transfer.ANSWER_S", 0.2)
    wire = Wire(tmp_path / "there", drop=3)
    file = write(wire.folder, "series/A/2021/wide.parquet")
    wire.transfer.download(tmp_path / "here", file, nothing)
    assert (tmp_path / "here" / file.path).read_bytes() == BODY


def test_cancelled_lease_ends_transfer(tmp_path: Path) -> None:
    wire = Wire(tmp_path / "there", drop=1 << 30)
    file = write(wire.folder, "series/A/2021/wide.parquet")
    wire.cancelled = True
    with pytest.raises(Cancelled):
        wire.transfer.download(tmp_path / "here", file, nothing)
    with pytest.raises(Cancelled):
        wire.transfer.upload(wire.folder, file)


def checkpoint(run: Path, step: int, best: int) -> None:
    part = run / "checkpoints" / f".{step:06d}.part"
    write(part, "weights.safetensors", hashlib.sha256(str(step).encode()).digest() * 20_000)
    write(part, ".DS_Store", b"of Finder")
    write(part, "state.json", json.dumps({"step": step, "best_step": best}).encode())
    part.replace(part.with_name(f"{step:06d}"))  # as `checkpoint.save`: an uploader sees whole checkpoints only


def test_checkpoints_are_uploaded_with_best_one_and_pruned(tmp_path: Path) -> None:
    wire, here = Wire(tmp_path / "there"), tmp_path / "here"
    uploader = replica.CheckpointUploader(here, wire.transfer)
    write(here, "run/metrics.jsonl", b'{"step": 1}\n')
    for step in (10, 20, 30, 40):
        checkpoint(here / "run", step, best=20)
        uploader.notify()
    uploader.finish()
    assert uploader.error is None and uploader.saved == 40
    there = TrainingFiles(wire.folder, wire.folder / "run", config=False)
    there.prune()
    kept = {path.name for path in (wire.folder / "run" / "checkpoints").iterdir()}
    assert {"000020", "000040"} <= kept and len(kept) <= 3
    listed = {file.path for file in there.list_files()}
    assert "run/metrics.jsonl" in listed and "run/checkpoints/000040/weights.safetensors" in listed
    assert "run/checkpoints/000020/state.json" in listed and "run/checkpoints/000030/state.json" not in listed
    assert not list(wire.folder.rglob(".DS_Store"))
    moved = wire.moved
    replica.CheckpointUploader(
        here, wire.transfer
    ).finish()  # another round on the same host: files that the coordinator holds are not sent again
    assert wire.moved == moved


@pytest.mark.parametrize(
    "path", ["/etc/x", "../x", "series/../../x", "series/a\0b", "series//x", "id", "raw/x", "series/out/x"]
)
def test_path_of_a_lying_coordinator_is_refused_before_a_request(tmp_path: Path, path: str) -> None:
    wire, here = Wire(tmp_path / "there"), tmp_path / "here"
    (here / "series").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (here / "series" / "out").symlink_to(tmp_path / "outside")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(VerificationError, match="refused"):
        wire.transfer.download(here, FileRef(path, 3, "0" * 64), nothing)
    assert wire.transfer_inbox.parts.empty() and sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("field", ["route", "respondent", "start", "end"])
def test_fetch_of_a_lying_coordinator_writes_nothing_outside(tmp_path: Path, field: str) -> None:
    job = {"shard": msgspec.to_builtins(shard()) | {field: "../../../../x/y"}, "base_url": "http://127.0.0.1:9"}
    context: Any = SimpleNamespace(data_dir=tmp_path / "data", fetch_context=lambda: pytest.fail("it began to fetch"))
    with pytest.raises(VerificationError, match="refused"):
        handlers.fetch(job, context)
    assert not list(tmp_path.iterdir())


def test_build_of_a_lying_coordinator_writes_and_reads_nothing_outside(tmp_path: Path) -> None:
    context: Any = SimpleNamespace(data_dir=tmp_path / "data")
    piece = {"file": {"path": "../secret", "bytes": 1, "sha256": "0" * 64}, "shard": msgspec.to_builtins(shard())}
    for respondent, pieces in (("../../x", []), ("PACW", [piece])):
        with pytest.raises(VerificationError, match="refused"):
            handlers.build({"respondent": respondent, "year": 2024, "origin": "x", "pieces": pieces}, context)
    assert not list(tmp_path.iterdir())
