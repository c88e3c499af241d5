"""A forecast of demand from an authority's own history, for hours whose DF, its operator's forecast, is not known.

The forecast starts from demand a week before and adds what a ridge regression says of the changes known at the issue time: how yesterday and the day
before differ from the week before them, the last hours too, how DF of the present day moved, holidays. One regression a local hour, fitted again each
local month on the hours known when its first hour is forecast. It knows no weather but what demand and DF show.

It takes the place of DF where DF is not known at the issue time. A DF that is wrong stays the reference, since regressions correct it better than
history (replaced by history where its errors were twice as large, of 2019: skill of PSEI 0.91 to 0.90, of AEC 0.96 to 0.94); `worker.forecast.fallback`
leaves a model that did worse than history of late.
"""

import itertools
from dataclasses import dataclass

import numpy as np

from ingest.array_types import Floats, Int64s
from ingest.calendar import Calendar

DAY, WEEK = 24, 168  # hours
LEVEL = 28 * DAY  # hours of which the mean demand is the unit
PENALTY = 0.03  # of the standardised inputs' variance
MIN_DAYS = 30  # measured days that a fit needs; with fewer the forecast is demand a week before
TARGET_BOUND = 0.5  # levels: a missed outlier does not decide a fit
NONE, OPERATOR, HISTORY = 0, 1, 2  # references of an hour


@dataclass(frozen=True)
class Reference:
    """Which forecast each hour is corrected from; arrays are [hour]."""

    source: Int64s  # NONE, OPERATOR or HISTORY
    history: Floats  # MWh; NaN where demand of the weeks before is missing


def choose_reference(calendar: Calendar, demand: Floats, operator: Floats) -> Reference:
    """Return the reference of every hour, from what is known at its issue time.

    Args:
        calendar: of consecutive hours.
        demand: MWh, NaN where not measured, [hour].
        operator: DF, MWh, NaN where there is none, [hour].
    """
    history = own_history(calendar, demand, operator)
    known = np.isfinite(operator) & (calendar.hours <= calendar.published)
    return Reference(np.where(known, OPERATOR, np.where(np.isfinite(history), HISTORY, NONE)), history)


def own_history(calendar: Calendar, demand: Floats, operator: Floats) -> Floats:
    """Return the forecast from an authority's own history, MWh, [hour]; arguments as for `choose_reference`."""
    inputs, base, level = _inputs(calendar, demand, operator)
    with np.errstate(invalid="ignore", divide="ignore"):
        target = np.clip((demand - base) / level, -TARGET_BOUND, TARGET_BOUND)
    measured = np.isfinite(target)
    month = calendar.day.astype("datetime64[D]").astype("datetime64[M]").astype(np.int64)
    starts = [0, *(np.flatnonzero(np.diff(month)) + 1), len(month)]
    width = inputs.shape[1] + 1
    x = np.concatenate([inputs, np.ones((len(inputs), 1))], axis=1)
    products, sums, count = np.zeros((DAY, width, width)), np.zeros((DAY, width)), np.zeros(DAY)
    correction = np.zeros(len(demand))
    done = 0
    for start, end in itertools.pairwise(starts):
        upto = int(np.clip(calendar.issue[start] + 1 - calendar.hours[0], done, len(demand)))
        for hour in range(DAY):
            own = done + np.flatnonzero(measured[done:upto] & (calendar.hour[done:upto] == hour))
            products[hour] += x[own].T @ x[own]
            sums[hour] += x[own].T @ target[own]
            count[hour] += len(own)
        done = upto
        slopes = _solve(products, sums, count)
        correction[start:end] = np.einsum("ti,ti->t", x[start:end], slopes[calendar.hour[start:end]])
    return base + np.clip(correction, -TARGET_BOUND, TARGET_BOUND) * level


def _solve(products: Floats, sums: Floats, count: Floats) -> Floats:
    """Return the slopes of each local hour, [24, input + 1]; the last is the intercept, which is not penalised."""
    n = np.maximum(count, 1)[:, None]
    moment = products / n[..., None]
    ridge = PENALTY * np.einsum("hii->hi", moment) + 1e-9
    ridge[:, -1] = 1e-9
    slopes = np.linalg.solve(moment + ridge[..., None] * np.eye(products.shape[1]), (sums / n)[..., None])[..., 0]
    slopes[count < MIN_DAYS] = 0.0
    return np.asarray(slopes)


def _inputs(calendar: Calendar, demand: Floats, operator: Floats) -> tuple[Floats, Floats, Floats]:
    """Return the inputs in levels [hour, input], 0 where unknown; demand a week before, and the level, MWh."""
    at = np.arange(len(demand))
    issue, published = calendar.issue - calendar.hours[0], calendar.published - calendar.hours[0]

    def actual(lag: int) -> Floats:
        return np.where(at - lag <= issue, _before(demand, lag), np.nan)

    def forecast(lag: int) -> Floats:
        return np.where(at - lag <= published, _before(operator, lag), np.nan)

    level = _mean(demand, issue, LEVEL)
    level[~(level > 0)] = np.nan
    base = _first(actual(WEEK), actual(2 * WEEK), actual(DAY), actual(2 * DAY))
    missed = _mean(demand - operator, issue, 3)  # DF's error in the last known hours
    yesterday = _first(actual(DAY), forecast(DAY) + np.nan_to_num(missed), actual(2 * DAY))
    columns = [
        yesterday - actual(DAY + WEEK),
        actual(2 * DAY) - actual(2 * DAY + WEEK),
        actual(3 * DAY) - actual(3 * DAY + WEEK),
        actual(2 * WEEK) - base,
        *(_mean(demand, issue, width) - _mean(demand, issue - WEEK, width) for width in (3, DAY)),
        forecast(DAY) - forecast(DAY + WEEK),
        missed,
    ]
    off = [_before(calendar.holiday.astype(float), lag) * level for lag in (0, DAY, WEEK)]
    with np.errstate(invalid="ignore"):
        inputs = np.stack([*columns, *off], axis=1) / level[:, None]
    return np.clip(np.nan_to_num(inputs), -TARGET_BOUND, 1.0), base, level


def _before(x: Floats, lag: int) -> Floats:
    """Return x of `lag` hours before; NaN before its start."""
    return np.concatenate([np.full(min(lag, len(x)), np.nan), x[: max(len(x) - lag, 0)]])


def _first(*candidates: Floats) -> Floats:
    """Return the first value that is known, [hour]."""
    found = candidates[-1]
    for candidate in reversed(candidates[:-1]):
        found = np.where(np.isfinite(candidate), candidate, found)
    return found


def _mean(x: Floats, last: Int64s, width: int) -> Floats:
    """Return the mean of the measured values among the `width` up to each index `last`; NaN where there is none."""
    valid = np.isfinite(x)
    total = np.concatenate([[0.0], np.cumsum(np.where(valid, x, 0.0))])
    count = np.concatenate([[0.0], np.cumsum(valid, dtype=float)])
    high, low = (np.clip(k, 0, len(x)) for k in (last + 1, last + 1 - width))
    n = count[high] - count[low]
    return np.where(n > 0, (total[high] - total[low]) / np.maximum(n, 1), np.nan)
