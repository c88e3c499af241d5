"""Rollouts of any policy, and its score PoP, the share of the perfect-foresight saving that it earns.

    PoP = (J_policy - J_nothing) / (J_optimum - J_nothing)

1 is the linear program that knows the future, 0 is doing nothing, below 0 is worse than doing nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from rl.env.dataset import Dataset
from rl.env.grid import Array, Grid
from rl.env.vector import VectorGridEnv
from rl.errors import DataError
from rl.planning.optimum import Schedule, optimum

NOTHING = 1e-12  # of the cost: a saving below is the linear program's rounding
# Returns [action, episode]; may read the row's past and features, never its load.
Policy = Callable[[VectorGridEnv], NDArray[np.floating]]


@dataclass(frozen=True)
class Trajectory:
    """N episodes of T hours, in the units of `rl.env.grid`."""

    starts: NDArray[np.int64]  # [N] first row
    load: Array  # [hour, N]
    residual: Array  # [hour, N]
    previous_load: Array  # [N] load of the hour before the first
    power: Array  # [hour, store, N] into the grid; negative: charging
    charge: Array  # [hour, store, N] at the hour's end
    shed: Array  # [hour, N]
    cost: Array  # [hour, N] $ per MW of reference peak
    clipped_energy: Array  # [store, N] energy that the projection cut from the actions

    def of(self, which: NDArray[np.bool_]) -> "Trajectory":
        """Return the episodes of `which` [N] alone; the episode is the last axis of every array."""
        return Trajectory(*(getattr(self, each.name)[..., which] for each in fields(self)))


def rollout(grid: Grid, dataset: Dataset, policy: Policy, starts: NDArray[np.int64], hours: int) -> Trajectory:
    """Run `policy` in episodes of `hours` hours from rows `starts` [N]."""
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
    """Return the hourly cost of leaving every store at rest, [hour, N], for loads [hour, N] and those of the hour before [N]."""
    ramps = np.abs(np.diff(load, axis=0, prepend=np.asarray(before)[None]))
    held = float(grid.each("holding") @ (grid.each("energy") - grid.rest))
    return grid.generation_cost(load) + grid.ramp * ramps + held


@dataclass(frozen=True)
class ReferenceCosts:
    """The costs of some episodes at the two ends of the scale, and the optimum's schedules."""

    starts: NDArray[np.int64]  # [N] first row
    idle: Array  # [N] $ per MW of reference peak
    optimum: Array  # [N]
    schedules: tuple[Schedule, ...]

    def of(self, which: NDArray[np.bool_]) -> "ReferenceCosts":
        """Return the costs of the episodes of `which` [N] alone."""
        schedules = tuple(one for one, chosen in zip(self.schedules, which, strict=True) if chosen)
        return ReferenceCosts(self.starts[which], self.idle[which], self.optimum[which], schedules)

    def pop(self, cost: Array) -> float:
        """Return the share of the perfect-foresight saving that costs [N] earn, all episodes together.

        Raises:
            DataError: The optimum saves nothing in these episodes.
        """
        saving = float((self.idle - self.optimum).sum())
        if saving <= NOTHING * float(np.abs(self.idle).sum()):
            raise DataError("the optimum saves nothing in these episodes: PoP has no meaning")
        return float((self.idle - np.asarray(cost)).sum()) / saving


def reference_costs(grid: Grid, dataset: Dataset, starts: NDArray[np.int64], hours: int) -> ReferenceCosts:
    """Compute the reference costs of the episodes of `hours` hours from the rows `starts` [N]: one linear program each."""
    rows = np.asarray(starts) + np.arange(hours)[:, None]
    loads, before = dataset.load[rows], dataset.previous_load[starts]
    schedules = tuple(optimum(grid, load, first) for load, first in zip(loads.T, before, strict=True))
    idle = idle_cost(grid, loads, before).sum(axis=0)
    return ReferenceCosts(np.asarray(starts), idle, np.array([s.cost for s in schedules]), schedules)


@dataclass(frozen=True)
class Gaps:
    """1 - PoP of a policy, as the sum of three parts."""

    horizon: float  # lost by planning only some hours ahead, with perfect knowledge of them
    forecast: float  # lost in addition by the forecast's errors, with the same planning
    policy: float  # lost in addition by the policy; below 0 where it beats planning on that forecast


def gaps(perfect: float, planned: float, policy: float) -> Gaps:
    """Split 1 - PoP, given the PoP of MPC on perfect knowledge, of MPC on the policy's forecast, and of the policy itself."""
    return Gaps(1 - perfect, perfect - planned, planned - policy)


def cost_parts(grid: Grid, trace: Trajectory) -> dict[str, Array]:
    """Split the costs of a rollout, [N] each in $ per MW of reference peak; their sum is the cost."""
    ramps = np.diff(trace.residual, axis=0, prepend=trace.previous_load[None])
    missing = grid.each("energy")[:, None] - trace.charge
    return {
        "generation": grid.generation_cost(trace.residual).sum(axis=0),
        "ramps": grid.ramp * np.abs(ramps).sum(axis=0),
        "wear": (grid.each("wear")[:, None] * np.maximum(trace.power, 0)).sum(axis=(0, 1)),
        "owing": (grid.each("holding")[:, None] * missing).sum(axis=(0, 1)),
        "shed": grid.shed * trace.shed.sum(axis=0),
    }
