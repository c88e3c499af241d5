"""What the other authorities tell about a respondent's next day: a few numbers a day of each, known at its issue time.

Hours are UTC, so that "the morning" is the same hours for both. DF of another authority counts from that authority's own issue
time on, as far as it reaches: at 10:00 Eastern, California's DF of the next day is not known yet, and that is a signal missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ingest.array_types import Floats, Int64s
from ingest.features import BOUND
from worker.forecast.baselines.history import History

DAY, WEEK, MORNING = 24, 168, 10  # hours; the morning ends at the issue time
PENALTY = 30.0  # of these inputs in a ridge, in units of that of the own ones; of 30 and 100 the better on 2018 (SWPP, MISO, CISO)
SIGNALS = ("morning error", "day's error", "DF against the day before", "DF against demand", "morning load")


def with_neighbours(history: History, others: Sequence[History]) -> tuple[History, Floats]:
    """Return a history whose inputs also have `SIGNALS` of every other authority, and the inputs' relative penalties, [input].

    Args:
        history: the respondent.
        others: the authorities; the respondent itself among them does not count.
    """
    issues, day = np.unique(history.calendar.issue, return_inverse=True)
    starts, lengths = history.hours[np.searchsorted(day, np.arange(len(issues)))], np.bincount(day)
    own = history.inputs.shape[1]
    columns = [signals(one, issues, starts, lengths)[day] for one in others if one.respondent != history.respondent]
    inputs = np.concatenate([history.inputs, *columns], axis=1)
    return replace(history, inputs=inputs), np.where(np.arange(inputs.shape[1]) < own, 1.0, PENALTY)


def signals(other: History, issues: Int64s, starts: Int64s, lengths: Int64s) -> NDArray[np.float32]:
    """Return `SIGNALS` of an authority for forecasts made at other issue times, [issue, signal]; 0 where unknown.

    Errors are in units of the authority's scale, loads of its level, both of its latest token whose issue time has come.

    Args:
        other: the authority.
        issues: hour numbers: nothing after them counts.
        starts: first hour of the day that each forecast is of, hour numbers.
        lengths: its hours.
    """
    first = int(other.hours[0])
    known = np.searchsorted(other.calendar.issue, issues, side="right") - 1  # latest token that was made by then
    at = issues - first  # index of the latest hour with a known outcome
    error = other.demand - other.operator
    level = _means(other.demand, at, DAY * 28)
    scale = _at(other.scale, known)
    ends = np.minimum(starts + lengths - 1 - first, known)  # local days differ, so the last hours may be unpublished
    hours = ends - (starts - first) + 1
    coming = np.where(hours >= DAY // 2, _means(other.operator, ends, hours), np.nan)
    level[~(level > 0)] = np.nan
    columns = (
        _means(error, at, MORNING) / scale,
        _means(error, at - MORNING, DAY) / scale,
        (coming - _means(other.operator, ends - DAY, hours)) / level,
        (coming - _means(other.demand, ends - 2 * DAY, hours)) / level,
        (_means(other.demand, at, MORNING) - _means(other.demand, at - WEEK, MORNING)) / level,
    )
    return np.clip(np.nan_to_num(np.stack(columns, axis=1)), -BOUND, BOUND).astype(np.float32)


def _means(x: Floats, last: Int64s, width: Int64s | int) -> Floats:
    """Return the means of the measured values among the `width` up to each index `last`; NaN where there is none."""
    valid = np.isfinite(x)
    total = np.concatenate([[0.0], np.cumsum(np.where(valid, x, 0.0))])
    count = np.concatenate([[0], np.cumsum(valid)])
    high, low = (np.clip(k, 0, len(x)) for k in (last + 1, last + 1 - width))
    n = count[high] - count[low]
    return np.where(n > 0, (total[high] - total[low]) / np.maximum(n, 1), np.nan)


def _at(x: Floats, index: Int64s) -> Floats:
    return np.where((index >= 0) & (index < len(x)), x[np.clip(index, 0, len(x) - 1)], np.nan)
