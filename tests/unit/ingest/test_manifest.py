"""Manifests: round trip, damage, and the summary."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from ingest import manifest
from ingest.errors import VerificationError
from tests.support.data_folder import ABSENT, COMMITTED, build_all, commit, daily, shard

WEEK = {"start": "2024-01-01T00", "end": "2024-01-07T23"}


def test_manifest_round_trip(tmp_path: Path) -> None:
    result = commit(tmp_path, shard(**WEEK), {"D": daily(168)})
    (written,) = manifest.shard_manifests(tmp_path)
    assert written == manifest.Manifest(result, 1, "test", COMMITTED)
    path = manifest.manifest_path(tmp_path, result.shard.key)
    before = path.read_bytes()
    assert manifest.write(tmp_path, written) == path
    assert path.read_bytes() == before
    (built,) = build_all(tmp_path)
    assert list(manifest.build_results(tmp_path)) == [built]
    assert list(manifest.shard_results(tmp_path)) == [result]


def test_summary_sums_all_manifests(tmp_path: Path) -> None:
    load = daily(168)
    load[3], load[50:53] = np.nan, ABSENT
    first = commit(tmp_path, shard(**WEEK), {"D": load, "TI": np.zeros(168)})
    commit(tmp_path, shard("ERCO", **WEEK), {"D": daily(168)})
    build_all(tmp_path)
    summary = msgspec.json.decode((tmp_path / "manifest.json").read_bytes(), type=manifest.Summary)
    assert (summary.shards, summary.builds) == (2, 2)
    assert (summary.rows, summary.total, summary.nulls, summary.duplicates) == (165 + 168 + 168, 501, 1, 0)
    assert summary.whole
    assert summary.origins == ("synthetic",)
    assert [(gap.route, gap.variable, gap.start, gap.end, gap.hours) for gap in summary.gaps] == [
        ("region-data", gap.variable, gap.start, gap.end, gap.hours) for gap in first.gaps
    ]
    assert summary.gap_hours == 3
    assert summary.masked["null"] == 1
    files = list((tmp_path / "raw").rglob("*.json.gz"))
    assert (summary.raw.files, summary.raw.bytes) == (len(files), sum(path.stat().st_size for path in files))


def test_gap_filled_by_a_later_generation_is_closed(tmp_path: Path) -> None:
    load = daily(168)
    load[50:53] = ABSENT
    commit(tmp_path, shard(**WEEK), {"D": load})
    commit(tmp_path, shard(start="2024-01-03T02", end="2024-01-03T03", generation=1), {"D": daily(168)[50:52]})
    summary = manifest.summarise(manifest.shard_results(tmp_path), ())
    assert [(gap.start, gap.hours) for gap in summary.gaps] == [("2024-01-03T04", 1)]


@pytest.mark.parametrize("content", [b"", b"{}", b'{"proof": 3}', b"\xff\xfe"])
def test_damaged_manifest_is_named(tmp_path: Path, content: bytes) -> None:
    result = commit(tmp_path, shard(**WEEK), {"D": daily(168)})
    path = manifest.manifest_path(tmp_path, result.shard.key)
    path.write_bytes(content)
    with pytest.raises(VerificationError, match="is not a readable manifest"):
        list(manifest.shard_results(tmp_path))


def test_manifest_under_another_name_is_refused(tmp_path: Path) -> None:
    result = commit(tmp_path, shard(**WEEK), {"D": daily(168)})
    path = manifest.manifest_path(tmp_path, result.shard.key)
    path.rename(path.with_name("g001.json"))
    with pytest.raises(VerificationError, match="is the manifest of"):
        list(manifest.shard_results(tmp_path))
