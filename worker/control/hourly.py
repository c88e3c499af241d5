"""Forecasts re-issued every hour (`worker.forecast.hourly`) as control reads them: [hour, horizon, …] in reference peaks.

In `rl.env` row t is decided at the start of hour t, which is the end of hour t - 1, the issue hour.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ingest.errors import UsageError
from ingest.publication import DEFAULT, Publication
from rl.env.forecasts import Forecast
from rl.env.grid import Array
from rl.env.region import Region
from worker.forecast.hourly.authority import make_authority
from worker.forecast.hourly.forecasts import HourlyForecasts, hourly_medians

SHARES = (0.3, 1.0)  # between which the distances of paths are scaled


def reissued(one: Region, demand: Array, issued: Array, horizon: int, publication: Publication = DEFAULT) -> Forecast:
    """Forecast a region's demand at every hour, [hour, horizon, 1] in reference peaks; NaN where nothing can be said.

    Args:
        one: Its name and hours.
        demand: MWh, NaN where not measured, [hour].
        issued: A day-ahead forecast of the demand, which is corrected by what is known of its errors; MWh, NaN where missing, [hour].
        horizon: Hours ahead.
        publication: When the demand and the day-ahead forecast are published.
    """
    first = int(one.hours[0].astype(np.int64))
    hours = make_authority(one.name, first, demand, issued, publication)
    return aligned(hours.calendar.hours[: hours.issues], one, hourly_medians(hours, horizon=horizon)[..., None])


def paths_of(table: Mapping[str, HourlyForecasts], one: Region, horizon: int) -> tuple[Forecast, Forecast]:
    """Return the median [hour, horizon, 1] and the paths [hour, horizon, path] of a region from the table of `coordinator forecast --hourly`.

    Raises:
        UsageError: The table lacks the region, so many hours ahead, or paths.
    """
    found = table.get(one.name)
    if found is None or found.median.shape[1] < horizon or not found.paths.shape[2]:
        raise UsageError(
            f"hourly forecasts: no paths of {one.name} {horizon} hours ahead. `coordinator forecast --hourly FILE --region {one.name} "
            f"--horizon {horizon} --paths 20 --period …` writes them"
        )
    median, paths = (aligned(found.issues, one, each[:, :horizon]) for each in (found.median[..., None], found.paths))
    return median, paths


def moved(median: Forecast, paths: Forecast, better: Forecast, share: Forecast) -> Forecast:
    """Move paths [hour, horizon, path] from their median to a better one, and scale their distances by `share` of its error.

    Both come from `rl.env.forecasts.blended`. Where there are no paths, the better median is each of them.
    """
    distances = np.where(np.isfinite(paths), paths - median, 0)
    return better + distances * share.clip(*SHARES)


def aligned(issues: NDArray[np.int64], one: Region, values: NDArray[np.float32]) -> Forecast:
    """Convert values of each issue hour, MWh [issue, horizon, …], to rows of a region, in reference peaks; NaN in other hours."""
    out = np.full((len(one.hours), *values.shape[1:]), np.nan, np.float32)
    row = issues + 1 - int(one.hours[0].astype(np.int64))
    inside = (row >= 0) & (row < len(out))
    out[row[inside]] = values[inside] / np.float32(one.peak)
    return out
