"""What is known at each issue hour about each of the hours ahead: the numbers that the regressions of `regression` read.

Every target hour has a reference. With DF it is the operators' forecast of the hour, where that is published; without, demand a week before (more
weeks where that is not known yet or was not measured). The regressions predict demand less the reference. All numbers are differences in
scales (mean absolute error of DF) or in tenths of the level (mean demand), so a number that is unknown is 0. Nothing after what
`ingest.publication` says is known at the issue hour enters.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ingest.array_types import Floats, Int64s
from ingest.calendar import Calendar

DAY, WEEK = 24, 168  # hours
MAX_HORIZON = 48  # hours ahead
MARGIN = MAX_HORIZON + 8  # hours after the last issue hour that an authority's arrays hold
LEVEL = 28 * DAY  # hours over which the level, mean demand, is taken
TRAILING = 56 * DAY  # hours over which the scale, the mean absolute error of DF, is taken
MIN_SCALE = 0.003  # of the level: a forecast that was perfect for weeks still has an error
UNKNOWN_SCALE = 0.02  # of the level, where DF has no error yet
BOUND = 8.0  # scales or tenths of a level at which inputs are clipped
LATE = 12  # hours: an unknown last error is taken from at most so long before
WEEKS = 4  # back, at most, to an hour whose demand is a reference

LAST_ERROR = 0  # which input is the last known error, in scales
LAST = 26  # hours up to the last known one whose errors are inputs
TRAILS = (3 * DAY, WEEK, 28 * DAY)  # hours over which errors are averaged
SAME_HOUR = (7, 28)  # days whose errors at the hour of the target are averaged
AROUND = (-3, -1, 1, 3)  # hours from the target whose reference is compared with its own


@dataclass(frozen=True)
class AuthorityHours:
    """Consecutive hours of one authority, `MARGIN` more than can be issue hours; arrays are [hour]."""

    respondent: str
    calendar: Calendar
    demand: Floats  # MWh, NaN where not measured
    operator: Floats  # DF, MWh, NaN where there is none
    actual_known: Int64s  # position of the last hour whose demand is known at the end of each hour
    operator_known: Int64s  # the same of DF

    @property
    def issues(self) -> int:
        """How many of the hours, from the first on, can be issue hours."""
        return len(self.demand) - MARGIN

    @cached_property
    def error(self) -> Floats:
        """Demand less DF, MWh; an hour without one has that of at most `LATE` hours before."""
        return _carried(self.demand - self.operator, LATE)

    @cached_property
    def error_means(self) -> tuple[Floats, ...]:
        """Means of the error over `TRAILS` hours up to each hour, MWh."""
        return tuple(trailing_mean(self.error, width) for width in TRAILS)

    @cached_property
    def same_hour_means(self) -> tuple[Floats, ...]:
        """Means of the error at the same hour of each of `SAME_HOUR` days up to each hour, MWh."""
        return tuple(_mean_of_steps(self.error, days, DAY) for days in SAME_HOUR)

    @cached_property
    def weekly_mean(self) -> Floats:
        """Mean of the error at the same hour of the four weeks up to each hour, MWh."""
        return _mean_of_steps(self.error, WEEKS, WEEK)

    @cached_property
    def change(self) -> Floats:
        """Demand less that of a week before, MWh."""
        return self.demand - np.concatenate([np.full(WEEK, np.nan), self.demand[:-WEEK]])

    @cached_property
    def daily_change(self) -> Floats:
        """Mean of that change over the day up to each hour, MWh."""
        return trailing_mean(self.change, DAY)

    @cached_property
    def level(self) -> Floats:
        """Mean demand of the weeks up to each hour, MWh."""
        return trailing_mean(self.demand, LEVEL)

    @cached_property
    def scale(self) -> Floats:
        """Mean absolute error of DF over the weeks up to each hour, MWh."""
        raw = trailing_mean(np.abs(self.demand - self.operator), TRAILING)
        return np.where(np.isfinite(raw), np.maximum(raw, MIN_SCALE * self.level), UNKNOWN_SCALE * self.level)


def scale_at(hours: AuthorityHours, rows: Int64s) -> Floats:
    """Return the scale that each issue hour knows, MWh, [row]."""
    return take(hours.scale, np.minimum(hours.actual_known, hours.operator_known)[rows])


def targets(rows: Int64s, steps: Int64s) -> Int64s:
    """Return positions of the target hours, [row, step]."""
    return rows[:, None] + steps


def references(hours: AuthorityHours, rows: Int64s, steps: Int64s, with_operator: bool) -> Floats:
    """Return the reference of every target hour, MWh, [row, step]; NaN where there is none.

    Args:
        hours: the authority.
        rows: positions of the issue hours.
        steps: hours ahead.
        with_operator: DF, as far as it is published, or else demand of weeks before.
    """
    return _Known(hours, rows).reference(targets(rows, steps), with_operator)


def inputs(hours: AuthorityHours, rows: Int64s, steps: Int64s, with_operator: bool) -> NDArray[np.float32]:
    """Return the inputs of every target hour, [row, step, input], the last one 1.

    Args:
        hours: the authority.
        rows: positions of the issue hours.
        steps: hours ahead.
        with_operator: those beside DF as the reference, or beside demand of weeks before.
    """
    known = _Known(hours, rows)
    common, own = known.common(), known.of_targets(targets(rows, steps), with_operator)
    found = np.empty((len(rows), len(steps), len(common) + len(own) + 1), np.float32)
    for index, column in enumerate((*(one[:, None] for one in common), *own, np.ones(1))):
        found[..., index] = column
    np.clip(found, -BOUND, BOUND, out=found)
    found[np.isnan(found)] = 0.0
    return found


class _Known:
    """Values as the issue hours `rows` know them; arrays are [row] or [row, step]."""

    def __init__(self, hours: AuthorityHours, rows: Int64s) -> None:
        self.hours = hours
        self.actual, self.operator = hours.actual_known[rows], hours.operator_known[rows]
        self.both = np.minimum(self.actual, self.operator)
        self.scale = scale_at(hours, rows)
        self.unit = 0.1 * take(hours.level, self.actual)

    def demand_at(self, at: Int64s) -> Floats:
        return np.where(at <= _column(self.actual, at), take(self.hours.demand, at), np.nan)

    def operator_at(self, at: Int64s) -> Floats:
        return np.where(at <= _column(self.operator, at), take(self.hours.operator, at), np.nan)

    def error_at(self, at: Int64s, error: Floats | None = None) -> Floats:
        error = self.hours.error if error is None else error
        return np.where(at <= _column(self.both, at), take(error, at), np.nan)

    def reference(self, at: Int64s, with_operator: bool) -> Floats:
        if with_operator:
            return self.operator_at(at)
        found = np.full(at.shape, np.nan)
        for week in range(1, WEEKS + 1):
            found = np.where(np.isfinite(found), found, self.demand_at(at - WEEK * week))
        return found

    def common(self) -> list[Floats]:
        """Return the inputs that are the same for every step, [row] each."""
        series, actual, both = self.hours, self.actual, self.both
        return [
            *(self.error_at(both - back) / self.scale for back in range(LAST)),
            *(take(mean, both) / self.scale for mean in series.error_means),
            *(take(series.change, actual - back) / self.unit for back in range(3)),
            take(series.daily_change, actual) / self.unit,
            (self.demand_at(actual) - self.demand_at(actual - DAY)) / self.unit,
        ]

    def of_targets(self, at: Int64s, with_operator: bool) -> list[NDArray[np.generic]]:
        """Return the inputs of each target, [row, step] each."""
        series, scale, unit = self.hours, self.scale[:, None], self.unit[:, None]
        reference = self.reference(at, with_operator)
        back = at - _days_back(at - self.actual[:, None])  # the latest known hour at the same time of the day
        both = at - _days_back(at - self.both[:, None])
        issued = at - _days_back(at - self.operator[:, None])  # the same of DF
        now = self.reference(np.broadcast_to(self.both[:, None], at.shape), with_operator)
        loads = [
            *(self.demand_at(one) for one in (back, back - DAY, at - WEEK, at - 2 * WEEK)),
            *(self.operator_at(one) for one in (issued, at - DAY, at - WEEK)),
            *(self.reference(at + step, with_operator) for step in AROUND),
            now,
        ]
        return [
            *(self.error_at(one) / scale for one in (both, both - DAY, at - WEEK)),
            *(take(mean, both) / scale for mean in series.same_hour_means),
            self.error_at(at - WEEK, series.weekly_mean) / scale,
            *((load - reference) / unit for load in loads),
            reference / (10 * unit) - 1,
            *_clock(series.calendar, np.clip(at, 0, len(series.demand) - 1)),
        ]


def _clock(calendar: Calendar, at: Int64s) -> list[NDArray[np.generic]]:
    turn = 2 * np.pi * calendar.yearday[at] / 365.25
    return [
        *(wave(k * turn) for k in (1, 2) for wave in (np.sin, np.cos)),
        *(calendar.weekday[at] == day for day in range(7)),
        *(calendar.holiday[np.maximum(at - back, 0)] for back in (0, DAY, WEEK)),
        calendar.summer[at],
    ]


def _column(limit: Int64s, at: Int64s) -> Int64s:
    return limit if at.ndim == limit.ndim else limit[:, None]


def _days_back(ahead: Int64s) -> Int64s:
    """Return the whole days, in hours, from a target `ahead` hours after the last known one back to a known hour."""
    return np.maximum(-(-ahead // DAY), 0) * DAY


def take(x: Floats, at: Int64s) -> Floats:
    """Return the values at positions; NaN outside."""
    if not at.size or (at.min() >= 0 and at.max() < len(x)):
        return x[at]  # the usual case, three times as fast
    inside = (at >= 0) & (at < len(x))
    return np.where(inside, x[np.clip(at, 0, len(x) - 1)], np.nan)


def trailing_mean(x: Floats, width: int) -> Floats:
    """Return the mean of the measured values among the `width` hours up to each one, [hour]; NaN where there is none."""
    return _mean_of_steps(x, width, 1)


def _mean_of_steps(x: Floats, count: int, step: int) -> Floats:
    """Return the mean of the measured ones of x now, `step` before, … (`count` values), [hour]."""
    measured = np.isfinite(x)
    padding = -len(x) % step
    folded = [
        np.concatenate([part, np.zeros(padding)]).reshape(-1, step) for part in (np.where(measured, x, 0.0), measured)
    ]
    total, number = (_trailing_sum(part, count).reshape(-1)[: len(x)] for part in folded)
    return np.where(number > 0.5, total / np.maximum(number, 1), np.nan)


def _trailing_sum(x: Floats, count: int) -> Floats:
    sums = np.concatenate([np.zeros((1, x.shape[1])), np.cumsum(x, axis=0)])
    end = np.arange(1, len(x) + 1)
    return sums[end] - sums[np.maximum(end - count, 0)]


def _carried(x: Floats, limit: int) -> Floats:
    """Return x with an unknown hour replaced by the last known one of at most `limit` hours before."""
    position = np.arange(len(x))
    last = np.maximum.accumulate(np.where(np.isfinite(x), position, -1))
    return np.where((last >= 0) & (position - last <= limit), x[np.maximum(last, 0)], np.nan)
