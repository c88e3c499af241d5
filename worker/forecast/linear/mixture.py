"""Mixtures of forecasts by their errors of the last 400 days: exponential weights (Vovk 1990, Littlestone and Warmuth 1994)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ingest.array_types import Floats
from worker.forecast.baselines.history import History
from worker.forecast.linear.own import Month

WINDOW = 400 * 24  # hours whose errors count: more than a year, so that each season does


def mixture(
    experts: NDArray[np.floating], history: History, index: int, months: Sequence[Month], rate: float
) -> Floats:
    """Return the weighted mean of the experts' corrections, in scales, [hour]; the weights are new each month.

    Args:
        experts: corrections in scales, [expert, hour].
        history: the respondent.
        index: of the respondent in the months.
        months: when weights change, and which outcomes are known by then.
        rate: a weight decreases by exp(-rate x) where an expert's error is larger by x of the reference's own error.
    """
    measured = np.isfinite(history.target)
    target, scale = np.where(measured, history.target, 0.0), np.where(measured, history.scale, 0.0)
    losses = np.concatenate([np.abs(experts - target), np.abs(target)[None]]) * scale
    sums = np.concatenate([np.zeros((len(losses), 1)), np.cumsum(losses, axis=1)], axis=1)
    mixed = np.zeros(len(history.hours))
    for month in months:
        rows = month.rows.get(index)
        if rows is not None:
            end = int(np.clip(month.known + 1 - history.hours[0], 0, len(mixed)))
            past = sums[:, end] - sums[:, max(end - WINDOW, 0)]
            weights = np.exp(-rate * (past[:-1] - past[:-1].min()) / max(past[-1], 1e-9))
            mixed[rows] = weights / weights.sum() @ experts[:, rows]
    return mixed
