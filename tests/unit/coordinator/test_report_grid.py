"""The report's facts of the hours by value, and its page while a coordinator is at work."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coordinator.report import build
from coordinator.report.collect.grid import having, region, regions
from coordinator.report.model import Absent, Facts, Hours, Region, Regions
from coordinator.report.render import sections_data, sections_grid
from coordinator.report.render.charts import Axis, Part, areas
from coordinator.report.render.page import page
from coordinator.server.folder_lock import FolderLock, running_command
from ingest.columns import hour_number
from ingest.coverage import Coverage
from tests.support.data_folder import build_all, commit, daily, shard

FIRST = hour_number("2024-01-01T00")
HOURS = 366 * 24


@pytest.fixture(scope="module")
def ercot() -> Region:
    """A year: 30 GW, 60 GW in one hour of August; the forecast is 2 % too high, from local noon on 4 %; coal is 10, pumping -1 GW."""
    demand = np.full(HOURS, 30_000.0)
    demand[hour_number("2024-08-20T22") - FIRST] = 60_000
    demand[100:103] = np.nan
    local_hour = (np.arange(FIRST, FIRST + HOURS) - 1 - 6) % 24  # standard time; summer is an hour later
    winter = np.arange(HOURS) < 24 * 60
    forecast = np.where(winter, demand * np.where(local_hour < 12, 1.02, 1.04), np.nan)
    columns = {
        "D": demand,
        "DF": forecast,
        "TI": np.full(HOURS, -500.0),
        "NG.COL": np.full(HOURS, 10_000.0),
        "NG.PS": np.full(HOURS, -1000.0),
        "ID.SWPP": np.full(HOURS, 250.0),
        "ID.CEN": np.full(HOURS, np.nan),
    }
    found = region("ERCO", FIRST, columns)
    assert found is not None
    return found


def test_peaks_and_days(ercot: Region) -> None:
    (peak,) = [one for one in ercot.peaks if one.year == 2024]
    assert (peak.value, peak.hour, peak.local, peak.hours) == (60_000, "2024-08-20T22", "2024-08-20T17", HOURS - 7 - 3)
    assert (ercot.zone, ercot.first, ercot.last) == ("America/Chicago", "2024-01-01T00", "2024-12-31T23")
    august = int(np.flatnonzero(ercot.highest == 60_000)[0])
    assert np.datetime64(int(ercot.days[august]), "D") == np.datetime64("2024-08-20")
    assert ercot.daily[august] == pytest.approx((23 * 30_000 + 60_000) / 24)
    assert (ercot.week.start, len(ercot.week.hour), np.nanmax(ercot.week.demand)) == ("2024-08-17", 168, 60_000)


def test_load_duration_mix_interchange(ercot: Region) -> None:
    (curve,) = ercot.duration.values()
    assert (curve[0], curve[1], curve[-1]) == (60_000, 30_000, 30_000)
    assert ercot.mix is not None and ercot.exports is not None
    months, groups = ercot.mix
    assert (len(months), list(groups)) == (12, ["coal", "storage and other"])
    assert groups["coal"].tolist() == [10_000.0] * 12
    assert groups["storage and other"].tolist() == [-1000.0] * 12
    assert ercot.exports[1].tolist() == [-500.0] * 12
    assert ercot.flows == {"SWPP": 250.0}


def test_forecast_error_by_hour_and_month(ercot: Region) -> None:
    error = ercot.error
    assert error is not None
    np.testing.assert_allclose(error.by_hour, [2.0] * 12 + [4.0] * 12)
    np.testing.assert_allclose(error.bias_by_hour, error.by_hour)
    assert error.hours == 24 * 60 - 3
    assert len(error.by_month) == 2
    assert error.share == pytest.approx(0.03, abs=1e-3)


def test_folder_without_a_fact_names_it(tmp_path: Path) -> None:
    commit(tmp_path, shard("PACW", "2024-01-01T00", "2024-01-03T23"), {"D": daily(72)})
    commit(tmp_path, shard("TEPC", "2024-01-01T00", "2024-01-03T23"), {"TI": daily(72)})
    build_all(tmp_path)
    found = regions(tmp_path)
    assert not isinstance(found, Absent)
    assert [one.code for one in found.regions] == ["PACW"]
    for fact in ("duration", "mix", "error", "exports"):
        assert isinstance(having(found, "it", fact, ""), Absent)
    assert len(sections_grid.demand(found)["figures"]) == 2


def test_areas_below_zero_are_stacked_downwards() -> None:
    parts = [Part("a", np.array([2.0]), "0"), Part("b", np.array([-1.0]), "1"), Part("c", np.array([1.0]), "2")]
    chart = str(areas("t", Axis("x"), Axis("y"), np.array([0.0, 1.0]), parts))
    levels = [
        sorted({float(point.split(",")[1]) for point in polygon.split('points="')[1].split('"')[0].split()})
        for polygon in chart.split("<polygon")[1:]
    ]
    (a_top, a_base), (b_top, b_base), (c_top, c_base) = levels
    assert a_base == b_top  # the axis
    assert c_base == a_top
    assert b_base > b_top and c_top < c_base


def test_page_written_during_a_run_says_so(tmp_path: Path) -> None:
    commit(tmp_path, shard("PACW", "2024-01-01T00", "2024-01-03T23"), {"D": daily(72)})
    build_all(tmp_path)
    page = tmp_path / "report.html"
    with FolderLock(tmp_path):
        assert running_command(tmp_path)
        build.report(tmp_path, page)
        assert ">running</span>" in page.read_text()
    assert running_command(tmp_path) == ""
    build.report(tmp_path, page)
    assert ">running</span>" not in page.read_text()
    with FolderLock(tmp_path):
        pass


@pytest.mark.parametrize(("neighbours", "words"), [(2, 'class="matrix"'), (20, 'class="flows"')])
def test_flows_are_a_matrix_or_where_it_would_be_wide_a_list(neighbours: int, words: str, ercot: Region) -> None:
    flows = {f"N{i:02d}": 100.0 * (i - 1) for i in range(neighbours)}
    gone = Absent("", "")
    found = Regions((replace(ercot, flows=flows),), 12)
    text = page(Facts("data", "", found, found, found, found, found, *[gone] * 7))
    assert words in text
    assert re.search(r'"n? ?in\d"', text) and "-100" in text
    assert text.count("N01") == 1


def test_long_tables_are_folded_and_charts_limited(ercot: Region) -> None:
    many = Regions(tuple(replace(ercot, code=f"R{i:02d}") for i in range(30)), 12)
    gone = Absent("", "")
    text = page(Facts("data", "", many, many, many, many, many, *[gone] * 7))
    assert text.count("<summary>18 more</summary>") == 3  # peaks, forecast errors, net exports
    assert text.count("18 more have no chart") == 5
    assert text.count('aria-label="Load duration of') == 12


def test_axes_of_time_show_dates() -> None:
    """A period of up to two months has days, of up to a year and a half months, a longer one years. Local days may begin a year early."""
    first = np.datetime64("2018-12-31").astype(float)
    months, place = sections_grid._axis(np.arange(first, first + 240))
    assert months.label == "2019" and [name for _, name in months.marked] == ["Jan", "Mar", "May", "Jul"]
    assert [str(np.datetime64(int(day), "D"))[5:] for day, _ in months.marked] == ["01-01", "03-01", "05-01", "07-01"]
    assert place(np.array([first]))[0] == first
    days, _ = sections_grid._axis(np.arange(first + 60, first + 90))
    assert [name for _, name in days.marked][:2] == ["Mar 1", "Mar 6"] and len(days.marked) <= 7
    assert sections_grid._axis(np.arange(first, first + 800))[0].label == "year"
    chart = str(
        sections_grid.plot(
            "t", days, Axis("MW"), [sections_grid.Line("a", np.array([first + 60, first + 89]), np.ones(2))]
        )
    )
    assert ">Mar 1<" in chart and "days since" not in chart


def test_share_of_valid_values_is_of_those_asked_for() -> None:
    """One month was asked for: the other eleven of the year are no fault of the data."""
    masked = {"missing": 4, "null": 0, "outlier": 6, "unasked": 8040}
    hours = Hours(
        Coverage((("PACW", "demand"),), ("2024-01",), np.ones((1, 1)), ("synthetic",)), (), 90, masked, 0, (), None
    )
    assert hours.asked == 100
    rows = sections_data.coverage(hours)["masked"]
    assert [row[-1] for row in rows] == ["4.000%", "0.000%", "6.000%", "–"]
