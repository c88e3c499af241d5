"""Verification: an intact folder passes; every kind of damage is found and named."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from ingest import checksums, manifest
from ingest.errors import UsageError
from ingest.store import file_entry, write_origin
from ingest.verify import Report, verify
from tests.support.data_folder import ABSENT, build_all, commit, daily, page_body, shard

KEY = "eia/region-data/PACW/20240101T00-20240331T23/g000"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three months of PACW: two pages of region data, one of fuels, one gap, one null."""
    data = tmp_path_factory.mktemp("pristine")
    quarter = {"start": "2024-01-01T00", "end": "2024-03-31T23"}
    load = daily(2184)
    load[5], load[70:80] = np.nan, ABSENT
    commit(data, shard(**quarter), {"D": load, "TI": np.zeros(2184), "NG": load})
    commit(data, shard(route="fuel-type-data", **quarter), {"COL": np.full(2184, 1000.0)})
    build_all(data)
    return data


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "data"))


def kinds(report: Report) -> set[str]:
    return {finding.kind for finding in report.mismatches}


def page(folder: Path, number: int = 0) -> Path:
    return sorted((folder / "raw" / KEY).iterdir())[number]


def edit(folder: Path, change: Callable[[dict[str, Any]], None], name: str = KEY) -> None:
    path = folder / "manifests" / f"{name}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_intact_folder_passes_verification(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = verify(folder, lambda done, of: seen.append((done, of)))
    assert report.whole, report.to_text()
    assert (report.shards, report.builds, report.pages) == (2, 1, 3)
    assert report.rows == report.total == 3 * 2184 - 20 + 2184
    assert [(gap.variable, gap.start, gap.hours) for gap in report.gaps] == [
        ("D", "2024-01-03T22", 10),
        ("NG", "2024-01-03T22", 10),
    ]
    assert [note.kind for note in report.notes] == ["unsealed"]
    assert seen[-1] == (3, 3)
    assert json.loads(json.dumps(report.to_json()))["whole"] is True
    assert "2024-01-03T22 to 2024-01-04T07 (10 h)" in report.to_text()
    brief = report.to_text(quiet=True)  # it listed every gap
    assert "2024-01-03T22" not in brief and brief.splitlines()[-1].split() == ["verdict", "whole"]


