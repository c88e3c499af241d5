"""Pieces of whole files, cut by respondent once for all their builds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ingest import build_series, whole_pieces
from ingest.build_series import build, rows_of
from ingest.columns import Columns, hour_number, merge, to_table
from ingest.errors import VerificationError
from ingest.lru_cache import LruCache
from ingest.models import ALL_RESPONDENTS, BuildJob, Piece, Shard
from ingest.store import write_piece

SHARD = Shard("bulk", "BALANCE", ALL_RESPONDENTS, "2024-01-01T00", "2024-06-30T23")
NAMES = ("CISO", "MISO", "PACW")


def file_of(values: list[float], names: tuple[str, ...] = NAMES) -> Columns:
    """Return hours of two variables of each name, all respondents of an hour side by side, as a piece has them."""
    series = tuple((name, variable) for name in names for variable in ("D", "NG"))
    hours = np.repeat(np.arange(len(values), dtype=np.int32) + hour_number(SHARD.start), len(series))
    index = np.tile(np.arange(len(series), dtype=np.int32), len(values))
    return merge([Columns(series, hours, index, np.repeat(np.array(values), len(series)) + index)])[0]


@pytest.mark.parametrize("values", [[1.0, np.nan, -3.0], [1.0, 0.1, 2.0**40 + 1], []], ids=["whole", "fine", "empty"])
def test_cut_piece_has_the_rows_that_a_filter_of_its_table_has(
    values: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = to_table(file_of(values))
    monkeypatch.setattr(whole_pieces, "BATCH", 4)  # fewer rows than an hour has
    whole = whole_pieces.cut((tmp_path / write_piece(tmp_path, SHARD, file_of(values)).path).read_bytes())
    assert (whole.value.dtype == np.float32) == (0.1 not in values)  # no value is rounded
    for name in (*NAMES, "ERCO"):
        want = rows_of(table, SHARD, name)
        hour, code, value = whole.rows(name)
        assert hour.tolist() == want.hour.tolist()
        assert [whole.variables[i] for i in code] == [want.variables[i] for i in want.code]
        np.testing.assert_array_equal(value, want.value)


def test_builds_of_a_file_read_its_table_once_and_verify_its_bytes_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of 66 builds unpacked the rows of all authorities, four at a time in a worker."""
    entry = write_piece(tmp_path, SHARD, file_of([5.0, 6.0, 7.5]))
    monkeypatch.setattr(whole_pieces, "_cut", LruCache(1 << 20))
    read: list[str] = []
    cut = whole_pieces.cut
    monkeypatch.setattr(whole_pieces, "cut", lambda content: read.append(entry.path) or cut(content))  # type: ignore[func-returns-value]
    jobs = [BuildJob(name, 2024, "synthetic", (Piece(entry, SHARD),)) for name in NAMES]
    hashed: list[str] = []
    content = whole_pieces.read_content
    monkeypatch.setattr(
        whole_pieces,
        "read_content",
        lambda folder, file: hashed.append(file.path) or content(folder, file),  # type: ignore[func-returns-value]
    )
    assert [build(job, tmp_path).valid for job in jobs] == [6, 6, 6]
    assert len(read) == len(hashed) == 1  # of 66 builds, each hashed the whole file: half of their time
    held = {name: (tmp_path / "series" / name / "2024" / "long.parquet").read_bytes() for name in NAMES}
    monkeypatch.setattr(
        build_series,
        "_rows",
        lambda data_dir, piece, name: rows_of(build_series.read_piece(data_dir, piece.file), piece.shard, name),
    )
    for job in jobs:
        build(job, tmp_path)
        assert (tmp_path / "series" / job.respondent / "2024" / "long.parquet").read_bytes() == held[job.respondent]
    monkeypatch.undo()
    path = tmp_path / entry.path
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(VerificationError, match="sha256 differs"):
        build(jobs[0], tmp_path)
