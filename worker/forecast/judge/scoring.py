"""Score a file's forecasts of one respondent beside those of its rivals, whole and in parts. Pure functions of arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ingest.array_types import Bools, Floats, Int64s
from ingest.catalog import distinct
from worker.forecast.baselines.compare import gain
from worker.forecast.judge.reference import DF, Actuals, rivals
from worker.forecast.judge.submission import Rows
from worker.forecast.model import scores

HORIZONS = ((1, 6), (7, 12), (13, 24), (25, 38), (39, 168))  # hours from the cutoff
RAMP = 0.9  # a ramp is an hour whose change from the hour before is in the largest tenth

Line = dict[str, Any]


def score(rows: Rows, levels: Sequence[float], actuals: Actuals) -> Line:
    """Return the scores of a respondent: of all rows, against each rival, and by part.

    Args:
        rows: the file's forecasts.
        levels: of their quantiles.
        actuals: the same respondent.
    """
    actual = actuals.at(actuals.demand, rows.hour)
    known = rivals(actuals, rows.hour, rows.cutoff)
    day = actuals.calendar.day[actuals.index(rows.hour)]
    whole = np.ones(len(actual), bool)
    line: Line = {"rows": len(actual), "scored": int((np.isfinite(actual) & np.isfinite(rows.point)).sum())}
    line |= _figures(whole, rows, levels, actual, known[DF])
    history = actuals.demand[actuals.calendar.hours <= int(rows.cutoff.min())]
    line["mase"] = scores.mase(actual, rows.point, history) if len(history) > scores.WEEK else float("nan")
    line["over"] = {
        name: {
            "mae": scores.mae(actual, other),
            "skill": scores.skill(actual, rows.point, other),
            "p": gain(actual, rows.point, other, other, day).test.p,
        }
        for name, other in known.items()
        if (np.isfinite(other) & np.isfinite(actual) & np.isfinite(rows.point)).any()
    }
    line["parts"] = {
        kind: {label: _figures(where, rows, levels, actual, known[DF]) for label, where in found.items()}
        for kind, found in _parts(rows, actuals, actual).items()
    }
    for label, where in _horizons(rows).items():
        part = actual[where], rows.point[where], known[DF][where]
        line["parts"]["horizon"][label]["p"] = gain(*part, part[-1], day[where]).test.p
    return line


def _figures(where: Bools, rows: Rows, levels: Sequence[float], actual: Floats, operator: Floats) -> Line:
    """Return the scores of some rows; those of quantiles where the file has any."""
    y, point, q = actual[where], rows.point[where], rows.quantiles[where]
    line: Line = {
        "hours": int((np.isfinite(y) & np.isfinite(point)).sum()),
        "mae": scores.mae(y, point),
        "skill": scores.skill(y, point, operator[where]),
    }
    if len(levels) > 1:
        line["pinball"] = scores.pinball(y, q, tuple(levels))
        line["crps"] = scores.crps(y, q, tuple(levels))
        line["coverage"] = {
            f"{high - low:.0%}": scores.coverage(y, q[:, i], q[:, -1 - i])
            for i, (low, high) in enumerate(zip(levels, reversed(levels), strict=True))
            if low < 0.5 and abs(low + high - 1) < 1e-6
        }
    return line


def _parts(rows: Rows, actuals: Actuals, actual: Floats) -> dict[str, dict[str, Bools]]:
    """Return which rows belong to each horizon, month, to days' peaks and to ramps."""
    place = actuals.index(rows.hour)
    month = actuals.calendar.day[place].astype("datetime64[D]").astype("datetime64[M]")
    change = np.abs(np.diff(actuals.demand, prepend=np.nan))
    inside = np.unique(place)
    known = change[inside][np.isfinite(change[inside])]
    steep = change >= np.quantile(known, RAMP) if known.size else np.zeros(len(change), bool)
    peaks = np.zeros(len(actuals.demand), bool)
    peaks[list(_peaks(actuals.demand[inside], actuals.calendar.day[inside], inside))] = True
    return {
        "horizon": _horizons(rows),
        "month": {str(one): month == one for one in np.unique(month)},
        "hours": {"day's peak": peaks[place], "ramps": steep[place], "all others": ~peaks[place] & ~steep[place]},
    }


def _horizons(rows: Rows) -> dict[str, Bools]:
    """Return which rows belong to each horizon that the file has."""
    horizon = rows.hour - rows.cutoff
    found = {f"{low}–{high} h": (horizon >= low) & (horizon <= high) for low, high in HORIZONS}
    return {label: where for label, where in found.items() if where.any()}


def _peaks(demand: Floats, day: Int64s, place: Int64s) -> Iterator[int]:
    """Yield the place of each local day's hour of highest demand."""
    for d in np.unique(day):
        own = day == d
        if np.isfinite(demand[own]).any():
            yield int(place[own][np.nanargmax(demand[own])])


def mean_lines(lines: Mapping[str, Line]) -> Line:
    """Return means over respondents: of skill and p-values' counts over each rival, and of skill by part.

    A region that holds another one of them (TEX beside ERCO) is left out: the mean would count the same demand twice.
    """
    lines = {name: lines[name] for name in distinct(lines)}
    names = list(dict.fromkeys(name for line in lines.values() for name in line["over"]))
    over = {}
    for name in names:
        own = [line["over"][name] for line in lines.values() if name in line["over"]]
        better = sum(one["skill"] > 0 and one["p"] < 0.01 for one in own)
        over[name] = {"skill": float(np.nanmean([one["skill"] for one in own])), "better": better, "of": len(own)}
    parts: Line = {}
    for line in lines.values():
        for kind, found in line["parts"].items():
            for label, figures in found.items():
                parts.setdefault(kind, {}).setdefault(label, []).append(figures)
    return {
        "respondents": list(lines),
        "over": over,
        "parts": {kind: {label: _mean(own) for label, own in found.items()} for kind, found in parts.items()},
    }


def _mean(figures: Sequence[Line]) -> Line:
    """Return hours, mean skill over DF, in how many respondents it is positive with p < 0.01, and mean coverage."""
    skills = [one["skill"] for one in figures if np.isfinite(one["skill"])]
    line: Line = {
        "hours": sum(one["hours"] for one in figures),
        "skill": float(np.mean(skills)) if skills else float("nan"),
    }
    if "p" in figures[0]:
        line |= {"better": sum(one["skill"] > 0 and one["p"] < 0.01 for one in figures), "of": len(figures)}
    widths = list(figures[0].get("coverage", {}))
    if widths:
        line["coverage"] = {key: float(np.nanmean([one["coverage"][key] for one in figures])) for key in widths}
    return line
