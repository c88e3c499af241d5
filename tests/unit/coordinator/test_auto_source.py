"""`--source auto`: which hours come from EIA's files and which from its API, and whether the two agree."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordinator.cli.settings import resolve
from coordinator.stages.extract.auto import options_of, split
from coordinator.stages.extract.source import parse_source
from ingest import manifest, store
from ingest.columns import Columns, digest, hour_number
from ingest.cross_check import compare
from ingest.errors import UsageError
from ingest.models import Shard, ShardResult
from tests.support.data_folder import COMMITTED, commit, shard

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)


def settings(tmp_path: Path, **given: Any) -> dict[str, Any]:
    flags = {"data": tmp_path, "source": "auto", "start": "2019", "end": "2026", **given}
    resolved = {name: entry.value for name, entry in resolve(flags, {}, tmp_path).items()}
    return {**resolved, "update": False, "rebuild": False}


def parts(tmp_path: Path, *, keyed: bool = True, **given: Any) -> tuple[list[tuple[Any, ...]], tuple[str, ...]]:
    found, notes = split(settings(tmp_path, **given), NOW, url="", keyed=keyed)
    return [(p["source"], len(p["respondents"]), p["routes"], p["start"], p["end"]) for p in found], notes


def test_old_hours_come_from_files_and_fresh_ones_and_regions_from_the_api(tmp_path: Path) -> None:
    """A week comes from both. A file is old a month after its half-year."""
    routes = ("region-data", "fuel-type-data")
    assert parts(tmp_path, respondents="PACW,CISO,CAL") == (
        [
            ("bulk", 2, ("BALANCE",), "2019-01-01T00", "2026-06-30T23"),
            ("eia", 2, routes, "2026-06-24T00", "2026-12-31T23"),
            ("eia", 1, routes, "2019-01-01T00", "2026-12-31T23"),
        ],
        (),
    )
    whole, _ = parts(tmp_path, respondents="all", routes="all")
    assert [part[1] for part in whole] == [69, 69, 14]
    assert whole[0][2] == ("BALANCE", "INTERCHANGE", "SUBREGION")
    early = split(settings(tmp_path, respondents="PACW"), datetime(2026, 7, 20, tzinfo=UTC), url="", keyed=True)[0]
    assert early[0]["end"] == "2025-12-31T23"


def test_without_a_key_the_files_give_all_hours_and_regions_are_said_to_be_left_out(tmp_path: Path) -> None:
    found, notes = parts(tmp_path, keyed=False, respondents="PACW,CAL", routes="all")
    assert found == [("bulk", 1, ("BALANCE", "INTERCHANGE", "SUBREGION"), "2019-01-01T00", "2026-12-31T23")]
    assert notes == ("EIA_API_KEY is not set: the regions CAL are left out, which only the API has",)
    with pytest.raises(UsageError, match="EIA_API_KEY"):
        parts(tmp_path, keyed=False, respondents="TEX")


def test_only_the_sources_that_a_period_needs_are_asked(tmp_path: Path) -> None:
    old, _ = parts(tmp_path, respondents="PACW", start="2016", end="2017")
    new, _ = parts(tmp_path, respondents="PACW", start="2026-09", end="2026")
    assert [part[0] for part in (*old, *new)] == ["bulk", "eia"]


def test_one_server_can_give_both(tmp_path: Path) -> None:
    url = "auto+http://127.0.0.1:8000"
    options = options_of(settings(tmp_path, source=url, respondents="PACW", start="2019", end="2019"))
    assert [one.source.name for one in options] == ["bulk+http://127.0.0.1:8000"]
    wide = options_of(settings(tmp_path, source=url, respondents="PACW", routes="all", start="2019", end="2019"))
    assert wide[0].routes == ("BALANCE", "INTERCHANGE")
    assert wide[0].notes == ("bulk SUBREGION is not published for PACW",)
    with pytest.raises(UsageError, match="start --extract"):
        parse_source("auto")


def file_of(data: Path, respondent: str, values: dict[str, Any], start: str, end: str) -> None:
    """Commit a six-month file as a fetch would, with one respondent's values from its first hour on."""
    one = Shard("bulk", "BALANCE", "ALL", start, end)
    names = sorted(values)
    count, first = len(values[names[0]]), hour_number(start)
    columns = Columns(
        tuple((respondent, name) for name in names),
        np.repeat(np.arange(first, first + count), len(names)).astype(np.int32),
        np.tile(np.arange(len(names)), count).astype(np.int32),
        np.stack([values[name] for name in names], axis=1).ravel().astype(float),
    )
    piece = store.write_piece(data, one, columns)
    more: dict[str, Any] = {"gaps": (), "pages": (), "requests": 1, "reused": 0, "kept": (respondent,)}
    result = ShardResult(one, "synthetic", count, count, 0, piece=piece, digest=digest(columns), **more)
    manifest.write(data, manifest.Manifest(result, 1, "test", COMMITTED))


def test_values_of_both_sources_are_compared_where_both_have_them(tmp_path: Path) -> None:
    demand = np.arange(48.0) + 100
    file_of(tmp_path, "PACW", {"D": demand, "NG": demand}, "2024-01-01T00", "2024-06-30T23")
    assert str(compare(tmp_path)) == "bulk and eia have no hour in common"
    revised = demand[24:].copy()
    revised[[3, 4]] += 5
    revised[5] = np.nan  # a null says nothing
    commit(
        tmp_path, shard(start="2024-01-02T00", end="2024-01-02T23"), {"D": revised, "NG": demand[24:], "TI": revised}
    )
    found = compare(tmp_path)
    assert (found.compared, found.differing) == (47, {"PACW D": 2})
    assert str(found) == (
        "bulk and eia agree in 45 of 47 values of 2024-01-02T00 to 2024-01-02T23; they differ in PACW D 2"
    )
