"""A lying worker against a real server with the extract stage: nothing is written that its lease does not cover."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coordinator.stages.extract import lease_check
from coordinator.wire.messages import Ack, Deregister, FileChunk, Lease, Result
from tests.support.data_folder import shard
from tests.support.extraction import KINDS, PATIENT, Proof, extraction, hand_in, plain, tree, truth, upload
from tests.support.waiting import until

OWN = shard("PACW", "2024-01-01T00", "2024-01-03T23")
OTHER = shard("ERCO", "2024-01-01T00", "2024-01-03T23")


class Scene:
    """A server, a worker of it, and a folder with the truth about both shards."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data, self.far = folder, folder / "data", folder / "far"
        self.results = {one.key: truth(self.far, one) for one in (OWN, OTHER)}
        self.running, self.controller = extraction(self.data, (OWN, OTHER))
        self.peer = self.running.peer("w1")
        self.peer.register(kinds=KINDS, capacity=1)
        self.before = tree(folder)

    @property
    def proof(self) -> Proof:
        return plain(self.results[OWN.key])

    def lease(self) -> Lease:
        lease = self.peer.receive(Lease)
        assert lease.task == OWN.key
        return lease

    def refused(self, error: str, message: str) -> None:
        """Check that the task failed by this, that it is open again, and that nothing was committed."""
        task = self.running.scheduler.tasks[OWN.key]
        until(lambda: task.error == error, error)
        assert message in task.message, task.message
        assert not (self.data / "manifests").exists() and self.controller.verified == 0


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    one = Scene(tmp_path)
    yield one
    one.running.close()


def piece_of(scene: Scene, table: pa.Table) -> Callable[[Proof], None]:
    """Return a lie: another piece, whose bytes and digests agree with one another."""

    def lie(proof: Proof) -> None:
        sink = io.BytesIO()
        pq.write_table(table, sink)
        replace_piece(scene, proof, sink.getvalue())

    return lie


def replace_piece(scene: Scene, proof: Proof, body: bytes) -> None:
    sha256 = hashlib.sha256(body).hexdigest()
    path = f"pieces/{OWN.key.replace('/', '__')}-{sha256[:16]}.parquet"
    lease = Lease(OWN.key, scene.running.scheduler.tasks[OWN.key].attempt, "fetch", {}, 1.0)
    assert upload(scene.peer, lease, path, body).accepted
    proof["piece"] = {"path": path, "bytes": len(body), "sha256": sha256}


def field(**more: Any) -> Callable[[Proof], None]:
    return lambda proof: proof.update(more)


def of_shard(**more: Any) -> Callable[[Proof], None]:
    return lambda proof: proof["shard"].update(more)


def first_page(**more: Any) -> Callable[[Proof], None]:
    return lambda proof: proof["pages"][0].update(more)


LIES: dict[str, tuple[str, Callable[[Proof], None]]] = {
    "a source that leads out of the data folder": ("shard", of_shard(source="../../../../OWNED")),
    "the key of a build": ("shard", of_shard(source="build", route="PACW", respondent="2024")),
    "the shard of another lease": ("shard", of_shard(respondent="ERCO")),
    "another period": ("shard", of_shard(end="2024-12-31T23")),
    "another generation": ("shard", of_shard(generation=7)),
    "more rows than the piece has": ("rows", field(rows=10**6, total=10**6)),
    "rows without end": ("rows", field(rows=1 << 62, total=1 << 62)),
    "a total that its rows do not reach": ("total", field(total=1)),
    "another digest": ("digest", field(digest="0" * 64)),
    "nulls that are not there": ("nulls", field(nulls=5)),
    "a gap that is not there": (
        "gaps",
        field(gaps=[{"respondent": "PACW", "variable": "D", "start": OWN.start, "end": OWN.start, "hours": 1}]),
    ),
    "no page": ("rows of the pages", field(pages=[])),
    "a page with other rows": ("rows", first_page(rows=1)),
    "a page at another offset": ("pages in place of", first_page(offset=5000)),
    "a negative counter": ("counter", field(requests=-1)),
    "a counter of a liar": ("counter", field(reused=1 << 62)),
    "a fault with a control character": ("counter", field(faults={"\x1b[2J": 1})),
    "an origin with a control character": ("origin", field(origin="\x1b]0;owned\x07")),
    "respondents that were not asked for": ("respondents", field(kept=["ERCO"])),
}


def test_results_that_contradict_their_lease_are_refused_one_by_one(scene: Scene) -> None:
    for name, (message, lie) in LIES.items():
        assert hand_in(scene.peer, scene.lease(), scene.far, scene.proof, lie).accepted, name
        scene.refused("BadProof", message)
    done = scene.running.scheduler.tasks[OWN.key]
    assert done.failures == len(LIES)
    scene.lease()
    hand_in(scene.peer, Lease(OWN.key, done.attempt, "fetch", {}, 1.0), scene.far, scene.proof)
    until(lambda: scene.controller.verified == 1, "the honest result")
    outside = {path: digest for path, digest in tree(scene.folder).items() if not path.startswith("data/")}
    assert outside == {path: digest for path, digest in scene.before.items() if not path.startswith("data/")}


