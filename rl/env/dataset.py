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
MOST = 10.0  # reference peaks; a forecast whose median is above is in other units
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
    first_hours: tuple[
        int, ...
    ] = ()  # [region] of its first row: number since 1970, UTC, hour-ending; () in files of earlier versions
    peaks: tuple[float, ...] = ()  # [region] reference peak, MW; () in files of earlier versions

    def starts(self, hours: int) -> NDArray[np.int64]:
        """Return the rows [start] at which an episode of `hours` hours can start: all of it measured and in one region."""
        found = []
        for first, last in self.spans:
            if last - first >= hours:
                gaps = np.concatenate([[0], np.cumsum(~self.known[first:last])])
                found.append(first + np.flatnonzero(gaps[hours:] == gaps[:-hours]))
        return np.concatenate(found) if found else np.zeros(0, np.int64)

    def measured_starts(self, hours: int) -> NDArray[np.int64]:
        """Return `starts`.

        Raises:
            DataError: There is none; the message has the longest run of measured hours.
        """
        found = self.starts(hours)
        if not len(found):
            runs = np.diff(np.flatnonzero(np.concatenate([[True], ~self.known, [True]]))) - 1
            longest = min(int(runs.max(initial=0)), max((last - first for first, last in self.spans), default=0))
            raise DataError(
                f"the dataset has no {hours} consecutive measured hours in one region: its longest run is {longest} h of "
                f"{len(self.load)}. Name a longer period, or shorter episodes with hours={longest or 'N'}"
            )
        return found

    def episodes(self, hours: int, every: int = 1) -> NDArray[np.int64]:
        """Return the first rows of measured episodes that follow one another, region by region, from the first local midnight; one in `every`.

        An episode that ended in the afternoon would make every store return to rest in the peak hours.

        Raises:
            DataError: No hours in one region are measured that long.
        """
        measured, found = self.measured_starts(hours), []
        for first, last in self.spans:
            rows = np.arange(first + int(np.argmax(self.clock[first:last] == 0)), last - hours + 1, hours)
            found.append(rows[np.isin(rows, measured)][::every])
        return np.concatenate(found)

    def region_of(self, row: int) -> int:
        """Return the position in `regions` of a row's region."""
        return int(np.searchsorted([last for _, last in self.spans], row, side="right"))

    def time_of(self, row: int) -> str:
        """Return a row's hour, UTC, hour-ending, `YYYY-MM-DDTHH`; "" where the dataset's file does not have it."""
        if not self.first_hours:
            return ""
        at = self.region_of(row)
        return str(np.datetime64(self.first_hours[at] + int(row) - self.spans[at][0], "h"))

    def row_of(self, time: str, region: str = "") -> int:
        """Return the row of an hour, `YYYY-MM-DDTHH`, UTC, hour-ending; `region`: by default the only one.

        Raises:
            DataError: There is no such region or hour.
        """
        name = region or (self.regions[0] if len(self.regions) == 1 else "")
        if name not in self.regions:
            raise DataError(f"region {name!r}: choose {' or '.join(self.regions)}")
        if not self.first_hours:
            raise DataError("the dataset's file is of an earlier version, without times: name a row")
        at = self.regions.index(name)
        first, last = self.spans[at]
        row = first + int(hour_of(time).astype(np.int64)) - self.first_hours[at]
        if not first <= row < last:
            raise DataError(f"{name} has {self.time_of(first)} to {self.time_of(last - 1)}, not {time}")
        return row

    def gather(self, forecasts: Sequence[Forecast]) -> Forecast:
        """Convert other forecasts of the same regions, [hour, horizon, feature] each in reference peaks, to [row, horizon, feature].

        Raises:
            DataError: A forecast has too few hours, another number of dimensions, or values in other units.
        """
        if len(forecasts) != len(self.regions):
            raise DataError(
                f"{len(forecasts)} forecasts for the regions {', '.join(self.regions)}: give one each, in this order"
            )
        for name, forecast, origin, (first, last) in zip(
            self.regions, forecasts, self.origins, self.spans, strict=True
        ):
            _check_forecast(name, forecast, origin + last - first)
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
        DataError: A region lacks some of the hours, or the forecasts differ in shape, or the regions' loads in when they are published, or
            the period has no hour.
    """
    begins, ends = hour_of(start), hour_of(end)
    if begins >= ends:
        raise DataError(f"start {start} must be before end {end}, which is the hour after the last")
    if len({None if f is None else f.shape[1:] for f in forecasts}) != 1 or len(regions) != len(forecasts):
        raise DataError("each region needs one forecast, all with the same horizon and number of features")
    if len({region.lag for region in regions}) > 1:
        raise DataError("the loads of all regions must be published equally late")
    parts, spans, origins, row = [], [], [], 0
    for region, forecast in zip(regions, forecasts, strict=True):
        first, last = (int(np.searchsorted(region.hours, when)) for when in (begins, ends))
        if first < 1 or last - first != (ends - begins).astype(int):
            raise DataError(
                f"{region.name}: has {region.hours[0]} to {region.hours[-1]}; needed are {start} and the hour before, to {end}"
            )
        if forecast is not None:
            if len(forecast) != len(region.load):
                raise DataError(f"{region.name}: the forecast has {len(forecast)} hours, the region {len(region.load)}")
            _check_forecast(region.name, forecast, len(region.load))
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
        tuple(int(r.hours[origin].astype(np.int64)) for r, origin in zip(regions, origins, strict=True)),
        tuple(float(r.peak) for r in regions),
    )


def hour_of(text: str) -> np.datetime64:
    """Return the hour that a text names.

    Raises:
        DataError: The text is no time.
    """
    try:
        return np.datetime64(text, "h")
    except (ValueError, TypeError):
        raise DataError(f"{text!r} is no hour: write YYYY-MM-DDTHH, UTC") from None


def _check_forecast(name: str, forecast: Forecast, hours: int) -> None:
    if np.ndim(forecast) != 3 or len(forecast) < hours:
        raise DataError(
            f"{name}: a forecast of shape {np.shape(forecast)}; needed is [hour, horizon, feature] with {hours} hours, the region's"
        )
    if not forecast.shape[1] or not forecast.shape[2]:
        return
    size = np.abs(forecast[:, 0, 0])
    if (size := size[np.isfinite(size)]).size and np.median(size) > MOST:
        raise DataError(
            f"{name}: half of the forecast is above {np.median(size):,.0f} reference peaks. Divide MW by the region's peak: forecast / region.peak"
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
