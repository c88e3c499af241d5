"""Estimate the hours of a long gap by regression on the same hours of the other days of the year. No I/O, no chance.

For each hour of the gap: a ridge regression of the demand's departure from its usual value, fitted on every day of the year as if the gap were there
(the same hours hidden), so that it knows before each what is known before the gap. Its columns are departures from usual values: own demand and its
ratio to the forecast on both sides of the gap and at the same hour of the nearest days, forecast and neighbours in the hour, around it, and in the
mean of the day. Days count by their distance in the year, since what weather does to demand turns with the season, and less where the first fit
misses them by much. Each day is also predicted from the others (leave-one-out, in closed form), which gives the errors.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ingest.array_types import Bools, Floats, Int64s

DAY = 24  # hours; also what the regression sees on each side of a gap
MOST_DEPARTURE = 0.3  # a larger departure counts as this; a day that departs by more than the next is not fitted
FITTED = 0.5
SEASON, REMOTE = 60.0, 0.2  # days within which a day counts; what all others count at least, of 1
PENALTY = 15.0  # × the mean weight of a day, on columns of which the mean square is 1
HEAVY = 2.0  # the scale of columns that shrink less: four times the variance before the fit
OUTLYING = 3.0  # × the median error: a day that is missed by more counts less
MIN_ROWS = 60  # days
Usual = Callable[[Floats, Int64s], Floats]  # a series [hour] and hours: the usual values, without those within the gap


@dataclass(frozen=True)
class Regression:
    """What a regression gives for a gap; arrays are relative to the demand, NaN where there is none."""

    value: Floats  # MWh [hour of the gap]
    forecast: Bools  # [hour of the gap]: it rests on the forecast
    neighbours: Bools
    errors: Floats  # of the days, each predicted from the others: [day, hour of the gap]


@dataclass(frozen=True)
class _Windows:
    """The gap, and the same hours of all days: start hours [day] of which the gap's own is `gap`; size in hours."""

    starts: Int64s
    gap: int
    size: int

    def of(self, series: Floats) -> Floats:
        """Return a series from a day before each window to a day after: [day, hour], NaN outside of the year."""
        at = self.starts[:, None] + np.arange(-DAY, self.size + DAY)
        return np.where((at >= 0) & (at < series.size), series[np.clip(at, 0, series.size - 1)], np.nan)

    def around(self, series: Floats, usual: Usual) -> tuple[Floats, Floats]:
        """Return departures on both sides of the windows, NaN within, and the usual values within: both [day, hour].

        The usual value of an hour outside is that of the same hour in the window's first or last 24 hours, which is blind to the window.
        """
        whole = DAY * -(-self.size // DAY)
        at = self.starts[:, None] + np.arange(whole)
        base = usual(series, np.clip(at, 0, series.size - 1))
        hours = np.arange(-DAY, self.size + DAY)
        inside = (hours >= 0) & (hours < self.size)
        nearest = np.where(hours < 0, hours % DAY, whole - DAY + hours % DAY)
        found = self.of(series) / base[:, nearest] - 1
        found[:, inside] = np.nan
        return found, base[:, : self.size]


def regress(
    demand: Floats,
    forecast: tuple[Floats, Floats] | None,
    neighbours: Sequence[Floats],
    gap: tuple[int, int],
    usual: Usual,
) -> tuple[Int64s, Regression]:
    """Estimate the hours of a gap.

    Args:
        demand: MWh [hour], NaN in the gap.
        forecast: MWh [hour], and its departures.
        neighbours: departures of the demand of others [hour].
        gap: its first hour, and the one after its last.
        usual: of a series at hours, without what lies within the gap's length.

    Returns:
        Start hours of the days, the gap's own among them; the regression.
    """
    start, stop = gap
    windows = _Windows(np.arange(start % DAY, demand.size - (stop - start) + 1, DAY), start // DAY, stop - start)
    own, base = windows.around(demand, usual)
    inside = [windows.of(series) for series in neighbours]
    ratio = expected = seen = None
    if forecast is not None:
        seen = windows.of(forecast[1])
        ratio, usual_ratio = windows.around(demand / forecast[0], usual)
        expected = windows.of(forecast[0])[:, DAY : DAY + windows.size] * usual_ratio / base - 1
    truth = windows.of(demand)[:, DAY : DAY + windows.size] / base - 1
    weights = REMOTE + np.exp(-(((windows.starts - start) / (DAY * SEASON)) ** 2))
    value = np.full(windows.size, np.nan)
    errors = np.full(truth.shape, np.nan)
    with_forecast, with_neighbours = np.zeros((2, windows.size), np.bool_)
    for hour in range(windows.size):
        columns = [*_sides(own, hour, windows.size)]
        if ratio is not None and seen is not None and expected is not None and np.isfinite(expected[windows.gap, hour]):
            with_forecast[hour] = True
            columns += [*_sides(ratio, hour, windows.size), HEAVY * _scaled(expected[:, hour])]
            columns += [HEAVY * column for column in _within(seen, hour, windows.size, 2)]
        for one in inside:
            if np.isfinite(one[windows.gap, DAY + hour]):
                with_neighbours[hour] = True
                columns += _within(one, hour, windows.size, 1)
        fitted = _ridge(np.stack(columns, axis=1), truth[:, hour], weights)
        if fitted is not None:
            value[hour] = base[windows.gap, hour] * (1 + fitted[windows.gap])
            errors[:, hour] = (1 + fitted) / (1 + truth[:, hour]) - 1
    return windows.starts, Regression(value, with_forecast, with_neighbours, errors)


def _scaled(values: Floats) -> Floats:
    """Return departures with a mean square of 1, 0 where there is none."""
    held = np.clip(np.where(np.isfinite(values), values, 0.0), -MOST_DEPARTURE, MOST_DEPARTURE)
    size = np.sqrt((held * held).mean())
    return held / size if size > 0 else held


def _mean(values: Floats) -> Floats:
    """Return the mean of the known values of each day; NaN where there is none."""
    known = np.isfinite(values)
    return np.where(known, values, 0.0).sum(axis=1) / known.sum(axis=1)


def _sides(found: Floats, hour: int, size: int) -> list[Floats]:
    """Return columns for an hour of the gap from what lies on its sides: the nearest hours, the same hour of the nearest days, their means."""
    share = (hour + 1) / (size + 1)
    before, after = found[:, :DAY], found[:, DAY + size :]
    near = before[:, -1] * (1 - share) + after[:, 0] * share
    wide = _mean(before[:, -4:]) * (1 - share) + _mean(after[:, :4]) * share
    return [
        HEAVY * _scaled(near),
        (1 - share) * _scaled(before[:, -1]),
        share * _scaled(after[:, 0]),
        _scaled(wide),
        _scaled(before[:, hour % DAY]),
        _scaled(after[:, (hour - size) % DAY]),
        _scaled(_mean(before)),
        _scaled(_mean(after)),
    ]


def _within(found: Floats, hour: int, size: int, reach: int) -> list[Floats]:
    """Return columns for an hour from a series that is known in it: hours around it, the mean of its day, less its line between the gap's sides."""
    share = (hour + 1) / (size + 1)
    at = DAY + hour
    sides = found[:, DAY - 1] * (1 - share) + found[:, DAY + size] * share
    day = found[:, max(DAY, at - 11) : min(DAY + size, at + 12)]
    around = [found[:, at + lag] for lag in range(-reach, reach + 1)]
    return [_scaled(column) for column in (*around, _mean(day), found[:, at] - sides)]


def _ridge(columns: Floats, truth: Floats, weights: Floats) -> Floats | None:
    """Return the prediction of each day from the others [day]; None where too few are known."""
    known = np.isfinite(truth) & (np.abs(truth) < FITTED)
    if known.sum() < MIN_ROWS:
        return None
    rows, target, given = columns[known], truth[known], weights[known]
    penalty = np.eye(columns.shape[1]) * (PENALTY * given.mean())
    held = given
    for _ in range(2):
        weighted = rows * held[:, None]
        inverse = invert(np.einsum("ni,nj->ij", weighted, rows) + penalty)
        solution = (inverse * (weighted * target[:, None]).sum(axis=0)).sum(axis=1)
        spread = np.einsum("ni,ij->nj", rows, inverse)
        leverage = (spread * weighted).sum(axis=1)
        missed = (target - (rows * solution).sum(axis=1)) / (1 - leverage)
        limit = OUTLYING * np.sort(np.abs(missed))[missed.size // 2]
        held = given * np.minimum(1, limit / np.maximum(np.abs(missed), 1e-12))
    found = (columns * solution).sum(axis=1)
    found[known] = target - missed
    return found


def invert(matrix: Floats) -> Floats:
    """Return the inverse by elimination; the matrix is symmetric and positive definite, so that no pivot is zero."""
    size = len(matrix)
    rows = np.concatenate([matrix, np.eye(size)], axis=1)
    for i in range(size):
        rows[i] /= rows[i, i]
        factor = rows[:, i].copy()
        factor[i] = 0.0
        rows -= factor[:, None] * rows[i]
    return rows[:, size:]
