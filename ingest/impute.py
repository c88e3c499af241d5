"""Estimate hours of demand that are missing: own profile, forecast, balance and other authorities, each with an interval. No I/O, no chance.

Each *predictor* P is a series that is known in the hour: 1 (the own profile), the day-ahead forecast, net generation less interchange, the demand
of the five series whose departures from their profile correlate best. The estimate is P × the usual ratio demand / P of the hour (a weighted mean over
the same hour of 14 days before and after; for the profile also over the same weekday of four weeks), once plain, and once × the ratio's departure from usual on either side of the gap, interpolated.

The estimates are combined with the weights that would have been best on gaps of the same length elsewhere in the year, hidden at even intervals: those of the
least mean squared relative error, which sum to 1, from the covariance of the errors. The same hidden gaps give the interval: the 5th and the 95th percentile of the
combined error. All of it is additions, products and sorts in a fixed order, without a library for linear algebra and without random numbers; estimates are
rounded to 0.1 MWh.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ingest.array_types import Bools, Floats, Int8s, Int64s
from ingest.load_quality import usual_values

PROFILE, FORECAST, BALANCE, NEIGHBOURS = 1, 2, 4, 8  # bits of a code: what an estimate rests on; 0: none
METHODS = {PROFILE: "profile", FORECAST: "forecast", BALANCE: "balance", NEIGHBOURS: "neighbours"}
LONGEST = 168  # hours: a longer gap has no estimate
CLASSES = (1, 2, 3, 6, 12, 18, 24, 36, 48, 72, 96, LONGEST)  # hours: the errors of a gap are those of the next length
DAYS = tuple(range(1, 15))  # before and after, for the usual ratio
WEEKS = (7, 14, 21, 28)  # likewise, of the profile of the weekday
MIN_DAYS = 3
WINSOR = 0.15  # a ratio counts as at most this share away from the median of its hour
NEIGHBOUR_COUNT = 5
APART = 0.25  # an estimate counts as at most this share away from the median of its hour's
DEPARTURE = 0.3  # a larger departure from the profile counts as this, for the correlation
TRIALS, MOST_TRIALS, TRIAL_HOURS = 60, 400, 2400  # hidden gaps: at least, at most, and hours of them aimed at
MIN_TRIALS = 50  # hidden hours that weights need
RIDGE, LEAST = 0.02, 1e-10  # × the variance, and at least: added to each, so that no weight rests on chance
LOW, HIGH = 5, 95  # percentiles


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
    low: Floats  # 5 % of the trials lay below
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
    predictors = [_Predictor(np.ones(hours), PROFILE), _Predictor(np.ones(hours), PROFILE, WEEKS)]
    for series, bit in (
        (load.forecast, FORECAST),
        (load.balance, BALANCE),
        *((one, NEIGHBOURS) for one in neighbours.values()),
    ):
        if series is not None:
            predictors.append(_Predictor(np.where(series > 0, series, np.nan), bit))
    demand = np.where(load.demand > 0, load.demand, np.nan)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], np.isnan(demand).view(np.int8), [0]])))
    gaps: dict[int, list[tuple[int, int]]] = {}
    for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        if stop - start <= LONGEST and wanted[start:stop].any():
            gaps.setdefault(next(size for size in CLASSES if size >= stop - start), []).append((start, stop))
    with np.errstate(invalid="ignore", divide="ignore"):
        for size, own in sorted(gaps.items()):
            errors = _trial_errors(demand, predictors, size)
            for start, stop in own:
                _fill(found, demand, predictors, errors, start, stop)
    for values in (found.value, found.low, found.high, found.code):
        values[~wanted] = 0 if values.dtype == np.int8 else np.nan
    return found


def _fill(found: Estimate, demand: Floats, predictors: list[_Predictor], errors: Floats, start: int, stop: int) -> None:
    """Write the estimates of one gap into `found`."""
    size = stop - start
    estimates = _estimates(demand, predictors, np.array([start]), size)
    usable = np.isfinite(estimates)
    bits = np.repeat([one.bit for one in predictors], 2)
    for pattern in np.unique(usable, axis=0):
        weighed = _weigh(errors, pattern)
        if weighed is None:
            continue
        columns, weights, low, high = weighed
        at = np.flatnonzero((usable == pattern).all(axis=1))
        value = (_held(estimates[at][:, columns]) * weights).sum(axis=1)
        found.value[start + at] = np.round(value, 1)
        found.low[start + at], found.high[start + at] = np.round(value / (1 + high), 1), np.round(value / (1 + low), 1)
        found.code[start + at] = np.bitwise_or.reduce(bits[columns])


def _held(estimates: Floats) -> Floats:
    """Return the estimates of each hour, at most `APART` away from their median: a predictor that is wrong in an hour does not decide it."""
    middle = np.sort(estimates, axis=1)[:, (estimates.shape[1] - 1) // 2, None]
    return np.clip(estimates, middle * (1 - APART), middle * (1 + APART))


def _trial_errors(demand: Floats, predictors: list[_Predictor], size: int) -> Floats:
    """Return the relative errors on hidden gaps of `size` hours: [hidden hour, estimate], NaN where there is none."""
    count = min(MOST_TRIALS, max(TRIALS, TRIAL_HOURS // size))
    known = np.concatenate([[0], np.cumsum(~np.isnan(demand))])
    whole = 1 + np.flatnonzero(
        known[size + 2 :] - known[: -size - 2] == size + 2
    )  # starts of gaps that hide known hours, between known ones
    starts = whole[np.unique(np.arange(count) * whole.size // count)] if whole.size else whole
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
    weights = _solve(covariance, np.ones(columns.size))
    weights /= weights.sum()
    combined = np.sort((rows * weights).sum(axis=1))
    low, high = (float(combined[(combined.size - 1) * percent // 100]) for percent in (LOW, HIGH))
    return columns, weights, low, high


def _solve(matrix: Floats, right: Floats) -> Floats:
    """Return x of `matrix` x = `right` by elimination; the matrix is symmetric and positive definite, so that no pivot is zero."""
    rows = np.concatenate([matrix, right[:, None]], axis=1)
    for i in range(len(rows)):
        rows[i] /= rows[i, i]
        for k in range(len(rows)):
            if k != i:
                rows[k] -= rows[k, i] * rows[i]
    return rows[:, -1]