@pytest.mark.parametrize("where", ["raw", "pieces", "series"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damage_to_any_file_is_named(folder: Path, where: str, damage: str) -> None:
    for path in sorted(path for path in (folder / where).rglob("*") if path.is_file()):
        content = path.read_bytes()
        if damage == "flip":
            middle = len(content) // 2
            path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        elif damage == "truncate":
            path.write_bytes(content[:-1])
        else:
            path.unlink()
        report = verify(folder)
        assert [(finding.kind, finding.subject) for finding in report.mismatches] == [
            ({"flip": "sha256", "truncate": "size", "remove": "missing"}[damage], path.relative_to(folder).as_posix())
        ]
        assert not report.whole
        path.write_bytes(content)


def test_edited_row_count_is_found(folder: Path) -> None:
    edit(folder, lambda content: content["proof"].update(rows=content["proof"]["rows"] + 1))
    assert {"rows", "total", "summary"} <= kinds(verify(folder))


def test_edited_page_count_and_total_are_found(folder: Path) -> None:
    edit(folder, lambda content: content["proof"]["pages"][1].update(rows=7, total=8))
    assert kinds(verify(folder)) == {"rows", "total"}


def test_edited_digest_null_count_and_gap_are_found(folder: Path) -> None:
    edit(folder, lambda content: content["proof"].update(digest="0" * 64, nulls=0, gaps=content["proof"]["gaps"][1:]))
    assert kinds(verify(folder)) == {"digest", "nulls", "gaps", "summary"}


def test_edited_build_is_found(folder: Path) -> None:
    edit(folder, lambda content: content["proof"].update(valid=1), "build/PACW/2024")
    assert kinds(verify(folder)) == {"cells", "summary"}


def test_duplicate_row_behind_a_consistent_manifest_is_found(folder: Path) -> None:
    """A row of the second page is duplicated, and every hash and count agrees: only the keys reveal it."""
    path = page(folder, 1)
    body = json.loads(gzip.decompress(path.read_bytes()))["response"]
    rows, total = body["data"], int(body["total"])
    # The first row of the data replaces the first of this page, so that counts stay equal.
    first = json.loads(gzip.decompress(page(folder).read_bytes()))["response"]["data"][0]
    content = page_body([first, *rows[1:]], total)
    path.write_bytes(content)
    result = file_entry(folder, path, content)
    edit(folder, lambda one: one["proof"]["pages"][1]["file"].update(bytes=result.bytes, sha256=result.sha256))
    report = verify(folder)
    (duplicate,) = [finding for finding in report.mismatches if finding.kind == "duplicate"]
    assert duplicate.detail == "PACW D 2024-01-01T00"
    assert {"digest", "gaps"} <= kinds(report)


def test_undecodable_page_is_found(folder: Path) -> None:
    path = page(folder)
    content = gzip.compress(b"<html>please wait</html>")
    path.write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    edit(folder, lambda one: one["proof"]["pages"][0]["file"].update(bytes=len(content), sha256=sha256))
    assert kinds(verify(folder)) == {"page", "summary"}


def test_series_of_older_pieces_is_stale(folder: Path) -> None:
    week = shard(start="2024-03-25T00", end="2024-03-31T23", generation=1)
    commit(folder, week, {"D": daily(168) + 1})
    report = verify(folder)
    assert [(finding.kind, finding.subject) for finding in report.mismatches if finding.kind == "stale"] == [
        ("stale", "build/PACW/2024")
    ]
    build_all(folder)
    assert verify(folder).whole


def test_unreadable_manifest_is_found(folder: Path) -> None:
    (folder / "manifests" / f"{KEY}.json").write_text("{")
    assert {"manifest", "stale", "summary"} <= kinds(verify(folder))


def test_stray_files_are_notes(folder: Path) -> None:
    (folder / "raw" / KEY / "00000000-0123456789abcdef.json.gz").write_bytes(b"x")
    (folder / "raw" / KEY / ".page.tmp").write_bytes(b"x")
    (folder / "raw" / KEY / "00005000-0123456789abcdef.json.gz.stale").write_bytes(b"x")
    (folder / "raw" / "eia/region-data/ERCO/2024/g000").mkdir(parents=True)
    (folder / "raw" / "eia/region-data/ERCO/2024/g000/00000000-0123456789abcdef.json.gz").write_bytes(b"x")
    (folder / "pieces" / "x.parquet").write_bytes(b"x")
    report = verify(folder)
    assert report.whole
    assert sorted(finding.kind for finding in report.notes) == [
        "orphan",
        "orphan",
        "set-aside",
        "temporary",
        "unfinished",
        "unsealed",
    ]


def test_unfinished_extraction_is_a_note(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    commit(folder, shard("ERCO", "2024-01-01T00", "2024-01-31T23"), {"D": daily(744)})
    report = verify(folder)
    assert report.whole
    assert {finding.kind for finding in report.notes} == {"unfinished", "unbuilt", "unsealed"}


def test_summary_of_the_run_before_a_killed_one_is_a_note(sealed: Path) -> None:
    """A run removes the checksums, adds shards, and writes the summary and the checksums at its end: a killed one leaves the old summary."""
    path = sealed / "manifest.json"
    earlier = json.loads(path.read_bytes())
    path.write_text(json.dumps({**earlier, "shards": earlier["shards"] - 1, "rows": earlier["rows"] - 1}))
    assert "summary" in kinds(verify(sealed))  # with the checksums in place it is damage
    (sealed / "SHA256SUMS").unlink()
    report = verify(sealed)
    assert report.whole and [note.subject for note in report.notes if note.kind == "outdated"] == ["manifest.json"]
    assert report.to_text().splitlines()[-1].split() == ["verdict", "whole"]


def test_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no manifest"):
        verify(tmp_path)


def test_verification_writes_nothing(folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    verify(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_replaced_manifest_of_equal_data_passes_verification(folder: Path) -> None:
    (one, *_) = [one for one in manifest.shard_manifests(folder) if one.result.shard.key == KEY]
    manifest.write(folder, replace(one, attempt=2))
    assert verify(folder).whole


# -- files that no manifest names ------------------------------------------------------------------------------------------


@pytest.fixture
def sealed(folder: Path) -> Path:
    """The folder as a finished extraction and a finished training leave it."""
    (result, *_) = manifest.shard_results(folder)
    write_origin(folder, result.shard, result.origin)
    (folder / "coverage.png").write_bytes(b"picture")
    (folder / "id").write_text("0123456789abcdef")
    checksums.write(folder, checksums.data_files(folder))
    run = folder / "train"
    for name in ("result.json", "metrics.jsonl", "checkpoints/000010/state.json", "logs/rank-0.log"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(f"{{}} {name}")
    checksums.write(run, checksums.run_files(run))
    assert verify(folder).whole and verify(folder).notes == []
    return folder


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damage_to_files_that_no_manifest_names_is_named(sealed: Path, damage: str) -> None:
    covered = [sealed / name for name in ("manifest.json", "coverage.png", "id", "SHA256SUMS", "train/SHA256SUMS")]
    covered += [*(sealed / "manifests").rglob("*.json"), *(sealed / "raw").rglob("origin")]
    covered += (sealed / "train").rglob("*.json*")
    assert len(covered) == 12
    for path in covered:
        name, content = path.relative_to(sealed).as_posix(), path.read_bytes()
        if damage == "flip":
            path.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
        elif damage == "truncate":
            path.write_bytes(content[:-1])
        else:
            path.unlink()
        report = verify(sealed)
        if path.name == "SHA256SUMS":  # names a file that differs from its line, or itself
            assert report.mismatches or report.notes
        else:
            assert name in {finding.subject for finding in report.mismatches}
        path.write_bytes(content)


def test_fields_that_no_check_uses_are_covered_too(sealed: Path) -> None:
    edit(sealed, lambda content: content.update(worker="somebody else"))
    assert [(f.kind, f.subject) for f in verify(sealed).mismatches] == [("sha256", f"manifests/{KEY}.json")]


def test_gap_of_the_summary_is_compared(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace("2024-01-03T22", "2024-01-03T21", 1))
    assert [(finding.kind, finding.subject) for finding in verify(folder).mismatches] == [("summary", "manifest.json")]


@pytest.mark.parametrize("damaged", ["synthftic\n0123456789abcdef\n", "", "recordings", "synth"])
def test_flipped_origin_is_named(folder: Path, damaged: str) -> None:
    (folder / "raw" / KEY / "origin").write_text(damaged)
    assert [(f.kind, f.subject) for f in verify(folder).mismatches] == [("origin", f"raw/{KEY}/origin")]


def test_manifest_whose_gap_has_no_hour_is_named(folder: Path) -> None:
    edit(folder, lambda content: content["proof"]["gaps"][0].update(start="2024-01-0xT22"))
    assert (f"manifests/{KEY}.json") in {finding.subject for finding in verify(folder).mismatches}
