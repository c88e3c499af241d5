"""Coherent paths: scenarios of the coming hours that belong together, with the marginal quantiles of the intervals.

A Gaussian copula by local hour of issue: the correlations over horizons of past errors, of that hour and of one on either side. Normal draws with these
correlations give only the *ranks* of the paths at each horizon; the values are quantiles at levels (rank + 1/2) / paths, as in the Schaake shuffle (Clark et
al. 2004; Schefzik et al. 2013). So each hour's values are as calibrated as its intervals, at any number of paths. The draws depend on
(seed, authority, issue hour) alone.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from ingest.array_types import Floats, Int64s
from worker.forecast.hourly.inputs import DAY
from worker.forecast.hourly.intervals import NORMAL, Shape

NUGGET = 1e-3  # added to the diagonal, so that a factor exists
FEWEST = 14  # rows of a local hour and its neighbours that correlations need
CLIP = 3.0  # standard deviations at which errors are clipped


def factors(shape: Shape) -> NDArray[np.float32]:
    """Return the Cholesky factors of the correlations over steps, [local hour, step, step]."""
    deviation = np.sqrt(np.nanmean(np.square(shape.errors), axis=0))
    scores = np.clip(shape.errors / deviation, -CLIP, CLIP)
    whole = np.isfinite(scores).all(axis=1)
    steps = scores.shape[1]
    products, counts = np.zeros((DAY, steps, steps)), np.zeros(DAY)
    for hour in range(DAY):
        own = scores[whole & (shape.clock == hour)]
        products[hour], counts[hour] = own.T @ own, len(own)
    every = _correlation(products.sum(axis=0)) if counts.sum() >= FEWEST else np.eye(steps)
    found = np.empty((DAY, steps, steps), np.float32)
    for hour in range(DAY):
        near = [(hour - 1) % DAY, hour, (hour + 1) % DAY]
        own = _correlation(products[near].sum(axis=0)) if counts[near].sum() >= FEWEST else every
        found[hour] = np.linalg.cholesky((own + NUGGET * np.eye(steps)) / (1 + NUGGET))
    return found


def _correlation(products: Floats) -> Floats:
    deviation = np.sqrt(np.maximum(np.diag(products), 1e-12))
    found: Floats = products / np.outer(deviation, deviation)
    np.fill_diagonal(found, 1.0)
    return found


def ranks(
    factor: NDArray[np.float32], clock: Int64s, issues: Int64s, respondent: str, paths: int, seed: int
) -> NDArray[np.int64]:
    """Return the rank of each path at each step, [issue, step, path].

    Args:
        factor: as `factors` returns them.
        clock: local hour of each issue, [issue].
        issues: hour numbers, [issue].
        respondent: EIA code.
        paths: how many.
        seed: of the draws.
    """
    steps = factor.shape[-1]
    name = zlib.crc32(respondent.encode())
    draws = np.empty((len(issues), steps, paths), np.float32)
    for row, issue in enumerate(issues):
        bits = np.random.Philox(key=(seed << 64) + (name << 32) + int(issue))
        draws[row] = np.random.Generator(bits).standard_normal((steps, paths), np.float32)
    return np.argsort(np.argsort(factor[clock] @ draws, axis=-1), axis=-1)


def paths_of(quantiles: NDArray[np.float32], rank: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the values of paths, MWh, [issue, step, path].

    Args:
        quantiles: [issue, step, level] of QUANTILES.
        rank: [issue, step, path].
    """
    from scipy.special import ndtri  # here: only paths need it

    paths = rank.shape[-1]
    at = ndtri((np.arange(paths) + 0.5) / paths)
    left = np.clip(np.searchsorted(NORMAL, at) - 1, 0, len(NORMAL) - 2)
    share = ((at - NORMAL[left]) / (NORMAL[left + 1] - NORMAL[left])).astype(np.float32)
    values = (
        quantiles[..., left] * (1 - share) + quantiles[..., left + 1] * share
    )  # beyond the outer levels: on the same line
    return np.take_along_axis(values, rank, axis=-1)
