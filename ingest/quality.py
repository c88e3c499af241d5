"""Outlier detection: the validity reasons and the outlier rule. No I/O, deterministic, conservative.

The rule applies to one respondent-year, and masks only values that physics or their neighbours contradict. The tests run
in this order; each ignores the values that an earlier one masked:

1. *bounds*: |value| above 1,000,000 MWh (the Lower 48's record hour is about 760,000) or above 4 × the respondent's level;
   demand or its forecast below zero; any other variable above both 20 × its own peak and 0.2 × the level.
   A variable's peak is the 99th percentile of its |value|; the respondent's level is the largest of its variables' peaks.
2. *level* (demand and its forecast): outside 0.3…2.5 × the median of the same hour of day over the 7 days before and after, with
   at least 5 of them valid. On the recorded series of 2015–2019, storms and heat waves stay within 0.6…1.8.
3. *spike*: a single hour beyond the range of its valid neighbours (two hours either side, at least one on each side) by more than
   - demand and forecast: 0.2 × that median, 3 robust deviations (1.4826 × MAD) of the same hours, and 50 MWh,
   - net generation: its peak; fuels, interchange, others: 2 × theirs; and 100 MWh, and 1 % of the level.

Pumping, night-time station service and negative interchange are legal and never masked for their sign.
"""

from collections.abc import Mapping

import numpy as np

from ingest.array_types import Bools, Floats, Int64s

# index = code; only the loader uses "imputed"
REASONS = ("ok", "missing", "null", "outlier", "imputed", "unasked")
OK, MISSING, NULL, OUTLIER, IMPUTED, UNASKED = range(6)

LOADS = ("D", "DF")
BOUND = 1e6  # MWh
LEVEL_BOUND = 4.0  # × the respondent's level
PEAK_BOUND, PEAK_BOUND_SHARE = 20.0, 0.2  # × the variable's peak; × the respondent's level
LEVEL_LOW, LEVEL_HIGH = 0.3, 2.5  # × the same-hour median
DAYS = 7  # on each side, for the same-hour median
MIN_VALID = 5  # same-hour values that a test needs
NEIGHBOURS = 2  # hours on each side, for a spike
SPIKE_SHARE, SPIKE_MADS, SPIKE_FLOOR = 0.2, 3.0, 50.0  # loads; MWh
SPIKE_PEAKS, SPIKE_PEAKS_NET = 2.0, 1.0  # × the variable's peak; the latter for net generation
PEAK_FLOOR, PEAK_SHARE = 100.0, 0.01  # MWh; × the respondent's level


def outliers(columns: Mapping[str, Floats]) -> dict[str, Bools]:
    """Return the cells that the rule masks: variable → bool [hour].

    Args:
        columns: variable → float64 [hour], MWh, NaN where there is no value; all over the same hours.
    """
    peaks = {variable: _peak(values) for variable, values in columns.items()}
    level = max(peaks.values(), default=0.0)
    with np.errstate(invalid="ignore"):
        return {variable: _outliers(variable, values, peaks[variable], level) for variable, values in columns.items()}


def _outliers(variable: str, values: Floats, peak: float, level: float) -> Bools:
    bad = np.abs(values) > min(BOUND, max(LEVEL_BOUND * level, PEAK_FLOOR))
    if variable in LOADS:
        bad |= values < 0
        left = np.where(bad, np.nan, values)
        middle = _median(_same_hours(left, np.arange(left.size)))
        bad |= (np.abs(left - middle) > SPIKE_FLOOR) & ((left < LEVEL_LOW * middle) | (left > LEVEL_HIGH * middle))
        left = np.where(bad, np.nan, values)
        excess = _excess(left)
        lone = np.flatnonzero(excess > SPIKE_FLOOR)
        near = _same_hours(left, lone)
        middle = _median(near)
        spread = 1.4826 * _median(np.abs(near - middle[:, None]))
        bad[lone] |= excess[lone] > np.maximum(SPIKE_SHARE * middle, SPIKE_MADS * spread)
        return bad
    bad |= np.abs(values) > max(PEAK_BOUND * peak, PEAK_BOUND_SHARE * level, PEAK_FLOOR)
    left = np.where(bad, np.nan, values)
    peaks = SPIKE_PEAKS_NET if variable == "NG" else SPIKE_PEAKS
    return bad | (_excess(left) > max(peaks * peak, PEAK_FLOOR, PEAK_SHARE * level))


def _peak(values: Floats) -> float:
    """Return the 99th percentile of |value|, an actual value of the series; 0 where there is none."""
    valid = np.abs(values[~np.isnan(values)])
    rank = (valid.size - 1) * 99 // 100
    return float(np.partition(valid, rank)[rank]) if valid.size else 0.0


def _same_hours(values: Floats, at: Int64s) -> Floats:
    """Return the values of the same hour of day within `DAYS` of each hour `at`: [at, 2 DAYS + 1], NaN where there is none."""
    reach = 24 * DAYS
    return np.pad(values, reach, constant_values=np.nan)[at[:, None] + np.arange(0, 2 * reach + 1, 24)]


def _median(near: Floats) -> Floats:
    """Return the median of the valid values of each row; NaN with fewer than `MIN_VALID` of them."""
    ordered = np.sort(near, axis=-1)  # NaN last
    counts = np.count_nonzero(~np.isnan(ordered), axis=-1)[:, None]
    low = np.take_along_axis(ordered, np.maximum(counts - 1, 0) // 2, -1)
    high = np.take_along_axis(ordered, np.minimum(counts, ordered.shape[-1] - 1) // 2, -1)
    return np.where(counts >= MIN_VALID, (low + high) / 2, np.nan)[:, 0]


def _excess(values: Floats) -> Floats:
    """Return the distance of each hour beyond the range of its valid neighbours; NaN where one side has none."""
    padded = np.pad(values, NEIGHBOURS, constant_values=np.nan)
    before = [padded[shift : shift + values.size] for shift in range(NEIGHBOURS)]
    after = [padded[NEIGHBOURS + shift : NEIGHBOURS + shift + values.size] for shift in range(1, NEIGHBOURS + 1)]
    high = np.fmax.reduce([*before, *after])
    low = np.fmin.reduce([*before, *after])
    both = ~np.isnan(np.fmax.reduce(before)) & ~np.isnan(np.fmax.reduce(after))
    return np.where(both, np.maximum(values - high, low - values), np.nan)
