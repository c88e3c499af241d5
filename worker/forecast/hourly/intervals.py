"""Quantiles of every issue hour and horizon: the shape of past errors, with widths that follow how often the intervals cover.

The errors of the `MONTHS` local months before, as far as known when a month begins, give the spread by local hour of issue and horizon, and the quantiles of
what is left by horizon. The widths of the 50, 80 and 95% intervals then follow every outcome that becomes known, horizon by horizon: adaptive conformal
inference (Gibbs and Candès 2021), as in `worker.forecast.model.conformal`. They are replayed from the `REPLAY` months before on, so they are
a function of the issue hour alone: a forecast issued live has the intervals of a backtest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ingest.array_types import Floats, Int64s
from worker.forecast.hourly.inputs import DAY, AuthorityHours, scale_at, take, targets
from worker.forecast.hourly.regression import Month
from worker.forecast.model.conformal import BOUNDS, MISSES, PAIRS
from worker.forecast.model.network import MEDIAN, QUANTILES

MONTHS = 6  # local months of errors that a month's shape is taken from
REPLAY = 3  # of them: months of outcomes that its widths are replayed from
FEWEST = 7 * DAY  # known errors of a horizon that a shape needs
RATES = np.array([0.1, 0.8, 0.1])  # a day of misses, by pair of PAIRS; chosen on 2018
NORMAL = np.array(
    [-1.959964, -1.281552, -0.67449, 0.0, 0.67449, 1.281552, 1.959964]
)  # quantiles of the normal distribution


@dataclass(frozen=True)
class Shape:
    """The errors that a month's quantiles and paths are made of."""

    month: Month
    spread: Floats  # mean absolute error in scales, [local hour, step]
    quantiles: Floats  # of errors in spreads, [step, level] of QUANTILES; 0 at the median
    errors: Floats  # known errors in spreads, [row, step]; NaN where not known
    clock: Int64s  # local hour of each row


def errors_of(hours: AuthorityHours, median: NDArray[np.float32], steps: Int64s) -> Floats:
    """Return demand less the forecast in scales, [issue hour, step]; NaN where unknown."""
    rows = np.arange(hours.issues)
    at = targets(rows, steps)
    found: Floats = (take(hours.demand, at) - median) / scale_at(hours, rows)[:, None]
    return found


def shape_of(hours: AuthorityHours, errors: Floats, steps: Int64s, months: Sequence[Month], index: int) -> Shape:
    """Return the shape of a month from those before it.

    Args:
        hours: the authority.
        errors: as `errors_of` returns them.
        steps: hours ahead.
        months: every one in order.
        index: of the month.
    """
    month = months[index]
    rows = np.arange(months[max(index - MONTHS, 0)].rows.start, month.rows.start)
    known = np.where(targets(rows, steps) <= month.known, errors[rows], np.nan)
    clock = hours.calendar.hour[rows]
    sums, counts = np.zeros((DAY, len(steps))), np.zeros((DAY, len(steps)))
    np.add.at(sums, clock, np.nan_to_num(np.abs(known)))
    np.add.at(counts, clock, np.isfinite(known))
    sums, counts = (x + np.roll(x, 1, axis=0) + np.roll(x, -1, axis=0) for x in (sums, counts))
    spread = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    ratio = known / spread[clock]
    quantiles = np.broadcast_to(NORMAL * np.sqrt(np.pi / 2), (len(steps), len(QUANTILES))).copy()
    enough = np.isfinite(ratio).sum(axis=0) >= FEWEST
    if enough.any():
        quantiles[enough] = np.nanquantile(ratio[:, enough], QUANTILES, axis=0).T
    quantiles[:, :MEDIAN] = np.minimum(quantiles[:, :MEDIAN], -1e-3)
    quantiles[:, MEDIAN + 1 :] = np.maximum(quantiles[:, MEDIAN + 1 :], 1e-3)
    quantiles[:, MEDIAN] = 0.0
    return Shape(month, spread, np.sort(quantiles, axis=1), ratio, clock)


def widths(hours: AuthorityHours, errors: Floats, steps: Int64s, shape: Shape, start: int) -> NDArray[np.float32]:
    """Return the logarithms of the widths of a month's issue hours, [row, step, pair].

    Args:
        hours: the authority.
        errors: as `errors_of` returns them.
        steps: hours ahead.
        shape: of the month.
        start: position of the issue hour from which on outcomes are replayed.
    """
    month = shape.month
    rows = np.arange(start, month.rows.stop)
    above = errors[rows] >= 0
    relative = np.abs(errors[rows]) / shape.spread[hours.calendar.hour[rows]]
    missed = np.empty((len(rows), len(steps), len(PAIRS)))
    for pair, (low, high) in enumerate(PAIRS):
        missed[..., pair] = np.log(
            np.maximum(relative / np.where(above, shape.quantiles[:, high], -shape.quantiles[:, low]), 1e-9)
        )
    return _track(missed, hours.actual_known[rows] - start, steps)[month.rows.start - start :]


def _track(distance: Floats, known: Int64s, steps: Int64s) -> NDArray[np.float32]:
    """Return widths at each row, [row, step, pair].

    Args:
        distance: the logarithm of the width at which an interval would just cover, [row, step, pair]; NaN where not measured.
        known: the row whose demand is the last known one at each row.
        steps: hours ahead.
    """
    found = np.zeros(distance.shape, np.float32)
    now = np.zeros(distance.shape[1:])
    column = np.arange(len(steps))
    rate = RATES / DAY
    for row, last in enumerate(known):
        issued = last - steps  # rows whose forecasts now come true
        use = issued >= 0
        at = issued[use], column[use]
        outcome = distance[at]
        moved = np.where(np.isfinite(outcome), (outcome > found[at]) - MISSES, 0.0)
        now[use] = np.clip(now[use] + rate * moved, *BOUNDS)
        found[row] = now
    return found


def quantiles_of(
    hours: AuthorityHours, median: NDArray[np.float32], shape: Shape, width: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the quantiles of a month's issue hours, MWh, [row, step, level] of QUANTILES, ascending."""
    rows = np.arange(shape.month.rows.start, shape.month.rows.stop)
    unit = shape.spread[hours.calendar.hour[rows]] * scale_at(hours, rows)[:, None]
    factor = np.ones((*width.shape[:2], len(QUANTILES)))
    for pair, (low, high) in enumerate(PAIRS):
        factor[..., [low, high]] = np.exp(width[..., pair, None])
    found = median[rows][..., None] + unit[..., None] * shape.quantiles * factor
    return np.sort(found, axis=-1).astype(np.float32)
