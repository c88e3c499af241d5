"""Scores of point and quantile load forecasts, in plain numpy.

Users of load forecasts compare them by these scores. Arrays are [hour] in MWh, quantiles [hour, level]; hours without an actual are NaN and do not count. An empty selection gives NaN.
Sources: Hyndman and Koehler 2006 (MASE), Gneiting and Raftery 2007 (CRPS as the integral of the pinball loss), Hong et al. 2016 (MAPE and
pinball in load forecasting).
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
WEEK = 168  # hours: the season of MASE's naive forecast


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


def _mean(x: Floats) -> float:
    x = x[np.isfinite(x)]
    return float(x.mean()) if x.size else float("nan")
