"""Balance across authorities: where reports disagree, and the least change after which they agree. No I/O, deterministic.

Two checks: demand against generation less exports of each authority, and the flow of each line as its two ends report it. The
reconciled values minimise Σ (change / uncertainty)² an hour, subject to D = Σ fuels − Σ flows of each authority and one flow a
line. The uncertainty of a value is 1 % of it, of a flow also half of what its ends differ by; nuclear output is taken as exact: it is flat and
metered, and would otherwise take a share of other errors. A value of 0, such as solar at night, is exact too. An authority is
balanced in the hours in which its own demand, fuels and flows are all valid, and keeps what was reported in all others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ingest.array_types import Bools, Floats, Int8s

SHARE = 0.01  # of a value: its uncertainty, and the tolerance of a check
LEFT = 1e-3  # MWh: an authority that is off by more after solving has nothing that may change
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
class Reconciled:
    """Values of authorities after the least change, and the hours in which they balance."""

    values: dict[str, dict[str, Floats]]  # code → variable → float64 [hour], MWh
    balanced: dict[str, Bools]  # code → bool [hour]; the values of other hours are those reported


@dataclass(frozen=True)
class _Term:
    """One unknown of the problem: it counts +1 for `plus` and −1 for `minus` (an index; -1: none)."""

    plus: int
    minus: int
    value: Floats  # [hour] MWh; NaN: unknown in this hour
    deviation: Floats  # [hour] its uncertainty


def reconcile(series: Mapping[str, Series], months: Int8s) -> Reconciled:
    """Return reconciled values of authorities.

    Args:
        series: code → its series, all over the same hours; authorities only, because a region counts the same energy again.
        months: int8 [hour]; a fuel without any value in a month was not reported then, and counts as 0.

    Returns:
        D, NG, TI, each NG.<fuel> and ID.<neighbour>; NaN where a value is not known. NG and TI are sums in balanced hours.
    """
    codes = sorted(series)
    at = {code: index for index, code in enumerate(codes)}
    terms: dict[tuple[str, str], _Term] = {}
    for code in codes:
        own = series[code]
        if "D" in own:
            terms[code, "D"] = _Term(at[code], -1, own["D"], _deviation(own["D"]))
        for name in _named(own, "NG."):
            value = _reported(own[name], months)
            terms[code, name] = _Term(-1, at[code], value, _deviation(value) * (name != EXACT))
    for here, there in _lines(series):
        terms[here, f"ID.{there}"] = _flow(at, series, here, there)
    able = np.stack([_able(series[code], months) for code in codes])
    solved, balanced = _solve(list(terms.values()), able)
    found: dict[str, dict[str, Floats]] = {code: {} for code in codes}
    for (code, name), value in zip(terms, solved, strict=True):
        found[code][name] = value
        other = name.removeprefix("ID.")
        if name.startswith("ID.") and other in found:
            found[other][f"ID.{code}"] = 0.0 - value  # not -value: 0 stays 0.0
    values = {code: _merged(series[code], found[code], balanced[at[code]]) for code in codes}
    return Reconciled(values, {code: balanced[at[code]] for code in codes})


def _merged(given: Series, solved: dict[str, Floats], balanced: Bools) -> dict[str, Floats]:
    """Return the solved values and their sums in balanced hours, and what was reported in all others."""
    if balanced.any():
        solved["NG"], solved["TI"] = (
            np.sum([solved[name] for name in _named(solved, prefix)], axis=0) for prefix in ("NG.", "ID.")
        )
    nothing = np.full(balanced.shape, np.nan)
    names = given.keys() | solved.keys() if balanced.any() else given.keys()
    return {name: np.where(balanced, solved.get(name, nothing), given.get(name, nothing)) for name in sorted(names)}


def lacking(own: Series) -> tuple[str, ...]:
    """Return what an authority has no value of, of all that balancing needs: demand, fuels, flows to neighbours."""
    demand = "D" in own or "TI" in own  # a generator alone reports TI with no demand
    parts = (("D", demand), ("fuels", bool(_named(own, "NG."))), ("flows", bool(_named(own, "ID."))))
    return tuple(part for part, there in parts if not there)


def _able(own: Series, months: Int8s) -> Bools:
    """Return the hours in which an authority's own demand, fuels and flows are all valid: bool [hour].

    A generator without demand has TI instead, which comes with demand. A fuel counts as 0 in a month without it only in hours
    that have another fuel: without any, fuels were not asked for.
    """
    if lacking(own):
        return np.zeros(months.shape, np.bool_)
    fuels, flows = ([own[name] for name in _named(own, prefix)] for prefix in ("NG.", "ID."))
    whole = ~np.isnan([own["D" if "D" in own else "TI"], *(_reported(fuel, months) for fuel in fuels), *flows]).any(
        axis=0
    )
    return np.asarray(whole & ~np.isnan(fuels).all(axis=0))


def _named(own: Series, prefix: str) -> list[str]:
    return sorted(name for name in own if name.startswith(prefix))


def _reported(values: Floats, months: Int8s) -> Floats:
    there = np.bincount(months[~np.isnan(values)], minlength=13) > 0
    return np.where(there[months], values, 0.0)


def _deviation(values: Floats) -> Floats:
    return SHARE * np.abs(values)


def _flow(at: Mapping[str, int], series: Mapping[str, Series], here: str, there: str) -> _Term:
    """Return the flow of a line: the mean of what its ends report, or what one of them does."""
    nothing = np.full(next(iter(series[here].values())).shape, np.nan)
    out = series[here].get(f"ID.{there}", nothing)
    back = -series.get(there, {}).get(f"ID.{here}", nothing)
    both = ~np.isnan(out) & ~np.isnan(back)
    value = np.where(both, (out + back) / 2, np.where(np.isnan(out), back, out))
    differ = np.where(both, (out - back) / 2, 0.0)
    return _Term(at[here], at.get(there, -1), value, np.hypot(_deviation(value), differ))


def _solve(terms: Sequence[_Term], able: Bools) -> tuple[list[Floats], Bools]:
    """Return the values of the terms after the least change, and the hours of authorities that it balances.

    Args:
        terms: unknowns.
        able: bool [authority, hour]; an authority also needs each term in which it takes part.
    """
    if not able.any():
        return [term.value for term in terms], able
    value, spread = (np.stack([getattr(term, name) for term in terms]) for name in ("value", "deviation"))
    known = ~np.isnan(value)
    plus, minus = (np.array([getattr(term, name) for term in terms]) for name in ("plus", "minus"))
    complete = able.copy()
    for ends in (plus, minus):
        for term in np.flatnonzero(ends >= 0):
            complete[ends[term]] &= known[term]
    result = value.copy()
    for low in range(0, value.shape[1], CHUNK):
        part = slice(low, low + CHUNK)
        result[:, part] -= _change(value[:, part], spread[:, part] ** 2, complete[:, part], plus, minus)
    return list(result), complete & (np.abs(_error(result, complete, plus, minus)) < LEFT)


def _error(value: Floats, complete: Bools, plus: np.ndarray, minus: np.ndarray) -> Floats:
    """Return D − Σ fuels + Σ flows of the complete authorities, 0 of others: [authority, hour]."""
    error = np.zeros(complete.shape)
    for ends, sign in ((plus, 1.0), (minus, -1.0)):
        for term in np.flatnonzero(ends >= 0):
            active = complete[ends[term]]
            error[ends[term], active] += sign * value[term, active]
    return error


def _change(value: Floats, variance: Floats, complete: Bools, plus: np.ndarray, minus: np.ndarray) -> Floats:
    """Return what is taken from each value [term, hour]: W⁻¹Aᵀ (A W⁻¹ Aᵀ)⁻¹ A value, over the complete authorities of an hour."""
    count, hours = complete.shape
    matrix, error = np.zeros((hours, count, count)), _error(value, complete, plus, minus).T
    for term in range(len(value)):
        ends = [(int(end), sign) for end, sign in ((plus[term], 1.0), (minus[term], -1.0)) if end >= 0]
        for end, sign in ends:
            for other, its in ends:
                both = complete[end] & complete[other]
                matrix[both, end, other] += sign * its * variance[term, both]
    idle = np.arange(count)
    diagonal = matrix[:, idle, idle]
    matrix[:, idle, idle] = np.where(diagonal > 0, diagonal, 1.0)  # 0: not complete, or every value is exact
    try:
        multiplier = np.linalg.solve(matrix, error[..., None])
    except np.linalg.LinAlgError:  # authorities with nothing but the lines between them
        multiplier = np.linalg.pinv(matrix, hermitian=True) @ error[..., None]
    multiplier = np.where(complete, multiplier[..., 0].T, 0.0)  # [authority, hour]
    change = np.zeros_like(value)
    for term in range(len(value)):
        for end, sign in ((plus[term], 1.0), (minus[term], -1.0)):
            if end >= 0:
                change[term] += sign * multiplier[end] * variance[term]
    return np.where(np.isnan(change), 0.0, change)
