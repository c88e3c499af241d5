"""Datasets of a control training: what each hour knows of a day-ahead forecast."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from ingest.calendar import calendar_of
from ingest.errors import UsageError
from ingest.publication import DAY_BEFORE, NAMED, Publication, known_at
from rl.env.dataset import build_dataset
from rl.env.grid import Grid
from rl.env.region import Region, region
from rl.env.vector import VectorGridEnv
from rl.evaluation.score import rollout
from rl.planning.mpc import PathMpc
from worker.control.datasets import Loaded, ahead_of, known_ahead, standard_offset
from worker.control.hourly import paths_of, reissued
from worker.forecast.hourly.authority import make_authority
from worker.forecast.hourly.forecasts import HourlyForecasts, hourly_forecasts
from worker.training.tokens import Period

HORIZON = 36
HOURS = np.arange("2018-02-01T08", "2018-05-10T08", dtype="datetime64[h]")  # daylight saving from March 11


def measured(name: str) -> Region:
    return region(name, HOURS, np.full(len(HOURS), 9.0), offset=standard_offset(name), reference_end="2019-01-01T00")


@pytest.mark.parametrize("name", ["CISO", "MISO", "AZPS"])  # daylight saving; days of Eastern standard time; none
def test_no_hour_knows_a_forecast_before_its_operating_day_has_one(name: str) -> None:
    """Operating days follow daylight saving: by standard time 23:00 belongs to the next day, issued up to 24 hours later."""
    one = measured(name)
    hours = HOURS.astype(np.int64)
    issue = calendar_of(name, int(hours[0]), int(hours[-1])).issue
    source = known_ahead(one, np.arange(len(hours), dtype=float), HORIZON)[48:-HORIZON, :, 0].astype(int)
    target = np.arange(48, len(hours) - HORIZON)[:, None] + np.arange(HORIZON)
    begins = hours[48:-HORIZON, None] - 1
    assert (issue[source] <= begins).all()
    later = np.minimum(source + 24, target)
    assert ((source == target) | (issue[later] > begins)).all()  # nothing newer was known
    assert_array_equal((target - source) % 24, 0)


def test_another_forecast_of_a_day_changes_no_hour_before_it_is_issued() -> None:
    one = measured("CISO")
    issued = np.random.default_rng(0).uniform(0.5, 1.0, len(HOURS))
    calendar = calendar_of("CISO", int(HOURS[0].astype(int)), int(HOURS[-1].astype(int)))
    for summer in (False, True):
        day = calendar.day[calendar.summer == summer][500]
        other = np.where(calendar.day == day, 0.1, issued)
        before, after = (known_ahead(one, each, HORIZON)[..., 0] for each in (issued, other))
        at = calendar.issue[calendar.day == day][0]
        early = calendar.hours - 1 < at
        assert_array_equal(before[early], after[early])
        assert (before[calendar.hours - 1 == at] != after[calendar.hours - 1 == at]).any()


@pytest.fixture(scope="module")
def walk() -> tuple[np.ndarray, np.ndarray]:
    """Demand and DF of 90 days, MWh."""
    rng = np.random.default_rng(0)
    t = np.arange(24 * 90)
    demand = 3000 + 400 * np.sin(t / 24 * 2 * np.pi) + rng.normal(0, 30, len(t)).cumsum() / 5
    return demand, demand + rng.normal(0, 40, len(t))


def of_walk(demand: np.ndarray, lag: int = 0) -> Region:
    return region("CISO", HOURS[: len(demand)], demand, offset=-8, reference_end="2018-04-01T00", lag=lag)


@pytest.mark.parametrize("publication", [*NAMED, "2h,-1T18,local"])
def test_nothing_published_later_changes_what_a_row_shows(
    walk: tuple[np.ndarray, np.ndarray], publication: str
) -> None:
    """Demand and DF that are not published at an hour's start are replaced: features, forecast and the load before stay as they were."""
    parsed, at = Publication.parse(publication), 24 * 80 + 2  # 02:00 in Los Angeles, two hours before DF is due
    hours = HOURS[: 24 * 90].astype(np.int64)
    known = known_at("CISO", hours[at - 1 : at], parsed)
    assert known.actual[0] == hours[at - 1] - parsed.actual_hours

    def rows(demand: np.ndarray, issued: np.ndarray) -> np.ndarray:
        one = of_walk(demand, parsed.actual_hours)
        ahead = ahead_of(Loaded(one, demand, issued, None, parsed), 3, "2018-04-01T00")
        made = build_dataset([one], [ahead], str(HOURS[24 * 79]), str(HOURS[24 * 82]), Grid())
        return np.column_stack([made.features, made.reported_load])

    demand, issued = walk
    before = rows(demand, issued)
    later = hours > known.actual[0], hours > known.forecast[0]
    after = rows(np.where(later[0], demand + 300, demand), np.where(later[1], issued - 200, issued))
    row = at - 24 * 79
    assert_array_equal(before[: row + 1], after[: row + 1])
    assert (before[row + 1] != after[row + 1]).any()


