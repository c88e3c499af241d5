"""Energy balance by month: demand against generation less exports, and totals against their parts. No I/O."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ingest.array_types import Floats, Int8s

ROUNDING = 0.5  # MWh: every term is reported as a whole number
SHARE = 0.01  # of the checked quantity
# Total, prefix of its parts, name of the check: fuels, flows to neighbours, sub-areas.
PARTS = (("NG", "NG.", "NG-fuels"), ("TI", "ID.", "TI-neighbours"), ("D", "D.", "D-areas"))


@dataclass(frozen=True)
class MonthBalance:
    """One check over one month, in MWh. An hour is checked where every term has a valid value."""

    check: str  # "D-(NG-TI)", or a name of `PARTS`
    month: int  # 1…12
    hours: int  # checked
    over: int  # hours beyond tolerance: the larger of 0.5 MWh per term for rounding, and 1 % of the quantity
    mean_abs: float
    max_abs: float


def balances(values: Mapping[str, Floats], months: Int8s) -> tuple[MonthBalance, ...]:
    """Run the checks whose terms the respondent has, for each month with a checked hour.

    A part (a fuel, say) without any value in a month was not reported then and counts as zero; otherwise an hour needs all parts.

    Args:
        values: variable → float64 [hour], MWh; NaN where masked.
        months: int8 [hour], 1…12.

    Returns:
        One row per check and month.
    """
    found: list[MonthBalance] = []
    if {"D", "NG", "TI"} <= values.keys():
        error = values["D"] - (values["NG"] - values["TI"])
        found += _by_month("D-(NG-TI)", error, values["D"], np.full(13, 3 * ROUNDING), months)
    for whole, prefix, check in PARTS:
        parts = [column for variable, column in values.items() if variable.startswith(prefix)]
        if whole not in values or not parts:
            continue
        total = np.zeros_like(values[whole])
        terms = np.full(13, ROUNDING)
        for column in parts:
            reported = np.bincount(months[~np.isnan(column)], minlength=13) > 0
            terms += ROUNDING * reported
            total += np.where(reported[months], column, 0.0)
        found += _by_month(check, values[whole] - total, values[whole], terms, months)
    return tuple(found)


def _by_month(check: str, error: Floats, size: Floats, floor: Floats, months: Int8s) -> list[MonthBalance]:
    off = np.abs(error)
    with np.errstate(invalid="ignore"):
        over = off > np.maximum(floor[months], SHARE * np.abs(size))
    rows = []
    for month in range(1, 13):
        checked = (months == month) & ~np.isnan(off)
        if checked.any():
            part = off[checked]
            mean, largest = round(float(part.mean()), 3), float(part.max())
            rows.append(MonthBalance(check, month, int(part.size), int(over[checked].sum()), mean, largest))
    return rows
