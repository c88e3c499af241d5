"""Hourly forecasts: nothing after what is known at an issue hour reaches them, live as in a backtest, calibrated and coherent."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from ingest.array_types import Floats
from ingest.publication import DAY_BEFORE, DEADLINE, DEFAULT, Publication
from scripts.evaluate import hourly as evaluate
from worker.forecast.hourly.authority import make_authority
from worker.forecast.hourly.blend import blended
from worker.forecast.hourly.forecasts import HourlyForecasts, forecasts_at, hourly_forecasts
from worker.forecast.hourly.inputs import AuthorityHours, inputs, references
from worker.forecast.hourly.paths import paths_of
from worker.forecast.model import scores
from worker.forecast.model.network import QUANTILES
from worker.training.tokens import Period

FIRST = 420768  # 2018-01-01T00
HOURS = 24 * 100
HORIZON = 4


def values(seed: int = 0, hours: int = HOURS) -> tuple[Floats, Floats]:
    """Demand and DF, MWh; DF's errors hold for about 20 hours."""
    draw = np.random.default_rng(seed)
    t = np.arange(hours)
    demand = 1000 + 200 * np.sin(2 * np.pi * t / 24) + 80 * np.sin(2 * np.pi * t / 168) + draw.normal(0, 3, hours)
    error = np.zeros(hours)
    for hour in range(1, hours):
        error[hour] = 0.95 * error[hour - 1] + draw.normal(0, 12)
    operator = demand - error - 10
    demand[draw.random(hours) < 0.02] = np.nan
    operator[draw.random(hours) < 0.02] = np.nan
    return demand, operator


def authority(demand: Floats, operator: Floats, publication: Publication = DEFAULT) -> AuthorityHours:
    return make_authority("PACW", FIRST, demand, operator, publication)


def forecasts(hours: AuthorityHours, first: int, last: int, horizon: int = HORIZON, seed: int = 0) -> HourlyForecasts:
    return hourly_forecasts(hours, Period(FIRST + first, FIRST + last), horizon=horizon, paths=5, seed=seed)


