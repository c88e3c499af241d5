"""Coverage, extraction, the ring and provenance as HTML. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from coordinator.report.model import Absent, Case, Extraction, Hours, Pace, Provenance, Ring
from coordinator.report.render.charts import Axis, Line, bars, heat, number, plot
from coordinator.report.render.html import absent, figure, figures, folded, numbers, say, section, table
from ingest.columns import EVERYTHING
from ingest.coverage import LABELS, STEPS
from ingest.models import Gap

LISTED = 300  # gaps; more make no page
MASKED = {
    "missing": "no row came",
    "null": "a row without a value",
    "outlier": "contradicted by physics or neighbours",
}


def coverage(hours: Hours | Absent) -> str:
    """A heat map a respondent; gaps, masked cells and revisions as tables."""
    if isinstance(hours, Absent):
        return section("coverage", absent(hours))
    one = hours.coverage
    years = [month[:4] for month in one.months[::12]]
    shades = np.where(np.isnan(one.share), -1, np.digitize(np.nan_to_num(one.share), STEPS[:-1]) - 1)
    pictures = []
    for respondent in dict.fromkeys(name for name, _ in one.rows):
        own = [i for i, (name, _) in enumerate(one.rows) if name == respondent]
        picture = heat(
            f"Share of hours of {respondent} with a valid value, by month, {years[0]} to {years[-1]}",
            [one.rows[i][1] for i in own],
            [shades[i].tolist() for i in own],
            years,
        )
        pictures.append(
            figure(respondent, picture, "Share of the month's hours with a valid value; a column a month, UTC.")
        )
    key = [(f"h{i}", label) for i, label in reversed(list(enumerate(LABELS)))] + [("hn", "no such variable")]
    swatches = "".join(f'<li><i class="{kind}"></i>{name}</li>' for kind, name in key)
    cells = hours.valid + sum(hours.masked.values())
    masked = table(
        ["masked", "cells", "share"],
        [
            [f"{name}: {MASKED.get(name, name)}", number(count), f"{count / max(cells, 1):.3%}"]
            for name, count in hours.masked.items()
        ],
    )
    content = [
        numbers(
            ("hour × variable cells", number(cells)),
            ("valid", f"{hours.valid / max(cells, 1):.2%}"),
            ("hours that the source does not have", number(sum(gap.hours for gap in hours.gaps))),
            ("cells restated by operators", number(sum(one.cells for one in hours.revised))),
        ),
        f'<ul class="key">{swatches}</ul>',
        figures(*pictures),
        masked,
        "<h3>Gaps</h3>",
        _gaps(hours.gaps),
        "<h3>Revisions</h3>",
        _revisions(hours),
    ]
    return section("coverage", "".join(content))


def _gaps(gaps: Sequence[Gap]) -> str:
    if not gaps:
        return say("None: the source gave a row for every hour that was asked for.")
    kinds: dict[tuple[str, str], list[Gap]] = {}
    for gap in gaps:
        kinds.setdefault((gap.respondent, "all" if gap.variable == EVERYTHING else gap.variable), []).append(gap)
    by_variable = [[*kind, *_sum(own)] for kind, own in sorted(kinds.items())]
    names = sorted({gap.respondent for gap in gaps})
    by_respondent = [[name, *_sum([gap for gap in gaps if gap.respondent == name])] for name in names]
    header = ["gaps", "first hour (UTC)", "last", "hours"]
    rows = [[gap.respondent, gap.variable, gap.start, gap.end, number(gap.hours)] for gap in gaps[:LISTED]]
    left = len(gaps) - len(rows)
    rest = table(["respondent", "variable", "first hour (UTC)", "last", "hours"], rows, 4)
    rest += say(f"{left:,} shorter ones are named by `coordinator verify`.") if left else ""
    return (
        say(
            f"{len(gaps):,} runs of hours. Variable “all”: not one row of a respondent came on a route, e.g. generation by fuel."
        )
        + table(["respondent", *header], by_respondent)
        + folded("By variable", table(["respondent", "variable", *header], by_variable, 2))
        + folded("Each gap, the longest first", rest)
    )


def _sum(gaps: Sequence[Gap]) -> list[str]:
    first, last = min(gap.start for gap in gaps), max(gap.end for gap in gaps)
    return [number(len(gaps)), first, last, number(sum(gap.hours for gap in gaps))]


def _revisions(hours: Hours) -> str:
    if not hours.revised:
        return say("None recorded: `coordinator start --update` asks again for hours that may have been restated.")
    rows = [[one.respondent, str(one.year), number(one.cells), one.first, one.last] for one in hours.revised]
    return table(["respondent", "year", "cells", "first hour (UTC)", "last"], rows)


def extraction(found: Extraction | Absent) -> str:
    """What was fetched, the rate against the ceiling, faults met."""
    if isinstance(found, Absent):
        return section("extraction", absent(found))
    one = found.summary
    proved = "Every row proved" if one.whole else "NOT WHOLE: run `coordinator verify`"
    content = [
        numbers(
            ("rows = Σ total" if one.rows == one.total else f"rows of {one.total:,}", number(one.rows)),
            ("duplicates", number(one.duplicates)),
            ("requests", number(one.requests)),
            ("shards", number(one.shards)),
            ("MB of raw pages", number(round(one.raw.bytes / 1e6, 1))),
        ),
        say(
            f"{proved}. {one.reused:,} pages were kept from interrupted attempts, {found.restarts:,} shards took more than one "
            f"attempt; worker processes: {found.workers}."
        ),
    ]
    pictures = [
        figure(
            "Rows by respondent",
            bars("Rows proved by respondent", "rows", [(n, float(c), number(c), 0) for n, c in found.rows.items()]),
            "Rows in the manifests, all routes and generations.",
        )
    ]
    if found.pace is not None:
        pictures.append(_pace(found.pace))
    content.append(figures(*pictures))
    faults = [[kind, number(count)] for kind, count in one.faults.items()]
    content.append("<h3>Faults met and mended</h3>")
    content.append(table(["fault", "times"], faults) if faults else say("None."))
    return section("extraction", "".join(content))


def _pace(pace: Pace) -> str:
    scale, unit = (60.0, "minutes") if pace.span_s > 300 else (1.0, "seconds")
    edges = np.linspace(0, pace.span_s / scale, len(pace.bins))
    marks = [] if pace.ceiling is None else [(f"ceiling, {pace.ceiling:g} a second", pace.ceiling)]
    picture = plot(
        "Answers a second over the run",
        Axis(f"{unit} since {pace.first[:16].replace('T', ' ')} UTC"),
        Axis("answers a second", zero=True),
        [Line("answers a second", edges, pace.bins, step=True)],
        marks=marks,
    )
    allowed = (
        "no ceiling holds for this source" if pace.ceiling is None else f"the source allows {pace.ceiling:g} a second"
    )
    return figure(
        "Rate",
        picture,
        f"{pace.answers:,} answers that were kept, {pace.busiest:.2f} a second in the busiest minute; {allowed}. "
        "Answers that were refused carry no time.",
    )


def ring(found: Ring | Absent) -> str:
    """The repository's measurements of attention and of a training step."""
    if isinstance(found, Absent):
        return section("ring", absent(found))
    content = [
        say(
            f"Measured in the repository, not by the runs of this folder: {found.machine}; {found.when}. "
            "Forward and backward, B1 H8 D64, float32, medians. The tables with every setting: docs/reference/ring_attention.md."
        )
    ]
    pictures = []
    for causal, length in sorted({(not case.causal, case.length) for case in found.cases}):
        own = [case for case in found.cases if case.length == length and case.causal != causal]
        what = f"{length:,} tokens, {'full' if causal else 'causal'}"
        pictures.append(
            figure(
                f"Time, {what}",
                bars(f"Seconds for {what}", "seconds, forward + backward", _bars(own, "seconds", "s")),
                "Both cores for everyone; shorter is better.",
            )
        )
    for length in sorted({case.length for case in found.cases}):
        own = sorted((c for c in found.cases if c.length == length and c.causal), key=lambda c: c.peak_mb)
        pictures.append(
            figure(
                f"Memory, {length:,} tokens, causal",
                bars(f"Peak memory a process, {length:,} tokens", "MB, largest process", _bars(own, "peak_mb", "MB")),
                "Peak resident memory of the largest process, its libraries included.",
            )
        )
    if found.scaling:
        pictures += _scaling(found)
    content.append(figures(*pictures))
    if found.throttled:
        rows = [
            [
                case.name,
                f"{case.predicted or float('nan'):.3f}",
                f"{case.seconds:.3f}",
                f"{case.seconds / (case.predicted or float('nan')) - 1:+.1%}",
            ]
            for case in found.throttled
        ]
        content.append("<h3>Predicted against measured</h3>")
        content.append(table(["ring of 2 over a slowed link", "predicted, s", "measured, s", "off by"], rows))
    return section("ring", "".join(content))


