"""Which model answers `coordinator forecast`: the trained one, or the hourly regressions in its place."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from tests.support.data_folder import build_all, commit, shard
from worker.forecast.cli import _why_not_trained


@pytest.mark.parametrize(
    ("given", "falls_back"),
    [("2023-12-31T10", True), ("2023-12-30T10", True), ("2023-12-29T10", False), ("2024-01-01T10", False)],
)
def test_issue_time_at_the_end_of_the_years_on_disk_is_answered_by_name_and_by_time_alike(
    given: str, falls_back: bool, tmp_path: Path
) -> None:
    """`tomorrow` was forecast by the hourly regressions, and the same issue time was refused. Hours are UTC: 31 December local ends in 2024."""
    one = shard("PACW", "2023-12-01T00", "2023-12-31T23")
    commit(tmp_path, one, {"D": 3000.0, "DF": 3000.0})
    build_all(tmp_path)
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "result.json").touch()
    options = Namespace(data=tmp_path, run=tmp_path / "train", issue=given)
    said = {name: _why_not_trained(options, "PACW", name) for name in ("tomorrow", given)}
    assert said["tomorrow"] == said[given] and bool(said[given]) == falls_back
    options.run = tmp_path / "none"
    assert _why_not_trained(options, "PACW", "tomorrow") and not _why_not_trained(options, "PACW", given)
