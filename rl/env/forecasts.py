"""Forecasts that a controller has, each as float32 [hour, horizon, feature] in reference peaks.

Row t, horizon h is the forecast of the net load of hour t + h made at the start of hour t: it depends on the load that
is published by then, up to hour t - 1 - `Region.lag`, and on nothing later (tests/unit/rl/test_forecasts.py changes it and compares). Only `oracle` knows the future. Near the
end of the series, where hour t + h does not exist, the series' last hour replaces it.
"""

import numpy as np
from numpy.typing import NDArray

from rl.env.region import WEEK, Array, Region
from rl.errors import DataError

Forecast = NDArray[np.float32]
DAY = 24  # hours
ISSUE_HOUR = 10  # o'clock on the day before: EIA-930 has the day of a day-ahead forecast, not its hour; an assumption
NEWEST = 25  # hours whose errors `corrected` uses, the newest that are published
LAGS = (47, 48, 49, 72, 96, 120, 144, 167, 168, 169)  # hours back of the other errors that it uses
FAR = 6  # hours ahead
RIDGE = 3e-3  # of a regressor's own sum of squares
BLEND_DAYS = 14  # over which two forecasts are compared


def persistence(region: Region, horizon: int) -> Forecast:
    """Repeat yesterday's hour: the last known load of the same hour of the day, [hour, horizon, 1]."""
    back = DAY * (
        1 + (np.arange(horizon) + region.lag) // DAY
    )  # hours to the last known hour with the same hour of the day
    return _gather(region.load, _targets(region, horizon) - back)


def oracle(region: Region, horizon: int) -> Forecast:
    """Return the true load, [hour, horizon, 1]."""
    return _gather(region.load, np.minimum(_targets(region, horizon), len(region.load) - 1))


def day_ahead(region: Region, issued: Array, horizon: int, issue: NDArray[np.int64] | None = None) -> Forecast:
    """Return the operators' day-ahead forecast as it was known, [hour, horizon, 1].

    An hour whose forecast is not issued yet takes the forecast of the same hour on the last day whose forecast is; a missing
    value, the load of the last such hour.

    Args:
        region: Its hours and loads.
        issued: EIA's DF, in reference peaks, NaN where missing, [hour].
        horizon: Hours ahead.
        issue: [hour] number of the hour (since 1970, UTC) at whose end the hour's forecast is issued; rising. By default
            `issue_times`, which knows no daylight saving.

    Raises:
        DataError: `issued` or `issue` does not have the region's hours.
    """
    issue = issue_times(region) if issue is None else issue
    if issued.shape != region.load.shape or issue.shape != region.load.shape:
        raise DataError(
            f"{region.name}: the day-ahead forecast has {len(issued)} hours, its issue times {len(issue)}, "
            f"the region {len(region.load)}"
        )
    begins = region.hours.astype(np.int64)[:, None] - 1  # the end of the last hour whose load is known
    source = np.minimum(_targets(region, horizon), len(region.load) - 1)
    while (late := (source >= 0) & (issue[source] > begins)).any():
        source = np.where(late, source - DAY, source)
    given = _gather(np.where(np.isfinite(issued), issued, np.nan), source)
    return np.where(np.isfinite(given), given, persistence(region, horizon))


def issue_times(region: Region) -> NDArray[np.int64]:
    """Return for each hour when its day-ahead forecast is issued: `ISSUE_HOUR` o'clock standard time on the day before, [hour].

    The number is that of the hour that ends then, since 1970, UTC.
    """
    midnight = region.local.astype(np.int64) // DAY * DAY - region.offset
    return midnight - DAY + ISSUE_HOUR


def corrected(region: Region, point: Forecast, fit_end: str) -> Forecast:
    """Correct `point` [hour, horizon, 1] by its known errors: a linear regression by horizon and hour of the day.

    Fitted on hours before `fit_end` (with the hour of the day before and after, for more samples) by least squares with a small
    ridge. Regressors: the errors of the hours and days before (`NEWEST`, `LAGS`), the season; from `FAR` hours on, where `point` may know no
    more than the last day, the load of one and two weeks before the target less `point`, and the target's day of the week.
    A missing error counts as 0.

    Raises:
        DataError: An hour of the day was never measured before `fit_end`.
    """
    clock = region.local.astype(np.int64) % DAY
    missed = np.where(region.known, region.load - point[:, 0, 0], np.nan)
    lags = (*range(1 + region.lag, 1 + region.lag + NEWEST), *LAGS)
    errors = np.stack([np.concatenate([np.full(lag, np.nan), missed[:-lag]]) for lag in lags], axis=1)
    usable = np.isfinite(errors).all(axis=1)
    errors = np.nan_to_num(errors)
    year = 2 * np.pi * region.local.astype(np.int64) / 8766
    common = np.column_stack([errors, np.sin(year), np.cos(year), np.ones(len(year))])
    target = _targets(region, point.shape[1])
    weeks = [region.load[np.maximum(target - back, 0)] - point[..., 0] for back in (WEEK, 2 * WEEK)]
    day = (region.local.astype(np.int64)[:, None] + np.arange(point.shape[1])) // DAY % 7
    error, used = _errors(region, point, fit_end)
    out = point[..., 0].astype(float)

    def far(at: NDArray[np.int64], ahead: int) -> Array:
        return np.column_stack([*(week[at, ahead] for week in weeks), np.eye(7)[day[at, ahead], 1:]])

    for hour in range(DAY):
        rows = np.flatnonzero(clock == hour)
        near = np.flatnonzero(usable & np.isin(clock, [(hour - 1) % DAY, hour, (hour + 1) % DAY]) & used.any(axis=1))
        seen, shown = common[near], common[rows]
        whole, count = seen.T @ seen, seen.shape[1]
        for ahead in range(point.shape[1]):
            fit = used[near, ahead]
            if not fit.any():
                raise DataError(
                    f"{region.name}: no forecast error of horizon {ahead} at {hour}:00 is known before {fit_end}"
                )
            lost, outcome = seen[~fit], np.where(fit, error[near, ahead], 0)
            products, right = whole - lost.T @ lost, seen.T @ outcome
            if ahead >= FAR:
                more = far(near, ahead) * fit[:, None]
                both = seen.T @ more
                products = np.block([[products, both], [both.T, more.T @ more]])
                right = np.concatenate([right, more.T @ outcome])
            share = np.linalg.solve(products + np.diag(RIDGE * np.diag(products) + 1e-9), right)
            out[rows, ahead] += shown @ share[:count]
            if ahead >= FAR:
                out[rows, ahead] += far(rows, ahead) @ share[count:]
    return out.astype(np.float32)[..., None]