def _bars(cases: Sequence[Case], field: str, unit: str) -> list[tuple[str, float, str, int]]:
    ours = ("one process", "ring of 2", "ring of 4")
    values = [float(getattr(case, field)) for case in cases]
    said = [f"{value:,.0f} {unit}" if value >= 100 else f"{value:.2f} {unit}" for value in values]
    styles = [0 if case.name in ours else 5 for case in cases]
    return list(zip([case.name for case in cases], values, said, styles, strict=True))


def _scaling(found: Ring) -> list[str]:
    pictures = []
    for name, label, field in (
        ("Time of a training step", "seconds", "seconds"),
        ("Memory of a training step", "MB, largest rank", "peak_mb"),
    ):
        hours = sorted({one.hours for one in found.scaling})
        lines = []
        for style, length in enumerate(hours):
            own = sorted((one for one in found.scaling if one.hours == length), key=lambda one: one.ranks)
            x, y = (np.array([getattr(one, key) for one in own], float) for key in ("ranks", field))
            lines.append(Line(f"{length:,} hours", x, y, style, dots=True))
        picture = plot(name, Axis("ranks on two cores", every=1), Axis(label, zero=True), lines)
        key = [(f"l{line.style}", line.name) for line in lines]
        pictures.append(
            figure(name, picture, "One sequence, all ranks on one machine: memory falls, time cannot.", key)
        )
    return pictures


def provenance(found: Provenance | Absent) -> str:
    """Where everything came from."""
    if isinstance(found, Absent):
        return section("provenance", absent(found))
    return section("provenance", table(["what", "value"], found.rows, 2))
