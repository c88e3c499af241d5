"""Mixtures of forecasts by their errors of the last 400 days: exponential weights (Vovk 1990, Littlestone and Warmuth 1994)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ingest.array_types import Floats
from ingest.calendar import Calendar
from worker.forecast.baselines.history import History
from worker.forecast.linear.own import Month

WINDOW = 400 * 24  # hours whose errors count: more than a year, so that each season does
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)  # of a correction that are mixed
SHARES_WINDOW = 28 * 24  # hours whose errors count for them
SHARES_RATE = 30.0


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
    sums = _sums_of_losses(experts, history.target, history.scale)
    mixed = np.zeros(len(history.hours))
    for month in months:
        rows = month.rows.get(index)
        if rows is not None:
            end = int(np.clip(month.known + 1 - history.hours[0], 0, len(mixed)))
            past = sums[:, end] - sums[:, max(end - WINDOW, 0)]
            mixed[rows] = _weights(past, rate) @ experts[:, rows]
    return mixed


def share_of(correction: Floats, history: History) -> Floats:
    """Return what `supported` leaves of a respondent's correction, in scales, [hour]."""
    return supported(correction, history.target, history.scale, history.calendar)


def supported(correction: Floats, target: Floats, scale: Floats, calendar: Calendar) -> Floats:
    """Return the part of a correction that the last four weeks before each issue time support, in scales, [hour].

    Operators repair their forecasts: a bias that a model has learnt over years ends within days, and a correction then does harm.

    Args:
        correction: of consecutive hours, in scales, [hour].
        target: what the reference missed, in scales; NaN where unknown, [hour].
        scale: MWh, [hour].
        calendar: of the same hours.
    """
    experts = np.array(SHARES)[:, None] * correction
    sums = _sums_of_losses(experts, target, scale)
    end = np.clip(calendar.issue + 1 - calendar.hours[0], 0, len(correction))
    past = sums[:, end] - sums[:, np.maximum(end - SHARES_WINDOW, 0)]
    return (_weights(past, SHARES_RATE) * experts).sum(axis=0)


def _sums_of_losses(experts: NDArray[np.floating], target: Floats, scale: Floats) -> Floats:
    """Return running sums of absolute errors in MWh, [expert + 1, hour + 1], with a leading 0; the last row is the reference's."""
    measured = np.isfinite(target)
    target, scale = np.where(measured, target, 0.0), np.where(measured, scale, 0.0)
    losses = np.concatenate([np.abs(experts - target), np.abs(target)[None]]) * scale
    return np.concatenate([np.zeros((len(losses), 1)), np.cumsum(losses, axis=1)], axis=1)


def _weights(past: Floats, rate: float) -> Floats:
    """Return the weights of experts, [expert] or [expert, hour], from sums of losses whose last row is the reference's."""
    excess = (past[:-1] - past[:-1].min(axis=0)) / np.maximum(past[-1], 1e-9)
    weights: Floats = np.exp(-rate * excess)
    return weights / weights.sum(axis=0)
