"""Key performance indicators of a grid, from a rollout: ramps, peaks, load factor, response, cycles, carbon, inertia.

Hourly data cannot show frequency. It allows the share of synchronous generation, and an estimate of the rate of change of
frequency (RoCoF) right after a stated contingency, from stated inertia constants.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rl.env.grid import Grid
from rl.errors import DataError
from rl.evaluation.score import Trajectory

Array = NDArray[np.float64]

# t CO2/MWh by EIA fuel code, US fleet averages from EIA's Electric Power Annual, rounded; others count as 0 at the stack.
CARBON = {"COL": 1.00, "NG": 0.41, "OIL": 0.95}
# Seconds of inertia at rated power. PROXY: mid-range textbook values (Kundur 1994, table 3.2); wind, solar and batteries have none.
INERTIA = {"NUC": 6.0, "COL": 4.0, "NG": 4.5, "OIL": 4.0, "WAT": 3.0, "GEO": 4.0, "OTH": 3.0, "PS": 3.0}
DISPATCHED = ("COL", "NG", "OIL")  # fuels that follow a change of residual load, each by its share in that hour
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


@dataclass(frozen=True)
class MixKpis:
    """Indicators that need generation by fuel."""

    carbon: float  # t CO2
    carbon_uncontrolled: float  # t CO2 of the generation without control
    synchronous_share: float  # of energy, mean of the hours
    lowest_synchronous_share: float
    rocof: float  # Hz/s: the worst hour's estimate for the stated contingency
    contingency: float  # MW


def mix_kpis(
    generation: Mapping[str, Array], change: Array, *, contingency: float, loading: float = 0.8, frequency: float = 60.0
) -> MixKpis:
    """Compute the indicators from generation by fuel. No command uses it: the recordings at hand have no generation by fuel.

    Coal, gas and oil follow the change, each by its share of the hour, but not below 0. RoCoF is
    frequency · contingency / (2 · kinetic energy), the kinetic energy being Σ inertia · generation / `loading` of the
    synchronous fuels: units online are assumed to run at `loading` of their rating (PROXY).

    Args:
        generation: EIA fuel code → MWh [hour].
        change: Of the residual load by control, G - L, MW [hour].
        contingency: MW.
        loading: Share of a unit's rating.
        frequency: Hz.

    Raises:
        DataError: There is no fuel, or one has other hours than `change`.
    """
    if not generation or any(np.shape(g) != np.shape(change) for g in generation.values()):
        raise DataError("generation by fuel: at least one fuel, each with an hour for every hour of the change")
    before = {fuel: np.maximum(np.asarray(g, float), 0) for fuel, g in generation.items()}
    movable = sum((before[fuel] for fuel in DISPATCHED if fuel in before), np.zeros(np.shape(change)))
    factor = np.maximum(0, 1 + np.divide(change, movable, out=np.zeros_like(movable), where=movable > 0))
    after = {fuel: g * factor if fuel in DISPATCHED else g for fuel, g in before.items()}
    total = sum(after.values(), np.zeros(np.shape(change)))
    turning = sum((after[fuel] for fuel in INERTIA if fuel in after), np.zeros(np.shape(change)))
    kinetic = sum(
        (INERTIA[fuel] * after[fuel] / loading for fuel in INERTIA if fuel in after), np.zeros(np.shape(change))
    )
    share = np.divide(turning, total, out=np.zeros_like(total), where=total > 0)
    lowest = float(kinetic.min())
    return MixKpis(
        carbon=_carbon(after),
        carbon_uncontrolled=_carbon(before),
        synchronous_share=float(share.mean()),
        lowest_synchronous_share=float(share.min()),
        rocof=frequency * contingency / (2 * lowest) if lowest > 0 else float("inf"),
        contingency=contingency,
    )


def _carbon(generation: Mapping[str, Array]) -> float:
    return float(sum(CARBON.get(fuel, 0.0) * g.sum() for fuel, g in generation.items()))
