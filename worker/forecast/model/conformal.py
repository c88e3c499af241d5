"""Intervals that keep their promise: widths corrected by how often the intervals of the last eight weeks held.

Normalised conformal prediction (Papadopoulos, Gammerman, Vovk 2008) over a sliding window: a forecaster trained years ago is too sure, or not
sure enough, where a respondent's errors have changed since. The median stays as it is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from worker.forecast.model.network import MEDIAN, QUANTILES

WINDOW = 56 * 24  # hours before the issue time whose outcomes count
LEAST = 7 * 24  # outcomes without which nothing is corrected
LOW, HIGH = QUANTILES.index(0.1), QUANTILES.index(0.9)
SHARE = QUANTILES[HIGH] - QUANTILES[LOW]  # of hours that the interval between the two should hold
BOUNDS = (0.5, 2.0)  # of the factor


def calibrated(
    quantiles: NDArray[np.float64], outcome: NDArray[np.floating], hours: NDArray[np.int64], issue: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Quantiles [hour, level] with their distances from the median times one factor an issue time; the same unit as `outcome` [hour].

    hours: consecutive hour numbers; issue: the hour number up to which outcomes are known to each hour's forecast; outcomes are NaN
    where not measured.
    """
    middle = quantiles[:, MEDIAN]
    reach = np.where(outcome >= middle, quantiles[:, HIGH] - middle, middle - quantiles[:, LOW])
    ratio = np.abs(outcome - middle) / reach  # at most 1 where the interval held
    factor = np.ones(len(hours))
    for moment in np.unique(issue):
        end = int(moment) + 1 - int(hours[0])
        past = ratio[max(end - WINDOW, 0) : max(end, 0)]
        past = past[np.isfinite(past)]
        if len(past) >= LEAST:
            factor[issue == moment] = np.clip(np.quantile(past, SHARE), *BOUNDS)
    return middle[:, None] + factor[:, None] * (quantiles - middle[:, None])
