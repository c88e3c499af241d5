"""A region's hourly net load in units of its reference peak, from measured hours or made up by `synthetic`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rl.errors import DataError

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Hours = NDArray[np.datetime64]

WEEK = 168  # hours


@dataclass(frozen=True)
class Region:
    """One balancing authority or region, hour by hour."""

    name: str
    hours: Hours  # [hour] datetime64[h], UTC, hour-ending, without a hole
    load: Array  # [hour] net load in reference peaks; a guess where not `known`
    known: Mask  # [hour] measured
    peak: float  # MW: the highest net load measured in the reference period
    offset: int  # hours from UTC to local standard time

    @property
    def local(self) -> Hours:
        """[hour] the hour's start in local standard time, datetime64[h]: its date is the operating day."""
        return self.hours + np.timedelta64(self.offset - 1, "h")


def region(
    name: str,
    hours: Hours,
    demand: Array,
    *,
    offset: int,
    reference_end: str,
    wind: Array | None = None,
    solar: Array | None = None,
) -> Region:
    """Measured hours → `Region`: net load is demand less wind and solar, demand alone where neither is given.

    `demand`, `wind`, `solar` [hour] in MWh, NaN where nothing was measured. An hour that lacks any of them is filled with the
    same hour a week before, so that no fill looks ahead. The reference peak is taken before `reference_end` (`YYYY-MM-DDTHH`,
    exclusive). DataError where hours are not consecutive or nothing was measured in the reference period.
    """
    hours = np.asarray(hours).astype("datetime64[h]")
    if len(hours) < 2 or (np.diff(hours) != np.timedelta64(1, "h")).any():
        raise DataError(f"{name}: hours must follow one another without a hole")
    net = np.array(demand, float)
    for less in (wind, solar):
        if less is not None:
            net -= np.asarray(less, float)
    known = np.isfinite(net)
    reference = known & (hours < np.datetime64(reference_end, "h"))
    if not reference.any():
        raise DataError(f"{name}: nothing was measured before {reference_end}, so there is no reference peak")
    peak = float(net[reference].max())
    if peak <= 0:
        raise DataError(f"{name}: the highest net load before {reference_end} is {peak} MW")
    return Region(name, hours, _filled(net, known) / peak, known, peak, offset)


def _filled(values: Array, known: Mask) -> Array:
    """Gaps take the same hour a week before, itself filled if need be; before any such hour, the first one measured."""
    filled = values.copy()
    first = values[int(np.argmax(known))]
    for hour in np.flatnonzero(~known):
        filled[hour] = filled[hour - WEEK] if hour >= WEEK else first
    return filled


def synthetic(hours: int = 3 * 8760, *, seed: int = 0, name: str = "SYNTHETIC") -> tuple[Region, Array]:
    """A made-up region from 2017-01-01 on and a day-ahead forecast of it in reference peaks, [hour]; no hour of it is real.

    Days, weeks and years are sines; weather is a slow random walk that pulls back to its mean, and so is the forecast's error.
    """
    rng = np.random.default_rng(seed)
    t = np.arange(hours)
    day, year = 2 * np.pi * t / 24, 2 * np.pi * t / 8766
    shape = 0.60 - 0.12 * np.cos(day - 0.8) - 0.05 * np.cos(2 * day) - 0.06 * np.cos(2 * year)
    shape -= 0.04 * ((t // 24) % 7 >= 5)
    weather, error = _wander(rng, hours, hold=0.985, size=0.05), _wander(rng, hours, hold=0.95, size=0.02)
    stamps = np.datetime64("2017-01-01T00", "h") + t.astype("timedelta64[h]")
    load = np.maximum(shape + weather, 0.2)
    made = region(name, stamps, load, offset=-6, reference_end="2018-01-01T00")
    return made, made.load + error


def _wander(rng: np.random.Generator, hours: int, *, hold: float, size: float) -> Array:
    """An AR(1) path with standard deviation `size`, [hour]."""
    steps = rng.normal(0, size * np.sqrt(1 - hold**2), hours)
    path = np.empty(hours)
    last = 0.0
    for hour, step in enumerate(steps):
        last = path[hour] = hold * last + step
    return path