def equal(a: HourlyForecasts, b: HourlyForecasts) -> None:
    for name in ("issues", "median", "quantiles", "paths"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


# Before and after 10:00 in Portland, and at the first hour of a local month; before DF of the day that has begun is due.
@pytest.mark.parametrize(
    ("at", "publication"),
    [
        (24 * 83 + 15, DAY_BEFORE),
        pytest.param(24 * 83 + 19, DAY_BEFORE, marks=pytest.mark.long),
        pytest.param(24 * 90 + 7, DAY_BEFORE, marks=pytest.mark.long),
        pytest.param(24 * 83 + 9, DEADLINE, marks=pytest.mark.long),
        pytest.param(24 * 83 + 15, Publication(2, 0, 7, "America/New_York"), marks=pytest.mark.long),
    ],
)
def test_nothing_after_what_is_known_at_the_issue_hour_changes_its_forecast(at: int, publication: Publication) -> None:
    demand, operator = values(at)
    clean = authority(demand, operator, publication)
    before = forecasts(clean, at - 30, at, horizon=18)
    assert np.isfinite(before.median).all() and np.isfinite(before.paths).all()
    spoilt = demand.copy(), operator.copy()
    assert clean.actual_known[at] == at - publication.actual_hours
    spoilt[0][clean.actual_known[at] + 1 :], spoilt[1][clean.operator_known[at] + 1 :] = 9e5, -5e5
    equal(before, forecasts(authority(*spoilt, publication), at - 30, at, horizon=18))
    later, other = (forecasts(one, at + 1, at + 1).median for one in (clean, authority(*spoilt, publication)))
    assert not np.array_equal(later, other), "the poison reaches no forecast at all"


def test_live_forecasts_are_those_of_a_backtest_and_paths_depend_on_the_seed() -> None:
    demand, operator = values()
    clean = authority(demand, operator)
    whole = forecasts(clean, 24 * 70, 24 * 95)
    for at in (24 * 70 + 5, 24 * 87, 24 * 95):
        live = demand.copy()
        live[at + 1 :] = np.nan
        one = forecasts(authority(live, operator), at, at)
        row = at - 24 * 70
        for name in ("median", "quantiles", "paths"):
            np.testing.assert_array_equal(getattr(one, name)[0], getattr(whole, name)[row], err_msg=name)
    other = forecasts(clean, 24 * 95, 24 * 95, seed=1)
    assert np.array_equal(other.quantiles[0], whole.quantiles[-1]) and not np.array_equal(
        other.paths[0], whole.paths[-1]
    )


def test_errors_are_corrected_intervals_cover_and_paths_hold_together() -> None:
    demand, operator = values(3, 24 * 160)
    hours = authority(demand, operator)
    found = forecasts(hours, 24 * 100, 24 * 155)
    at = np.arange(24 * 100, 24 * 155 + 1)[:, None] + np.arange(1, HORIZON + 1)
    actual, reference = hours.demand[at], hours.operator[at]
    last = (hours.demand - hours.operator)[at[:, :1] - 1]

    def mae(forecast: NDArray[np.floating]) -> Floats:
        return np.nanmean(np.abs(actual - forecast), axis=0)

    assert (mae(found.median) < 0.8 * mae(reference)).all() and (mae(found.median) < 1.05 * mae(reference + last)).all()
    covered = (actual >= found.quantiles[..., 1]) & (actual <= found.quantiles[..., 5])
    assert 0.75 < covered[np.isfinite(actual)].mean() < 0.85
    errors = found.paths - found.median[..., None]
    together = np.corrcoef(errors[:, 2].ravel(), errors[:, 3].ravel())[0, 1]
    assert together > 0.5
    assert (np.diff(found.quantiles, axis=-1) >= 0).all() and found.quantiles.shape[-1] == len(QUANTILES)


def test_paths_are_quantiles_at_evenly_spaced_levels() -> None:
    quantiles = np.array([[[-1.96, -1.2816, -0.6745, 0, 0.6745, 1.2816, 1.96]]], np.float32)
    ranks = np.array([[[4, 0, 3, 1, 2]]])
    np.testing.assert_allclose(paths_of(quantiles, ranks)[0, 0], [1.2816, -1.2816, 0.5244, -0.5244, 0], atol=2e-3)


def test_without_a_forecast_of_the_operators_demand_of_weeks_before_is_the_reference() -> None:
    demand, _ = values(5)
    demand[24 * 50 : 24 * 57] = np.nan
    hours = authority(demand, np.full(HOURS, np.nan))
    rows, steps = np.array([24 * 60]), np.array([1, 2])
    known = references(hours, rows, steps, with_operator=False)[0]
    np.testing.assert_array_equal(known, demand[24 * 60 - 2 * 168 + steps])
    assert np.isnan(references(hours, rows, steps, with_operator=True)).all()
    assert np.isfinite(inputs(hours, rows, steps, with_operator=False)).all()
    found = forecasts(hours, 24 * 80, 24 * 95)
    actual = demand[np.arange(24 * 80, 24 * 95 + 1)[:, None] + np.arange(1, HORIZON + 1)]
    assert np.nanmean(np.abs(actual - found.median)) < 12  # the noise is 3 MWh, the waves 280


def test_scores_prefer_paths_whose_hours_belong_together() -> None:
    """Values by hand for one path; then, with equal marginals, the energy and the variogram score see the order."""
    actual, path = np.array([[1.0, 3.0]]), np.array([[[4.0], [7.0]]])
    assert scores.energy(actual, path) == pytest.approx(5.0)
    assert scores.variogram(actual, path) == pytest.approx((np.sqrt(2) - np.sqrt(3)) ** 2)
    two = np.array([[[1.0, 4.0], [3.0, 7.0]]])
    assert scores.energy(actual, two) == pytest.approx(2.5 - 5 * 2 / 8)
    draw = np.random.default_rng(0)
    levels = draw.normal(size=(200, 1, 20))
    together = np.repeat(levels, 12, axis=1)
    apart = np.take_along_axis(together, np.argsort(draw.random(together.shape), axis=-1), axis=-1)
    outcome = np.repeat(draw.normal(size=(200, 1)), 12, axis=1)
    outcome[5, 3] = np.nan
    for score in (scores.energy, scores.variogram):
        assert score(outcome, together) < 0.9 * score(outcome, apart)


def test_evaluation_compares_horizons_and_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its hours ahead are those of a whole forecast."""
    monkeypatch.setattr(evaluate, "FEWEST", 5)
    hours = authority(*values(2))
    period = Period(FIRST + 24 * 91, FIRST + 24 * 95)
    found = forecasts_at(hours, period, evaluate.STEPS, paths=4, seed=0)
    whole = hourly_forecasts(hours, period, horizon=6)
    np.testing.assert_array_equal(found.median[:, :6], whole.median)
    np.testing.assert_array_equal(found.quantiles[:, :6], whole.quantiles)
    line = {"period": "x", "publication": "day-before", "respondent": "PACW", **evaluate.measure(hours, found)}
    ratio = np.array(line["mae"], float)[:8] / np.array(line["corrected"], float)[:8]
    assert (ratio < 1.2).all() and line["hours"][-1] == 0 and line["hours"][0] > 80
    assert line["energy"][0] < line["energy"][1] and 0.6 < np.mean(line["covered"]) < 1
    assert "| PACW | " in evaluate.report([line])


@pytest.mark.long
def test_forecasts_do_not_depend_on_where_the_period_begins() -> None:
    """Blends, widths, shapes and ranks of an issue hour need only the months before it."""
    demand, operator = values(6, 24 * 320)
    hours, steps = authority(demand, operator), np.array([1, 2, 24, 48])
    whole = forecasts_at(hours, Period(FIRST + 24 * 250, FIRST + 24 * 310), steps, paths=5, seed=0)
    for at in (24 * 275, 24 * 290 + 7, 24 * 310):
        live = demand.copy()
        live[at + 1 :] = np.nan
        one = forecasts_at(authority(live, operator), Period(FIRST + at, FIRST + at), steps, paths=5, seed=0)
        for name in ("median", "quantiles", "paths"):
            np.testing.assert_array_equal(getattr(one, name)[0], getattr(whole, name)[at - 24 * 250], err_msg=name)


def test_blends_turn_to_what_erred_least_in_the_last_weeks() -> None:
    """DF's error was constant, then alternates: DF less its last error is right at first, and the other forecast afterwards."""
    count = 24 * 60
    operator = np.full(count, 1000.0)
    error = np.where(np.arange(count) < 24 * 30, 50.0, np.where(np.arange(count) % 2, 50.0, -50.0))
    hours = authority(operator + error, operator)
    other = np.full((count, 1), 1000.0, np.float32)  # as if DF stood
    found = blended(hours, other, np.array([1]), slice(0, count))[:, 0]
    np.testing.assert_allclose(found[24 * 2 : 24 * 29], 1050, atol=1e-3)
    np.testing.assert_allclose(found[24 * 57 : -1], 1000, atol=2)