def with_quantiles(region: Region, point: Forecast, fit_end: str, levels: tuple[float, ...]) -> Forecast:
    """Add to `point` [hour, horizon, 1] the quantiles of its errors before `fit_end`, by horizon and hour of the day.

    Returns:
        float32 [hour, horizon, level], rising in level.

    Raises:
        DataError: An hour and horizon has no error before `fit_end`.
    """
    error, used = _errors(region, point, fit_end)
    clock = region.local.astype(np.int64) % DAY
    out = np.empty((*point.shape[:2], len(levels)), np.float32)
    for hour in range(DAY):
        rows = np.flatnonzero(clock == hour)
        for ahead in range(point.shape[1]):
            seen = error[rows, ahead][used[rows, ahead]]
            if not len(seen):
                raise DataError(
                    f"{region.name}: no forecast error of horizon {ahead} at {hour}:00 is known before {fit_end}"
                )
            out[rows, ahead] = point[rows, ahead] + np.quantile(seen, levels)
    return out


def blended(region: Region, first: Forecast, second: Forecast) -> tuple[Forecast, Forecast]:
    """Blend two forecasts [hour, horizon, 1] by how they fared: the weight of least squared error over the last `BLEND_DAYS`, by horizon.

    A forecast that was good for years can fail for weeks, as where operators repair their own.

    Returns:
        The blend, [hour, horizon, 1], and its error as a share of that of `first` over those days, root mean squares, [hour, horizon, 1].
        Where one of the forecasts is missing, the other stands, with a share of 1.
    """
    target = np.minimum(_targets(region, first.shape[1]), len(region.load) - 1)
    usable = region.known[target] & np.isfinite(first[..., 0]) & np.isfinite(second[..., 0])
    error = np.where(usable, region.load[target] - first[..., 0], 0)
    apart = np.where(usable, second[..., 0] - first[..., 0], 0)
    squares, products, distances = (_recent_sums(each, region.lag) for each in (error**2, error * apart, apart**2))
    weight = np.divide(products, distances, out=np.zeros_like(products), where=distances > 0).clip(0, 1)
    left = squares - 2 * weight * products + weight**2 * distances
    share = np.sqrt(np.divide(left, squares, out=np.ones_like(left), where=squares > 0).clip(0, None))
    mixed = first[..., 0] + weight * (second[..., 0] - first[..., 0])
    mixed = np.where(np.isfinite(first[..., 0]), np.where(np.isfinite(mixed), mixed, first[..., 0]), second[..., 0])
    return mixed.astype(np.float32)[..., None], share.astype(np.float32)[..., None]


def _recent_sums(values: Array, lag: int) -> Array:
    """Sum [hour, horizon], which is known `lag` hours after hour + horizon, over the `BLEND_DAYS` that are known at each hour."""
    out, window = np.zeros_like(values), BLEND_DAYS * DAY
    for ahead in range(values.shape[1]):
        sums = np.concatenate([np.zeros(ahead + 2 + lag), values[:, ahead].cumsum()])[: len(values) + 1]
        out[:, ahead] = sums[1:] - np.concatenate([np.zeros(window), sums[1:]])[: len(values)]
    return out


def _errors(region: Region, point: Forecast, fit_end: str) -> tuple[Array, NDArray[np.bool_]]:
    """Return load less forecast, and where both are before `fit_end` and measured: [hour, horizon] each."""
    target = _targets(region, point.shape[1])
    inside = np.minimum(target, len(region.load) - 1)
    before = int(np.searchsorted(region.hours, np.datetime64(fit_end, "h")))
    used = (target < min(before, len(region.load))) & region.known[inside]
    return region.load[inside] - point[..., 0], used


def _targets(region: Region, horizon: int) -> NDArray[np.int64]:
    return np.arange(len(region.load))[:, None] + np.arange(horizon)


def _gather(values: Array, at: NDArray[np.int64]) -> Forecast:
    """Take values at the hours `at`; an hour before the series' start takes the same hour of its first day."""
    at = np.where(at < 0, at % DAY, at)
    return values[at].astype(np.float32)[..., None]
