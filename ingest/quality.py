"""Outlier detection: the validity reasons and the outlier rule. No I/O, deterministic, conservative.

The rule applies to one respondent-year, and masks only values that physics or their neighbours contradict. Demand, that of sub-areas, and its forecast
have a rule of their own (`ingest/load_quality.py`), which also flags values as suspect and keeps them. For the other variables:

1. *bounds*: |value| above 1,000,000 MWh (the Lower 48's record hour is about 760,000) or above 4 × the respondent's level, or above both
   20 × its own peak and 0.2 × the level. A variable's peak is the 99th percentile of its |value|; the respondent's level is the largest of its
   variables' peaks.
2. *spike*: a single hour beyond the range of its valid neighbours (two hours either side, at least one on each side) by more than its peak for
   net generation, 2 × its peak for fuels, interchange and others; and 100 MWh, and 1 % of the level.

Pumping, night-time station service and negative interchange are legal and never masked for their sign.
"""

from collections.abc import Mapping

import numpy as np

from ingest.array_types import Bools, Floats, Int8s
from ingest.load_quality import excess, judge_load

# index = code; only the loader uses "imputed"
REASONS = ("ok", "missing", "null", "outlier", "imputed", "unasked", "suspect")
OK, MISSING, NULL, OUTLIER, IMPUTED, UNASKED, SUSPECT = range(7)
MEASURED = (OK, SUSPECT)  # the value is the source's; "suspect" is kept, and flagged

OTHER = {"D": "DF", "DF": "D"}  # demand and its forecast, each judged beside the other
BOUND = 1e6  # MWh
LEVEL_BOUND = 4.0  # × the respondent's level
PEAK_BOUND, PEAK_BOUND_SHARE = 20.0, 0.2  # × the variable's peak; × the respondent's level
SPIKE_PEAKS, SPIKE_PEAKS_NET = 2.0, 1.0  # × the variable's peak; the latter for net generation
PEAK_FLOOR, PEAK_SHARE = 100.0, 0.01  # MWh; × the respondent's level


def judge(columns: Mapping[str, Floats]) -> dict[str, Int8s]:
    """Judge the values of one respondent-year.

    Args:
        columns: variable → float64 [hour], MWh, NaN where there is no value; all over the same hours.

    Returns:
        Variable → int8 [hour]: `OUTLIER` for a value to mask, `SUSPECT` for one to keep and flag, `OK` for the others and where there is none.
    """
    peaks = {variable: _peak(values) for variable, values in columns.items()}
    level = max(peaks.values(), default=0.0)
    bound = min(BOUND, max(LEVEL_BOUND * level, PEAK_FLOOR))
    codes = {}
    for variable, values in columns.items():
        if variable in OTHER or variable.startswith("D."):  # a sub-area's demand has no forecast
            verdict = judge_load(values, columns.get(OTHER.get(variable, "")), bound)
            codes[variable] = np.where(verdict.masked, OUTLIER, np.where(verdict.suspect, SUSPECT, OK)).astype(np.int8)
        else:
            masked = _outliers(variable, values, peaks[variable], level, bound)
            codes[variable] = np.where(masked, OUTLIER, OK).astype(np.int8)
    return codes


def _outliers(variable: str, values: Floats, peak: float, level: float, bound: float) -> Bools:
    with np.errstate(invalid="ignore"):
        bad = np.abs(values) > min(bound, max(PEAK_BOUND * peak, PEAK_BOUND_SHARE * level, PEAK_FLOOR))
        peaks = SPIKE_PEAKS_NET if variable == "NG" else SPIKE_PEAKS
        return bad | (excess(np.where(bad, np.nan, values)) > max(peaks * peak, PEAK_FLOOR, PEAK_SHARE * level))


def _peak(values: Floats) -> float:
    """Return the 99th percentile of |value|, an actual value of the series; 0 where there is none."""
    valid = np.abs(values[~np.isnan(values)])
    rank = (valid.size - 1) * 99 // 100
    return float(np.partition(valid, rank)[rank]) if valid.size else 0.0
