"""Rollouts of any policy, and its score: PoP, the share of the perfect-foresight optimum's saving that it earns.

    PoP = (J_policy - J_nothing) / (J_optimum - J_nothing)

1 is the linear program that knows the future, 0 is doing nothing, below 0 is worse than nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rl.env.dataset import Dataset
from rl.env.grid import Grid
from rl.env.vector import VectorGridEnv
from rl.errors import DataError
from rl.planning.optimum import Schedule, optimum

Array = NDArray[np.float64]
Policy = Callable[
    [VectorGridEnv], NDArray[np.floating]
]  # [action, episode]; may read the row's past and features, never its load


@dataclass(frozen=True)
class Trajectory:
    """What happened in N episodes of T hours, in the units of `rl.env.grid`."""

    starts: NDArray[np.int64]  # [N] first row
    load: Array  # [hour, N]
    residual: Array  # [hour, N]
    previous_load: Array  # [N] load of the hour before the first
    power: Array  # [hour, store, N] into the grid; negative: charging
    charge: Array  # [hour, store, N] at the hour's end
    shed: Array  # [hour, N]
    cost: Array  # [hour, N] $ per MW of reference peak
    clipped_energy: Array  # [store, N] energy that the projection took from what was asked


def rollout(grid: Grid, dataset: Dataset, policy: Policy, starts: NDArray[np.int64], hours: int) -> Trajectory:
    """Let `policy` run episodes of `hours` hours from rows `starts` [N]."""
    starts = np.asarray(starts, np.int64)
    env = VectorGridEnv(grid, dataset, len(starts), hours)
    env.reset(starts)
    n = env.num_stores
    residual, cost, shed = (np.empty((hours, len(starts))) for _ in range(3))
    power, charge = (np.empty((hours, n, len(starts))) for _ in range(2))
    for hour in range(hours):
        _, cost[hour] = env.step(policy(env))
        residual[hour], shed[hour] = env.residual, env.shed
        power[hour], charge[hour] = env.power, env.charge
    load = dataset.load[starts + np.arange(hours)[:, None]]
    return Trajectory(
        starts, load, residual, dataset.previous_load[starts], power, charge, shed, cost, env.clipped_energy.copy()
    )


def idle_cost(grid: Grid, load: Array, before: Array) -> Array:
    """Hourly cost of leaving every store at rest, [hour, N], from loads [hour, N] and those of the hour before [N]."""
    ramps = np.abs(np.diff(load, axis=0, prepend=np.asarray(before)[None]))
    held = float(grid.each("holding") @ (grid.each("energy") - grid.rest))
    return grid.generation_cost(load) + grid.ramp * ramps + held


@dataclass(frozen=True)
class ReferenceCosts:
    """The two ends of the scale for some episodes, and the optimum's schedules."""

    idle: Array  # [N] $ per MW of reference peak
    optimum: Array  # [N]
    schedules: tuple[Schedule, ...]

    def pop(self, cost: Array) -> float:
        """PoP of costs [N], all episodes together. DataError where nothing can be saved."""
        saving = float((self.idle - self.optimum).sum())
        if saving <= 0:
            raise DataError("the optimum saves nothing in these episodes: PoP has no meaning")
        return float((self.idle - np.asarray(cost)).sum()) / saving


def reference_costs(grid: Grid, dataset: Dataset, starts: NDArray[np.int64], hours: int) -> ReferenceCosts:
    """Solve the optimum of every episode: those of `hours` hours from the rows `starts` [N]."""
    rows = np.asarray(starts) + np.arange(hours)[:, None]
    loads, before = dataset.load[rows], dataset.previous_load[starts]
    schedules = tuple(optimum(grid, load, first) for load, first in zip(loads.T, before, strict=True))
    return ReferenceCosts(idle_cost(grid, loads, before).sum(axis=0), np.array([s.cost for s in schedules]), schedules)


@dataclass(frozen=True)
class Gaps:
    """1 - PoP of a policy, in three parts that add up."""

    horizon: float  # what planning so few hours ahead loses although all is known
    forecast: float  # what the forecast's errors lose on top, planning the same way
    policy: float  # what the policy loses on top; below 0 where it does better than planning on that forecast


def gaps(perfect: float, planned: float, policy: float) -> Gaps:
    """From the PoP of MPC on perfect knowledge, of MPC on the policy's forecast, and of the policy itself."""
    return Gaps(1 - perfect, perfect - planned, planned - policy)