def test_a_day_ahead_forecast_is_known_from_its_publication_on() -> None:
    """DF of a day that is due at 07:00 Eastern of that day: at 04:00 Pacific, when the day before's is repeated until then."""
    one, issued = measured("CISO"), np.arange(len(HOURS), dtype=float)
    midnight = 24 * 10  # 08:00 UTC, hour-ending: the hour before midnight
    late = known_ahead(one, issued, 4, NAMED["deadline"])[..., 0]
    early = known_ahead(one, issued, 4, DAY_BEFORE)[..., 0]
    day = midnight + 1 + np.arange(24)
    assert_array_equal(early[day, 0], day)
    assert_array_equal(late[day, 0], np.where(np.arange(24) < 4, day - 24, day))


def test_planners_see_a_forecast_of_the_load_that_is_not_published(walk: tuple[np.ndarray, np.ndarray]) -> None:
    demand, _ = walk
    one = of_walk(demand, lag=1)
    ahead = np.full((len(demand), 2, 1), 0.5, np.float32)
    for forecast, expected in ((ahead, 0.5), (None, one.load[24 * 80 - 2])):
        data = build_dataset([one], [forecast], str(HOURS[24 * 80]), str(HOURS[24 * 81]))
        env = VectorGridEnv(Grid(), data, 1, 4)
        seen = env.reset(np.array([0]))
        assert env.reported[0] == expected and env.residual[0] == one.load[24 * 80 - 1]
        assert seen[0, env.observation_names.index("residual load")] == np.float32(expected)
        assert "load -1" not in data.feature_names and "load -2" in data.feature_names


def test_hourly_forecasts_know_the_hours_before_their_row_and_no_later_one(walk: tuple[np.ndarray, np.ndarray]) -> None:
    """Another demand from row t on changes no row up to t; the one after them knows hour t."""
    demand, issued = walk
    one, at = of_walk(demand), 24 * 80 + 5
    other = np.where(np.arange(len(demand)) < at, demand, demand + 300)
    before, after = (reissued(one, each, issued, 3)[..., 0] for each in (demand, other))
    assert np.isfinite(before[at - 24 :]).all()
    assert_array_equal(before[: at + 1], after[: at + 1])
    assert (np.abs(before[at + 1] - after[at + 1]) * one.peak > 50).all()
    assert (
        np.abs(before[at - 240 : at, 0] * one.peak - demand[at - 240 : at]).mean() < 60
    )  # of this hour, not of the next


def test_plans_on_paths_know_nothing_of_the_hours_after_them(walk: tuple[np.ndarray, np.ndarray]) -> None:
    """From the series to the fleet's power: another demand from hour 8 of an episode on changes no decision up to that hour."""
    demand, issued = walk
    at, first = 24 * 80 + 8, int(HOURS[0].astype(np.int64))
    other = np.where(np.arange(len(demand)) < at, demand, demand + 300)
    powers = []
    for each in (demand, other):
        one = of_walk(each)
        hours = make_authority("CISO", first, each, issued)
        found = hourly_forecasts(hours, Period(first + 24 * 79, first + 24 * 82), horizon=4, paths=3)
        data = build_dataset([one], [None], str(HOURS[24 * 80]), str(HOURS[24 * 81]))
        ahead = data.gather([paths_of({"CISO": found}, one, 4)[1]])
        powers.append(rollout(Grid(), data, PathMpc(Grid(), ahead, 2), np.array([0]), 12).power)
    assert_array_equal(powers[0][:9], powers[1][:9])
    assert (powers[0][9:] != powers[1][9:]).any()


def test_paths_of_a_table_are_read_at_the_row_after_their_issue_hour() -> None:
    one = measured("CISO")
    issues = HOURS[10:13].astype(np.int64)
    values = np.arange(3 * 2 * 4, dtype=np.float32).reshape(3, 2, 4) * 9
    table = {"CISO": HourlyForecasts("CISO", issues, values[..., 0], values[..., :0], values)}
    median, paths = paths_of(table, one, 2)
    assert_array_equal(paths[11:14] * 9, values)
    assert_array_equal(median[11:14, :, 0] * 9, values[..., 0])
    assert np.isnan(paths[10]).all() and np.isnan(paths[14]).all()
    for wanted, horizon in (("MISO", 2), ("CISO", 3)):
        with pytest.raises(UsageError, match=f"{wanted} {horizon} hours ahead"):
            paths_of(table, measured(wanted), horizon)
