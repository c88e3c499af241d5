"""The raw store and the pieces: atomic writes, deterministic bytes, detection of damage."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.server import key_store
from coordinator.server.journal import Journal
from ingest import files, store
from ingest.columns import (
    Columns,
    digest,
    duplicate_owners,
    find_gaps,
    from_table,
    has_duplicates,
    hour_number,
    merge,
    to_table,
)
from ingest.errors import StorageError, VerificationError
from ingest.models import Shard

SHARD = Shard("eia", "region-data", "PACW", "2023-01-01T00", "2023-12-31T23")
SERIES = [("PACW", "D"), ("PACW", "NG.SUN"), ("ERCO", "D"), ("PACE", "TI")]

values = st.one_of(st.just(float("nan")), st.floats(-1e6, 1e6, allow_nan=False), st.just(-0.0))
cells = st.dictionaries(st.tuples(st.integers(400_000, 400_040), st.sampled_from(SERIES)), values, max_size=60)


def columns_of(rows: dict[tuple[int, tuple[str, str]], float], series: list[tuple[str, str]]) -> Columns:
    return Columns(
        tuple(series),
        np.array([hour for hour, _ in rows], np.int32),
        np.array([series.index(one) for _, one in rows], np.int32),
        np.array(list(rows.values()), np.float64),
    )


@settings(max_examples=60)
@given(cells, st.randoms(use_true_random=False))
def test_merge_is_independent_of_order_and_parts(
    rows: dict[tuple[int, tuple[str, str]], float], random: object
) -> None:
    whole = merge([columns_of(rows, SERIES)])[0]
    items = list(rows.items())
    random.shuffle(items)  # type: ignore[attr-defined]
    parts = [columns_of(dict(items[i::3]), SERIES[::-1]) for i in range(3)]
    again, owner = merge(parts)
    assert digest(again) == digest(whole)
    assert not duplicate_owners(again, owner)
    assert to_table(again).equals(to_table(whole))
    to_table(whole).validate(full=True)
    assert digest(from_table(to_table(whole))) == digest(whole)
    assert list(zip(again.hour, again.index, strict=True)) == sorted(zip(again.hour, again.index, strict=True))


@settings(max_examples=60)
@given(cells, st.data())
def test_changed_value_changes_the_digest(rows: dict[tuple[int, tuple[str, str]], float], data: st.DataObject) -> None:
    if not rows:
        return
    cell = data.draw(st.sampled_from(sorted(rows)))
    changed = rows | {cell: 5e6}
    assert digest(merge([columns_of(changed, SERIES)])[0]) != digest(merge([columns_of(rows, SERIES)])[0])


@settings(max_examples=60)
@given(cells)
def test_gaps_are_exactly_the_missing_cells(rows: dict[tuple[int, tuple[str, str]], float]) -> None:
    columns = merge([columns_of(rows, SERIES)])[0]
    first, last = 400_000, 400_040
    gaps = find_gaps(columns, dict.fromkeys(("PACW", "ERCO", "PACE"), (first, last)))
    missing = {
        (gap.respondent, gap.variable, hour)
        for gap in gaps
        for hour in range(hour_number(gap.start), hour_number(gap.end) + 1)
    }
    assert sum(gap.hours for gap in gaps) == len(missing)
    seen = {one for _, one in rows}
    for respondent, variable in SERIES:
        for hour in range(first, last + 1):
            there = (hour, (respondent, variable)) in rows
            if (respondent, variable) in seen:
                assert ((respondent, variable, hour) in missing) == (not there)
    for respondent in {"PACW", "ERCO", "PACE"} - {respondent for respondent, _ in seen}:
        assert sum(gap.hours for gap in gaps if gap.respondent == respondent and gap.variable == "*") == 41


@settings(max_examples=60)
@given(cells, cells)
def test_duplicate_owners_are_the_parts_that_share_a_cell(
    one: dict[tuple[int, tuple[str, str]], float], two: dict[tuple[int, tuple[str, str]], float]
) -> None:
    merged, owner = merge([columns_of(one, SERIES), columns_of(two, SERIES)])
    shared = one.keys() & two.keys()
    assert duplicate_owners(merged, owner) == ({0, 1} if shared else set())
    assert has_duplicates(merged) == bool(shared)


def test_piece_bytes_are_deterministic_and_verified_on_read(tmp_path: Path) -> None:
    rows = {(400_000 + i, SERIES[i % 4]): float(i) if i % 7 else float("nan") for i in range(500)}
    results = []
    for name in ("a", "b"):
        result = store.write_piece(tmp_path / name, SHARD, merge([columns_of(rows, SERIES)])[0])
        table = store.read_piece(tmp_path / name, result)
        assert table.schema.field("hour").type == pa.int32()
        assert pa.types.is_dictionary(table.schema.field("variable").type)
        assert table.column("value").null_count == sum(value != value for value in rows.values())
        results.append(result)
    assert results[0] == results[1]
    (tmp_path / "a" / results[0].path).write_bytes(b"PAR1")
    with pytest.raises(VerificationError):
        store.read_piece(tmp_path / "a", results[0])
    (tmp_path / "a" / results[0].path).unlink()
    with pytest.raises(VerificationError):
        store.read_piece(tmp_path / "a", results[0])


def test_writing_a_piece_does_not_load_pandas() -> None:
    code = (
        "import sys, tempfile, pathlib, numpy as np; from ingest import store; from ingest.columns import Columns\n"
        "from ingest.models import Shard\n"
        "one = Columns((('A', 'D'),), np.zeros(1, np.int32), np.zeros(1, np.int32), np.ones(1))\n"
        "store.write_piece(pathlib.Path(tempfile.mkdtemp()), Shard('eia', 'r', 'A', '2023-01-01T00', '2023-01-01T01'), one)\n"
        "sys.exit('pandas' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], timeout=120).returncode == 0


def test_page_name_verifies_its_content(tmp_path: Path) -> None:
    result = store.write_page(tmp_path, SHARD, 5000, b"content", ".json.gz")
    assert result.path.startswith("raw/eia/region-data/PACW/2023/g000/00005000-")
    (stored,) = store.scan_pages(tmp_path, SHARD, ".json.gz")
    assert (stored.offset, store.read_page(stored.path)) == (5000, b"content")
    stored.path.write_bytes(b"Content")
    with pytest.raises(VerificationError):
        store.read_page(stored.path)
    store.set_aside(stored.path)
    assert not store.scan_pages(tmp_path, SHARD, ".json.gz")
    assert stored.path.with_name(stored.path.name + ".stale").exists()


def test_temporary_files_are_ignored_and_old_ones_removed(tmp_path: Path) -> None:
    folder = store.page_folder(tmp_path, SHARD)
    folder.mkdir(parents=True)
    fresh, old = folder / ".00000000-ab.json.gz.1-1.tmp", folder / ".00005000-ab.json.gz.1-1.tmp"
    for path in (fresh, old):
        path.write_bytes(b"half")
    past = time.time() - 2 * store.LEFTOVER_S
    os.utime(old, (past, past))
    assert not store.scan_pages(tmp_path, SHARD, ".json.gz")
    assert (fresh.exists(), old.exists()) == (True, False)


def test_atomic_write_survives_removal_of_its_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process whose clock jumped ahead by hours takes the temporary file for a leftover."""
    sweeps = iter([True, False])
    rename = Path.replace

    def swept(self: Path, target: Path) -> Path:
        if next(sweeps):
            self.unlink()
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", swept)
    store.atomic_write(tmp_path / "page", b"content")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("page", b"content")]


