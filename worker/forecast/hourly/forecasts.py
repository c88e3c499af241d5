"""Forecasts from any issue hour, re-issued every hour: what control and `coordinator forecast --hourly` read.

    found = hourly_forecasts(load_authority(Path("data"), "ERCO"), Period.parse("2018:2019", "period"), horizon=36, paths=20)
    found.issues            # [issue] hour numbers: hours since 1970-01-01T00 UTC, hour-ending
    found.median            # [issue, horizon] MWh, float32
    found.quantiles         # [issue, horizon, level] of QUANTILES, MWh
    found.paths             # [issue, horizon, path] MWh

Row t is issued at the end of hour `issues[t]`, whose demand is known (or the one some hours before, as `Publication` says); column h is the forecast of
hour `issues[t] + h + 1`. In `rl.env` row t, horizon h is the forecast of hour t + h made at the start of hour t: the row of issue t - 1 here. All issue hours of
the period are there, so the arrays need no alignment beyond that shift. NaN where nothing can be said: in an authority's first weeks, or without demand.

Every month is forecast by a fit on earlier hours, so the hours of all years are out of sample. The first years are worse, since fewer hours had been seen.
Paths are equally likely. Each is one course of the whole horizon; at each hour they are the quantiles at (k + 1/2) / paths. They depend on the
seed, the authority, the issue hour and the horizon alone: a longer period, another number of regions or another order give the same ones; so do forecasts issued live.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ingest.array_types import Int64s
from ingest.errors import UsageError
from worker.forecast.hourly.blend import blended
from worker.forecast.hourly.inputs import MAX_HORIZON, AuthorityHours
from worker.forecast.hourly.intervals import MONTHS, REPLAY, errors_of, quantiles_of, shape_of, widths
from worker.forecast.hourly.paths import factors, paths_of, ranks
from worker.forecast.hourly.regression import medians, months_of
from worker.forecast.model.network import QUANTILES
from worker.training.tokens import Period


@dataclass(frozen=True)
class HourlyForecasts:
    """Forecasts of one authority; see the module."""

    respondent: str
    issues: Int64s  # [issue] hour numbers
    median: NDArray[np.float32]  # [issue, horizon], MWh
    quantiles: NDArray[np.float32]  # [issue, horizon, level] of QUANTILES, MWh
    paths: NDArray[np.float32]  # [issue, horizon, path], MWh


def hourly_forecasts(
    hours: AuthorityHours, period: Period, *, horizon: int = MAX_HORIZON, paths: int = 0, seed: int = 0
) -> HourlyForecasts:
    """Return the forecasts of every issue hour of a period.

    Args:
        hours: the authority, as `load_authority` returns it.
        period: issue hours.
        horizon: hours ahead, 1 to `MAX_HORIZON`.
        paths: scenarios an issue hour.
        seed: of the paths.

    Raises:
        UsageError: the series have no hour of the period, or the horizon is out of range.
    """
    if not 1 <= horizon <= MAX_HORIZON:
        raise UsageError(f"horizon {horizon}: forecasts reach 1 to {MAX_HORIZON} hours ahead; name one of these")
    return forecasts_at(hours, period, np.arange(1, horizon + 1), paths, seed)


def hourly_medians(hours: AuthorityHours, *, horizon: int = MAX_HORIZON) -> NDArray[np.float32]:
    """Return the medians of every issue hour alone, MWh, [issue, horizon]: those of `hourly_forecasts`, which also makes intervals."""
    steps, every = np.arange(1, horizon + 1), slice(0, hours.issues)
    return blended(hours, medians(hours, steps, every), steps, every)[every]


def forecasts_at(hours: AuthorityHours, period: Period, steps: Int64s, paths: int, seed: int) -> HourlyForecasts:
    """Return the forecasts of some hours ahead, which are the columns of the arrays, for every issue hour of a period.

    Args:
        hours: the authority.
        period: issue hours.
        steps: hours ahead, ascending, at most `MAX_HORIZON`.
        paths: scenarios an issue hour.
        seed: of the paths.

    Raises:
        UsageError: the series have no hour of the period.
    """
    first = int(hours.calendar.hours[0])
    if period.first < first or period.last >= first + hours.issues:
        whole = Period(first, first + hours.issues - 1)
        raise UsageError(
            f"{hours.respondent} has hours from {whole}, not all of {period}: `coordinator start --extract` fetches them"
        )
    rows = slice(period.first - first, period.last + 1 - first)
    months = months_of(hours)
    inside = [i for i, month in enumerate(months) if month.rows.stop > rows.start and month.rows.start < rows.stop]
    start = months[max(inside[0] - MONTHS - 1, 0)].rows.start  # one month more: blends of the next know a whole window
    used = slice(start, rows.stop)
    median = blended(hours, medians(hours, steps, used), steps, used)
    errors = errors_of(hours, median, steps)
    quantiles = np.full((*median.shape, len(QUANTILES)), np.nan, np.float32)
    scenarios = np.full((*median.shape, paths), np.nan, np.float32)
    for index in inside:
        shape = shape_of(hours, errors, steps, months, index)
        month = shape.month.rows
        begin = months[max(index - REPLAY, 0)].rows.start
        quantiles[month] = quantiles_of(hours, median, shape, widths(hours, errors, steps, shape, begin))
        if paths:
            clock, numbers = hours.calendar.hour[month], hours.calendar.hours[month]
            rank = ranks(factors(shape), clock, numbers, hours.respondent, paths, seed)
            scenarios[month] = paths_of(quantiles[month], rank)
    return HourlyForecasts(hours.respondent, hours.calendar.hours[rows], median[rows], quantiles[rows], scenarios[rows])
