"""A hostile worker with a key, twenty ways, against a real coordinator, an honest worker and the emulator."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from coordinator.scheduling.worker_state import LeaseTimings
from coordinator.server import key_store
from coordinator.wire import auth
from coordinator.wire.failures import FailureKind
from coordinator.wire.messages import (
    MAX_CHUNK,
    Failure,
    FileChunk,
    FileRequest,
    Heartbeat,
    Lease,
    PermitRequest,
    Progress,
    Register,
    Result,
    ThrottleReport,
)
from ingest.emulator.process import Emulator
from ingest.models import FetchJob
from ingest.verify import verify
from tests.support.data_folder import shard
from tests.support.extraction import KINDS, Proof, extraction, plain, tree, truth
from tests.support.program import ROOT, environment
from tests.support.serving import Peer
from tests.support.waiting import until

SHARDS = tuple(
    shard(name, "2024-01-01T00", "2024-01-31T23", route=route)
    for name in ("PACW", "ERCO")
    for route in ("region-data", "fuel-type-data")
)
TIMINGS = LeaseTimings(heartbeat_s=0.2, silence_s=4.0, lease_s=5.0, backoff_s=0.05, suspend_s=1.0)


class Liar:
    """A worker of one key, whose leases end in a lie. Its files are its own, with invented values."""

    def __init__(self, endpoint: str, key: auth.KeyPair, folder: Path) -> None:
        self.endpoint, self.key, self.folder = endpoint, key, folder
        self.names = 0
        self.peer = self.join()

    def join(self, capacity: int = 2) -> Peer:
        """Connect and register, under a new name each time."""
        self.names += 1
        peer = Peer(self.endpoint, f"liar-{self.names}", self.key)
        peer.send(Register(peer.name, "liar", 1, KINDS, capacity, "elsewhere", "0", "3"))
        self.peer = peer
        return peer

    def proof(self, lease: Lease) -> Proof:
        return plain(truth(self.folder, msgspec.convert(lease.job, FetchJob).shard))

    def file(self, lease: Lease, path: str, body: bytes = b"x" * 100, size: int | None = None) -> None:
        sha256 = hashlib.sha256(body).hexdigest()
        chunk = FileChunk(self.peer.name, lease.task, lease.attempt, path, 0, size or len(body), sha256)
        self.peer.send(chunk, body[:MAX_CHUNK])

    def result(self, lease: Lease, proof: Proof) -> None:
        for page in (*proof["pages"], {"file": proof["piece"]}):
            path = self.folder / page["file"]["path"]
            if path.is_file():
                self.file(lease, page["file"]["path"], path.read_bytes())
        self.peer.send(Result(self.peer.name, lease.task, lease.attempt, proof, 0.1))

    def failure(self, lease: Lease, error: str, **more: bool) -> None:
        self.peer.send(Failure(self.peer.name, lease.task, lease.attempt, error, "\x1b[2J a lie", **more))


Way = Callable[[Liar, Lease], None]


def changed(**more: object) -> Way:
    return lambda liar, lease: liar.result(lease, liar.proof(lease) | more)


def other_shard(**more: object) -> Way:
    def way(liar: Liar, lease: Lease) -> None:
        proof = liar.proof(lease)
        liar.result(lease, proof | {"shard": proof["shard"] | more})

    return way


def garbage_piece(liar: Liar, lease: Lease) -> None:
    body = b"PAR1 not parquet PAR1"
    sha256 = hashlib.sha256(body).hexdigest()
    path = f"pieces/{lease.task.replace('/', '__')}-{sha256[:16]}.parquet"
    liar.file(lease, path, body)
    liar.result(lease, liar.proof(lease) | {"piece": {"path": path, "bytes": len(body), "sha256": sha256}})


def foreign_files(liar: Liar, lease: Lease) -> None:
    other = SHARDS[0].key if lease.task != SHARDS[0].key else SHARDS[1].key
    for path in (
        "series/PACW/2024/long.parquet",
        f"raw/{other}/origin",
        f"raw/{lease.task}/origin",
        "pieces/x.parquet",
    ):
        liar.file(lease, path)


def outside_paths(liar: Liar, lease: Lease) -> None:
    for path in ("../../OWNED", "/tmp/OWNED", "raw/../../OWNED", "manifests/x.json", "journal.sqlite", "raw/a\0b"):
        liar.file(lease, path)


def page(lease: Lease, number: int) -> tuple[str, str]:
    sha256 = f"{number:064x}"
    return f"raw/{lease.task}/{number:08d}-{sha256[:16]}.json.gz", sha256


def many_files(liar: Liar, lease: Lease) -> None:
    for number in range(6_000):
        path, sha256 = page(lease, number)
        liar.peer.send(FileChunk(liar.peer.name, lease.task, lease.attempt, path, 0, 8, sha256), b"1234")


def big_parts(liar: Liar, lease: Lease) -> None:
    for number in range(40):
        path, sha256 = page(lease, number)
        liar.peer.send(FileChunk(liar.peer.name, lease.task, lease.attempt, path, 0, 1 << 30, sha256), b"x" * 100_000)


def leave_parts(liar: Liar, lease: Lease) -> None:
    big_parts(liar, lease)
    liar.join()


def many_names(liar: Liar, lease: Lease) -> None:
    liar.failure(lease, FailureKind.BAD_RESULT, final=True)
    liar.join(capacity=8)


def noise(liar: Liar, lease: Lease) -> None:
    name = liar.peer.name
    liar.peer.send(ThrottleReport(name, "source", "429", 3600.0))
    liar.peer.send(PermitRequest(name, "source", 64))
    liar.peer.send(Progress(name, lease.task, lease.attempt, 1 << 62, "step", 1 << 62, 1 << 62))
    liar.peer.send(FileRequest(name, lease.task, lease.attempt, "../../etc/passwd", 1 << 62))
    liar.peer.send(Heartbeat(name, ((lease.task, lease.attempt),), 1 << 62, 1 << 62, 1 << 62))
    liar.failure(lease, "SourceError")


def deep(liar: Liar, lease: Lease) -> None:
    proof: Proof = {}
    for _ in range(100):
        proof = {"x": proof}
    liar.result(lease, liar.proof(lease) | {"faults": proof})


def forget(liar: Liar, lease: Lease) -> None:
    """Take leases and never answer: they expire."""


WAYS: dict[str, Way] = {
    "a manifest outside the data folder": other_shard(source="../../../../OWNED"),
    "the manifest of another lease": other_shard(respondent="MISO"),
    "the manifest of a build": other_shard(source="build", route="PACW", respondent="2024"),
    "another period": other_shard(end="2024-12-31T23"),
    "a piece that is none": garbage_piece,
    "rows that are not there": changed(rows=1 << 62, total=1 << 62),
    "a digest that is wrong": changed(digest="0" * 64),
    "no pages": changed(pages=[]),
    "counters of a liar": changed(requests=1 << 62, reused=-5),
    "another world": changed(origin="api.eia.gov\x1b[2J"),
    "a result nested too deep": deep,
    "files of other leases": foreign_files,
    "paths outside": outside_paths,
    "thousands of files": many_files,
    "unfinished files of a gigabyte": big_parts,
    "unfinished files left behind": leave_parts,
    "final failures": lambda liar, lease: liar.failure(lease, FailureKind.USAGE, final=True),
    "a false authentication failure": lambda liar, lease: liar.failure(lease, FailureKind.AUTHENTICATION, final=True),
    "failures under many names": many_names,
    "throttles, permits, progress, counters": noise,
    "leases that are never answered": forget,
}


@pytest.fixture(scope="module")
def source() -> Iterator[str]:
    with Emulator() as emulator:
        yield emulator.url


def lie(liar: Liar, way: Way, stop: threading.Event, lies: list[str]) -> None:
    """Answer every lease with a lie until the run has ended."""
    while not stop.is_set():
        peer = liar.peer
        if peer.socket.poll(100):
            message = peer.read()
            if isinstance(message, Lease):
                lies.append(message.task)
                way(liar, message) if message.kind == "fetch" else liar.failure(message, "SourceError")
        elif way is not forget:
            peer.send(Heartbeat(peer.name, ()))


@pytest.mark.long
@pytest.mark.parametrize("name", WAYS)
def test_hostile_worker_changes_only_its_own_files_and_ends_nothing(name: str, source: str, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    hostile = auth.load_worker(key_store.add_worker(keys, "hostile"))
    honest = key_store.add_worker(keys, "honest")
    data = tmp_path / "data"
    running, controller = extraction(
        data, SHARDS, source, key=key_store.load_coordinator(keys), timings=TIMINGS, bundled="synthetic"
    )
    running.scheduler.resident_owner = "honest"
    outside = tree(keys)
    stop, lies = threading.Event(), list[str]()
    liar = Liar(running.server.endpoint, hostile, tmp_path / "lies")
    thread = threading.Thread(target=lie, args=(liar, WAYS[name], stop, lies))
    thread.start()
    process = None
    try:
        until(lambda: len(lies) >= 2, "the first lies")
        command = [sys.executable, "-m", "worker", "--coordinator", running.server.endpoint, "--data", str(data)]
        process = subprocess.Popen([*command, "--key", str(honest), "--no-ranks"], cwd=ROOT, env=environment())
        began = time.monotonic()
        running.thread.join(120)
        assert not running.thread.is_alive(), running.server.status()
        print(f"{name}: {len(lies)} lies, honest part {time.monotonic() - began:.1f} s")
        assert running.outcome is not None and running.outcome.status == "done", running.outcome
    finally:
        stop.set()
        thread.join()
        if process is not None:
            process.kill()
            process.wait()
        liar.peer.close()
        running.close()
    assert controller.verified == len(SHARDS)
    report = verify(data)
    assert report.whole, report.to_text()
    assert {result.shard for result in controller.fetched} == set(SHARDS)
    assert {path.name for path in tmp_path.iterdir()} <= {"keys", "data", "lies"} and tree(keys) == outside
    assert not list(data.rglob("*.part")) and not Path("/tmp/OWNED").exists()
    for path in tree(data):
        top, _, rest = path.partition("/")
        if top == "raw":
            assert rest.rpartition("/")[0] in {one.key for one in SHARDS}, path
        elif top == "pieces":
            assert rest.rpartition("-")[0] in {one.key.replace("/", "__") for one in SHARDS}, path
        else:
            assert top in ("manifests", "series", "id") or top.startswith("journal.sqlite"), path
    assert not running.server.counters["bad"] or name.startswith(("paths", "throttles", "counters")), (
        running.server.counters
    )
