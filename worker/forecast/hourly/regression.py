"""The median of every issue hour and horizon: ridge regressions by local hour of issue and horizon, fitted again each local month.

Closed form, from running moments, as in `worker.forecast.linear`: a refit adds the hours that became known since the one before. Coefficients of a
local hour are shrunk to those of all local hours at the same horizon (an empirical Bayes prior, Robbins 1956). Two regressions serve each
target: beside DF where it is published, beside demand of weeks before where it is not.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ingest.array_types import Floats, Int64s
from worker.forecast.hourly.inputs import (
    DAY,
    LAST_ERROR,
    MAX_HORIZON,
    AuthorityHours,
    inputs,
    references,
    scale_at,
    take,
    targets,
)

NEAR, FAR = (
    (0.001, 0.05),
    (0.03, 0.3),
)  # penalties of the pooled and the own coefficients, of the standardised inputs' variance; chosen on 2018
NEAR_HOURS = 11  # hours ahead up to which the former count
DAYS = 700  # outcomes with fewer of which, by a factor f, the penalties are f to the power of POOLED_POWER and OWN_POWER higher
POOLED_POWER, OWN_POWER = 2.0, 1.5
MIN_DAYS = 45  # outcomes with fewer of which only the prior counts: DF and a share of its last error that fades
FADES = 12  # hours in which that share decreases to 1/e
FORGETTING = 0.98  # of the weight of earlier hours from month to month: operators change their forecasts
MIN_DEVIATION = 1e-4  # inputs that vary less get no coefficient
TARGET_BOUND = 8.0  # scales at which what is fitted is clipped, so that a missed outlier does not decide a fit


@dataclass(frozen=True)
class Month:
    """Issue hours that one fit forecasts; positions."""

    rows: slice
    known: int  # the last hour whose demand was known at the first of them


@dataclass(frozen=True)
class _Rows:
    """Issue hours with their inputs and outcomes."""

    rows: Int64s  # positions, [row]
    inputs: NDArray[np.float32]  # [row, step, input]
    outcome: NDArray[np.float32]  # demand less reference, in scales, [row, step]; NaN where not measured
    weight: NDArray[np.float32]  # [row]


def months_of(hours: AuthorityHours) -> list[Month]:
    """Return the local months of the issue hours, in order; the first and the last may be cut."""
    numbers = hours.calendar.day[: hours.issues].astype("datetime64[D]").astype("datetime64[M]").astype(np.int64)
    bounds = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), hours.issues]
    return [Month(slice(a, b), int(hours.actual_known[a])) for a, b in itertools.pairwise(bounds)]


@dataclass(frozen=True)
class Moments:
    """Sums over issue hours by their local hour and by step."""

    sums: Floats  # of weighted products of the inputs, the last of which is 1, and the outcome: [24, step, input + 1, input + 1]
    days: Floats  # how many outcomes there were, [24, step]

    @classmethod
    def empty(cls, steps: int, inputs: int) -> Moments:
        """Return the moments of no hours."""
        return cls(np.zeros((DAY, steps, inputs + 1, inputs + 1)), np.zeros((DAY, steps)))

    def forget(self) -> None:
        """Let a month pass."""
        self.sums[:] *= FORGETTING
        self.days[:] *= FORGETTING


def medians(hours: AuthorityHours, steps: Int64s, wanted: slice) -> NDArray[np.float32]:
    """Return the forecast of every target hour, MWh, [issue hour, step]; NaN where there is no reference, and in months before `wanted`.

    Nothing that is published after an issue hour changes its forecasts.

    Args:
        hours: the authority.
        steps: hours ahead, at most `MAX_HORIZON`.
        wanted: positions of the issue hours.
    """
    rows = np.arange(wanted.start, wanted.stop)
    found = np.full((hours.issues, len(steps)), np.nan, np.float32)
    lacking = ~np.isfinite(references(hours, rows, steps, with_operator=True))
    for with_operator, where in ((False, lacking), (True, ~lacking)):
        used = where.any(axis=0)
        if used.any():
            for month, forecast in _by_month(hours, steps[used], wanted, with_operator):
                part = found[month.rows]
                part[:, used] = np.where(np.isfinite(forecast), forecast, part[:, used])
    return found


def _by_month(
    hours: AuthorityHours, steps: Int64s, wanted: slice, with_operator: bool
) -> Iterator[tuple[Month, NDArray[np.float32]]]:
    """Yield the months that overlap `wanted` with their forecasts [row, step]."""
    penalties = np.where((steps <= NEAR_HOURS)[:, None], NEAR, FAR).T
    waiting: list[_Rows] = []
    moments: Moments | None = None
    for month in months_of(hours):
        if month.rows.start >= wanted.stop:
            return
        rows = np.arange(month.rows.start, month.rows.stop)
        x = inputs(hours, rows, steps, with_operator)
        scale = scale_at(hours, rows)[:, None]
        reference = references(hours, rows, steps, with_operator)
        moments = moments or Moments.empty(len(steps), x.shape[-1])
        moments.forget()
        # One limit for all steps: which of them are asked for must not change a fit.
        waiting = [part for one in waiting for part in _add(moments, hours, one, month.known - MAX_HORIZON)]
        if month.rows.stop > wanted.start:
            coefficients = _coefficients(moments, penalties, _prior(steps, x.shape[-1], with_operator))
            correction = _corrections(coefficients, x, hours.calendar.hour[rows])
            yield month, (reference + correction * scale).astype(np.float32)
        waiting.append(_outcomes(hours, rows, steps, x, reference, scale))


def _outcomes(
    hours: AuthorityHours, rows: Int64s, steps: Int64s, x: NDArray[np.float32], reference: Floats, scale: Floats
) -> _Rows:
    """Return the inputs of issue hours with what comes true; hours count by their scale, so that an error in MWh is fitted."""
    outcome = np.clip((take(hours.demand, targets(rows, steps)) - reference) / scale, -TARGET_BOUND, TARGET_BOUND)
    weight = np.nan_to_num(scale[:, 0] / take(hours.level, hours.actual_known[rows]))
    return _Rows(rows, x, outcome.astype(np.float32), weight.astype(np.float32))


def _add(moments: Moments, hours: AuthorityHours, new: _Rows, last: int) -> list[_Rows]:
    """Add the issue hours up to position `last` to the moments; return the others."""
    ready = new.rows <= last
    clock = hours.calendar.hour[new.rows]
    for hour in np.unique(clock[ready]):
        at = ready & (clock == hour)
        measured = np.isfinite(new.outcome[at])
        y = np.where(measured, new.outcome[at], 0)[..., None]
        root = np.sqrt(np.where(measured, new.weight[at, None], 0))  # of the weight, on either factor of a product
        both = np.concatenate([new.inputs[at], y], axis=-1) * root[..., None]
        both = np.ascontiguousarray(both.transpose(1, 0, 2))  # [step, row, input]
        moments.sums[hour] += both.transpose(0, 2, 1) @ both
        moments.days[hour] += measured.sum(axis=0)
    if ready.all():
        return []
    rest = ~ready
    return [_Rows(new.rows[rest], new.inputs[rest], new.outcome[rest], new.weight[rest])]


def _coefficients(moments: Moments, penalties: Floats, prior: Floats) -> NDArray[np.float32]:
    """Return coefficients of the raw inputs, [local hour, step, input].

    Args:
        moments: of the hours known.
        penalties: [(pooled, own), step].
        prior: what the pooled coefficients are shrunk to, [step, input].
    """
    few = np.maximum(DAYS / np.maximum(moments.days, 1), 1)  # [local hour, step]
    enough = moments.days.mean(axis=0) >= MIN_DAYS
    pooled = solve(moments.sums.sum(axis=0), penalties[0] * few.mean(axis=0) ** POOLED_POWER, prior)
    own = [solve(sums, penalties[1] * more**OWN_POWER, pooled) for sums, more in zip(moments.sums, few, strict=True)]
    return np.where(enough[:, None], np.stack(own), prior).astype(np.float32)


def _prior(steps: Int64s, count: int, with_operator: bool) -> Floats:
    """Return coefficients without any hour seen, [step, input]."""
    found = np.zeros((len(steps), count))
    if with_operator:
        found[:, LAST_ERROR] = np.exp(-steps / FADES)
    return found


def solve(moments: Floats, penalty: Floats, centre: Floats) -> Floats:
    """Return coefficients of the raw inputs, [step, input], the intercept last; the centre before any row.

    Args:
        moments: weighted sums of products of the inputs, the last of which is 1, and the outcome, [step, input + 1, input + 1].
        penalty: of the standardised inputs' coefficients, [step].
        centre: coefficients that penalties shrink them to, [step, input].
    """
    total = moments[:, -2, -2]
    n = np.maximum(total, 1e-12)[:, None]
    mean, level = moments[:, :-2, -2] / n, moments[:, -1, -2] / n[:, 0]
    covariance = moments[:, :-2, :-2] / n[..., None] - mean[:, :, None] * mean[:, None]
    along = moments[:, :-2, -1] / n - mean * level[:, None]
    deviation = np.sqrt(np.maximum(np.einsum("sii->si", covariance), 0))
    inverse = np.where(deviation > MIN_DEVIATION, 1 / np.maximum(deviation, MIN_DEVIATION), 0.0)
    standard = covariance * inverse[:, :, None] * inverse[:, None]
    right = along * inverse
    start = centre[:, :-1] * deviation
    right -= (standard @ start[..., None])[..., 0]
    standard[:, np.arange(mean.shape[1]), np.arange(mean.shape[1])] += penalty[:, None]
    slopes = (start + np.linalg.solve(standard, right[..., None])[..., 0]) * inverse
    found = np.concatenate([slopes, (level - (slopes * mean).sum(axis=1))[:, None]], axis=1)
    return np.where(total[:, None] > 0, found, centre)


def _corrections(coefficients: NDArray[np.float32], x: NDArray[np.float32], clock: Int64s) -> NDArray[np.float32]:
    """Return corrections in scales, [row, step], from the coefficients of each row's local hour."""
    found = np.empty(x.shape[:2], np.float32)
    for hour in np.unique(clock):
        at = clock == hour
        found[at] = np.einsum("rsi,si->rs", x[at], coefficients[hour])
    return found
