"""Estimate hours of demand that are missing: own profile, forecast, balance and other authorities, each with an interval. No I/O, no chance.

Each *predictor* P is a series that is known in the hour: 1 (the own profile), the day-ahead forecast, net generation less interchange, the demand
of the five series whose departures from their profile correlate best. The estimate is P × the usual ratio demand / P of the hour (a weighted mean over
the same hour of 14 days before and after; for the profile also over the same weekday of four weeks), once plain, and once × the ratio's departure from usual on either side of the gap, interpolated.

For a gap of more than six hours a regression on the same hours of the other days adds an estimate: ingest/impute_regression.py.

The estimates are combined with the weights that would have been best on gaps of the same length hidden elsewhere in the year, at even intervals, for a long gap
at the same time of day: those of the least mean squared relative error, which sum to 1, from the covariance of the errors. The same hidden gaps give the
interval: the 4th and the 96th percentile of the combined error. All of it is additions, products and sorts in a fixed order, without a library for linear algebra and without random numbers; estimates are
rounded to 0.1 MWh.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from ingest.array_types import Bools, Floats, Int8s, Int64s
from ingest.impute_regression import Regression, invert, regress
from ingest.load_quality import usual_values

PROFILE, FORECAST, BALANCE, NEIGHBOURS = 1, 2, 4, 8  # bits of a code: what an estimate rests on; 0: none
METHODS = {PROFILE: "profile", FORECAST: "forecast", BALANCE: "balance", NEIGHBOURS: "neighbours"}
LONGEST = 168  # hours: a longer gap has no estimate
CLASSES = (1, 2, 3, 6)  # hours: the errors of a short gap are those of the next length, anywhere in the year
DAYS = tuple(range(1, 15))  # before and after, for the usual ratio
WEEKS = (7, 14, 21, 28)  # likewise, of the profile of the weekday
MIN_DAYS = 3
WINSOR = 0.15  # a ratio counts as at most this share away from the median of its hour
NEIGHBOUR_COUNT = 5
APART = 0.25  # an estimate counts as at most this share away from the median of its hour's
DEPARTURE = 0.3  # a larger departure from the profile counts as this, for the correlation
TRIALS, DAY_TRIALS = 400, 120  # hidden gaps, at most: of a short length, of a long one
MIN_TRIALS = 50  # hidden hours that weights need
RIDGE, LEAST = 0.02, 1e-10  # × the variance, and at least: added to each, so that no weight rests on chance
LOW, HIGH = 4, 96  # percentiles: those of trials, on which the weights were chosen, miss a little more than one in ten


@dataclass(frozen=True)
class Load:
    """One series of demand over the hours of a year, MWh, NaN where there is no valid value."""

    demand: Floats
    forecast: Floats | None = None
    balance: Floats | None = None  # net generation less interchange


@dataclass(frozen=True)
class Estimate:
    """Estimates of the missing hours of a year; NaN and code 0 where there is none. Arrays are [hour]."""

    value: Floats  # MWh
    low: Floats  # LOW percent of the trials lay below
    high: Floats
    code: Int8s  # bits: PROFILE, FORECAST, BALANCE, NEIGHBOURS


@dataclass(frozen=True)
class _Predictor:
    series: Floats
    bit: int
    days: tuple[int, ...] = DAYS


def departures(load: Load) -> Floats:
    """Return the relative departures of a demand from its usual values, for `neighbours_of`; 0 where there is none."""
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = load.demand / usual_values(load.demand) - 1
    return np.where(np.isfinite(relative), np.clip(relative, -DEPARTURE, DEPARTURE), 0.0)


def neighbours_of(name: str, all_departures: Mapping[str, Floats]) -> tuple[str, ...]:
    """Return the names of the series that correlate best with one, the best first; of equals the first by name."""
    own = all_departures[name]
    size = np.sqrt((own * own).sum())
    found = []
    for other, values in sorted(all_departures.items()):
        scale = size * np.sqrt((values * values).sum())
        if other != name and scale > 0:
            found.append((-float((own * values).sum() / scale), other))
    return tuple(other for _, other in sorted(found)[:NEIGHBOUR_COUNT])


def impute(load: Load, neighbours: Mapping[str, Floats], wanted: Bools) -> Estimate:
    """Estimate missing hours of a demand.

    Args:
        load: the series.
        neighbours: demand of others over the same hours, MWh [hour], NaN where there is none.
        wanted: bool [hour], the hours to estimate; one that has a demand gets none.

    Returns:
        The estimates.
    """
    hours = load.demand.size
    value, low, high = np.full((3, hours), np.nan)
    found = Estimate(value, low, high, np.zeros(hours, np.int8))
    demand = np.where(load.demand > 0, load.demand, np.nan)
    forecast, balance = (
        None if series is None else np.where(series > 0, series, np.nan) for series in (load.forecast, load.balance)
    )
    others = [np.where(series > 0, series, np.nan) for series in neighbours.values()]
    predictors = [_Predictor(np.ones(hours), PROFILE), _Predictor(np.ones(hours), PROFILE, WEEKS)]
    predictors += [_Predictor(one, bit) for one, bit in ((forecast, FORECAST), (balance, BALANCE)) if one is not None]
    predictors += [_Predictor(one, NEIGHBOURS) for one in others]
    edges = np.flatnonzero(np.diff(np.concatenate([[0], np.isnan(demand).view(np.int8), [0]])))
    trials: dict[int, Floats] = {}
    departed: dict[int, list[Floats]] = {}  # by the days that the usual values leave out
    with np.errstate(invalid="ignore", divide="ignore"):
        for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            size = stop - start
            if size > LONGEST or not wanted[start:stop].any():
                continue
            estimates = _estimates(demand, predictors, np.array([start]), size)
            if size <= CLASSES[-1]:
                like = next(length for length in CLASSES if length >= size)
                if like not in trials:
                    trials[like] = _trial_errors(demand, predictors, _spread(_whole(demand, like), TRIALS), like)
                bits = np.tile(_bits(predictors), (size, 1))
                _fill(found, start, estimates, trials[like], bits)
                continue
            hidden = (size - 1) // 24
            usual = partial(_usual, hidden=hidden)
            if hidden not in departed:
                known = [*others] if forecast is None else [*others, forecast]
                departed[hidden] = [one / usual(one, np.arange(hours)) - 1 for one in known]
            own = None if forecast is None else (forecast, departed[hidden][-1])
            regression = regress(demand, own, departed[hidden][: len(others)], (start, stop), usual)
            _fill(found, start, *_with_regression(demand, predictors, estimates, regression))
    for values in (found.value, found.low, found.high, found.code):
        values[~wanted] = 0 if values.dtype == np.int8 else np.nan
    return found


def _with_regression(
    demand: Floats, predictors: list[_Predictor], estimates: Floats, found: tuple[Int64s, Regression]
) -> tuple[Floats, Floats, Int64s]:
    """Return the estimates of a gap with that of the regression, the errors of trials at its time of day, and the bits [hour, estimate]."""
    days, regression = found
    size = regression.value.size
    chosen = _spread(np.flatnonzero(np.isin(days, _whole(demand, size))), DAY_TRIALS)
    errors = _trial_errors(demand, predictors, days[chosen], size)
    own = PROFILE + FORECAST * regression.forecast + NEIGHBOURS * regression.neighbours
    return (
        np.column_stack([estimates, regression.value]),
        np.column_stack([errors, regression.errors[chosen].ravel()]),
        np.column_stack([np.tile(_bits(predictors), (size, 1)), own]),
    )


def _bits(predictors: list[_Predictor]) -> Int64s:
    """Return the bit of each estimate of the predictors."""
    return np.repeat([one.bit for one in predictors], 2)


def _fill(found: Estimate, start: int, estimates: Floats, errors: Floats, bits: Int64s) -> None:
    """Write the estimates of one gap into `found`, from those of all kinds [hour, estimate] and the errors of trials [hour, estimate]."""
    usable = np.isfinite(estimates)
    for pattern in np.unique(usable, axis=0):
        weighed = _weigh(errors, pattern)
        if weighed is None:
            continue
        columns, weights, low, high = weighed
        at = np.flatnonzero((usable == pattern).all(axis=1))
        value = (_held(estimates[at][:, columns]) * weights).sum(axis=1)
        found.value[start + at] = np.round(value, 1)
        found.low[start + at], found.high[start + at] = np.round(value / (1 + high), 1), np.round(value / (1 + low), 1)
        found.code[start + at] = np.bitwise_or.reduce(bits[at][:, columns], axis=1)


def _held(estimates: Floats) -> Floats:
    """Return the estimates of each hour, at most `APART` away from their median: a predictor that is wrong in an hour does not decide it."""
    middle = np.sort(estimates, axis=1)[:, (estimates.shape[1] - 1) // 2, None]
    return np.clip(estimates, middle * (1 - APART), middle * (1 + APART))


def _whole(demand: Floats, size: int) -> Int64s:
    """Return the starts of gaps of `size` hours that would hide known hours, between known ones."""
    known = np.concatenate([[0], np.cumsum(~np.isnan(demand))])
    return 1 + np.flatnonzero(known[size + 2 :] - known[: -size - 2] == size + 2)


def _spread(starts: Int64s, count: int) -> Int64s:
    """Return at most `count` of the starts, at even intervals."""
    return starts[np.unique(np.arange(count) * starts.size // count)] if starts.size else starts


def _trial_errors(demand: Floats, predictors: list[_Predictor], starts: Int64s, size: int) -> Floats:
    """Return the relative errors on hidden gaps of `size` hours: [hidden hour, estimate], NaN where there is none."""
    truth = demand[(starts[:, None] + np.arange(size)).ravel()]
    return _estimates(demand, predictors, starts, size) / truth[:, None] - 1


def _estimates(demand: Floats, predictors: list[_Predictor], starts: Int64s, size: int) -> Floats:
    """Return the plain and the bridged estimate of each predictor: [gap × hour, 2 × predictor]."""
    inside = starts[:, None] + np.arange(size)
    edges = np.stack([starts - 1, starts + size], axis=1)
    share = np.arange(1, size + 1) / (size + 1)
    columns = []
    for one in predictors:
        ratio = np.concatenate(
            [demand / one.series, [np.nan]]
        )  # the last is what lies before the first hour, and after the last
        usual = _usual_ratio(ratio, inside, one.days, (size - 1) // 24)
        departure = ratio[edges] / _usual_ratio(ratio, edges, one.days, size // 24)
        plain = one.series[inside] * usual
        columns += [plain.ravel(), (plain * (departure[:, :1] * (1 - share) + departure[:, 1:] * share)).ravel()]
    return np.stack(columns, axis=1)


def _usual(series: Floats, at: Int64s, hidden: int) -> Floats:
    """Return the usual value of a series in the same hour, without the `hidden` nearest days."""
    return _usual_ratio(series, at, DAYS, hidden)


def _usual_ratio(ratio: Floats, at: Int64s, apart: tuple[int, ...], hidden: int) -> Floats:
    """Return the weighted mean of the ratio in the same hour of the days `apart` from each hour `at`, without the `hidden` nearest."""
    after = np.array([day for day in apart if day > hidden], np.int64)
    days = np.concatenate([-after[::-1], after])
    reach = 24 * max(apart)
    near = np.pad(ratio, reach, constant_values=np.nan)[reach + at[..., None] + 24 * days]
    ordered = np.sort(near, axis=-1)  # NaN last
    count = np.count_nonzero(~np.isnan(ordered), axis=-1)[..., None]
    middle = np.take_along_axis(ordered, np.maximum(count - 1, 0) // 2, -1)
    held = np.clip(near, middle * (1 - WINSOR), middle * (1 + WINSOR))
    weight = np.where(np.isnan(near), 0.0, 1 / (1 + np.abs(days)))
    mean = (np.where(np.isnan(held), 0.0, held) * weight).sum(axis=-1) / weight.sum(axis=-1)
    return np.where(count[..., 0] >= MIN_DAYS, mean, np.nan)


def _weigh(errors: Floats, usable: Bools) -> tuple[Int64s, Floats, float, float] | None:
    """Return the columns of the usable estimates, their weights, and the percentiles of the combined error; None where trials are too few.

    An estimate that hardly any trial has is left out.
    """
    known = np.isfinite(errors)
    columns = np.flatnonzero(usable & (known.sum(axis=0) >= MIN_TRIALS))
    while columns.size:
        rows = errors[known[:, columns].all(axis=1)][:, columns]
        if len(rows) >= MIN_TRIALS:
            break
        columns = columns[np.arange(columns.size) != np.argmin(known[:, columns].sum(axis=0))]
    if not columns.size:
        return None
    held = np.clip(rows, -WINSOR, WINSOR)
    covariance = np.array([(held * held[:, i : i + 1]).mean(axis=0) for i in range(columns.size)])
    covariance += np.eye(columns.size) * (RIDGE * np.diag(covariance) + LEAST)
    weights = invert(covariance).sum(axis=1)
    weights /= weights.sum()
    combined = np.sort((rows * weights).sum(axis=1))
    low, high = (float(combined[(combined.size - 1) * percent // 100]) for percent in (LOW, HIGH))
    return columns, weights, low, high
