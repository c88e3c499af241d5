"""Blends of the regressions' median and DF corrected by its last error, weighted by their errors of the last weeks, by horizon.

A regression has learnt over years how DF's errors fade; when an operator changes its forecast, they fade in another way within days. The weights are
exponential (Littlestone and Warmuth 1994), as in `worker.forecast.linear.mixture`. Losses are whole kWh, so sums over a window do not depend on where
the hours begin: a forecast issued live has the weights of a backtest.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ingest.array_types import Floats, Int64s
from worker.forecast.hourly.inputs import AuthorityHours, references, take, targets

SHARES = np.array([0.0, 0.25, 0.5, 0.75, 1.0])  # of the regressions' median
WINDOW = 26 * 24  # issue hours; with those whose outcome is not known yet no longer than the shortest month
RATE = 100.0  # a weight decreases by exp(-RATE x) where a blend's error is larger by x of the regressions' own; chosen on 2018


def blended(hours: AuthorityHours, median: NDArray[np.float32], steps: Int64s, wanted: slice) -> NDArray[np.float32]:
    """Return the forecasts, MWh, [issue hour, step]; those of the regressions where DF or its last error is not known.

    Args:
        hours: the authority.
        median: of the regressions, MWh, [issue hour, step].
        steps: hours ahead.
        wanted: positions of the issue hours. Those of the first `WINDOW` have shorter windows.
    """
    rows = np.arange(wanted.start, wanted.stop)
    last = take(hours.error, np.minimum(hours.actual_known, hours.operator_known)[rows])
    corrected = references(hours, rows, steps, with_operator=True) + last[:, None]
    actual = take(hours.demand, targets(rows, steps))
    found = median.copy()
    for column, step in enumerate(steps):
        own = median[rows, column].astype(np.float64)
        both = np.isfinite(own) & np.isfinite(corrected[:, column])
        blends = corrected[:, column, None] + (own - corrected[:, column])[:, None] * SHARES
        end = np.maximum(hours.actual_known[rows] - step + 1 - wanted.start, 0)  # rows before it have come true
        weights = _weights(actual[:, column, None] - blends, end)
        found[rows[both], column] = (weights * blends).sum(axis=1)[both]
    return found


def _weights(errors: Floats, end: Int64s) -> Floats:
    """Return the weight of each blend, [row, blend], from errors in MWh of the `WINDOW` rows before each `end`."""
    losses = np.rint(np.abs(np.where(np.isfinite(errors), errors, 0.0)) * 1000).astype(np.int64)
    sums = np.concatenate([np.zeros((1, errors.shape[1]), np.int64), np.cumsum(losses, axis=0)])
    past = sums[end] - sums[np.maximum(end - WINDOW, 0)]
    excess = (past - past.min(axis=1, keepdims=True)) / np.maximum(past[:, -1:], 1)
    found: Floats = np.exp(-RATE * excess)
    return found / found.sum(axis=1, keepdims=True)
