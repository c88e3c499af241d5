"""Prepare the sections on coverage, extraction, ring attention and provenance: charts and rows of tables for the templates."""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from coordinator.report.model import Case, Extraction, Hours, ResponseRate, Ring, Scaling
from coordinator.report.render.charts import Axis, Figure, Line, bars, heat, number, plot
from ingest.columns import EVERYTHING
from ingest.coverage import LABELS, STEPS
from ingest.models import Gap

LISTED = 300  # gaps; more would make the page too long
MASKED = {
    "missing": "missing: asked for, and no row received",
    "unasked": "unasked: never asked for, or not yet happened",
    "null": "null: a row without a value",
    "outlier": "outlier: contradicted by physics or neighbours",
}
OURS = ("one process", "ring of 2", "ring of 4")


def coverage(hours: Hours) -> dict[str, Any]:
    """Return a heat map per respondent, and rows of gaps, masked cells and revisions."""
    one = hours.coverage
    years = [month[:4] for month in one.months[::12]]
    shades = np.where(np.isnan(one.share), -1, np.digitize(np.nan_to_num(one.share), STEPS[:-1]) - 1)
    figures = []
    for respondent, rows in groupby(range(len(one.rows)), lambda i: one.rows[i][0]):
        own = list(rows)
        title = f"Share of hours of {respondent} with a valid value, by month, {years[0]} to {years[-1]}"
        chart = heat(title, [one.rows[i][1] for i in own], shades[own].tolist(), years)
        caption = "Share of the month's hours with a valid value; one column per month, UTC."
        figures.append(Figure(respondent, chart, caption))
    cells = max(hours.valid + sum(hours.masked.values()), 1)
    return {
        "figures": figures,
        "key": [(f"h{i}", LABELS[i]) for i in reversed(range(len(LABELS)))]
        + [("hn", "no such variable, or not asked for")],
        "masked": [[MASKED.get(name, name), number(n), f"{n / cells:.3%}"] for name, n in hours.masked.items()],
        "by_respondent": _totals(hours.gaps, lambda gap: (gap.respondent,)),
        "by_variable": _totals(
            hours.gaps, lambda gap: (gap.respondent, "all" if gap.variable == EVERYTHING else gap.variable)
        ),
        "listed": [
            [gap.respondent, gap.variable, gap.start, gap.end, number(gap.hours)] for gap in hours.gaps[:LISTED]
        ],
        "revised": [[one.respondent, one.year, number(one.cells), one.first, one.last] for one in hours.revised],
    }


def _totals(gaps: Sequence[Gap], kind: Callable[[Gap], tuple[str, ...]]) -> list[list[str]]:
    """Return a row per kind of gap: the kind, number of gaps, first and last hour, hours."""
    rows = []
    for key, group in groupby(sorted(gaps, key=kind), kind):
        own = list(group)
        first, last = min(gap.start for gap in own), max(gap.end for gap in own)
        rows.append([*key, number(len(own)), first, last, number(sum(gap.hours for gap in own))])
    return rows


def extraction(found: Extraction) -> dict[str, Any]:
    """Return rows per respondent, the request rate against the ceiling, and the faults."""
    rows = [(name, float(count), number(count), "0") for name, count in found.rows.items()]
    chart = bars("Verified rows by respondent", "rows", rows)
    figures = [Figure("Rows by respondent", chart, "Rows in the manifests, all routes and generations.")]
    if found.rate is not None:
        figures.append(_response_rate(found.rate))
    return {"figures": figures, "faults": [[kind, number(n)] for kind, n in found.summary.faults.items()]}


def _response_rate(rate: ResponseRate) -> Figure:
    scale, unit = (60.0, "minutes") if rate.span_s > 300 else (1.0, "seconds")
    edges = np.linspace(0, rate.span_s / scale, len(rate.bins))
    marks, limit = [], "this source has no rate limit"
    if rate.ceiling is not None:
        marks = [(f"ceiling, {rate.ceiling:g} per second", rate.ceiling)]
        limit = f"the source allows {rate.ceiling:g} per second"
    chart = plot(
        "Responses per second over the run",
        Axis(f"{unit} since {rate.first[:16].replace('T', ' ')} UTC"),
        Axis("responses per second", zero=True),
        [Line("responses per second", edges, rate.bins, step=True)],
        marks=marks,
    )
    return Figure(
        "Rate",
        chart,
        f"{rate.responses:,} stored responses, {rate.busiest:.2f} per second in the busiest minute; {limit}. "
        "Refused requests have no time and are not counted.",
    )


def ring(found: Ring) -> dict[str, Any]:
    """Return time and memory of ring attention and of its peers, scaling of a training step, and rows of predicted times."""
    figures = []
    for full, length in sorted({(not case.causal, case.length) for case in found.cases}):
        own = [case for case in found.cases if case.length == length and case.causal != full]
        what = f"{length:,} tokens, {'full' if full else 'causal'}"
        chart = bars(f"Seconds for {what}", "seconds, forward + backward", _bars(own, "seconds", "s"))
        figures.append(Figure(f"Time, {what}", chart, "Every program used both cores; shorter is better."))
    for length in sorted({case.length for case in found.cases}):
        own = sorted((c for c in found.cases if c.length == length and c.causal), key=lambda c: c.peak_mb)
        title = f"Peak memory per process, {length:,} tokens"
        chart = bars(title, "MB, largest process", _bars(own, "peak_mb", "MB"))
        caption = "Peak resident memory of the largest process, including its libraries."
        figures.append(Figure(f"Memory, {length:,} tokens, causal", chart, caption))
    if found.scaling:
        figures.append(_scaling(found.scaling, "Time of a training step", "seconds", "seconds"))
        figures.append(_scaling(found.scaling, "Memory of a training step", "MB, largest rank", "peak_mb"))
    rows = [(case.name, case.predicted or float("nan"), case.seconds) for case in found.throttled]
    return {
        "figures": figures,
        "throttled": [[name, f"{p:.3f}", f"{seconds:.3f}", f"{seconds / p - 1:+.1%}"] for name, p, seconds in rows],
    }


def _bars(cases: Sequence[Case], field: str, unit: str) -> list[tuple[str, float, str, str]]:
    rows = [(case.name, float(getattr(case, field)), "0" if case.name in OURS else "5") for case in cases]
    return [(name, value, f"{value:,.{0 if value >= 100 else 2}f} {unit}", style) for name, value, style in rows]


def _scaling(steps: Sequence[Scaling], title: str, label: str, field: str) -> Figure:
    lines = []
    for style, hours in enumerate(sorted({step.hours for step in steps})):
        own = sorted((step for step in steps if step.hours == hours), key=lambda step: step.ranks)
        x, y = (np.array([getattr(step, key) for step in own], float) for key in ("ranks", field))
        lines.append(Line(f"{hours:,} hours", x, y, str(style), dots=True))
    chart = plot(title, Axis("ranks on two cores", every=1), Axis(label, zero=True), lines)
    caption = (
        "One sequence, all ranks on one machine: memory per rank falls; time cannot, because the ranks share its cores."
    )
    return Figure(title, chart, caption, [line.key for line in lines])
