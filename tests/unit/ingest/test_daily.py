"""Daily routes: their zones, plan, gaps and revisions, the files made of them, and how they agree with the hours."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from coordinator.stages.extract.stage import build_daily
from ingest import daily, manifest, snapshot
from ingest.asked import ended_at, open_gaps
from ingest.catalog import SUB_AREAS
from ingest.columns import hour_number
from ingest.coverage import coverage, read_summaries
from ingest.daily_check import totals
from ingest.daily_loader import load_daily
from ingest.emulator.eia.pages import Selections
from ingest.emulator.eia.query import ROUTES, parse_params, parse_query
from ingest.emulator.worlds.synthetic import SyntheticWorld
from ingest.errors import SourceError, UsageError
from ingest.http import HttpResponse
from ingest.models import FetchJob, Shard
from ingest.plan import choose_routes, plan_builds, plan_shards, plan_update
from ingest.routes import DAILY_ROUTES, EIA_ZONES, HOURLY_ROUTES
from ingest.sources import get_source
from ingest.sources.base import Page
from ingest.verify import verify
from ingest.zones import ZONES, midnights, zone_of
from tests.support.data_folder import ABSENT, build_all, commit, shard
from tests.support.data_folder import daily as cycle
from tests.support.program import Coordinator

EIA = get_source("eia")
ROUTE = "daily-region-data"


def day_shard(start: str = "2024-03-01", end: str = "2024-03-31", respondent: str = "PACW", **other: Any) -> Shard:
    return Shard("eia", other.pop("route", ROUTE), respondent, f"{start}T00", f"{end}T23", **other)


def received(rows: list[dict[str, Any]], one: Shard) -> Page:
    body = json.dumps({"response": {"total": str(len(rows)), "data": rows}}).encode()
    answer = HttpResponse(200, {}, body, False, "x", 0.1, "2026-01-01T00:00:00+00:00")
    return EIA.receive(FetchJob(one, ""), answer, None)[1]


def row(day: str, value: Any = "1", zone: str = "Pacific", code: str = "D") -> dict[str, Any]:
    return {"period": day, "respondent": "PACW", "type": code, "timezone": zone, "value": value}


def sums(days: int, first: int, value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the sums of hourly values, whose first is of hour number `first`, over local days of PACW from 2024-03-01 on."""
    ends = midnights(
        "America/Los_Angeles", hour_number("2024-03-01T00") // 24, hour_number("2024-03-01T00") // 24 + days - 1
    )
    return np.array([value[low + 1 - first : high + 1 - first].sum() for low, high in pairwise(ends)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Hours of PACW around March 2024, and its days: one without a row, one null, one that is not the sum of its hours."""
    tmp_path = tmp_path / "data"
    one = shard(start="2024-02-20T00", end="2024-04-05T23")
    load = cycle(one.hours)
    commit(tmp_path, one, {"D": load})
    days = sums(31, hour_number(one.start), load)
    days[4], days[6] = ABSENT, np.nan
    days[20] *= 1.1
    commit(tmp_path, day_shard(), {"D": days, "NG": np.full(31, 70_000.0)})
    build_all(tmp_path)
    assert build_daily(tmp_path, manifest.shard_results(tmp_path))
    snapshot.publish(tmp_path, manifest.build_results(tmp_path))
    return tmp_path


# -- plan --------------------------------------------------------------------------------------------------------------


def test_days_are_asked_for_in_the_zone_of_eias_table() -> None:
    """MISO counts in Central time, New Mexico (PNM) without daylight saving; each day comes five times without a zone."""
    assert set(ZONES.values()) <= set(EIA_ZONES)
    for code, zone in {
        "PACW": "Pacific",
        "MISO": "Central",
        "PNM": "Arizona",
        "US48": "Eastern",
        "PACE": "Mountain",
    }.items():
        query = parse_qs(urlsplit(EIA.request(FetchJob(day_shard(respondent=code), ""), 0)).query)
        assert (query["frequency"], query["facets[timezone][]"]) == (["daily"], [zone])
        assert (query["start"], query["end"]) == (["2024-03-01"], ["2024-03-31"])
        assert [query[f"sort[{i}][column]"][0] for i in range(4)] == ["period", "respondent", "type", "timezone"]


def test_daily_routes_are_chosen_by_name_or_as_a_group() -> None:
    assert choose_routes("eia", ("daily",)) == tuple(DAILY_ROUTES)
    assert choose_routes("eia", ("all",)) == tuple(HOURLY_ROUTES)
    assert choose_routes("eia", ("all", "daily")) == EIA.routes
    with pytest.raises(UsageError, match="known: all, BALANCE"):
        choose_routes("bulk", ("daily",))


def test_plan_has_whole_days_and_no_series_waits_for_them() -> None:
    shards = plan_shards("eia", ("PACW", "CISO"), ("2024-02-28T07", "2025-01-01T02"), ("all", "daily"))
    days = [one for one in shards if one.daily]
    assert {(one.start, one.end) for one in days} == {
        ("2024-02-28T00", "2024-12-31T23"),
        ("2025-01-01T00", "2025-01-01T23"),
    }
    assert {one.respondent for one in days if one.route.endswith("sub-ba-data")} == {"CISO"} <= set(SUB_AREAS)
    assert not any(key.startswith("eia/daily-") for build in plan_builds(shards) for key in build.shards)
    with pytest.raises(UsageError, match="time zone of NEWB is unknown"):
        plan_shards("eia", ("NEWB",), (2024,), (ROUTE,), {"NEWB": get_respondent()})


def get_respondent() -> Any:
    from ingest.catalog import BALANCING_AUTHORITY, Respondent

    return Respondent("New", BALANCING_AUTHORITY)


def test_update_asks_for_days_that_have_ended_in_every_zone() -> None:
    now = datetime(2024, 3, 20, 7, 30, tzinfo=UTC)
    wanted = plan_shards("eia", ("PACW",), ("2024-03-01T00", "2024-03-22T07"), (ROUTE,))
    assert [(one.start, one.end) for one in plan_update([], now, 14, wanted)] == [("2024-03-01T00", "2024-03-18T23")]
    later = datetime(2024, 3, 20, 8, 0, tzinfo=UTC)  # the Pacific day ends at 07:00 in summer, at 08:00 in winter
    assert plan_update([], later, 14, wanted)[0].end == "2024-03-19T23"
    hour = hour_number("2024-03-20T08")
    assert (ended_at(ROUTE, hour), ended_at("region-data", hour)) == (hour_number("2024-03-20T00"), hour + 1)


def test_update_asks_again_for_a_missing_day_and_for_days_that_may_be_revised(folder: Path) -> None:
    results = list(manifest.shard_results(folder))
    now = datetime(2024, 4, 4, 12, tzinfo=UTC)
    days = [one for one in plan_update(results, now, 3) if one.daily]
    # The fetch was made long after; the gap counts as the source's own after a second one.
    assert [(one.start, one.end, one.generation) for one in days] == [("2024-03-05T00", "2024-04-03T23", 1)]


def test_daily_routes_are_refused_where_hours_are_followed_or_come_from_files(
    tmp_path: Path, coordinator: Coordinator
) -> None:
    run = coordinator("follow", "--routes", "region-data,daily-region-data", "--data", "my data")
    assert (run.code, "daily-region-data is not followed" in run.stderr) == (2, True)
    assert "--update --routes daily --data 'my data'" in " ".join(run.stderr.split())
    run = coordinator("start", "--extract", "--source", "auto", "--routes", "all,daily", "--dry-run")
    assert (run.code, "--source auto has hourly routes only" in run.stderr) == (2, True)


# -- rows --------------------------------------------------------------------------------------------------------------


def test_rows_of_another_zone_day_or_hour_are_refused() -> None:
    columns = received([row("2024-03-01"), row("2024-03-02", None)], day_shard()).columns
    assert columns.hour.tolist() == [hour_number("2024-03-01T00"), hour_number("2024-03-02T00")]
    assert columns.nulls() == 1
    for rows, kind in (
        ([row("2024-03-01", zone="Eastern")], "foreign"),
        ([row("2024-04-01")], "foreign"),
        ([row("2024-03-01T00")], "foreign"),
        ([row("2024-03-01", "1"), row("2024-03-01", "2")], "repeated"),
    ):
        with pytest.raises(SourceError) as error:
            received(rows, day_shard())
        assert error.value.kind == kind
    assert received([row("2024-03-01"), row("2024-03-01")], day_shard()).duplicates == 1


def test_a_missing_day_is_a_gap_of_its_hours(folder: Path) -> None:
    found = [gap for gap in open_gaps(manifest.shard_results(folder)) if gap.route == ROUTE]
    assert [(gap.variable, gap.start, gap.end, gap.hours) for gap in found] == [
        ("D", "2024-03-05T00", "2024-03-05T23", 24)
    ]
    assert manifest.write_summary(folder).gap_hours == 0  # the hours have no gap
    assert "(0 hours and 1 day that the source does not have)" in verify(folder).to_text()
    assert "2024-03-05T23 (1 d)" in verify(folder).to_text()


# -- files -------------------------------------------------------------------------------------------------------------


def test_days_have_23_to_25_hours_values_and_reasons(folder: Path) -> None:
    march = load_daily(folder, "pacw", "d", "2024-03", "2024-03")
    assert (march.names, march.zones) == (("PACW.D",), ("America/Los_Angeles",))
    assert march.values.shape == march.mask.shape == (31, 1)
    assert march.hours[:, 0].tolist() == [24] * 9 + [23] + [24] * 21  # summer time began on 2024-03-10
    assert np.flatnonzero(~march.mask[:, 0]).tolist() == [4, 6]
    assert [daily.REASONS[code] for code in march.reason[[3, 4, 6], 0]] == ["ok", "missing", "null"]
    wider = load_daily(folder, ["PACW"], ["D", "NG"], "2024-02-29", "2024-11-03")
    assert wider.hours[-1, 0] == 25 and daily.REASONS[wider.reason[0, 0]] == "unasked"
    frame = pd.read_parquet(folder / "daily", filters=[("variable", "=", "D"), ("reason", "=", "ok")])
    assert len(frame) == 29 and set(frame["timezone"]) == {"America/Los_Angeles"}
    with pytest.raises(UsageError, match=r"no daily TI; it has D, NG"):
        load_daily(folder, "PACW", "TI", "2024-03", "2024-03")
    with pytest.raises(UsageError, match=r"no daily values of ERCO.*--routes daily"):
        load_daily(folder, "ERCO", "D", "2024-03", "2024-03")


def test_documented_example_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = (Path(__file__).resolve().parents[3] / "docs" / "reference" / "data.md").read_text()
    lines = next(one for one in re.findall(r"```python\n(.*?)```", document, flags=re.DOTALL) if "load_daily" in one)
    monkeypatch.chdir(folder.parent)
    names: dict[str, Any] = {}
    exec(lines, names)
    assert names["days"].values.shape == (31, 2)


def test_a_day_that_is_not_the_sum_of_its_hours_is_named(folder: Path) -> None:
    found = totals(folder)
    assert found is not None
    # 31 days without the missing one and the null one; NG has no hours to compare with.
    assert (found.values, found.missing, found.null, found.compared) == (60, 1, 1, 29)
    assert [(one.variable, one.day) for one in found.differing] == [("D", "2024-03-21")]
    assert "29 compared with the sums of their hours, 1 differ: PACW D 2024-03-21" in str(found)


def test_a_revision_keeps_both_values_and_the_generation(folder: Path) -> None:
    commit(folder, day_shard("2024-03-21", "2024-03-22", generation=1), {"D": np.array([71_000.0, 72_500.0])})
    assert build_daily(folder, manifest.shard_results(folder))
    found = load_daily(folder, "PACW", "D", "2024-03-21", "2024-03-21")
    assert found.values[0, 0] != 71_000  # a reader has the snapshot of the last finished run
    snapshot.publish(folder, manifest.build_results(folder))
    manifest.write_summary(folder)
    assert load_daily(folder, "PACW", "D", "2024-03-21", "2024-03-21").values[0, 0] == 71_000
    summary = daily.read_summary(folder / "daily" / "PACW.parquet")
    assert {(one.period, one.generation, one.after) for one in summary.revisions} == {
        ("2024-03-21T00", 1, 71_000.0),
        ("2024-03-22T00", 1, 72_500.0),
    }
    assert verify(folder).whole


def test_files_are_made_again_after_a_kill_or_damage_and_have_the_same_bytes(folder: Path) -> None:
    results = list(manifest.shard_results(folder))
    assert not build_daily(folder, results)
    (path,) = (folder / "daily").iterdir()
    before = path.read_bytes()
    path.unlink()  # a run was killed before it wrote the file
    assert {one.kind for one in verify(folder).notes} >= {"unbuilt"}
    assert build_daily(folder, results) and path.read_bytes() == before
    path.write_bytes(before[:100])
    assert not verify(folder).whole
    assert build_daily(folder, results) and path.read_bytes() == before
    snapshot.publish(folder, manifest.build_results(folder))
    assert verify(folder).whole


def test_verification_finds_days_that_the_pieces_do_not_have(folder: Path) -> None:
    path = folder / "daily" / "PACW.parquet"
    table = pq.ParquetFile(path).read()
    for other in (table.slice(0, 360), table.replace_schema_metadata({})):
        path.unlink()  # else the snapshot's file would change too
        pq.write_table(other, path)
        assert {one.kind for one in verify(folder).mismatches} == {"daily"}


def test_coverage_has_a_row_of_daily_values(folder: Path) -> None:
    picture = coverage(read_summaries(folder))
    assert picture.rows == (("PACW", "demand"), ("PACW", "daily"))
    share = picture.share[1]
    assert share[2] == pytest.approx(60 / 62)
    assert np.isnan(np.delete(share, 2)).all()  # never asked for


# -- emulator ----------------------------------------------------------------------------------------------------------


def served(route: str, respondent: str, start: str, end: str, now: str, zone: str = "") -> dict[tuple[str, ...], float]:
    """Return (day, code, zone) → MWh of an answer of the emulator."""
    owner = DAILY_ROUTES[route].respondent
    query = f"facets[{owner}][]={respondent}&start={start}&end={end}&data[0]=value&sort[0][column]=period"
    query += f"&facets[timezone][]={zone}" if zone else ""
    parsed = parse_query(ROUTES[route], parse_params(query, None))
    rows, total = Selections(WORLD, 0).page(parsed, hour_number(now))
    assert total == len(rows)
    days = np.datetime_as_string((rows.hour // 24).astype("datetime64[D]")).tolist()
    keys = [(day, *rows.series[which][1:]) for day, which in zip(days, rows.which.tolist(), strict=True)]
    return dict(zip(keys, rows.value.tolist(), strict=True))


WORLD = SyntheticWorld(quirks=False, revise_days=0)


@pytest.mark.parametrize(("day", "hours"), [("2024-03-10", 23), ("2024-07-01", 24), ("2024-11-03", 25)])
def test_emulated_day_is_the_sum_of_the_hours_of_the_local_day(day: str, hours: int) -> None:
    now = "2025-06-01T00"
    found = served(ROUTE, "PACW", day, day, now)
    assert {zone for _, _, zone in found} == set(EIA_ZONES.values())
    number = hour_number(f"{day}T00") // 24
    for zone in ("America/Los_Angeles", "America/Phoenix"):
        low, high = midnights(zone, number, number).tolist()
        assert high - low == (hours if zone == zone_of("PACW") else 24)
        block = WORLD.block("region-data", "PACW", low + 1, high, hour_number(now))
        assert block is not None
        for column, code in enumerate(block.codes):
            assert found[day, code, EIA_ZONES[zone]] == block.values[:, column].sum()


def test_emulator_serves_days_that_have_ended() -> None:
    days = {day for day, _, _ in served(ROUTE, "PACW", "2024-07-01", "2024-07-09", "2024-07-04T07", "Pacific")}
    assert days == {"2024-07-01", "2024-07-02", "2024-07-03"}
    days = {day for day, _, _ in served(ROUTE, "PACW", "2024-07-01", "2024-07-09", "2024-07-04T06", "Pacific")}
    assert days == {"2024-07-01", "2024-07-02"}
    flows = served("daily-interchange-data", "PACW", "2024-07-01", "2024-07-01", "2025-01-01T00", "Pacific")
    assert {code for _, code, _ in flows} >= {"BPAT", "PGE"}