@pytest.mark.parametrize("number", [28, 30, 122, 13])
def test_disk_error_is_a_storage_error_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StorageError, match=r"g000.*the same command"):
        store.write_page(tmp_path, SHARD, 0, b"content", ".json.gz")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("supported", [True, False])
def test_committed_names_empty_the_drives_cache_on_macos(
    supported: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`fsync` on macOS ends in the drive's cache: the sync of the folder, which comes last, has to empty it."""
    calls: list[tuple[str, bool]] = []

    def control(descriptor: int, command: int) -> int:
        calls.append(("full", stat.S_ISDIR(os.fstat(descriptor).st_mode)))
        if command != 51 or not supported:
            raise OSError(errno.ENOTSUP, "not supported")
        return 0

    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", control)
    monkeypatch.setattr(os, "fsync", lambda one: calls.append(("fsync", stat.S_ISDIR(os.fstat(one).st_mode))))
    store.write_page(tmp_path, SHARD, 0, b"content", ".json.gz")
    files.fsync_path(store.page_folder(tmp_path, SHARD))
    assert calls == [("fsync", False), ("full", True)] + ([] if supported else [("fsync", True)])


def test_journal_and_keys_empty_the_drives_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr("coordinator.server.key_store.sync_drive", synced.append)
    key_store.add_worker(tmp_path / "keys", "m2-0")
    assert len(synced) == 3
    with closing(Journal(tmp_path / "journal.sqlite")) as journal:
        assert journal._db.execute("PRAGMA fullfsync").fetchone() == (1,)
