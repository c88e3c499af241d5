"""The linear path over all authorities: nothing after an issue time reaches a forecast, and values against plain computations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ingest.features import make_tokens
from ingest.loader import SeriesArrays
from ingest.publication import DAY_BEFORE, DEADLINE, DEFAULT, Publication, known_at
from tests.unit.ingest.test_features import FIRST, poisoned, series
from worker.forecast.baselines.history import History, read_history
from worker.forecast.baselines.ridge import Moments
from worker.forecast.linear import mixture as mixing
from worker.forecast.linear import neighbours
from worker.forecast.linear.mixture import mixture, share_of
from worker.forecast.linear.neighbours import SIGNALS, signals
from worker.forecast.linear.own import Month
from worker.forecast.linear.path import linear_forecasts
from worker.training.tokens import TokenStore, token_rows

NAMES = ("PACW", "BPAT", "PJM")  # two Pacific ones and an Eastern one


def histories_of(*parts: SeriesArrays, publication: Publication = DEFAULT) -> list[History]:
    names = NAMES[: len(parts)]
    tokens = [make_tokens(name, part, publication=publication) for name, part in zip(names, parts, strict=True)]
    store = TokenStore(names, "DF", tuple((int(one.hours[0]), token_rows(one)) for one in tokens), publication)
    return [read_history(store, region) for region in range(len(names))]


@pytest.fixture(autouse=True)
def short_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The series have 200 days; real ones need more before the authorities around count."""
    monkeypatch.setattr(neighbours, "WARM_UP", 40)
    monkeypatch.setattr(neighbours, "MIN_DAYS", 30)


# Within a month, and on the first day of one; an authority with a neighbour, and one without.
@pytest.mark.parametrize(
    ("target", "day", "publication"), [(0, 150, DAY_BEFORE), (2, 152, DAY_BEFORE), (0, 152, DEADLINE)]
)
def test_nothing_after_the_issue_time_of_any_authority_changes_a_forecast(
    target: int, day: int, publication: Publication
) -> None:
    parts = [series(seed, hours=24 * 160) for seed in (day, day + 1, day + 2)]
    clean = histories_of(*parts, publication=publication)
    calendar = clean[target].calendar
    date = calendar.day[0] + day
    assert str(np.datetime64(int(calendar.day[0]) + 152, "D")).endswith("-01")
    issue = int(calendar.issue[calendar.day == date][0])
    moment = np.array([issue + publication.actual_hours])
    spoilt = histories_of(
        *(
            poisoned(part, one.hours <= issue, one.hours <= known_at(one.respondent, moment, publication).forecast)
            for part, one in zip(parts, clean, strict=True)
        ),
        publication=publication,
    )
    before, after = linear_forecasts(clean)[target].neighbours, linear_forecasts(spoilt)[target].neighbours
    upto = calendar.day <= date
    np.testing.assert_array_equal(before[upto], after[upto])
    assert np.isfinite(before[upto]).mean() > 0.9
    later = calendar.day > date + 1
    assert not np.array_equal(before[later], after[later], equal_nan=True), "the poison reaches no forecast at all"


def test_a_neighbours_forecast_of_the_same_day_is_used() -> None:
    """PACW's demand follows changes of BPAT's DF that its own DF misses; alone there is nothing to learn them from."""
    own, other = series(1, holes=0), series(2, holes=0)
    days = np.arange(len(own.values)) // 24
    change = np.random.default_rng(5).normal(0, 100, days[-1] + 1)[days]
    own.values[:, 0] += change
    other.values[:, 0] += change
    other.values[:, 1] += change
    histories = histories_of(own, other)
    where = histories[0].hours >= FIRST + 24 * 130
    errors = [np.nanmean(np.abs(histories[0].demand - one)[where]) for one in linear_forecasts(histories)[0]]
    assert errors[1] < 0.8 * errors[0]


def test_an_authority_without_forecasts_or_hours_is_no_obstacle() -> None:
    """One has no DF for its first 120 days, one starts 100 days late; where there is no DF there is nothing to correct."""
    late, blind = series(2, hours=24 * 200), series(3)
    blind.mask[: 24 * 120, 1] = False
    blind.values[: 24 * 120, 1] = np.nan
    late = SeriesArrays(late.values[2400:], late.mask[2400:], late.reason[2400:], late.hours[2400:], late.names)
    histories = histories_of(series(1), late, blind)
    forecasts = linear_forecasts(histories)
    for history, forecast in zip(histories, forecasts, strict=True):
        np.testing.assert_array_equal(np.isfinite(forecast.neighbours), np.isfinite(history.reference))
        month_of_data = np.flatnonzero(np.isfinite(history.scale))[:1] + 24 * 40
        assert (forecast.neighbours != history.reference)[int(month_of_data[0]) + 24 * 35 :].mean() > 0.9


