"""Calibrate forecast intervals by how often the intervals of the last eight weeks covered the outcome.

Normalised conformal prediction (Papadopoulos, Gammerman, Vovk 2008) over a sliding window: the intervals of a forecaster that was
trained years ago are too narrow or too wide where a respondent's errors have changed since. The median does not change.
"""

import numpy as np
from numpy.typing import NDArray

from worker.forecast.model.network import MEDIAN, QUANTILES

WINDOW = 56 * 24  # hours before the issue time whose outcomes count
MIN_OUTCOMES = 7 * 24  # with fewer, nothing is corrected
LOW, HIGH = QUANTILES.index(0.1), QUANTILES.index(0.9)
COVERAGE = QUANTILES[HIGH] - QUANTILES[LOW]  # share of the hours that the interval between the two should cover
BOUNDS = (0.5, 2.0)  # of the factor on the widths


def calibrated(
    quantiles: NDArray[np.float64], outcome: NDArray[np.floating], hours: NDArray[np.int64], issue: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Multiply the distances of quantiles from the median by one factor an issue time.

    Args:
        quantiles: [hour, level], in the unit of `outcome`.
        outcome: [hour], NaN where not measured.
        hours: [hour], consecutive hour numbers.
        issue: [hour], the hour number up to which outcomes are known to the hour's forecast.

    Returns:
        Corrected quantiles [hour, level].
    """
    median = quantiles[:, MEDIAN]
    reach = np.where(outcome >= median, quantiles[:, HIGH] - median, median - quantiles[:, LOW])
    ratio = np.abs(outcome - median) / reach  # at most 1 where the interval covers the outcome
    factor = np.ones(len(hours))
    for moment in np.unique(issue):
        end = int(moment) + 1 - int(hours[0])
        past = ratio[max(end - WINDOW, 0) : max(end, 0)]
        past = past[np.isfinite(past)]
        if len(past) >= MIN_OUTCOMES:
            factor[issue == moment] = np.clip(np.quantile(past, COVERAGE), *BOUNDS)
    return median[:, None] + factor[:, None] * (quantiles - median[:, None])
