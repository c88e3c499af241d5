"""Prepare the sections on coverage, extraction and provenance: charts and rows of tables for the templates."""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from coordinator.report.model import Extraction, Hours, ResponseRate
from coordinator.report.render.charts import Axis, Figure, Line, bars, heat, number, plot
from ingest.columns import EVERYTHING
from ingest.coverage import LABELS, STEPS
from ingest.models import Gap

DRAWN = 12  # respondents with a picture
LISTED = 300  # gaps; more would make the page too long
MASKED = {
    "missing": "missing: asked for, and no row received",
    "unasked": "unasked: never asked for, or not yet happened",
    "null": "null: a row without a value",
    "outlier": "outlier: contradicted by physics or neighbours",
}


def coverage(hours: Hours) -> dict[str, Any]:
    """Return a heat map per respondent, and rows of gaps, masked cells and revisions."""
    one = hours.coverage
    years = [month[:4] for month in one.months[::12]]
    shades = np.where(np.isnan(one.share), -1, np.digitize(np.nan_to_num(one.share), STEPS[:-1]) - 1)
    figures = []
    respondents = [(name, list(rows)) for name, rows in groupby(range(len(one.rows)), lambda i: one.rows[i][0])]
    missing = {name: float(np.nansum(1 - one.share[own])) for name, own in respondents}
    drawn = sorted(missing, key=lambda name: (-missing[name], name))[:DRAWN]
    for respondent, own in respondents:
        if respondent not in drawn:
            continue
        title = f"Share of hours of {respondent} with a valid value, by month, {years[0]} to {years[-1]}"
        chart = heat(title, [one.rows[i][1] for i in own], shades[own].tolist(), years)
        caption = "Share of the month's hours with a valid value; one column per month, UTC."
        figures.append(Figure(respondent, chart, caption))
    return {
        "figures": figures,
        "hidden": len(respondents) - len(figures),
        "key": [(f"h{i}", LABELS[i]) for i in reversed(range(len(LABELS)))]
        + [("hn", "no such variable, or not asked for")],
        "masked": [
            [MASKED.get(name, name), number(n), "–" if name == "unasked" else f"{n / max(hours.asked, 1):.3%}"]
            for name, n in hours.masked.items()
        ],
        "by_respondent": _totals(hours.gaps, lambda gap: (gap.respondent,)),
        "by_variable": _totals(
            hours.gaps, lambda gap: (gap.respondent, "all" if gap.variable == EVERYTHING else gap.variable)
        ),
        "listed": [
            [gap.respondent, gap.variable, gap.start, gap.end, number(gap.hours)] for gap in hours.gaps[:LISTED]
        ],
        "daily": str(hours.daily) if hours.daily else "",
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
