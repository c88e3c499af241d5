"""Disk use by kind, and the removal of what newer generations replace: series, vintages and revisions stay as they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ingest import manifest, snapshot
from ingest.disk_use import by_kind, remove, replaced
from ingest.loader import load_series
from ingest.models import ShardResult
from ingest.store import LEFTOVER_S
from ingest.verify import verify
from tests.support.data_folder import build_all, commit, daily, shard
from tests.support.program import run_here, series_digest

START, END = "2024-01-01T00", "2024-01-02T23"


def update(data: Path, generation: int, start: str = START) -> ShardResult:
    """Fetch the hours from `start` on again, each with another value, build the series and publish them."""
    one = shard("PACW", start, END, generation=generation)
    result = commit(data, one, {"D": daily(one.hours, 3000.0 + generation)})
    build_all(data)
    snapshot.publish(data, manifest.build_results(data))
    return result


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Generation 0 of two days; 1 of the second day; 2 of both: it replaces the first two."""
    data = tmp_path / "data"
    update(data, 0)
    update(data, 1, "2024-01-02T00")
    update(data, 2)
    return data


def test_disk_use_counts_each_file_once(data: Path) -> None:
    sizes = by_kind(data)
    inodes = {
        path.lstat().st_ino: path.lstat().st_size for path in data.rglob("*") if not path.is_dir() or path.is_symlink()
    }
    assert sum(sizes.values()) == sum(inodes.values())
    assert sizes["series"] == sum(path.stat().st_size for path in (data / "series").rglob("*.*"))
    assert list(sizes) == ["raw pages", "pieces", "series", "earlier series", "manifests", "other"]


def test_what_later_fetches_replace_is_removed_and_the_series_stay(data: Path) -> None:
    before, loaded = series_digest(data), load_series(data, "PACW", "D", START, END)
    found = {one.kind: one for one in replaced(data)}
    pages, earlier = found["raw pages that a later fetch replaces"], found["earlier series"]
    assert {path.parent.name for path in pages.paths} == {"g000", "g001"}
    assert [path.name for path in earlier.paths] == ["000002"]
    size = sum(by_kind(data).values())
    remove(data, found.values())
    marks = 2 * len((pages.paths[0].parent / "pruned").read_bytes())
    assert sum(by_kind(data).values()) == size - sum(one.bytes for one in found.values()) + marks
    report = verify(data)
    assert report.whole
    assert [note.kind for note in report.notes if note.kind != "unsealed"] == ["pruned", "pruned"]
    assert all(manifest.in_place(data, result) for result in manifest.shard_results(data))
    build_all(data)
    assert series_digest(data) == before
    assert load_series(data, "PACW", "D", START, END).values.tolist() == loaded.values.tolist()
    assert replaced(data) == []


def test_pages_of_which_an_hour_is_covered_by_no_later_fetch_stay(tmp_path: Path) -> None:
    update(tmp_path, 0)
    update(tmp_path, 1, "2024-01-01T01")
    assert [one.kind for one in replaced(tmp_path)] == ["earlier series"]


def test_damage_to_a_piece_without_pages_is_named(data: Path) -> None:
    remove(data, replaced(data))
    piece = next(path for path in (data / "pieces").iterdir() if "g000" in path.name)
    piece.write_bytes(piece.read_bytes()[:-1] + b"x")
    assert [finding.subject for finding in verify(data).mismatches] == [piece.relative_to(data).as_posix()]


def test_leftovers_of_killed_processes_are_removed_when_they_are_old(data: Path) -> None:
    old, new = data / "raw" / ".a.tmp", data / "raw" / ".b.tmp"
    for path in (old, new):
        path.write_bytes(b"half a page")
    os.utime(old, (0, old.stat().st_mtime - 2 * LEFTOVER_S))
    (found,) = [one for one in replaced(data) if one.kind == "leftovers of killed processes"]
    assert (found.paths, found.bytes) == ((old,), 11)


def test_commands_say_what_is_there_and_remove_it(data: Path) -> None:
    status = run_here(data.parent, "status")
    assert "disk 0." in status.stdout and "series 0." in status.stdout
    assert "newer generations replace" in status.stdout
    planned = run_here(data.parent, "clean", "--dry-run")
    assert "earlier series: 1 would be removed" in planned.stdout
    assert run_here(data.parent, "clean", "--json").result["kinds"][0]["items"] == 2
    assert run_here(data.parent, "clean").stdout == "data holds nothing that newer generations replace\n"
    assert "newer generations replace" not in run_here(data.parent, "status").stdout
    assert run_here(data.parent, "clean", "--data", "nothing").code == 2
