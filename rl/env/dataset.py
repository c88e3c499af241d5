"""Datasets of the environment: load, features and mask of every hour of every region, one row an hour."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rl.env.forecasts import Forecast
from rl.env.grid import Array, Grid
from rl.env.region import Region
from rl.errors import DataError

KNOTS_AHEAD = 2  # hours for which a row has the distances to the knots of the merit order
# Reference peaks below and above a knot at which its distance saturates: about what the fleet can move.
REACH = (-0.03, 0.05)
CLOCK = ("sin hour", "cos hour", "sin week", "cos week", "sin year", "cos year")
NEWEST = 3  # hours whose loads a row shows, the newest that are published


@dataclass(frozen=True)
class Dataset:
    """Rows of one or several regions, one region after another; the hours of a region are consecutive."""

    load: Array  # [row] net load, reference peaks
    previous_load: Array  # [row] net load of the hour before
    reported_load: (
        Array  # [row] the same as it is known at the hour's start: measured, or forecast where it is not published yet
    )
    known: NDArray[np.bool_]  # [row] this hour and the one before were measured
    features: NDArray[np.float32]  # [row, feature] known at the hour's start
    feature_names: tuple[str, ...]  # [feature]
    regions: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]  # [region] first row, last row + 1
    origins: tuple[int, ...]  # [region] hour of the region's series that is its first row
    clock: NDArray[np.int64]  # [row] hour of the day at the hour's start, local standard time
    month: NDArray[np.int64]  # [row] 0…11, local standard time

    def starts(self, hours: int) -> NDArray[np.int64]:
        """Return the rows [start] at which an episode of `hours` hours can start: all of it measured and in one region."""
        found = []
        for first, last in self.spans:
            if last - first >= hours:
                gaps = np.concatenate([[0], np.cumsum(~self.known[first:last])])
                found.append(first + np.flatnonzero(gaps[hours:] == gaps[:-hours]))
        return np.concatenate(found) if found else np.zeros(0, np.int64)

    def gather(self, forecasts: Sequence[Forecast]) -> Forecast:
        """Convert other forecasts of the same regions, [hour, horizon, feature] each, to [row, horizon, feature]."""
        pairs = zip(forecasts, self.origins, self.spans, strict=True)
        return np.concatenate([f[origin : origin + last - first] for f, origin, (first, last) in pairs])


def build_dataset(
    regions: Sequence[Region], forecasts: Sequence[Forecast | None], start: str, end: str, grid: Grid | None = None
) -> Dataset:
    """Build a dataset of every region with its forecast.

    Features: the newest three loads that are published and that of 24 hours ago, hour, week and year as sines, then the forecast, flattened. With `grid`, also
    what a learner would have to find out by itself about the first feature: its change from the present hour, the merit order's
    price at it, and its distance to every knot of the merit order. Features of hours before `start` are real.

    Args:
        regions: In this order.
        forecasts: One a region, [hour, horizon, feature], or None for no forecast.
        start: First hour, `YYYY-MM-DDTHH`.
        end: The hour after the last.
        grid: Of the merit order.

    Raises:
        DataError: A region lacks some of the hours, or the forecasts differ in shape, or the regions' loads in when they are published.
    """
    if len({None if f is None else f.shape[1:] for f in forecasts}) != 1 or len(regions) != len(forecasts):
        raise DataError("each region needs one forecast, all with the same horizon and number of features")
    if len({region.lag for region in regions}) > 1:
        raise DataError("the loads of all regions must be published equally late")
    parts, spans, origins, row = [], [], [], 0
    for region, forecast in zip(regions, forecasts, strict=True):
        first, last = (int(np.searchsorted(region.hours, np.datetime64(when, "h"))) for when in (start, end))
        if first < 1 or last - first != (np.datetime64(end, "h") - np.datetime64(start, "h")).astype(int):
            raise DataError(
                f"{region.name}: has {region.hours[0]} to {region.hours[-1]}; needed are {start} and the hour before, to {end}"
            )
        if forecast is not None and len(forecast) != len(region.load):
            raise DataError(f"{region.name}: the forecast has {len(forecast)} hours, the region {len(region.load)}")
        parts.append(_rows(region, forecast, np.arange(first, last), grid))
        spans.append((row, row + last - first))
        origins.append(first)
        row += last - first
    load, before, reported, known, features, clock, month = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    shape = forecasts[0].shape[1:] if forecasts[0] is not None else (0, 0)
    ahead = [f"forecast +{h}.{f}" for h in range(shape[0]) for f in range(shape[1])]
    if grid is not None and shape[0]:
        ahead += [f"change +{h}" for h in range(1, shape[0])] + [f"price +{h}" for h in range(shape[0])]
        ahead += [f"above {knot:g} +{h}" for h in range(min(KNOTS_AHEAD, shape[0])) for knot in _knots(grid)]
    names = (*(f"load -{back}" for back in _loads_back(regions[0])), *CLOCK, *ahead)
    return Dataset(
        load,
        before,
        reported,
        known,
        features,
        names,
        tuple(r.name for r in regions),
        tuple(spans),
        tuple(origins),
        clock,
        month,
    )


def _loads_back(region: Region) -> tuple[int, ...]:
    """Return how many hours ago each load is that a row shows."""
    return (*range(1 + region.lag, 1 + region.lag + NEWEST), 24)


def _rows(region: Region, forecast: Forecast | None, at: NDArray[np.int64], grid: Grid | None) -> tuple[NDArray, ...]:
    local = region.local[at].astype(np.int64)
    # The epoch, 1970-01-01, was a Thursday: the phase of the week does not matter to a policy that learns it.
    turns = 2 * np.pi * np.stack([local / 24, local / 168, local / 8766])
    clock = np.stack([np.sin(turns), np.cos(turns)], axis=1).reshape(6, -1)
    past = [region.load[np.maximum(at - back, 0)] for back in _loads_back(region)]
    ahead = np.zeros((len(at), 0)) if forecast is None else forecast[at].reshape(len(at), -1)
    shown = [np.stack([*past, *clock], axis=1), ahead]
    if grid is not None and forecast is not None:
        shown.append(_merit(grid, forecast[at, :, 0].astype(float)))
    features = np.concatenate(shown, axis=1).astype(np.float32)
    known = region.known[at] & region.known[at - 1]
    month = region.local[at].astype("datetime64[M]").astype(np.int64) % 12
    return region.load[at], region.load[at - 1], _reported(region, forecast, at), known, features, local % 24, month


def _reported(region: Region, forecast: Forecast | None, at: NDArray[np.int64]) -> Array:
    """Return the load of the hour before each of `at`, as it is known; where it is not published, the forecast made at its own start."""
    if not region.lag:
        return region.load[at - 1]
    if forecast is None or not forecast.shape[1]:
        return region.load[np.maximum(at - 1 - region.lag, 0)]
    return forecast[at - 1, 0, 0].astype(float)


def _knots(grid: Grid) -> Array:
    return np.array([grid.must_run, *(bound for bound, _ in grid.merit_order)])


def _merit(grid: Grid, ahead: Array) -> Array:
    """Compute the features of a forecast [row, horizon]: changes from the first hour, log of the price, distances to knots.

    The price is that of a merit order with smoothed steps: interpolated between the middles of its steps.
    """
    knots = _knots(grid)
    prices = np.log([price for _, price in grid.merit_order])
    price = np.interp(ahead, (knots[1:] + knots[:-1]) / 2, prices)
    near = (ahead[:, :KNOTS_AHEAD, None] - knots).clip(*REACH).reshape(len(ahead), -1)
    return np.concatenate([ahead[:, 1:] - ahead[:, :1], price, near], axis=1)
