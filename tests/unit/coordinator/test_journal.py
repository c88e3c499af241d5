"""The journal: records load as appended, one commit a batch, every kind of damage is detected."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from coordinator.scheduling.records import (
    Added,
    AnyRecord,
    Cancelled,
    Committed,
    Done,
    Failed,
    Leased,
    Released,
    TaskSpec,
)
from coordinator.scheduling.task_state import TaskStore
from coordinator.server.journal import Journal, JournalDamaged
from ingest.errors import StorageError

RECORDS: list[AnyRecord] = [
    Added("a", TaskSpec("a", "fetch", {"shard": {"start": "2019-01-01T00"}, "n": [1, None, 2.5]}, ("b",), True)),
    Leased("a", 1, "w"),
    Released("a", 1, "restart"),
    Leased("a", 2, "w"),
    Failed("a", 2, "SourceError", "why: é", True, False),
    Leased("a", 3, "w"),
    Done("a", 3, "w", 0.25, {"rows": 5000}),
    Committed("a"),
    Cancelled("b"),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    journal = Journal(tmp_path / "journal.sqlite")
    journal.append(RECORDS[:4])
    journal.append(RECORDS[4:])
    journal.close()
    return journal.path


def test_appended_records_load_in_order(path: Path) -> None:
    journal = Journal(path)
    assert list(journal.load()) == RECORDS
    journal.append([Cancelled("c")])
    assert list(Journal(path).load()) == [*RECORDS, Cancelled("c")]


def test_journal_is_synced_and_in_wal_mode(path: Path) -> None:
    database = Journal(path)._db
    assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert database.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


def test_batch_is_committed_as_a_whole(path: Path) -> None:
    journal = Journal(path)
    with pytest.raises(TypeError):
        journal.append([Cancelled("c"), Done("a", 9, "w", 0.0, {"not": object()})])
    assert list(journal.load()) == RECORDS
    journal.append([Cancelled("c")])
    assert len(list(journal.load())) == len(RECORDS) + 1


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE records SET record = replace(record, '5000', '5001') WHERE seq = 7",
        "DELETE FROM records WHERE seq = 3",
        "UPDATE records SET seq = 100 WHERE seq = 9",
        "UPDATE records SET record = '{' WHERE seq = 2",
        "DROP TABLE records",
    ],
)
def test_changed_missing_or_reordered_row_is_detected(path: Path, sql: str) -> None:
    database = sqlite3.connect(path)
    database.execute(sql)
    database.commit()
    database.close()
    if sql.startswith("DROP"):
        database = sqlite3.connect(path)
        database.execute("CREATE TABLE records (other)")
        database.commit()
        database.close()
    with pytest.raises(JournalDamaged, match="--rebuild") as caught:
        list(Journal(path).load())
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("damage", ["garbage", "truncated", "flipped"])
def test_file_that_is_no_journal_is_detected(path: Path, damage: str) -> None:
    whole = path.read_bytes()
    path.with_name(path.name + "-wal").unlink(missing_ok=True)
    flipped = bytearray(whole)
    at = whole.index(b"SourceError")
    flipped[at] ^= 0x20
    path.write_bytes(
        {"garbage": b"not a database" * 999, "truncated": whole[: len(whole) // 2], "flipped": bytes(flipped)}[damage]
    )
    with pytest.raises(JournalDamaged, match="--rebuild"):
        list(Journal(path).load())


def test_full_disk_is_not_reported_as_damage(path: Path) -> None:
    journal = Journal(path)
    journal._db.execute("PRAGMA max_page_count = 1")  # SQLite clamps it to the present size: the next page does not fit
    with pytest.raises(StorageError, match="Free space"):
        journal.append([Failed("a", 1, "x", "y" * 100_000, True, False)])
    assert list(Journal(path).load()) == RECORDS


def test_compacted_journal_leads_to_the_same_state(path: Path) -> None:
    store = TaskStore()
    records: list[AnyRecord] = [
        Added("a", TaskSpec("a", "fetch", {})),
        Added("b", TaskSpec("b", "build", {}, depends_on=("a",))),
        Leased("a", 1, "w"),
        Failed("a", 1, "SourceError", "why", True, False),
        Leased("a", 2, "w"),
        Done("a", 2, "w", 0.25, {"rows": 5000}),
    ]
    for record in records:
        store.apply(record)
    journal = Journal(path)
    journal.rewrite(store.snapshot())
    assert journal.length == 2
    more: list[AnyRecord] = [Committed("a"), Leased("b", 1, "w")]
    journal.append(more)
    for record in more:
        store.apply(record)
    journal.close()
    again = TaskStore()
    for record in Journal(path).load():
        again.apply(record)
    assert (again.tasks, again.counts, again.uncommitted) == (store.tasks, store.counts, store.uncommitted)


def test_full_disk_leaves_the_journal_unchanged(path: Path) -> None:
    journal = Journal(path)
    pages = journal._db.execute("PRAGMA page_count").fetchone()[0]
    journal._db.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(StorageError, match="Free space"):
        journal.rewrite([Added("x", TaskSpec("x", "fetch", {"y": "z" * 100_000}))])
    assert list(journal.load()) == RECORDS
    journal.append([Cancelled("c")])
    assert list(Journal(path).load()) == [*RECORDS, Cancelled("c")]
