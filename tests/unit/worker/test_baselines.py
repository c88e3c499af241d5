"""The baselines: values against plain computations, and nothing after an issue time changes a forecast of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ingest.errors import UsageError
from ingest.features import BOUND, make_tokens
from ingest.loader import SeriesArrays
from tests.unit.ingest.test_features import FIRST, poisoned, series
from worker.forecast.baselines import boosting, fit
from worker.forecast.baselines.compare import best_by_mean, gain, mean_gain
from worker.forecast.baselines.history import History, known_at_start, monthly_refits, read_history
from worker.forecast.baselines.ridge import MIN_DAYS, ridge
from worker.forecast.baselines.running_bias import running_bias
from worker.forecast.baselines.table import BaselineTable, Points, read_table, write_table
from worker.forecast.model.scores import daily_losses, diebold_mariano
from worker.training.tokens import Period, TokenStore, token_rows

needs_lightgbm = pytest.mark.skipif(not boosting.is_installed(), reason="lightgbm is not installed (bench-forecast)")
VALIDATE = Period(FIRST + 24 * 110, FIRST + 24 * 140 - 1)
TEST = Period(FIRST + 24 * 140, FIRST + 24 * 200 - 1)


def stored(*parts: SeriesArrays, names: tuple[str, ...] = ("PACW", "CAL")) -> TokenStore:
    names = names[: len(parts)]
    tokens = [make_tokens(name, part) for name, part in zip(names, parts, strict=True)]
    return TokenStore(names, "DF", tuple((int(one.hours[0]), token_rows(one)) for one in tokens))


def history_of(part: SeriesArrays, name: str = "PACW") -> History:
    return read_history(stored(part, names=(name,)), 0)


def trees(*histories: History) -> np.ndarray:
    """The forecast of the first of the respondents that a small model is fitted to."""
    small = ({"num_leaves": 4, "min_data_in_leaf": 20},)
    return boosting.boosting(histories, VALIDATE, TEST, small, (5, 10))[1][0]


CONTENDERS: dict[str, Callable[[History], np.ndarray]] = {
    "running bias": lambda history: running_bias(history, VALIDATE)[1],
    "ridge": lambda history: ridge(history, VALIDATE, TEST)[1],
    "LightGBM": trees,
    "LightGBM pooled": lambda history: trees(history, history_of(series(5))),
}


@pytest.mark.parametrize(
    "who", [pytest.param(who, marks=needs_lightgbm if "LightGBM" in who else ()) for who in CONTENDERS]
)
@pytest.mark.parametrize("day", [150, 152])  # within a month, and the first day of one
def test_nothing_after_the_issue_time_changes_a_forecast(who: str, day: int) -> None:
    clean = series(day)
    history = history_of(clean)
    calendar = history.calendar
    target = calendar.day[0] + day
    assert str(np.datetime64(int(calendar.day[0]) + 152, "D")).endswith("-01")
    known = history.hours <= calendar.issue[calendar.day == target][0]
    spoilt = history_of(poisoned(clean, known, calendar.day <= target))
    upto = (calendar.day <= target) & history.within(TEST)
    before, after = CONTENDERS[who](history), CONTENDERS[who](spoilt)
    np.testing.assert_array_equal(before[upto], after[upto])
    assert np.isfinite(before[upto]).mean() > 0.9
    later = (calendar.day > target + 1) & history.within(TEST)
    assert not np.array_equal(before[later], after[later], equal_nan=True), "the poison reaches no forecast at all"


@needs_lightgbm
def test_nothing_after_the_issue_time_trains_the_trees() -> None:
    """With every value after the first issue time of the test changed, the model and its first day are the same."""
    clean = series(3)
    history = history_of(clean)
    first = history.calendar.day == history.calendar.day[history.hours == TEST.first][0]
    known = history.hours <= known_at_start([history], TEST)
    spoilt = history_of(poisoned(clean, known, history.calendar.day <= history.calendar.day[first][0]))
    before, after = (trees(one) for one in (history, spoilt))
    rows = first & history.within(TEST)
    np.testing.assert_array_equal(before[rows], after[rows])


def test_months_are_local_and_fitted_on_what_was_known_at_their_first_issue_time() -> None:
    history = history_of(series())
    months = monthly_refits(history, TEST)
    rows = np.concatenate([np.arange(one.rows.start, one.rows.stop) for one in months])
    np.testing.assert_array_equal(rows, np.flatnonzero(history.within(TEST)))
    for one in months[1:]:
        assert history.calendar.hour[one.rows.start] == 0
        assert history.hours[one.rows.start] - one.known == 15  # 10:00 of the day before to the hour that ends at 01:00
    assert monthly_refits(history, Period(0, 10)) == []


def test_running_bias_is_the_mean_of_the_errors_known_at_the_same_hour() -> None:
    history = history_of(series(1))
    bias, forecast = running_bias(history, VALIDATE)
    error = history.demand - history.reference
    for row in (24 * 150, 24 * 150 + 9, 24 * 171 + 17):
        past = [
            row - 24 * k for k in range(1, bias.days + 1) if history.hours[row - 24 * k] <= history.calendar.issue[row]
        ]
        assert forecast[row] == pytest.approx(history.reference[row] + bias.weight * np.nanmean(error[past]))


def test_running_bias_is_removed_and_noise_left_alone() -> None:
    """A constant error of 500 MWh is taken off whole; where errors have no mean, the least weight is chosen."""
    clean = series(2, holes=0)
    clean.values[:, 1] = clean.values[:, 0] + 500 + np.random.default_rng(0).normal(0, 5, len(clean.values))
    bias, forecast = running_bias(history_of(clean), VALIDATE)
    assert bias.weight == 1
    clean.values[:, 1] -= 500
    assert running_bias(history_of(clean), VALIDATE)[0].weight < 0.5
    assert np.abs(forecast[24 * 100 :] - clean.values[24 * 100 :, 0]).mean() < 8


def test_ridge_solves_the_penalised_normal_equations() -> None:
    """Against a plain weighted solve of one hour and month, with the intercept left free."""
    history = history_of(series(4))
    month = monthly_refits(history, TEST)[1]
    hour, penalty = 7, 0.3
    _, forecast = ridge(history, VALIDATE, TEST, (penalty,))
    rows = np.flatnonzero(
        np.isfinite(history.target) & (history.calendar.hour == hour) & (history.hours <= month.known)
    )
    x, y, w = history.inputs[rows].astype(float), np.clip(history.target[rows], -BOUND, BOUND), history.scale[rows]
    w = w / w.sum()
    mean, level = w @ x, w @ y
    deviation = np.sqrt(w @ (x - mean) ** 2)
    kept = deviation > 1e-4
    z = (x - mean)[:, kept] / deviation[kept]
    slopes = np.linalg.solve(z.T @ (w[:, None] * z) + penalty * np.eye(z.shape[1]), z.T @ (w * (y - level)))
    want = [row for row in range(month.rows.start, month.rows.stop) if history.calendar.hour[row] == hour]
    at = (history.inputs[want].astype(float) - mean)[:, kept] / deviation[kept]
    np.testing.assert_allclose(
        forecast[want], history.reference[want] + (level + at @ slopes) * history.scale[want], rtol=1e-8
    )


def test_ridge_without_enough_days_is_the_reference() -> None:
    history = history_of(series(4, hours=24 * (MIN_DAYS - 5)))
    whole = Period(FIRST, FIRST + 24 * (MIN_DAYS - 5) - 1)
    _, forecast = ridge(history, whole, whole)
    known = np.isfinite(history.scale)
    assert known.sum() > 500
    np.testing.assert_array_equal(forecast[known], history.reference[known])


def test_diebold_mariano_has_the_values_of_a_hand_computation() -> None:
    """Differences 2, 0, 1, 1: variance 1/2, first autocovariance -1/4; p of Student's t with 3 degrees of freedom."""
    plain = diebold_mariano(np.array([2.0, 0.0, 1.0, 1.0]), lags=0)
    assert plain.statistic == pytest.approx(1 / np.sqrt(0.5 / 4))
    lagged = diebold_mariano(np.array([2.0, 0.0, 1.0, 1.0]), lags=1)
    assert lagged.statistic == pytest.approx(4.0)  # 1 / sqrt((1/2 - 2 · 1/2 · 1/4) / 4)
    for test in (plain, lagged):
        u = abs(test.statistic) / np.sqrt(3)
        assert test.p == pytest.approx(1 - 2 / np.pi * (np.arctan(u) + u / (1 + u * u)))  # closed form at 3 degrees
    assert diebold_mariano(-np.array([2.0, 0.0, 1.0, 1.0]), lags=1) == (-lagged.statistic, lagged.p)


