"""Render the view of a folder as the page's panels: HTML by name. Charts are the report's."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from coordinator.report.model import Floats
from coordinator.report.render.charts import Axis, Figure, Line, number, plot, shown
from coordinator.scheduling.progress import Part
from coordinator.stages.display import clock, counted_part, quantity
from coordinator.watch.advice import advice, causes
from coordinator.watch.folder import NO_CURVE, StageRun, View
from coordinator.watch.ring import compute_figure, rank_rows, sent_per_s, size, topology
from coordinator.watch.shards import shard_figures
from coordinator.watch.tasks import STATES, KindOfTask

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
UNITS = (("seconds", 1.0, 180.0), ("minutes", 60.0, 10_800.0), ("hours", 3600.0, float("inf")))
"""Of an axis of time: name, seconds, and up to how many seconds it is used."""
TOP = ("title", "summary", "advice")
"""What stands above the panels: the title of the browser's tab, how the run stands in a sentence, and what to do."""
NOTHING: Mapping[str, str] = MappingProxyType({})
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
            auto_reload=False,  # an upgrade of the package beside an open page does not mix two versions
        )
        self._templates.filters |= {
            "number": number,
            "clock": clock,
            "quantity": quantity,
            "hour": _hour,
            "squares": _squares,
        }
        self._kept: dict[str, tuple[Any, dict[str, Any]]] = {}

    def page(self, view: View, drawn: Mapping[str, str] = NOTHING) -> str:
        """Return the whole page, with its panels as they were `drawn` last, or else as they are in the view."""
        known = {name: Markup(html) for name, html in (drawn if "stages" in drawn else self.panels(view)).items()}
        panels = [(name, title, known[name]) for name, title in PANELS.items()]
        top = {name: known[name] for name in TOP}
        return self._templates.get_template("watch.html").render(view=view, panels=panels, **top)

    def panels(self, view: View) -> dict[str, str]:
        """Return the content of every panel, and of what stands above them."""
        return {name: self._render(name, view) for name in (*TOP, *PANELS)}

    def _render(self, name: str, view: View) -> str:
        more: dict[str, Any] = getattr(self, f"_{name}", lambda view: {})(view)
        return self._templates.get_template(f"{name}.html").render(view=view, **more)

    def _memo(self, name: str, key: Any, make: Any) -> dict[str, Any]:
        if name not in self._kept or self._kept[name][0] != key:
            self._kept[name] = key, make()
        return self._kept[name][1]

    def _title(self, view: View) -> dict[str, Any]:
        return {"advice": advice(view)}

    _summary = _advice = _title

    def _stages(self, view: View) -> dict[str, Any]:
        running = view.state if view.running else None
        progress = None if running is None else running.run.progress
        parts = [] if progress is None else [_part_row(part, progress.part) for part in progress.parts]
        return {
            "running": running,
            "progress": progress,
            "parts": parts,
            "ends": _ends(view),
            "runs": [_stage_row(one, view) for one in view.stages],
        }

    def _workers(self, view: View) -> dict[str, Any]:
        state = view.state
        rows = []
        for worker in () if state is None else state.run.workers:
            doing = ", ".join(worker.executing[:2]) + (" …" if len(worker.executing) > 2 else "")
            rows_per_s, requests_per_s = view.worker_rates.get(worker.name, (None, None))
            rows.append(
                [
                    f"{worker.host}:{worker.pid}",
                    doing or "idle",
                    f"{worker.leases} of {worker.capacity}",
                    f"{worker.done_per_minute:,.0f}",
                    quantity(worker.rows),
                    "–" if rows_per_s is None else f"{rows_per_s:,.0f}",
                    f"{worker.requests:,}",
                    "–" if requests_per_s is None else f"{requests_per_s:.1f}",
                    size(worker.rss),
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
                unit, seconds, _ = next(one for one in UNITS if x[-1] < one[2])
                along = Axis(f"{unit} since the stage began", least=1)
                chart = plot(title, along, Axis(name, zero=True), [Line(name, x / seconds, y)], marks=marks)
                figures.append(Figure(title, chart, "Since the first look at this run."))
        return {"figures": figures, "budgets": {} if view.state is None else view.state.run.budgets}

    def _tasks(self, view: View) -> dict[str, Any]:
        header = ["kind", *STATES, "all"]
        rows = [[one.kind, *(f"{n:,}" for n in one.counts), f"{sum(one.counts):,}"] for one in view.tasks.kinds]
        told = () if advice(view).causes else causes(view.tasks.failed)  # those of this run stand above
        shards = {one.kind: self._shards(one) for one in view.tasks.kinds}
        return {"header": header, "rows": rows, "states": STATES, "shards": shards, "causes": told}

    def _shards(self, kind: KindOfTask) -> list[Figure]:
        name = f"shards-{kind.kind}"
        return list(
            self._memo(name, kind.placed, lambda: {"figures": shard_figures(kind.kind, kind.placed)})["figures"]
        )

    def _ring(self, view: View) -> dict[str, Any]:
        training = view.state.view if view.state is not None and view.state.stage == "train" else {}
        figures = []
        lines = [("compute", "attention_share", "0"), ("waiting", "wait_share", "1 dash")]
        known = [
            Line(name, *view.ring[key], style) for name, key, style in lines if len(view.ring[key][0]) >= LEAST_POINTS
        ]
        if known:
            key = tuple((len(line.x), float(line.x[-1])) for line in known)
            figures = list(self._memo("ring", key, lambda: {"figures": [compute_figure(known)]})["figures"])
        ranks, sent = training.get("ranks", ()), sent_per_s(view.newest)
        now = view.running and training.get("stage") != "finished"
        drawn = topology(ranks, _age_s(view), sent if now else None)
        return {
            "training": training,
            "now": now,
            "sent": "" if sent is None else f"{size(sent)}/s",
            "ranks": rank_rows(ranks, view.newest, _age_s(view)),
            "figures": [*([drawn] if drawn else []), *figures],
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


def _squares(kind: KindOfTask) -> Markup:
    """Return the cells of tasks without a place. Not a template: 400 of them each second."""
    parts = []
    for cell in kind.cells:
        more = f" and {cell.tasks - 1:,} more" if cell.tasks > 1 else ""
        parts.append(f'<i class="t{cell.state}" title="{escape(shown(cell.first))}{more}: {STATES[cell.state]}"></i>')
    return Markup("".join(parts))


def _status_now(view: View, stage: str, drawn: Mapping[str, Any]) -> str:
    """Return how a training stands: as the report says, unless it is at work now."""
    return "At work" if view.running and view.state is not None and view.state.stage == stage else str(drawn["status"])


def _ends(view: View) -> str:
    """Return the time at which the running stage will end, UTC; "": not known."""
    eta_s = None if view.state is None or view.state.run.progress is None else view.state.run.progress.eta_s
    if eta_s is None or view.state is None:
        return ""
    at = view.state.at + eta_s
    left_s = at - view.now
    form = "%H:%M:%S" if left_s < 60 else "%H:%M" if left_s < 12 * 3600 else "%m-%d %H:%M"
    return time.strftime(form, time.gmtime(at))


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


def _age_s(view: View) -> float:
    """Return the age of the newest status, by which all that it says is older; 0 for that of a run that has ended."""
    return 0.0 if view.state is None or view.state.ended else max(0.0, view.now - view.state.at)


def _hour(at: float) -> str:
    """Return a time as UTC."""
    return time.strftime("%m-%d %H:%M:%S", time.gmtime(at))


def curve_points(curve: tuple[Floats, Floats]) -> list[tuple[float, float]]:
    """Return a curve as pairs, for JSON."""
    return list(zip(curve[0].tolist(), curve[1].tolist(), strict=True))
