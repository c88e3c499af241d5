"""Breaks: which a series names, and that the documentation lists them all."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from ingest.breaks import BREAKS, breaks_of
from ingest.build_series import build
from ingest.catalog import RESPONDENTS
from ingest.columns import hour_number
from ingest.plan import build_job
from tests.support.data_folder import daily, shard, store

DOCS = Path(__file__).parents[3] / "docs" / "reference" / "data.md"


@pytest.mark.parametrize(
    ("respondent", "year", "names"),
    [
        ("PACW", 2023, {"NG.WAT": "2024-07-01T00", "NG.SUN": "2024-07-01T00"}),
        ("PACW", 2025, {}),
        ("CISO", 2022, {"NG.WAT": "2022-06-16T07", "NG.SUN": "2022-06-16T07", "D": "2022-06-16T07"}),
        ("CISO", 2023, {"NG.WAT": "2024-07-01T00", "NG.SUN": "2024-07-01T00"}),
        ("PJM", 2025, {"NG.WAT": "", "NG.SUN": "", "D": "", "TI": ""}),
    ],
)
def test_breaks_of_a_year(respondent: str, year: int, names: dict[str, str]) -> None:
    found = breaks_of(respondent, ("D", "DF", "TI", "NG.WAT", "NG.SUN"), hour_number(f"{year}-01-01T00"))
    last = {name: str(one["until"]) for one in found for name in one["variables"]}  # type: ignore[attr-defined]
    assert last == names


def test_series_of_reported_hours_names_its_breaks(tmp_path: Path) -> None:
    """`NG.WAT` means two things in 2024 under one name, and nothing told."""
    one = store(tmp_path, shard(route="fuel-type-data"), {"WAT": daily(8784, 900, 50)})
    for origin, count in (("api.eia.gov", 1), ("synthetic", 0)):
        result = build(build_job("PACW", 2024, origin, [one]), tmp_path)
        summary = msgspec.json.decode((tmp_path / result.summary.path).read_bytes())
        assert len(summary["breaks"]) == count
        assert all(entry["variables"] == ["NG.WAT"] for entry in summary["breaks"])


def test_documentation_lists_every_break() -> None:
    text = DOCS.read_text()
    for one in BREAKS:
        assert set(one.respondents) <= set(RESPONDENTS)
        variables = ", ".join(f"`{name}`" for name in one.variables)
        row = f"| {', '.join(one.respondents) or 'all'} | {variables} | {one.until or 'no end known'} | {one.meaning} |"
        assert row in text
