"""The bytes of every message, journal record and manifest, equal to those of earlier versions.

`golden_formats.json` holds them, by tag: classes may be renamed, these bytes may not change. For a new type add a sample here
and the bytes that the failing test shows.
"""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from coordinator import ledger, protocol
from coordinator.failures import FailureKind
from coordinator.journal import Journal
from coordinator.kinds import LeaseKind
from coordinator.protocol import Message
from ingest import manifest
from ingest.shards import BuildProof, FileProof, Gap, PageProof, Shard, ShardProof
from rl import jobs
from worker.execute import FAILURES, HANDLERS

GOLDEN = json.loads(Path(__file__).with_name("golden_formats.json").read_text())
SHA = "0123456789abcdef" * 4
HELLO = protocol.Hello("w", "host", 7, ("fetch", "build"), 2, "id", "1.0", "3.12.1")
MESSAGES: tuple[Message, ...] = (
    HELLO,
    protocol.Heartbeat("w", (("t", 3),), 5000, 12, 1 << 27),
    protocol.Progress("w", "t", 3, 40, "validate", 17, 30, True),
    protocol.Result(
        "w", "t", 3, {"rows": 5, "é": [None, 2.5, True]}, 0.25, (protocol.Array("cost", "float32", (2, 3)),)
    ),
    protocol.Failure("w", "t", 3, "SourceError", "why: é", True, False),
    protocol.PermitRequest("w", "eia", 4),
    protocol.ThrottleReport("w", "eia", "429", 1.5),
    protocol.FileChunk("w", "t", 3, "raw/a.json", 1024, 4096, SHA),
    protocol.FileRequest("w", "t", 3, "series/a.parquet", 1024),
    protocol.WeightsRequest("w", SHA),
    protocol.Goodbye("w"),
    protocol.StatusRequest(),
    protocol.Welcome(1.0, 10.0, True),
    protocol.RegisterAgain(),
    protocol.HeartbeatAck(),
    protocol.Lease("t", 3, "fetch", {"shard": {"start": "2019-01-01T00"}}, 60.0),
    protocol.Ack("t", 3, True, "raw/a.json", 2048),
    protocol.FilePart("t", 3, "series/a.parquet", 1024),
    protocol.PermitGrant("eia", (0.0, 1.5)),
    protocol.PermitsVoid("eia"),
    protocol.Weights(2, SHA, b"\x00\x01\xff"),
    protocol.Cancel("t", 3),
    protocol.End("t", 3, 2.5),
    protocol.Stop(True, "revoked"),
    protocol.Status({"counts": {"done": 3}, "workers": ["w"]}),
)
SPEC = ledger.TaskSpec(
    "t", "rollout", {"n": [1, None, 2.5]}, ("b",), True, "w", True, False, (("cost", "float64", (2, 3)),)
)
RECORDS: tuple[ledger.AnyRecord, ...] = (
    ledger.Added("t", SPEC),
    ledger.Leased("t", 1, "w"),
    ledger.Returned("t", 1, "restart"),
    ledger.Failed("t", 2, "SourceError", "why: é", True, False),
    ledger.Done("t", 3, "w", 0.25, {"rows": 5000}),
    ledger.Committed("t"),
    ledger.Dropped("t"),
    ledger.Kept("t", ledger.Task(SPEC, 4, "quarantined", 3, 2, "Crash", "why", "w", 0.25, {"rows": 1}, False, 1, 0)),
)
JOBS: tuple[jobs.AnyJob, ...] = (
    jobs.Labels(SHA, 1, 2, 3, 4),
    jobs.Rollout(SHA, SHA, 1, 2, 3, (0.5, 0.25)),
    jobs.Evaluate(SHA, "hour rule", (1, 2), 36, SHA),
    jobs.Evolve(SHA, SHA, 1, (2, 3), 0.5, 4, 5),
    jobs.Descend(SHA, SHA, SHA, SHA, 1, 2, 3, 4, 5, 6, 7, 8, 0.5, (0.25,)),
)
FILE = FileProof("raw/a.json", 12, SHA)
SHARD = ShardProof(
    shard=Shard("eia", "region-data", "PACW", "2019-01-01T00", "2019-12-31T23", 1),
    origin="synthetic",
    total=5,
    rows=5,
    nulls=1,
    gaps=(Gap("PACW", "D", "2019-01-01T00", "2019-01-01T02", 3),),
    pages=(PageProof(FILE, 0, 5, 5, "2024-01-01T00:00:00+00:00", 0.5, "2.1", "/v2/data?offset=0"),),
    piece=FileProof("pieces/a.parquet", 34, SHA),
    digest=SHA,
    requests=2,
    reused=1,
    kept=("PACW",),
    faults={"5xx": 1},
)
BUILD = BuildProof(
    respondent="PACW",
    year=2019,
    long=FileProof("series/long.parquet", 1, SHA),
    wide=FileProof("series/wide.parquet", 2, SHA),
    summary=FileProof("series/series.json", 3, SHA),
    hours=8760,
    variables=("D", "NG.SUN"),
    valid=8757,
    masked={"missing": 3},
    revised=1,
    pieces=(SHA,),
    duplicates=0,
)