def test_piece_is_opened_before_it_counts(scene: Scene) -> None:
    honest = pq.read_table(scene.far / scene.results[OWN.key].piece.path, use_threads=False)
    other = pq.read_table(scene.far / scene.results[OTHER.key].piece.path, use_threads=False)
    hours = honest.column("hour").combine_chunks()
    late = honest.set_column(0, "hour", pa.array([hour.as_py() + 9_000 for hour in hours], pa.int32()))
    lies: list[tuple[str, Callable[[Proof], None]]] = [
        ("cannot be read", lambda proof: replace_piece(scene, proof, b"not parquet")),
        ("columns", piece_of(scene, honest.drop_columns(["value"]))),
        ("rows in the piece", piece_of(scene, honest.slice(1))),
        ("digest", piece_of(scene, other)),
        ("digest", piece_of(scene, late)),
        ("digest", piece_of(scene, honest.take([1, 1, *range(2, len(honest))]))),
    ]
    for message, lie in lies:
        hand_in(scene.peer, scene.lease(), scene.far, scene.proof, lie)
        scene.refused("BadProof", message)


def test_pieces_whose_digest_agrees_must_still_be_of_the_lease(scene: Scene) -> None:
    """The liar computes every digest itself: what remains are the hours and respondents of the lease."""
    columns = lease_check.from_table(pq.read_table(scene.far / scene.results[OTHER.key].piece.path, use_threads=False))

    def lie(proof: Proof) -> None:
        table = pq.read_table(scene.far / scene.results[OTHER.key].piece.path, use_threads=False)
        piece_of(scene, table)(proof)
        proof["digest"] = lease_check.digest(columns)

    hand_in(scene.peer, scene.lease(), scene.far, scene.proof, lie)
    scene.refused("BadProof", "respondents of another lease")


def test_files_of_other_leases_cannot_be_written(scene: Scene) -> None:
    sha256 = hashlib.sha256(b"x").hexdigest()
    for path in (
        f"raw/{OTHER.key}/00000000-{sha256[:16]}.json.gz",
        f"raw/{OWN.key}/00000000-{'0' * 16}.json.gz",  # another content's name
        f"raw/{OWN.key}/origin",
        f"raw/{OWN.key}/deeper/00000000-{sha256[:16]}.json.gz",
        f"pieces/{OTHER.key.replace('/', '__')}-{sha256[:16]}.parquet",
        "series/PACW/2023/long.parquet",
        "series/PACW/2024/long.parquet",
    ):
        upload(scene.peer, scene.lease(), path, b"x")
        scene.refused("RefusedPath", "does not belong to this lease")
    assert tree(scene.data / "raw") == tree(scene.data / "series") == tree(scene.data / "pieces") == {}


def page_name(number: int, sha256: str) -> str:
    return f"raw/{OWN.key}/{number:08d}-{sha256[:16]}.json.gz"


def test_lease_has_a_quota_of_files_and_bytes_that_counts_unfinished_ones(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_check, "MAX_FILES", 10)
    for size, just_under in ((8, 10), (1 << 29, 8)):
        lease = scene.lease()
        answers = []
        for number in range(just_under + 1):
            sha256 = f"{number:064x}"
            name = f"raw/{OWN.key}/{number:08d}-{sha256[:16]}.json.gz"
            scene.peer.send(FileChunk("w1", OWN.key, lease.attempt, name, 0, size, sha256), b"1234")
            answers.append(scene.peer.receive(Ack))
        assert [answer.path != "" for answer in answers] == [True] * just_under + [False]
        scene.refused("RefusedPath", "quota of its lease: 10 files")
        until(lambda: not list(scene.data.rglob("*.part")), "the unfinished files to be removed")


@pytest.mark.parametrize("end", ["deregisters", "is silent", "run ends"])
def test_unfinished_files_go_with_their_worker(scene: Scene, end: str) -> None:
    lease = scene.lease()
    scene.peer.send(FileChunk("w1", OWN.key, lease.attempt, page_name(0, "0" * 64), 0, 1 << 30, "0" * 64), b"1234")
    assert scene.peer.receive(Ack).offset == 4 and list(scene.data.rglob("*.part"))
    if end == "deregisters":
        scene.peer.send(Deregister("w1"))
    elif end == "is silent":
        scene.running.server.post(lost())
    else:
        scene.running.server.stop_now()
        scene.running.thread.join(20)
    until(lambda: not list(scene.data.rglob("*.part")), "the unfinished file to be removed")


def lost() -> Any:
    from coordinator.scheduling.events import WorkerLost

    return WorkerLost("w1", "sent nothing")


def test_result_of_a_lease_that_is_not_held_is_not_opened(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(lease_check, "check_result", lambda task, *_: opened.append(task.id))
    lease = scene.lease()
    for task, attempt in ((OTHER.key, 1), (OWN.key, lease.attempt + 1), ("nothing", 1)):
        scene.peer.send(Result("w1", task, attempt, scene.proof, 0.1))
        assert not scene.peer.receive(Ack).accepted
    assert opened == []


def test_origin_of_another_world_is_refused_once_the_world_is_known(tmp_path: Path) -> None:
    results = {one.key: truth(tmp_path / "far", one) for one in (OWN, OTHER)}
    running, controller = extraction(tmp_path / "data", (OWN, OTHER), timings=PATIENT)
    try:
        peer = running.peer("w1")
        peer.register(kinds=("fetch",), capacity=1)
        hand_in(peer, peer.receive(Lease), tmp_path / "far", plain(results[OWN.key]))
        lease = peer.receive(Lease)
        hand_in(peer, lease, tmp_path / "far", plain(results[lease.task]), field(origin="api.eia.gov"))
        lease = peer.receive(Lease)
        assert "this run's results are synthetic" in running.scheduler.tasks[lease.task].message
        assert running.outcome is None and controller.verified == 1
    finally:
        running.close()
