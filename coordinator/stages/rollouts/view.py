"""Display a control training: one line, a table of workers, plain data."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import msgspec
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from coordinator.scheduling.progress import Part, StageProgress
from coordinator.stages.display import Rendering, bar, cell, joined, quantity, standing
from rl.distributed.protocol import PartPlan, Progress

FINISH_S = 3.0  # from the last evaluation to the end: report, result, workers


@dataclass(frozen=True)
class WorkerView:
    """One row for each worker."""

    worker: str
    leases: int
    capacity: int  # leases at once
    results: int
    silent_s: float


@dataclass(frozen=True)
class ControlView:
    """The state of a control training. Figures are the newest that the learner reported."""

    stage: str  # start | tables | labels | clone | reference | improve | test | over
    progress: StageProgress | None
    eta_s: float | None
    done: int
    total: int
    figures: Mapping[str, float]
    out: int  # leases
    issued_twice: int
    put_out: int  # workers
    elapsed_s: float
    workers: tuple[WorkerView, ...]


def planned_parts(
    plan: Mapping[str, PartPlan], progress: Progress, workers: int, *, over: bool = False
) -> tuple[Part, ...]:
    """Return the parts of a training: those before the learner's present stage are done. Before it has named them: an open end."""
    if not plan:
        return Part("start", "", float(over), 1.0), Part("training", "", float(over), 1.0)
    names = list(plan)
    at = len(names) if over else names.index(progress.stage) if progress.stage in plan else 0
    parts = []
    for number, (name, planned) in enumerate(plan.items()):
        total = float(progress.total or planned.units) if number == at else planned.units
        done = total if number < at else float(min(progress.done, total)) if number == at else 0.0
        seconds = planned.seconds / (workers if planned.shared else 1) or None
        parts.append(Part(name, "", done, total, seconds))
    return *parts, Part("finish", "", 0.0, 1.0, FINISH_S)


def headline(view: ControlView) -> str:
    """Return the view as one line of 80 columns. PoP: the share of the perfect-foresight saving."""
    parts = standing("rollouts", view.progress, view.elapsed_s)
    if view.total > 1:
        parts[-1] = f"{view.stage} {view.done}/{view.total}"
    figures = view.figures
    if view.put_out:
        parts.append(f"{view.put_out} EXCLUDED")
    if "pop" in figures:
        parts.append(f"PoP {figures['pop']:.3f} (best {figures['best_pop']:.3f})")
    if view.stage == "clone" and "clone/loss" in figures:
        parts.append(f"loss {figures['clone/loss']:.4f}")
    if "charts/SPS" in figures:
        parts.append(f"{quantity(figures['charts/SPS'])} steps/s")
    count, capacity = len(view.workers), sum(worker.capacity for worker in view.workers)
    parts += [f"{count} worker{'s' * (count != 1)}", f"{view.out} of {capacity} leases"]
    return joined(parts)


def to_rich(view: ControlView) -> RenderableType:
    """Return the headline, a table with a row for each worker, and a bar."""
    table = Table(box=None, pad_edge=False, show_edge=False, expand=True)
    table.add_column("worker", overflow="ellipsis", no_wrap=True, ratio=1)
    for title in ("leases", "results", "heartbeat"):
        table.add_column(title, justify="right", no_wrap=True)
    for one in view.workers:
        table.add_row(cell(one.worker), f"{one.leases}/{one.capacity}", f"{one.results:,}", f"{one.silent_s:.1f} s ago")
    more = []
    if view.issued_twice or "staleness" in view.figures:
        stale = view.figures.get("staleness", 0.0)
        more.append(Text(f"{view.issued_twice} speculative copies, policy {stale:.0f} versions behind"))
    return Group(cell(headline(view)), *more, table, bar(view.progress, view.done, view.total))


def render(view: ControlView) -> Rendering:
    """Return the forms in which displays show the view."""
    plain = {**asdict(view), "progress": msgspec.to_builtins(view.progress)}
    return Rendering(headline(view), lambda: to_rich(view), plain)
