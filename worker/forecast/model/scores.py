"""Scores of point and quantile load forecasts, in plain numpy.

Users of load forecasts compare them by these scores. Arrays are [hour] in MWh, quantiles [hour, level]; hours without an actual are NaN and do not count. An empty selection gives NaN.
Sources: Hyndman and Koehler 2006 (MASE), Gneiting and Raftery 2007 (CRPS as the integral of the pinball loss), Hong et al. 2016 (MAPE and
pinball in load forecasting), Diebold and Mariano 1995 (equal accuracy of two forecasts), Gneiting and Raftery 2007 (energy score), Scheuerer and
Hamill 2015 (variogram score).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
WEEK = 168  # hours: the season of MASE's naive forecast
LAGS = 14  # days over which losses of a forecast are taken to depend on each other: its biases last for weeks


class DieboldMariano(NamedTuple):
    """Test of equal accuracy; positive where the second forecast is better. NaN and 1 where there is nothing to test."""

    statistic: float
    p: float  # two-sided


def mae(actual: Floats, forecast: Floats) -> float:
    """Return the mean absolute error, MWh; both [hour]."""
    return _mean(np.abs(actual - forecast))


def skill(actual: Floats, forecast: Floats, reference: Floats) -> float:
    """Return 1 - MAE / MAE of the reference, over the hours that both forecast; all [hour]."""
    both = np.isfinite(actual) & np.isfinite(forecast) & np.isfinite(reference)
    return 1 - mae(actual[both], forecast[both]) / mae(actual[both], reference[both]) if both.any() else float("nan")


def mape(actual: Floats, forecast: Floats) -> float:
    """Return the mean absolute percentage error, as a share of the actual; both [hour]."""
    return _mean(np.abs(actual - forecast) / np.abs(actual))


def peak_mape(actual: Floats, forecast: Floats, day: NDArray[np.int64]) -> float:
    """Return the MAPE of each day's hour of highest actual demand.

    Days that lack an hour's actual or forecast do not count.

    Args:
        actual: [hour].
        forecast: [hour].
        day: [hour] number of the hour's day.
    """
    errors = []
    for d in np.unique(day):
        a, f = actual[day == d], forecast[day == d]
        if np.isfinite(a).all() and np.isfinite(f).all():
            peak = int(np.argmax(a))
            errors.append(abs(a[peak] - f[peak]) / abs(a[peak]))
    return float(np.mean(errors)) if errors else float("nan")


def mase(actual: Floats, forecast: Floats, history: Floats) -> float:
    """Return the MAE over that of the weekly naive forecast on `history` [hours before]; the others [hour]."""
    return mae(actual, forecast) / _mean(np.abs(history[WEEK:] - history[:-WEEK]))


def pinball(actual: Floats, quantiles: Floats, levels: tuple[float, ...]) -> float:
    """Return the mean pinball loss over hours and levels, MWh; `quantiles` [hour, level]."""
    miss = actual[:, None] - quantiles
    level = np.array(levels)
    return _mean(np.maximum(level * miss, (level - 1) * miss))


def crps(actual: Floats, quantiles: Floats, levels: tuple[float, ...]) -> float:
    """Return twice the integral of the pinball loss over the levels, MWh; `quantiles` [hour, level].

    The integral is by trapezoids between the levels given. The tails beyond the outer levels are left out, so it is a lower
    bound; compare it only at the same levels.
    """
    miss = actual[:, None] - quantiles
    level = np.array(levels)
    loss = np.maximum(level * miss, (level - 1) * miss)
    width = np.diff(level)
    return _mean(2 * ((loss[:, 1:] + loss[:, :-1]) / 2 * width).sum(axis=1))


def coverage(actual: Floats, low: Floats, high: Floats) -> float:
    """Return the share of hours whose actual lies in [low, high]."""
    known = np.isfinite(actual) & np.isfinite(low) & np.isfinite(high)
    return _mean(((actual >= low) & (actual <= high))[known].astype(float))


def energy(actual: Floats, paths: Floats) -> float:
    """Return the mean energy score of paths, MWh: CRPS of a whole course, by its Euclidean norm; lower is better.

    Args:
        actual: [issue, hour]; issues that lack an hour do not count.
        paths: [issue, hour, path], equally likely.
    """
    y, x = _complete(actual, paths)
    count = x.shape[-1]
    apart = np.zeros(len(y))
    for k in range(1, count):
        apart += np.linalg.norm(x[..., k:] - x[..., :-k], axis=1).sum(axis=-1)
    return _mean(np.linalg.norm(x - y[..., None], axis=1).mean(axis=-1) - apart / count**2)


def variogram(actual: Floats, paths: Floats, order: float = 0.5) -> float:
    """Return the mean variogram score of paths, MWh to the power of 2 · `order`, a pair of hours; lower is better.

    It sees wrong dependence between hours, to which the energy score is nearly blind. Pairs weigh by the inverse of their distance in the array.

    Args:
        actual: [issue, hour]; issues that lack an hour do not count.
        paths: [issue, hour, path], equally likely.
        order: power of the differences.
    """
    y, x = _complete(actual, paths)
    total, weights = np.zeros(len(y)), 0.0
    for lag in range(1, y.shape[1]):
        observed = np.abs(y[:, lag:] - y[:, :-lag]) ** order
        expected = (np.abs(x[:, lag:] - x[:, :-lag]) ** order).mean(axis=-1)
        total += np.square(observed - expected).sum(axis=1) / lag
        weights += observed.shape[1] / lag
    return _mean(total / weights) if weights else float("nan")


def _complete(actual: Floats, paths: Floats) -> tuple[Floats, Floats]:
    """Return the issues that have every hour, float64."""
    whole = np.isfinite(actual).all(axis=1) & np.isfinite(paths).all(axis=(1, 2))
    return actual[whole].astype(np.float64), paths[whole].astype(np.float64)


def daily_losses(actual: Floats, forecast: Floats, day: NDArray[np.int64]) -> tuple[NDArray[np.int64], Floats]:
    """Return the days with an error, and the mean absolute error of each, MWh; the arguments are [hour]."""
    known = np.isfinite(actual) & np.isfinite(forecast)
    days, where = np.unique(day[known], return_inverse=True)
    return days, np.bincount(where, np.abs(actual - forecast)[known]) / np.maximum(np.bincount(where), 1)


def diebold_mariano(difference: Floats, lags: int = LAGS) -> DieboldMariano:
    """Test whether a difference of losses has mean zero (Diebold and Mariano 1995).

    Losses of consecutive days depend on each other, so the variance of the mean is Newey and West's (1987) with Bartlett
    weights; the statistic is compared with Student's t of n - 1 degrees of freedom (Harvey, Leybourne and Newbold 1997).
    One value a day, not an hour: all hours of a local day are forecast at once.

    Args:
        difference: [day] loss of the first forecast less that of the second, in the order of days.
        lags: days after which losses count as independent.
    """
    from scipy.special import stdtr  # here: a rank of a training needs the other scores alone

    n = len(difference)
    if n < 2:
        return DieboldMariano(float("nan"), 1.0)
    centred = difference - difference.mean()
    covariances = [centred[lag:] @ centred[: n - lag] / n for lag in range(min(lags, n - 1) + 1)]
    weights = [2 * (1 - lag / (lags + 1)) for lag in range(len(covariances))]
    variance = covariances[0] + sum(w * c for w, c in zip(weights[1:], covariances[1:], strict=True))
    if variance <= 1e-24 * float(np.square(difference).mean()):
        return DieboldMariano(float("nan"), 1.0)
    statistic = float(difference.mean() / np.sqrt(variance / n))
    return DieboldMariano(statistic, float(2 * stdtr(n - 1, -abs(statistic))))


def _mean(x: Floats) -> float:
    x = x[np.isfinite(x)]
    return float(x.mean()) if x.size else float("nan")
