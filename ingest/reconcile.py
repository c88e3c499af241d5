"""Balance across authorities: where reports disagree, and the least change after which they agree. No I/O, deterministic.

Two checks: demand against generation less exports of each authority, and the flow of each line as its two ends report it. The
reconciled values minimise Σ (change / uncertainty)² an hour, subject to D = Σ fuels − Σ flows of each authority and one flow a
line. The uncertainty of a value is 1 % of it, of a flow also half of what its ends differ by; nuclear output is taken as exact: it is flat and
metered, and would otherwise take a share of other errors. A value of 0, such as solar at night, stays. An authority is balanced in
the hours in which its demand (where it has any), fuels and flows are all there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ingest.array_types import Bools, Floats, Int8s

SHARE = 0.01  # of a value: its uncertainty, and the tolerance of a check
LEAST = 1e-3  # MWh: uncertainty of a value of 0; a change of it is below that
FLOOR = 1.5  # MWh: tolerance of a check of whole numbers
CHUNK = 24 * 28  # hours solved at once: bounds the memory of one matrix an hour
EXACT = "NG.NUC"

Series = Mapping[str, Floats]  # variable → float64 [hour], MWh; NaN where there is no valid value


@dataclass(frozen=True)
class Disagreement:
    """How far two reports of one quantity differ over a period, in MWh."""

    subject: str  # "CISO", or "CISO-PACW" for a line
    hours: int  # in which both reports have a value
    over: int  # of them, beyond tolerance: the larger of 1.5 MWh and 1 %
    mean_abs: float
    max_abs: float


def disagreements(series: Mapping[str, Series]) -> tuple[list[Disagreement], list[Disagreement]]:
    """Return the checks of authorities (D against NG − TI) and of lines (a flow against its counterpart), worst first."""
    authorities = [
        _compare(code, own["D"], own["NG"] - own["TI"])
        for code, own in series.items()
        if {"D", "NG", "TI"} <= own.keys()
    ]
    lines = [
        _compare(f"{here}-{there}", series[here][f"ID.{there}"], -series[there][f"ID.{here}"])
        for here, there in _lines(series)
        if f"ID.{there}" in series[here] and f"ID.{here}" in series.get(there, {})
    ]
    return tuple(sorted(found, key=lambda one: (-one.mean_abs, one.subject)) for found in (authorities, lines))  # type: ignore[return-value]


def _compare(subject: str, one: Floats, other: Floats) -> Disagreement:
    off = np.abs(one - other)
    both = ~np.isnan(off)
    if not both.any():
        return Disagreement(subject, 0, 0, 0.0, 0.0)
    over = off[both] > np.maximum(FLOOR, SHARE * np.abs(one[both]))
    return Disagreement(
        subject, int(both.sum()), int(over.sum()), round(float(off[both].mean()), 3), float(off[both].max())
    )


def _lines(series: Mapping[str, Series]) -> list[tuple[str, str]]:
    """Return each line once, (here, there): an end that has no series comes second."""
    found: dict[tuple[str, str], None] = {}
    for here, own in series.items():
        for there in (name.removeprefix("ID.") for name in own if name.startswith("ID.")):
            ends = (here, there) if there not in series or here < there else (there, here)
            found[ends] = None
    return sorted(found)


@dataclass(frozen=True)
class _Term:
    """One unknown of the problem: it counts +1 for `plus` and −1 for `minus` (an index; -1: none)."""

    plus: int
    minus: int
    value: Floats  # [hour] MWh; NaN: unknown in this hour
    deviation: Floats  # [hour] its uncertainty


def reconcile(series: Mapping[str, Series], months: Int8s) -> dict[str, dict[str, Floats]]:
    """Return reconciled values of authorities, by code and variable.

    Args:
        series: code → its series, all over the same hours; authorities only, because a region counts the same energy again.
        months: int8 [hour]; a fuel without any value in a month was not reported then, and counts as 0.

    Returns:
        D, NG, TI, each NG.<fuel> and ID.<neighbour>, float64 [hour]; NaN where a value is not known. NG and TI are sums.
    """
    codes = sorted(series)
    at = {code: index for index, code in enumerate(codes)}
    terms: dict[tuple[str, str], _Term] = {}
    for code in codes:
        own = series[code]
        if "D" in own:
            terms[code, "D"] = _Term(at[code], -1, own["D"], _deviation(own["D"]))
        for name in _fuels(own):
            value = _reported(own[name], months)
            terms[code, name] = _Term(-1, at[code], value, _deviation(value) * (name != EXACT))
    for here, there in _lines(series):
        terms[here, f"ID.{there}"] = _flow(at, series, here, there)
    solved = _solve(list(terms.values()), len(codes))
    found: dict[str, dict[str, Floats]] = {code: {} for code in codes}
    for (code, name), value in zip(terms, solved, strict=True):
        found[code][name] = value
        other = name.removeprefix("ID.")
        if name.startswith("ID.") and other in found:
            found[other][f"ID.{code}"] = -value
    for own in found.values():
        fuels, flows = ([own[name] for name in sorted(own) if name.startswith(prefix)] for prefix in ("NG.", "ID."))
        if fuels:
            own["NG"] = np.sum(fuels, axis=0)
        if flows:
            own["TI"] = np.sum(flows, axis=0)
    return found


def _fuels(own: Series) -> Sequence[str]:
    """Return the variables of generation: the fuels, or net generation where none is reported."""
    return sorted(name for name in own if name.startswith("NG.")) or [name for name in ("NG",) if name in own]


def _reported(values: Floats, months: Int8s) -> Floats:
    there = np.bincount(months[~np.isnan(values)], minlength=13) > 0
    return np.where(there[months], values, 0.0)


def _deviation(values: Floats) -> Floats:
    return np.maximum(SHARE * np.abs(values), LEAST)


def _flow(at: Mapping[str, int], series: Mapping[str, Series], here: str, there: str) -> _Term:
    """Return the flow of a line: the mean of what its ends report, or what one of them does."""
    nothing = np.full(next(iter(series[here].values())).shape, np.nan)
    out = series[here].get(f"ID.{there}", nothing)
    back = -series.get(there, {}).get(f"ID.{here}", nothing)
    both = ~np.isnan(out) & ~np.isnan(back)
    value = np.where(both, (out + back) / 2, np.where(np.isnan(out), back, out))
    differ = np.where(both, (out - back) / 2, 0.0)
    return _Term(at[here], at.get(there, -1), value, np.hypot(_deviation(value), differ))


def _solve(terms: Sequence[_Term], count: int) -> list[Floats]:
    """Return the values of the terms after the least change that balances each authority in each hour it can be."""
    value, spread = (np.stack([getattr(term, name) for term in terms]) for name in ("value", "deviation"))
    known = ~np.isnan(value)
    plus, minus = (np.array([getattr(term, name) for term in terms]) for name in ("plus", "minus"))
    complete = np.ones((count, value.shape[1]), np.bool_)
    for ends in (plus, minus):
        for term in np.flatnonzero(ends >= 0):
            complete[ends[term]] &= known[term]
    result = value.copy()
    for low in range(0, value.shape[1], CHUNK):
        part = slice(low, low + CHUNK)
        result[:, part] -= _change(value[:, part], spread[:, part] ** 2, complete[:, part], plus, minus)
    return list(result)


def _change(value: Floats, variance: Floats, complete: Bools, plus: np.ndarray, minus: np.ndarray) -> Floats:
    """Return what is taken from each value [term, hour]: W⁻¹Aᵀ (A W⁻¹ Aᵀ)⁻¹ A value, over the complete authorities of an hour."""
    count, hours = complete.shape
    matrix, error = np.zeros((hours, count, count)), np.zeros((hours, count))
    for term in range(len(value)):
        ends = [(int(end), sign) for end, sign in ((plus[term], 1.0), (minus[term], -1.0)) if end >= 0]
        for end, sign in ends:
            active = complete[end]
            error[active, end] += sign * value[term, active]
            for other, its in ends:
                both = active & complete[other]
                matrix[both, end, other] += sign * its * variance[term, both]
    idle = np.arange(count)
    matrix[:, idle, idle] = np.where(complete.T, matrix[:, idle, idle], 1.0)
    multiplier = np.linalg.solve(matrix, error[..., None])[..., 0].T  # [authority, hour]
    multiplier = np.where(complete, multiplier, 0.0)
    change = np.zeros_like(value)
    for term in range(len(value)):
        for end, sign in ((plus[term], 1.0), (minus[term], -1.0)):
            if end >= 0:
                change[term] += sign * multiplier[end] * variance[term]
    return np.where(np.isnan(change), 0.0, change)
