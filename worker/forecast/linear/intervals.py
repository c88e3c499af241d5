"""Quantiles around a point forecast, from its own errors that each issue time knows.

The errors of the same local hour over the last whole days give the distance of each quantile from the point forecast, in units of the
reference's scale; adaptive conformal inference (`worker.forecast.model.conformal`) then corrects the widths by how often the intervals issued
before covered the outcome. Both are functions of the issue time: the same live as in a backtest.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ingest.array_types import Floats
from ingest.calendar import Calendar
from worker.forecast.model.conformal import PAIRS, WARM_UP, calibrated
from worker.forecast.model.network import MEDIAN, QUANTILES

VERSION = 1  # raised when the quantiles change
WINDOW = 365  # days whose errors count; chosen on 2018
FEWEST = 60  # errors below which an hour has no quantile but the median
LEAST = 1e-3  # scales: a distance of zero could never be corrected by a factor
DAY = 24  # hours
LOOKBACK = WARM_UP + (WINDOW + 3) * DAY  # hours before the first one forecast that its quantiles depend on


def quantiles_around(point: Floats, demand: Floats, scale: Floats, calendar: Calendar) -> NDArray[np.float64]:
    """Return the quantiles [hour, level] of `QUANTILES`, MWh; NaN but for the median where fewer than `FEWEST` errors are known.

    Args:
        point: forecast of consecutive hours, MWh, [hour]; the median.
        demand: MWh, [hour]; NaN where not measured.
        scale: MWh, [hour], known at the issue time.
        calendar: of the same hours.
    """
    error = (demand - point) / scale
    wide = _distances(error, calendar)
    corrected = calibrated(wide, error, calendar.hours, calendar.issue, np.zeros(len(PAIRS)))
    corrected[~np.isfinite(wide).all(axis=1)] = np.nan
    corrected[:, MEDIAN] = 0.0
    return point[:, None] + corrected * scale[:, None]


def _distances(error: Floats, calendar: Calendar) -> NDArray[np.float64]:
    """Return the quantiles of the known errors of each hour, below 0 under the median and above 0 over it, [hour, level]."""
    first = int(calendar.day[0])
    days = calendar.day - first
    table = np.full((int(days[-1]) + 1, DAY), np.nan)
    table[days, calendar.hour] = error
    padded = np.concatenate([np.full((WINDOW, DAY), np.nan), table])
    found = np.full((len(table), DAY, len(QUANTILES)), np.nan)
    starts = np.searchsorted(calendar.day, np.arange(len(table)) + first)
    for day, start in enumerate(starts):
        whole = _whole_days(calendar, int(calendar.issue[start]))  # by the issue time
        found[day] = _quantiles(padded[whole : whole + WINDOW])  # the days whole - WINDOW to whole - 1
    side = np.sign(np.array(QUANTILES) - 0.5)
    wide = np.where(side < 0, np.minimum(found, -LEAST), np.where(side > 0, np.maximum(found, LEAST), 0.0))
    return np.where(np.isfinite(found), wide, np.nan)[days, calendar.hour]


def _whole_days(calendar: Calendar, issue: int) -> int:
    """Return the number of the calendar's days that had ended at an issue time."""
    at = int(np.clip(issue + 1 - calendar.hours[0], 0, len(calendar.day) - 1))
    return int(calendar.day[at] - calendar.day[0])


def _quantiles(errors: Floats) -> NDArray[np.float64]:
    """Return the quantiles of the finite errors of each hour, [hour, level], from [error, hour]; linear between order statistics."""
    ordered = np.sort(errors, axis=0)  # NaN at the end
    count = np.isfinite(errors).sum(axis=0)
    place = np.array(QUANTILES)[None] * np.maximum(count - 1, 0)[:, None]
    low = np.floor(place).astype(np.int64)
    hour = np.arange(errors.shape[1])[:, None]
    below, above = ordered[low, hour], ordered[np.minimum(low + 1, np.maximum(count - 1, 0)[:, None]), hour]
    return np.where(count[:, None] >= FEWEST, below + (place - low) * (above - below), np.nan)