@pytest.mark.parametrize("difference", [np.zeros(50), np.full(50, 0.1), np.array([1.0]), np.array([])])
def test_without_variance_there_is_nothing_to_test(difference: np.ndarray) -> None:
    statistic, p = diebold_mariano(difference)
    assert np.isnan(statistic)
    assert p == 1


def test_lags_keep_the_test_honest_on_losses_that_persist() -> None:
    """A year of differences with mean zero and a memory of days: a test that ignores it finds 1% in every fourth year."""
    draw = np.random.default_rng(0)
    found = {0: 0, 14: 0}
    for _ in range(300):
        noise, difference = draw.normal(size=365), np.zeros(365)
        for day in range(1, 365):
            difference[day] = 0.7 * difference[day - 1] + noise[day]
        for lags in found:
            found[lags] += diebold_mariano(difference, lags).p < 0.01
    assert found[0] > 45
    assert found[14] < 18


def test_gain_is_a_difference_of_skills_on_common_hours() -> None:
    actual = np.array([10.0, 10, 10, 10, np.nan, 10])
    operator = np.array([12.0, 8, 14, 6, 0, np.nan])  # errors 2, 2, 4, 4: mean 3
    forecast = np.array([11.0, 10, 12, 8, 0, 10])  # 1, 0, 2, 2: mean 1.25
    other = np.array([10.0, 8, 13, 7, 0, 10])  # 0, 2, 3, 3: mean 2
    day = np.array([0, 0, 1, 1, 2, 2])
    found = gain(actual, forecast, other, operator, day)
    assert found.skill == pytest.approx((2 - 1.25) / 3)
    np.testing.assert_array_equal(found.days, [0, 1])
    np.testing.assert_allclose(found.by_day, [0.5 / 3, 1 / 3])
    reverse = gain(actual, other, forecast, operator, day)
    assert reverse.skill == pytest.approx(-found.skill)
    both = mean_gain([found, gain(actual[:2], forecast[:2], other[:2], operator[:2], day[:2] + 1)])
    np.testing.assert_array_equal(both.days, [0, 1])
    np.testing.assert_allclose(both.by_day, [0.5 / 3, (1 / 3 + 0.25) / 2])
    assert daily_losses(actual, forecast, day)[1] == pytest.approx([0.5, 2, 0])


