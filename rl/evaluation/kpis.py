"""Key performance indicators of a grid, from a rollout: ramps, peaks, load factor, response, cycles."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rl.env.grid import Array, Grid
from rl.errors import DataError
from rl.evaluation.score import Trajectory

WEEK = 168  # hours
# Rows of a report's table: field of `Kpis` → its label, and the factor to the label's unit.
LABELS = {
    "ramp_absolute": ("ramps, up and down, GW", 1e-3),
    "ramp_up_only": ("ramps, up only, GW", 1e-3),
    "load_factor": ("load factor", 1.0),
    "peak": ("peak, MW", 1.0),
    "daily_peak": ("mean daily peak, MW", 1.0),
    "unserved": ("unserved, MWh", 1.0),
    "curtailed": ("curtailed, MWh", 1.0),
    "shifted": ("load shifted, GWh", 1e-3),
    "rebound": ("its rebound, GWh", 1e-3),
    "shed": ("load shed, MWh", 1.0),
    "cvar_week": ("mean cost of the worst tenth of weeks, M$", 1e-6),
}


@dataclass(frozen=True)
class Kpis:
    """Indicators of all episodes together; energy and power in the region's own MW. Ramps are between hours of one episode."""

    cost: float  # $
    ramp_absolute: float  # Σ |G_t - G_{t-1}|, up and down, MW
    ramp_up_only: float  # Σ max(G_t - G_{t-1}, 0), MW
    steepest_up: float  # MW in one hour
    load_factor: float  # mean over peak of residual load; 1 is flat
    peak: float  # highest residual load, MW
    daily_peak: float  # mean of each 24 hours' highest, MW
    unserved: float  # MWh above capacity
    curtailed: float  # MWh below must-run
    cycles: Mapping[str, float]  # by store: energy taken out over energy, in full cycles
    shifted: float  # MWh of shiftable load called
    rebound: float  # MWh that it took back later
    shed: float  # MWh
    cut: float  # MWh that the projection cut from the stores' actions
    cvar_week: float  # $: mean cost of the worst tenth of weeks, at least one


def kpis(grid: Grid, trace: Trajectory, peak: float, *, shiftable: str = "shiftable", tail: float = 0.1) -> Kpis:
    """Compute the indicators of a rollout.

    Args:
        grid: Of the rollout.
        trace: The rollout.
        peak: MW of the region's reference peak.
        shiftable: Name of the store that is the shiftable load.
        tail: Share of the weeks in `cvar_week`.

    Raises:
        DataError: The episodes are shorter than a day.
    """
    hours, count = trace.cost.shape
    if hours < 24:
        raise DataError(f"episodes of {hours} hours: daily peaks need 24")
    names = [s.name for s in grid.stores]
    residual = trace.residual
    ramps = np.diff(residual, axis=0, prepend=trace.previous_load[None])
    given, taken = np.maximum(trace.power, 0).sum(axis=(0, 2)), np.maximum(-trace.power, 0).sum(axis=(0, 2))
    days = residual[: hours // 24 * 24].reshape(-1, 24, count).max(axis=1)
    out = given / grid.each("discharge_efficiency")
    shift = names.index(shiftable) if shiftable in names else None
    return Kpis(
        cost=trace.cost.sum() * peak,
        ramp_absolute=np.abs(ramps).sum() * peak,
        ramp_up_only=np.maximum(ramps, 0).sum() * peak,
        steepest_up=ramps.max() * peak,
        load_factor=residual.mean() / residual.max(),
        peak=residual.max() * peak,
        daily_peak=days.mean() * peak,
        unserved=np.maximum(residual - grid.capacity, 0).sum() * peak,
        curtailed=np.maximum(grid.must_run - residual, 0).sum() * peak,
        cycles=dict(zip(names, (out / grid.each("energy")).tolist(), strict=True)),
        shifted=0.0 if shift is None else given[shift] * peak,
        rebound=0.0 if shift is None else taken[shift] * peak,
        shed=trace.shed.sum() * peak,
        cut=trace.clipped_energy.sum() * peak,
        cvar_week=cvar(weekly(trace.cost), tail) * peak,
    )


def weekly(cost: Array) -> Array:
    """Sum cost [hour, N] by whole weeks, [week × N]; episodes shorter than a week, each as a whole."""
    hours, count = cost.shape
    if hours < WEEK:
        return cost.sum(axis=0)
    return cost[: hours // WEEK * WEEK].reshape(-1, WEEK, count).sum(axis=1).ravel()


def cvar(costs: Array, tail: float) -> float:
    """Return the mean of the worst `tail` (a share) of the costs [n], at least one of them; in their unit.

    Conditional value at risk; Rockafellar and Uryasev 2000.
    """
    worst = np.sort(costs)[::-1][: max(1, round(tail * len(costs)))]
    return float(worst.mean())
