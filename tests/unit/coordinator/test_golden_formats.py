"""The bytes of every message, journal record and manifest equal those of earlier versions.

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

from coordinator.scheduling import records
from coordinator.server.journal import Journal
from coordinator.wire import codec, messages
from coordinator.wire.failures import FailureKind
from coordinator.wire.lease_kinds import LeaseKind
from coordinator.wire.messages import Message
from ingest import manifest
from ingest.models import BuildResult, FileEntry, Gap, PageEntry, Shard, ShardResult
from rl.distributed import jobs
from worker.agent.handlers import FAILURES, default_handlers

GOLDEN = json.loads(Path(__file__).with_name("golden_formats.json").read_text())
SHA = "0123456789abcdef" * 4
HELLO = messages.Register("w", "host", 7, ("fetch", "build"), 2, "id", "1.0", "3.12.1", arithmetic="OpenBLAS")
MESSAGES: tuple[Message, ...] = (
    HELLO,
    messages.Heartbeat(
        "w", (("t", 3),), 5000, 12, 1 << 27, (messages.Waiting("t", 3, "api.eia.gov", "sent 503", 40.5, 12.0, 4),)
    ),
    messages.Progress("w", "t", 3, 40, "validate", 17, 30, True),
    messages.Result(
        "w", "t", 3, {"rows": 5, "é": [None, 2.5, True]}, 0.25, (messages.Array("cost", "float32", (2, 3)),)
    ),
    messages.Failure("w", "t", 3, "SourceError", "why: é", True, False),
    messages.PermitRequest("w", "eia", 4),
    messages.ThrottleReport("w", "eia", "429", 1.5),
    messages.FileChunk("w", "t", 3, "raw/a.json", 1024, 4096, SHA),
    messages.FileRequest("w", "t", 3, "series/a.parquet", 1024),
    messages.WeightsRequest("w", SHA),
    messages.Deregister("w"),
    messages.StatusRequest(),
    messages.RegisterAck(1.0, 10.0, True),
    messages.ReRegister(),
    messages.HeartbeatAck(),
    messages.Lease("t", 3, "fetch", {"shard": {"start": "2019-01-01T00"}}, 60.0),
    messages.Ack("t", 3, True, "raw/a.json", 2048),
    messages.FilePart("t", 3, "series/a.parquet", 1024),
    messages.PermitGrant("eia", (0.0, 1.5)),
    messages.PermitsRevoked("eia"),
    messages.Weights(2, SHA, b"\x00\x01\xff"),
    messages.AbandonLease("t", 3),
    messages.TerminateLease("t", 3, 2.5),
    messages.Shutdown(True, "revoked"),
    messages.Status({"counts": {"done": 3}, "workers": ["w"]}),
)
SPEC = records.TaskSpec(
    "t", "rollout", {"n": [1, None, 2.5]}, ("b",), True, "w", True, False, (("cost", "float64", (2, 3)),)
)
RECORDS: tuple[records.AnyRecord, ...] = (
    records.Added("t", SPEC),
    records.Leased("t", 1, "w"),
    records.Released("t", 1, "restart"),
    records.Failed("t", 2, "SourceError", "why: é", True, False),
    records.Done("t", 3, "w", 0.25, {"rows": 5000}),
    records.Committed("t"),
    records.Cancelled("t"),
    records.Snapshot(
        "t", records.Task(SPEC, 4, "quarantined", 3, 2, "Crash", "why", "w", 0.25, {"rows": 1}, False, 1, 0)
    ),
)
JOBS: tuple[jobs.AnyJob, ...] = (
    jobs.MakeLabels(SHA, 1, 2, 3, 4),
    jobs.Rollout(SHA, SHA, 1, 2, 3, (0.5, 0.25)),
    jobs.Evaluate(SHA, "hour rule", (1, 2), 36, SHA),
    jobs.EvaluatePerturbations(SHA, SHA, 1, (2, 3), 0.5, 4, 5),
    jobs.GradientSteps(SHA, SHA, SHA, SHA, 1, 2, 3, 4, 5, 6, 7, 8, 0.5, (0.25,)),
)
FILE = FileEntry("raw/a.json", 12, SHA)
SHARD = ShardResult(
    shard=Shard("eia", "region-data", "PACW", "2019-01-01T00", "2019-12-31T23", 1),
    origin="synthetic",
    total=5,
    rows=5,
    nulls=1,
    gaps=(Gap("PACW", "D", "2019-01-01T00", "2019-01-01T02", 3),),
    pages=(PageEntry(FILE, 0, 5, 5, "2024-01-01T00:00:00+00:00", 0.5, "2.1", "/v2/data?offset=0"),),
    piece=FileEntry("pieces/a.parquet", 34, SHA),
    digest=SHA,
    requests=2,
    reused=1,
    kept=("PACW",),
    faults={"5xx": 1},
)
BUILD = BuildResult(
    respondent="PACW",
    year=2019,
    long=FileEntry("series/long.parquet", 1, SHA),
    wide=FileEntry("series/wide.parquet", 2, SHA),
    summary=FileEntry("series/series.json", 3, SHA),
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
    shard = manifest.write(folder, manifest.Manifest(SHARD, 2, "w", committed))
    build = manifest.write(folder, manifest.Manifest(BUILD, 1, "w", committed))
    manifest.write_summary(folder)
    paths = {"shard": shard, "build": build, "summary": folder / "manifest.json"}
    return {kind: path.read_text() for kind, path in paths.items()}


@pytest.mark.parametrize("message", MESSAGES, ids=tag_of)
def test_message_bytes_are_golden(message: Message) -> None:
    frame, union = codec.encode(message), messages.ToCoordinator
    assert frame.hex() == GOLDEN["messages"].get(tag_of(message))
    assert codec.decode(frame, union if type(message) in get_args(union) else messages.ToWorker) == message


def test_every_message_has_golden_bytes() -> None:
    kinds = {*get_args(messages.ToCoordinator), *get_args(messages.ToWorker)}
    assert kinds == set(Message.__subclasses__()) == {type(message) for message in MESSAGES}
    assert {tag_of(kind) for kind in kinds} == GOLDEN["messages"].keys()


def test_record_bytes_are_golden(tmp_path: Path) -> None:
    assert [list(row) for row in stored(tmp_path)] == GOLDEN["records"]
    assert tuple(Journal(tmp_path / "journal.sqlite").load()) == RECORDS


def test_journal_of_an_earlier_version_loads_and_continues(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE records (seq INTEGER PRIMARY KEY, crc INTEGER NOT NULL, record TEXT NOT NULL)")
        database.execute("CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID")
        database.executemany("INSERT INTO records (crc, record) VALUES (?, ?)", GOLDEN["records"])
    journal = Journal(path)
    assert tuple(journal.load()) == RECORDS
    journal.append([records.Committed("t")])
    assert tuple(Journal(path).load()) == (*RECORDS, records.Committed("t"))


def test_every_record_has_golden_bytes() -> None:
    kinds = set(get_args(records.AnyRecord))
    assert kinds == set(records.Record.__subclasses__()) == {type(record) for record in RECORDS}
    assert sorted(map(tag_of, kinds)) == sorted(json.loads(text)["r"] for _, text in GOLDEN["records"])


@pytest.mark.parametrize("job", JOBS, ids=tag_of)
def test_job_bytes_are_golden(job: jobs.AnyJob) -> None:
    assert msgspec.json.encode(job).decode() == GOLDEN["jobs"].get(tag_of(job))


def test_every_job_has_golden_bytes() -> None:
    assert set(get_args(jobs.AnyJob)) == set(jobs.Job.__subclasses__()) == {type(job) for job in JOBS}


def test_manifest_bytes_are_golden(tmp_path: Path) -> None:
    assert written(tmp_path) == GOLDEN["manifests"]
    assert [found.result for found in manifest.shard_manifests(tmp_path)] == [SHARD]
    assert [found.result for found in manifest.build_manifests(tmp_path)] == [BUILD]


def test_failure_kinds_are_golden() -> None:
    assert sorted(FailureKind) == GOLDEN["failures"]
    assert len(set(FAILURES.values())) == len(FAILURES)


def test_every_lease_kind_has_a_handler() -> None:
    assert set(LeaseKind) == set(default_handlers())
    assert {tag_of(kind) for kind in get_args(jobs.AnyJob)} < set(LeaseKind)
