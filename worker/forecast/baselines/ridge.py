"""Ridge regression of the reference's error on the tokens: one fit a respondent, local hour and month (Hoerl and Kennard 1970).

Closed form, from running moments: a refit adds the hours that became known since the one before and solves again. Inputs
are standardised over the hours that the fit knows; the intercept is not penalised. Hours count by their scale, so that
what is fitted is an error in MWh.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ingest.array_types import Floats, Int64s
from ingest.features import BOUND
from worker.forecast.baselines.history import History, Refit, choose, monthly_refits
from worker.training.tokens import Period

PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # tried; in units of the standardised inputs' variance
HOURS = 24  # local hours, each with coefficients of its own
MIN_DAYS = 30  # measured days that a fit needs; with fewer the forecast is the reference
MIN_DEVIATION = 1e-4  # inputs that vary less over the hours of a fit get no coefficient


@dataclass(frozen=True)
class Moments:
    """Weighted sums over the hours added, by local hour."""

    days: Int64s  # [24] hours added
    weight: Floats  # [24]
    x: Floats  # [24, input]
    y: Floats  # [24]
    xx: Floats  # [24, input, input]
    xy: Floats  # [24, input]

    @classmethod
    def empty(cls, inputs: int) -> Moments:
        """Return the moments of no hours."""
        shapes = ((), (inputs,), (), (inputs, inputs), (inputs,))
        return cls(np.zeros(HOURS, np.int64), *(np.zeros((HOURS, *shape)) for shape in shapes))

    def add(self, hour: int, x: Floats, y: Floats, weight: Floats) -> None:
        """Add measured hours of one local hour: x [n, input], y [n], weight [n]."""
        weighted = x * weight[:, None]
        self.days[hour] += len(y)
        self.weight[hour] += weight.sum()
        self.x[hour] += weighted.sum(axis=0)
        self.y[hour] += weight @ y
        self.xx[hour] += weighted.T @ x
        self.xy[hour] += weighted.T @ y

    def include(self, other: Moments, factor: float = 1.0) -> None:
        """Add the hours of other moments, with their weights multiplied by a factor."""
        self.days[:] += other.days
        for name in ("weight", "x", "y", "xx", "xy"):
            getattr(self, name)[:] += factor * getattr(other, name)

    def solve(self, hour: int, penalties: tuple[float, ...], centres: Floats | None = None) -> NDArray[np.float64]:
        """Return coefficients [centre · penalty, input + 1] of the raw inputs, the intercept last; zeros with fewer than `MIN_DAYS` hours.

        Args:
            hour: local hour.
            penalties: of the standardised inputs.
            centres: [centre, input] of the coefficients, that penalties shrink them to; None: one of zeros.
        """
        centres = np.zeros((1, self.x.shape[1])) if centres is None else centres
        if self.days[hour] < MIN_DAYS:
            return np.zeros((len(centres) * len(penalties), self.x.shape[1] + 1))
        n = self.weight[hour]
        mean, level = self.x[hour] / n, self.y[hour] / n
        covariance = self.xx[hour] / n - np.outer(mean, mean)
        deviation = np.sqrt(np.maximum(np.diag(covariance), 0))
        inverse = np.where(deviation > MIN_DEVIATION, 1 / np.maximum(deviation, MIN_DEVIATION), 0.0)
        values, vectors = np.linalg.eigh(covariance * np.outer(inverse, inverse))
        along = ((self.xy[hour] / n - mean * level - centres @ covariance) * inverse) @ vectors  # [centre, direction]
        shrunk = along[:, None] / (np.maximum(values, 0) + np.array(penalties)[:, None])
        slopes = ((shrunk @ vectors.T) * inverse + centres[:, None]).reshape(-1, len(mean))
        return np.concatenate([slopes, (level - slopes @ mean)[:, None]], axis=1)


def ridge(
    history: History,
    validate: Period,
    test: Period,
    penalties: tuple[float, ...] = PENALTIES,
) -> tuple[float, Floats]:
    """Return the penalty chosen on the validation hours, and the forecast of both periods, MWh, [hour]; NaN elsewhere.

    Args:
        history: the respondent.
        validate: hours that decide.
        test: further hours to forecast.
        penalties: candidates.
    """
    months = sorted({refit.rows.start: refit for p in (validate, test) for refit in monthly_refits(history, p)}.items())
    moments = Moments.empty(history.inputs.shape[1])
    corrections = np.full((len(penalties), len(history.hours)), np.nan)
    done = 0
    for _, refit in months:
        upto = int(np.searchsorted(history.hours, refit.known, side="right"))
        add_hours(moments, history, slice(done, upto))
        done = upto
        _forecast(corrections, history, refit, lambda hour: moments.solve(hour, penalties))
    forecasts = history.reference + np.clip(corrections, -BOUND, BOUND) * history.scale
    return choose(history, validate, zip(penalties, forecasts, strict=True))


def add_hours(moments: Moments, history: History, rows: slice) -> None:
    """Add the measured hours among `rows`; targets are clipped, so that a missed outlier does not decide a fit."""
    x, y, weight = (part[rows].astype(np.float64) for part in (history.inputs, history.target, history.scale))
    measured = np.isfinite(y)
    for hour in range(HOURS):
        own = measured & (history.calendar.hour[rows] == hour)
        moments.add(hour, x[own], np.clip(y[own], -BOUND, BOUND), weight[own])


def _forecast(corrections: Floats, history: History, refit: Refit, solve: Callable[[int], Floats]) -> None:
    """Write the corrections of a month, in scales, into [penalty, hour]; `solve` returns a local hour's coefficients."""
    inputs, hours = history.inputs[refit.rows].astype(np.float64), history.calendar.hour[refit.rows]
    for hour in np.unique(hours):
        coefficients = solve(int(hour))
        rows = refit.rows.start + np.flatnonzero(hours == hour)
        corrections[:, rows] = coefficients[:, :-1] @ inputs[hours == hour].T + coefficients[:, -1:]