def test_signals_are_the_changes_that_they_are_named_after() -> None:
    own, _, other = histories_of(series(2, holes=0), series(4), series(3, holes=0))
    days = np.unique(own.calendar.day)[150:151]
    starts = own.hours[np.searchsorted(own.calendar.day, days)]
    issues = own.calendar.issue[np.searchsorted(own.calendar.day, days)]
    got = signals(other, issues, starts)[0]
    first, at = int(starts[0] - FIRST), int(issues[0] - FIRST) + 1
    known = int(np.flatnonzero(other.calendar.issue <= issues[0])[-1])
    demand, operator = other.demand, other.operator
    want = []
    for back in (24, 48, 168):
        for block in range(0, 24, 4):  # the Eastern day ends three hours before the Pacific one
            hours = np.arange(first + block, min(first + block + 4, known + 1))
            known_half = len(hours) >= 2  # one hour of the last block says too little
            want.append(operator[hours].mean() - operator[hours - back].mean() if known_half else 0.0)
    want.append(demand[at - 10 : at].mean() - demand[at - 178 : at - 168].mean())
    np.testing.assert_allclose(got, np.array(want) / (0.1 * demand[at - 28 * 24 : at].mean()), rtol=1e-6)
    assert len(got) == len(SIGNALS)
    # At 10:00 Eastern, PACW's DF of the day is not published.
    at_eastern = other.calendar.issue[np.searchsorted(other.calendar.day, days)]
    begin = other.hours[np.searchsorted(other.calendar.day, days)]
    assert not signals(own, at_eastern, begin)[0][1:6].any()


def test_weights_of_a_mixture_follow_the_errors_known_at_the_first_issue_time() -> None:
    (history,) = histories_of(series(4))
    start = 24 * 100
    month = Month({0: slice(start, start + 240)}, int(history.hours[start]) - 15)
    experts = np.stack([np.zeros(len(history.hours)), np.nan_to_num(history.target)])
    mixed = mixture(experts, history, 0, [month], rate=1.0)
    weight = np.exp(-1.0) / (1 + np.exp(-1.0))  # the first has the reference's own errors, the second has none
    np.testing.assert_allclose(mixed[start : start + 240], (1 - weight) * experts[1, start : start + 240])
    assert not mixed[:start].any() and not mixed[start + 240 :].any()
    assert mixing.WINDOW > 365 * 24


def test_a_correction_ends_when_the_bias_that_it_removes_is_repaired() -> None:
    (history,) = histories_of(series(4))
    target = np.where(np.arange(len(history.hours)) < 24 * 120, 2.0, 0.0) + 0 * history.target  # NaN where it was
    got = share_of(np.full(len(target), 2.0), replace(history, target=target))
    assert got[24 * 110] > 1.9
    assert abs(got[24 * 150]) < 0.1
    weights = np.exp(-mixing.SHARES_RATE * np.abs(1 - np.array(mixing.SHARES)))
    np.testing.assert_allclose(got[24 * 110], 2 * weights @ mixing.SHARES / weights.sum())


def test_penalties_shrink_to_a_centre() -> None:
    """A prohibitive penalty gives the centre's slopes and the mean's intercept; a small one the slopes of least squares."""
    draw = np.random.default_rng(0)
    x, weight = draw.normal(1, 2, (400, 3)), draw.uniform(0.5, 1, 400)
    slopes, centre = np.array([1.0, -2.0, 0.5]), np.array([0.3, 0.2, 0.1])
    y = x @ slopes + 4
    moments = Moments.empty(3)
    moments.add(7, x, y, weight)
    twice = Moments.empty(3)
    twice.include(moments, 2.0)
    for one in (moments, twice):
        loose, tight = one.solve(7, (1e-9, 1e12), centre[None])
        np.testing.assert_allclose(loose, [*slopes, 4], rtol=1e-6)
        level, mean = np.average(y, weights=weight), np.average(x, axis=0, weights=weight)
        np.testing.assert_allclose(tight, [*centre, level - mean @ centre], rtol=1e-6)
