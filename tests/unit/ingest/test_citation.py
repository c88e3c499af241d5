"""Licence and citation: of every source, of what stands in for it, in series.json and in the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from coordinator.report import build
from ingest.citation import all_terms, terms_of
from ingest.sources import SOURCES
from tests.support.data_folder import build_all, commit, daily, shard


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_states_its_terms(source: str) -> None:
    terms = terms_of(source, "api.example.org")
    assert "not stated" not in terms.licence + terms.citation
    assert "https" in terms.citation or "http" in terms.citation


def test_hours_of_an_emulator_are_not_cited_as_measured() -> None:
    assert "no measured hour" in terms_of("eia", "synthetic").citation
    assert "recordings" in terms_of("bulk", "recordings").licence
    assert len(all_terms([("eia", "a"), ("eia", "b"), ("bulk", "a")])) == 2


def test_series_and_report_name_them(tmp_path: Path) -> None:
    commit(tmp_path, shard("PACW", "2024-01-01T00", "2024-01-02T23"), {"D": daily(48)}, origin="api.eia.gov")
    build_all(tmp_path)
    (one,) = json.loads((tmp_path / "series/PACW/2024/series.json").read_text())["sources"]
    assert (one["source"], one["licence"].partition(":")[0]) == ("eia", "public domain")
    assert "Form EIA-930" in one["citation"]
    build.report(tmp_path, tmp_path / "report.html")
    assert "Form EIA-930, Open Data API v2" in (tmp_path / "report.html").read_text()