def tag_of(struct: Any) -> str:
    return str(struct.__struct_config__.tag)


def stored(folder: Path) -> list[tuple[int, str]]:
    """(crc, text) of `RECORDS`, each as the journal's table has it."""
    journal = Journal(folder / "journal.sqlite")
    journal.append(RECORDS)
    journal.close()
    with sqlite3.connect(journal.path) as database:
        return [tuple(row) for row in database.execute("SELECT crc, record FROM records ORDER BY seq")]


def written(folder: Path) -> dict[str, str]:
    """The text of each kind of manifest."""
    committed = "2024-01-01T00:00:00+00:00"
    shard = manifest.write_shard(folder, manifest.ShardManifest(SHARD, 2, "w", committed))
    build = manifest.write_build(folder, manifest.BuildManifest(BUILD, 1, "w", committed))
    manifest.write_summary(folder)
    paths = {"shard": shard, "build": build, "summary": folder / "manifest.json"}
    return {kind: path.read_text() for kind, path in paths.items()}


@pytest.mark.parametrize("message", MESSAGES, ids=tag_of)
def test_message_bytes_are_golden(message: Message) -> None:
    frame, union = protocol.encode(message), protocol.ToCoordinator
    assert frame.hex() == GOLDEN["messages"].get(tag_of(message))
    assert protocol.decode(frame, union if type(message) in get_args(union) else protocol.ToWorker) == message


def test_every_message_has_golden_bytes() -> None:
    kinds = {*get_args(protocol.ToCoordinator), *get_args(protocol.ToWorker)}
    assert kinds == set(Message.__subclasses__()) == {type(message) for message in MESSAGES}
    assert {tag_of(kind) for kind in kinds} == GOLDEN["messages"].keys()


def test_record_bytes_are_golden(tmp_path: Path) -> None:
    assert [list(row) for row in stored(tmp_path)] == GOLDEN["records"]
    assert tuple(Journal(tmp_path / "journal.sqlite").load()) == RECORDS


def test_every_record_has_golden_bytes() -> None:
    kinds = set(get_args(ledger.AnyRecord))
    assert kinds == set(ledger.Record.__subclasses__()) == {type(record) for record in RECORDS}
    assert sorted(map(tag_of, kinds)) == sorted(json.loads(text)["r"] for _, text in GOLDEN["records"])


@pytest.mark.parametrize("job", JOBS, ids=tag_of)
def test_job_bytes_are_golden(job: jobs.AnyJob) -> None:
    assert msgspec.json.encode(job).decode() == GOLDEN["jobs"].get(tag_of(job))


def test_every_job_has_golden_bytes() -> None:
    assert set(get_args(jobs.AnyJob)) == set(jobs.Job.__subclasses__()) == {type(job) for job in JOBS}


def test_manifest_bytes_are_golden(tmp_path: Path) -> None:
    assert written(tmp_path) == GOLDEN["manifests"]
    assert [found.proof for found in manifest.shard_manifests(tmp_path)] == [SHARD]
    assert [found.proof for found in manifest.build_manifests(tmp_path)] == [BUILD]


def test_failure_kinds_are_golden() -> None:
    assert sorted(FailureKind) == GOLDEN["failures"]
    assert len(set(FAILURES.values())) == len(FAILURES)


def test_lease_kinds_are_those_of_the_handlers() -> None:
    assert set(LeaseKind) == set(HANDLERS)
    assert {tag_of(kind) for kind in get_args(jobs.AnyJob)} < set(LeaseKind)
