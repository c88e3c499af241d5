"""Calibrate forecast intervals at every issue time by how often the intervals issued before covered the outcome.

Adaptive conformal inference (Gibbs and Candès 2021) as quantile tracking (Angelopoulos, Candès and Tibshirani 2023): the 50, 80 and 95%
intervals of a respondent each have a width, the logarithm of a factor on their distance from the median. Every outcome that becomes
known moves it: up by rate * share where the interval issued for that hour missed, down by rate * (1 - share) where it covered. What an
interval missed too often in some weeks is therefore made up for in the next ones, whatever the errors' distribution. The median does not
change. The 80% interval follows its misses fast, so that it covers in every month; the others slowly, as CRPS prefers.

The widths of an issue time come from replaying the `REPLAY` issue times before it, from the widths that the checkpoint saved at the end of its
validation hours. They are a function of the issue time alone: a forecast issued live has the intervals of a backtest.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ingest.array_types import Bools, Floats, Int64s
from worker.forecast.model.network import MEDIAN, QUANTILES

PAIRS = tuple((i, len(QUANTILES) - 1 - i) for i in reversed(range(MEDIAN)))  # levels of the 50, 80 and 95% intervals
MISSES = np.array([1 - (QUANTILES[high] - QUANTILES[low]) for low, high in PAIRS])  # share of hours outside
RATES = np.array([0.1, 0.8, 0.1])  # a day of misses; chosen on 2018
REPLAY = 84  # issue times; the slowest width has then forgotten most of where it started
WARM_UP = (REPLAY + 3) * 24  # hours before the first one forecast whose raw quantiles and outcomes the replay needs
BOUNDS = np.log([0.2, 5.0])  # of a width
DAY = 25  # hours at most from one issue time to the next


@dataclass(frozen=True)
class _Known:
    """What becomes known from one issue time to the next, [issue time, hour, ...]; nothing at the first."""

    ratio: Floats  # [.., pair]: 1 at the edge of the interval; NaN where not measured
    recent: Bools  # the hour's interval was issued one issue time before, otherwise two


def ratios(quantiles: Floats, outcome: Floats) -> NDArray[np.float64]:
    """Return how far from the median an outcome lies, in units of each interval's reach on its side.

    Args:
        quantiles: [hour, level], in the unit of `outcome`.
        outcome: [hour], NaN where not measured.

    Returns:
        [hour, pair]: at most 1 where the interval covers the outcome.
    """
    median = quantiles[:, MEDIAN]
    above = outcome >= median
    reach = [np.where(above, quantiles[:, high] - median, median - quantiles[:, low]) for low, high in PAIRS]
    return np.abs(outcome - median)[:, None] / np.stack(reach, axis=1)


def widths_after(ratio: Floats, hours: Int64s, issue: Int64s) -> NDArray[np.float64]:
    """Return the widths at the last issue time of a period, from a start at the model's own intervals.

    Args:
        ratio: [hour, pair], of `ratios`.
        hours: [hour], consecutive hour numbers.
        issue: [hour], the hour number up to which outcomes are known to the hour's forecast.

    Returns:
        Logarithms of the factors, [pair]; a checkpoint saves them.
    """
    moments = np.unique(issue)
    last = np.array([len(moments) - 1])
    return _replay(_known(ratio, hours, issue, moments), last, len(moments), np.zeros(len(PAIRS)))[0]


def calibrated(
    quantiles: NDArray[np.float64], outcome: Floats, hours: Int64s, issue: Int64s, start: Floats
) -> NDArray[np.float64]:
    """Multiply the distances of quantiles from the median by a factor an interval and issue time.

    Only outcomes up to an issue time enter the factors of its hours. Those of the first `WARM_UP` hours depend on where the hours begin.

    Args:
        quantiles: [hour, level], in the unit of `outcome`.
        outcome: [hour], NaN where not measured.
        hours: [hour], consecutive hour numbers.
        issue: [hour], the hour number up to which outcomes are known to the hour's forecast.
        start: [pair], widths that a replay begins with.

    Returns:
        Corrected quantiles [hour, level], ascending.
    """
    moments = np.unique(issue)
    known = _known(ratios(quantiles, outcome), hours, issue, moments)
    factor = np.exp(_replay(known, np.arange(len(moments)), REPLAY, start))[np.searchsorted(moments, issue)]
    median = quantiles[:, MEDIAN]
    wide = quantiles - median[:, None]
    for pair, (low, high) in enumerate(PAIRS):
        wide[:, [low, high]] *= factor[:, [pair]]
    return np.sort(median[:, None] + wide, axis=1)  # a fast interval may reach beyond a slow one


def _known(ratio: Floats, hours: Int64s, issue: Int64s, moments: Int64s) -> _Known:
    block = np.searchsorted(moments, hours)  # the first issue time that knows the hour
    inside = (block > 0) & (block < len(moments))
    at = block[inside], (hours - moments[np.maximum(block - 1, 0)] - 1)[inside]
    blocks = np.full((len(moments), DAY, len(PAIRS)), np.nan)
    blocks[at] = ratio[inside]
    recent = np.zeros((len(moments), DAY), bool)
    recent[at] = (np.searchsorted(moments, issue) == block - 1)[inside]
    return _Known(blocks, recent)


def _replay(known: _Known, ends: Int64s, length: int, start: Floats) -> NDArray[np.float64]:
    """Return the widths [end, pair] after the `length` issue times up to and with each of `ends`."""
    before = now = np.tile(np.asarray(start, np.float64), (len(ends), 1))
    for back in reversed(range(length)):
        at = np.maximum(ends - back, 0)
        ratio = known.ratio[at]
        issued = np.where(known.recent[at][..., None], now[:, None], before[:, None])
        missed = (ratio > np.exp(issued)).sum(axis=1) - MISSES * np.isfinite(ratio).sum(axis=1)
        before, now = now, np.clip(now + RATES * missed / 24, *BOUNDS)
    return now