def test_best_is_by_the_mean() -> None:
    assert best_by_mean({"a": [0.1, 0.3], "b": [0.0, 0.5], "c": [0.25, 0.25]}) == "b"


def test_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    hours = np.arange(FIRST, FIRST + 48)
    values = np.arange(48.0)
    one = Points("PACW", hours, hours - 20, hours // 24, values, values + 1, {"ridge": values + 2}, {"ridge": {"x": 1}})
    two = replace(one.within(Period(FIRST, FIRST + 23)), respondent="ERCO", choices={})
    table = BaselineTable(Period(FIRST, FIRST + 23), Period(FIRST + 24, FIRST + 47), {"PACW": one, "ERCO": two})
    write_table(table, tmp_path / "b.parquet")
    found = read_table(tmp_path / "b.parquet")
    assert (found.validate, found.test, list(found.respondents)) == (table.validate, table.test, ["PACW", "ERCO"])
    assert found.respondents["PACW"].choices == {"ridge": {"x": 1}}
    np.testing.assert_array_equal(found.respondents["PACW"].within(table.test).by_name["ridge"], values[24:] + 2)
    np.testing.assert_array_equal(found.respondents["ERCO"].hour, hours[:24])
    with pytest.raises(UsageError, match="baselines --out"):
        read_table(tmp_path / "absent.parquet")


def test_who_has_too_few_hours_and_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "is_installed", lambda: False)
    short = series(1)
    short.mask[: 24 * 100, 1] = False
    said: list[str] = []
    monkeypatch.setattr(fit, "MIN_TRAINING", 24 * 50)
    store = stored(series(0), short)
    table = fit.fit_baselines(store, VALIDATE, TEST, said.append)
    assert list(table.respondents) == ["PACW"]
    assert list(table.respondents["PACW"].by_name) == [fit.BIAS, fit.RIDGE]
    assert any(line.startswith("CAL is left out: ") for line in said)
    assert any("lightgbm is not installed" in line for line in said)
    with pytest.raises(UsageError, match="do not end before"):
        fit.fit_baselines(store, TEST, VALIDATE, said.append)
