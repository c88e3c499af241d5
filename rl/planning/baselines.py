"""Policies without learning: idle, the best rule by hour and month, peak shaving. `rl.planning.mpc` is the fourth.

Each uses only data from before the hour that it decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from rl.env.dataset import Dataset
from rl.env.grid import Array, Grid
from rl.env.vector import VectorGridEnv
from rl.errors import DataError
from rl.evaluation.score import rollout
from rl.planning.optimum import program

DAY = 24  # hours


def idle(env: VectorGridEnv) -> Array:
    """Leave all stores as they are: return zeros, [action, N]."""
    return np.zeros((env.num_actions, env.num_envs))


@dataclass(frozen=True)
class HourRule:
    """A policy: fixed actions by region, local month and hour, whatever the load."""

    actions: Array  # [region, month, hour, action]
    region: NDArray[np.int64]  # [row]

    def __call__(self, env: VectorGridEnv) -> Array:
        """Return the actions [action, N] of the coming hour."""
        dataset, row = env.dataset, env.row
        return self.actions[self.region[row], dataset.month[row], dataset.clock[row]].T

    def on(self, dataset: Dataset) -> HourRule:
        """Return the same rule for another period's dataset of the same regions."""
        return HourRule(self.actions, _region_of(dataset))


def hour_rule(grid: Grid, dataset: Dataset, *, most_days: int = 40) -> HourRule:
    """Fit the best rule of its class to the hours of `dataset`: for every region and month one linear program.

    It finds the daily schedule, from rest to rest, of least mean cost over that month's days (`most_days` of them, at even
    distances).

    Raises:
        DataError: A month has no completely measured day.
    """
    actions = np.zeros((len(dataset.regions), 12, DAY, len(grid.stores) + 1))
    for region, (first, last) in enumerate(dataset.spans):
        midnights = first + np.flatnonzero(dataset.clock[first : last - DAY + 1] == 0)
        days = midnights[dataset.known[midnights[:, None] + np.arange(DAY)].all(axis=1)]
        for month in range(12):
            own = days[dataset.month[days] == month]
            if not len(own):
                raise DataError(f"{dataset.regions[region]}: no day of month {month + 1} was completely measured")
            own = own[np.unique(np.linspace(0, len(own) - 1, most_days).astype(int))]
            loads = dataset.load[own[:, None] + np.arange(DAY)]
            plan = program(grid, DAY, (1 / len(own),) * len(own)).solve(loads, dataset.previous_load[own])
            actions[region, month] = plan.actions(grid).T
    return HourRule(actions, _region_of(dataset))


@dataclass(frozen=True)
class PeakShaving:
    """A policy: discharge above a high mark of the last day's loads, charge below a low one, in proportion to the distance."""

    high: Array  # [row] reference peaks
    low: Array  # [row]
    gain: Array  # [row] full power at the fleet's power / gain beyond a mark

    def __call__(self, env: VectorGridEnv) -> Array:
        """Return the actions [action, N] of the coming hour."""
        row = env.row
        load = env.dataset.reported_load[row]
        span = env.grid.each("power").sum() / self.gain[row]
        give, take = ((load - self.high[row]) / span).clip(0, 1), ((self.low[row] - load) / span).clip(0, 1)
        return np.vstack([np.tile(give - take, (env.num_stores, 1)), np.zeros_like(give)])


def peak_shaving(dataset: Dataset, high: float, low: float, gain: float) -> PeakShaving:
    """Return the policy whose thresholds are the quantiles `high` and `low` of the load of the 24 hours before each row."""
    marks = np.empty((2, len(dataset.load)))
    for first, last in dataset.spans:
        reported = dataset.reported_load[first:last]
        past = np.concatenate([np.full(DAY - 1, reported[0]), reported])
        days = np.lib.stride_tricks.sliding_window_view(past, DAY)[: last - first]
        marks[:, first:last] = np.quantile(days, (high, low), axis=1)
    return PeakShaving(marks[0], marks[1], np.full(len(dataset.load), gain))


def best_peak_shaving(
    grid: Grid,
    dataset: Dataset,
    starts: NDArray[np.int64],
    hours: int,
    choices: Sequence[tuple[float, float, float]] = (),
) -> tuple[float, float, float]:
    """Return the marks and gain of least cost in these (training) episodes, which start at the rows `starts` [N]."""
    choices = choices or tuple(product((0.8, 0.9, 1.0), (0.0, 0.1, 0.3), (0.1, 0.3, 1.0, 3.0)))
    costs = [rollout(grid, dataset, peak_shaving(dataset, *choice), starts, hours).cost.sum() for choice in choices]
    return choices[int(np.argmin(costs))]


def _region_of(dataset: Dataset) -> NDArray[np.int64]:
    return np.concatenate([np.full(last - first, i) for i, (first, last) in enumerate(dataset.spans)])
