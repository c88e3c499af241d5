"""Render the view of a folder as the page's panels: HTML by name. Charts are the report's."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from coordinator.report.model import Floats
from coordinator.report.render.charts import Axis, Figure, Line, number, plot, shown
from coordinator.scheduling.progress import Part
from coordinator.stages.display import clock, counted_part, quantity
from coordinator.watch.folder import NO_CURVE, StageRun, View
from coordinator.watch.tasks import STATES

PANELS = {
    "stages": "Stages",
    "workers": "Workers",
    "requests": "Requests",
    "tasks": "Shards and other tasks",
    "ring": "Ring",
    "curves": "Learning curves",
    "control": "Control",
    "log": "Log",
}
"""The panels in the order of the page: id, which is also the name of the template, and title."""
LEAST_POINTS = 2  # of a chart


@dataclass(frozen=True)
class PartRow:
    """A part of the running stage."""

    name: str
    text: str
    share: float
    running: bool


class Renderer:
    """Renders panels; keeps charts until their points change."""

    def __init__(self) -> None:
        """Load the templates."""
        self._templates = Environment(
            loader=ChoiceLoader([PackageLoader("coordinator.watch"), PackageLoader("coordinator.report.render")]),
            autoescape=True,
            finalize=shown,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters |= {"number": number, "clock": clock, "quantity": quantity, "hour": _hour}
        self._kept: dict[str, tuple[Any, dict[str, Any]]] = {}

    def page(self, view: View) -> str:
        """Return the whole page, with its panels as they are now."""
        panels = [
            (name, title, Markup(content))
            for (name, title), content in zip(PANELS.items(), self._all(view), strict=True)
        ]
        return self._templates.get_template("watch.html").render(
            view=view, panels=panels, summary=Markup(self._render("summary", view))
        )

    def panels(self, view: View) -> dict[str, str]:
        """Return the content of every panel, and of the summary above them."""
        return {"summary": self._render("summary", view), **dict(zip(PANELS, self._all(view), strict=True))}

    def _all(self, view: View) -> list[str]:
        return [self._render(name, view) for name in PANELS]

    def _render(self, name: str, view: View) -> str:
        more: dict[str, Any] = getattr(self, f"_{name}", lambda view: {})(view)
        return self._templates.get_template(f"{name}.html").render(view=view, **more)

    def _memo(self, name: str, key: Any, make: Any) -> dict[str, Any]:
        if name not in self._kept or self._kept[name][0] != key:
            self._kept[name] = key, make()
        return self._kept[name][1]

    def _summary(self, view: View) -> dict[str, Any]:
        return {"line": summary_line(view)}

    def _stages(self, view: View) -> dict[str, Any]:
        running = view.state if view.running else None
        progress = None if running is None else running.run.progress
        parts = [] if progress is None else [_part_row(part, progress.part) for part in progress.parts]
        return {
            "running": running,
            "progress": progress,
            "parts": parts,
            "runs": [_stage_row(one, view) for one in view.stages],
        }

    def _workers(self, view: View) -> dict[str, Any]:
        state = view.state
        rows = []
        for worker in () if state is None else state.run.workers:
            doing = ", ".join(worker.executing[:2]) + (" …" if len(worker.executing) > 2 else "")
            rows.append(
                [
                    f"{worker.host}:{worker.pid}",
                    doing or "idle",
                    str(worker.leases),
                    quantity(worker.rows),
                    f"{worker.requests:,}",
                    f"{worker.rss / 1e6:,.0f} MB",
                    f"{worker.silent_s + _age_s(view):.0f} s ago",
                ]
            )
        return {"rows": rows}

    def _requests(self, view: View) -> dict[str, Any]:
        figures = []
        for name, title in (("rows", "Verified rows a second"), ("requests", "Requests a second")):
            x, y = view.rates.get(name, NO_CURVE)
            if len(x) >= LEAST_POINTS and float(max(y)) > 0:
                ceilings = [] if view.state is None else [one.rate for one in view.state.run.budgets.values()]
                marks = [("allowed", ceilings[0])] if name == "requests" and ceilings else []
                chart = plot(title, Axis("minutes"), Axis(name, zero=True), [Line(name, x, y)], marks=marks)
                figures.append(Figure(title, chart, "Since this page began to watch; 0 is now."))
        return {"figures": figures, "budgets": {} if view.state is None else view.state.run.budgets}

    def _tasks(self, view: View) -> dict[str, Any]:
        header = ["kind", *STATES, "all"]
        rows = [[one.kind, *(f"{n:,}" for n in one.counts), f"{sum(one.counts):,}"] for one in view.tasks.kinds]
        return {"header": header, "rows": rows, "states": STATES}

    def _ring(self, view: View) -> dict[str, Any]:
        training = view.state.view if view.state is not None and view.state.stage == "train" else {}
        figures = []
        lines = [("compute", "attention_share", "0"), ("waiting", "wait_share", "1 dash")]
        known = [
            Line(name, *view.ring[key], style) for name, key, style in lines if len(view.ring[key][0]) >= LEAST_POINTS
        ]
        if known:
            key = tuple((len(line.x), float(line.x[-1])) for line in known)
            figures = self._memo("ring", key, lambda: {"figures": [_ring_figure(known)]})["figures"]
        return {
            "training": training,
            "ranks": _rank_rows(training.get("ranks", ()), view.newest, _age_s(view)),
            "figures": figures,
        }

    def _curves(self, view: View) -> dict[str, Any]:
        found = view.training
        if found is None:
            return {"figures": [], "status": "", "best": None}
        key = [
            len(found.loss[0]),
            *found.loss[0][-1:],
            *(len(x) for x, _ in found.skill.values()),
            found.verified,
            bool(found.result),
        ]
        from coordinator.report.render import sections_runs  # here: it loads scipy

        drawn = self._memo("curves", key, lambda: sections_runs.training(found))
        return {**drawn, "status": _status_now(view, "train", drawn)}

    def _control(self, view: View) -> dict[str, Any]:
        found = view.control
        if found is None:
            return {"figures": [], "pops": [], "status": "", "figures_of": {}}
        key = [len(found.history[0]), len(found.curve[1]), *found.curve[1][-1:], found.verified, bool(found.result)]
        figures_of = (
            view.state.view.get("figures", {}) if view.state is not None and view.state.stage == "rollouts" else {}
        )
        from coordinator.report.render import sections_runs  # here: it loads scipy

        drawn = self._memo("control", key, lambda: sections_runs.control(found))
        return {**drawn, "status": _status_now(view, "rollouts", drawn), "figures_of": figures_of}


def summary_line(view: View) -> str:
    """Return how the run stands, as one sentence: it is read aloud."""
    state = view.state
    if state is None:
        return "No run has written a status here yet."
    if not view.running:
        if state.ended:
            return f"{state.stage} ended: {state.ended}."
        return f"{state.stage}: no status for {clock(view.now - state.at)}. The coordinator is gone or stopped."
    progress = state.run.progress
    if progress is None:
        return f"{state.stage} is running."
    if progress.eta_s is None:
        return f"{state.stage}, time left unknown."
    return f"{state.stage} {progress.share:.0%}, {clock(progress.eta_s)} left."


def _status_now(view: View, stage: str, drawn: Mapping[str, Any]) -> str:
    """Return how a training stands: as the report says, unless it is at work now."""
    return "At work" if view.running and view.state is not None and view.state.stage == stage else str(drawn["status"])


def _part_row(part: Part, current: str) -> PartRow:
    text = (
        counted_part(part)
        if part.unit
        else f"{part.name} {part.done:g}/{part.total:g}"
        if part.total > 1
        else part.name
    )
    return PartRow(part.name, text, min(part.done / part.total, 1.0) if part.total else 1.0, part.name == current)


def _stage_row(one: StageRun, view: View) -> list[str]:
    if one.status:
        return [one.stage, one.status, _hour(one.began), clock(one.seconds), one.message]
    running = view.running and view.state is not None and view.state.stage == one.stage
    return [
        one.stage,
        "running" if running else "not ended",
        _hour(one.began),
        clock(view.now - one.began) if running else "–",
        "",
    ]


def _ring_figure(lines: Sequence[Line]) -> Figure:
    chart = plot("Share of a step in attention and in waiting", Axis("step", least=1), Axis("share", zero=True), lines)
    return Figure(
        "Compute and waiting",
        chart,
        "Of rank 0's step: attention, and waiting for its neighbours.",
        [line.key for line in lines],
    )


def _age_s(view: View) -> float:
    """Return the age of the newest status, by which all that it says is older; 0 for that of a run that has ended."""
    return 0.0 if view.state is None or view.state.ended else max(0.0, view.now - view.state.at)


def _rank_rows(ranks: Sequence[Mapping[str, Any]], newest: Mapping[str, Any], age_s: float) -> list[list[str]]:
    """Return a row per rank: its worker, the rank that it sends to, step, phase, share of the sequence, busy and waiting time.

    `age_s`: of the status that holds the ranks.
    """
    busy, shares, seconds = (newest.get(name) for name in ("busy", "shares", "seconds"))
    rows = []
    for one in ranks:
        number_, known = int(one["rank"]), isinstance(busy, list) and len(busy) == len(ranks)
        share = f"{shares[number_]:.0%}" if isinstance(shares, list) and number_ < len(shares) else "–"
        work = f"{busy[number_]:.2f} s" if known and busy is not None else "–"
        waiting = "–"
        if known and busy is not None and isinstance(seconds, int | float) and seconds > 0:
            waiting = f"{max(0.0, 1 - busy[number_] / seconds):.0%}"
        step = str(one["step"]) if one["step"] >= 0 else "–"
        link = f"{number_} → {(number_ + 1) % len(ranks)}" if len(ranks) > 1 else "–"
        rows.append(
            [
                str(number_),
                str(one["worker"]),
                link,
                step,
                str(one["phase"]),
                share,
                work,
                waiting,
                f"{one['silent_s'] + age_s:.0f} s ago",
            ]
        )
    return rows


def _hour(at: float) -> str:
    """Return a time as UTC."""
    return time.strftime("%m-%d %H:%M:%S", time.gmtime(at))


def curve_points(curve: tuple[Floats, Floats]) -> list[tuple[float, float]]:
    """Return a curve as pairs, for JSON."""
    return list(zip(curve[0].tolist(), curve[1].tolist(), strict=True))
