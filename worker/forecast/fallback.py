"""Leave a model for the authority's own history where the model did worse of late: a day-ahead forecast that broke takes the model with it.

The choice is made a local hour at each issue time, from the errors of the last days that it knows: history must be better over each of `WINDOWS`, so that
a fault that is over ends the choice within days. Bounds are chosen on 2018 with the running bias as the model.
"""

from __future__ import annotations

import numpy as np

from ingest.array_types import Bools, Floats, Int64s
from ingest.calendar import Calendar

DAY = 24  # hours
WINDOWS = (28, 7)  # days whose errors count; half of them must be known
WINDOW = max(WINDOWS)
NEAR = 3  # local hours on either side that count
MARGIN = 0.85  # of the model's error: history must stay below it
REACH = (WINDOW + 3) * DAY  # hours before an hour whose errors decide on it


def history_instead(calendar: Calendar, demand: Floats, model: Floats, history: Floats) -> tuple[Bools, Floats]:
    """Return which hours are better forecast from history, and by how much its errors are smaller.

    Args:
        calendar: of consecutive hours.
        demand: MWh, NaN where not measured, [hour].
        model: its forecast, MWh, [hour].
        history: that from own history, MWh, [hour].

    Returns:
        Whether history takes the place of the model; the error of history over the model's, at most 1; both [hour].
    """
    both = np.isfinite(model) & np.isfinite(history)
    ratios = []
    for days in WINDOWS:
        mine, theirs = (recent_error(calendar, np.where(both, demand - x, np.nan), days) for x in (model, history))
        with np.errstate(invalid="ignore", divide="ignore"):
            ratios.append(np.where(mine > 0, theirs / mine, 1.0))
    instead = np.isfinite(history) & (np.stack(ratios) < MARGIN).all(axis=0)
    return instead, np.where(instead, ratios[0], 1.0)


def recent_error(calendar: Calendar, error: Floats, window: int = WINDOW) -> Floats:
    """Return the mean absolute error at near local hours of the last `window` days that ended before the issue time, [hour]; NaN: too few."""
    first = int(calendar.day[0])
    table = np.full((int(calendar.day[-1]) - first + 1, DAY), np.nan)
    table[calendar.day - first, calendar.hour] = np.abs(error)
    days = first + np.arange(len(table))
    starts, ends = (np.searchsorted(calendar.day, days, side=side) for side in ("left", "right"))
    known = np.searchsorted(calendar.hours[ends - 1], calendar.issue[starts], side="right")  # days, from the first one
    around = range(-NEAR, NEAR + 1)
    total, count = (np.sum([np.roll(x, k, axis=1) for k in around], axis=0) for x in _sums(table, known, window))
    mean = np.where(count >= window * len(around) / 2, total / np.maximum(count, 1), np.nan)
    return np.asarray(mean[calendar.day - first, calendar.hour])


def _sums(table: Floats, known: Int64s, window: int) -> tuple[Floats, Floats]:
    """Return sums and counts of the measured values of the last `window` of the first `known` days, [day, local hour]."""
    valid = np.isfinite(table)
    parts = (np.where(valid, table, 0.0), valid.astype(float))
    running = [np.concatenate([np.zeros((1, DAY)), np.cumsum(part, axis=0)]) for part in parts]
    total, count = (x[known] - x[np.maximum(known - window, 0)] for x in running)
    return total, count
