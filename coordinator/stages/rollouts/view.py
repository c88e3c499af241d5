"""Display a control training: one line, a table of workers, plain data."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table

from coordinator.stages.display import Rendering, cell, clock


@dataclass(frozen=True)
class WorkerView:
    """One row for each worker."""

    worker: str
    leases: int
    results: int
    silent_s: float


@dataclass(frozen=True)
class ControlView:
    """The state of a control training. Figures are the newest that the learner reported."""

    stage: str  # start | tables | labels | clone | improve | test | over
    done: int
    total: int
    figures: Mapping[str, float]
    out: int  # leases
    issued_twice: int
    put_out: int  # workers
    elapsed_s: float
    workers: tuple[WorkerView, ...]


def headline(view: ControlView) -> str:
    """Return the view as one line."""
    parts = [f"{view.stage} {view.done}/{view.total}" if view.total else view.stage]
    figures = view.figures
    if "charts/SPS" in figures:
        parts.append(f"{figures['charts/SPS']:,.0f} steps/s")
    if "pop" in figures:
        parts.append(f"PoP {figures['pop']:.3f} (best {figures['best_pop']:.3f}) on validation")
    if view.stage == "clone" and "clone/loss" in figures:
        parts.append(f"loss {figures['clone/loss']:.4f}")
    if "staleness" in figures:
        parts.append(f"staleness {figures['staleness']:.0f}")
    parts += [f"{len(view.workers)} workers", f"{view.out} running leases"]
    if view.issued_twice:
        parts.append(f"{view.issued_twice} speculative copies")
    if view.put_out:
        parts.append(f"{view.put_out} EXCLUDED")
    return " · ".join([*parts, f"elapsed {clock(view.elapsed_s)}"])


def to_rich(view: ControlView) -> RenderableType:
    """Return the headline, a table with a row for each worker, and a bar."""
    table = Table(box=None, pad_edge=False, show_edge=False, expand=True)
    table.add_column("worker", overflow="ellipsis", no_wrap=True, ratio=1)
    for title in ("leases", "results", "heartbeat"):
        table.add_column(title, justify="right", no_wrap=True)
    for one in view.workers:
        table.add_row(cell(one.worker), str(one.leases), f"{one.results:,}", f"{one.silent_s:.1f} s ago")
    return Group(cell(headline(view)), table, ProgressBar(total=max(view.total, 1), completed=view.done))


def render(view: ControlView) -> Rendering:
    """Return the forms in which displays show the view."""
    return Rendering(headline(view), lambda: to_rich(view), asdict(view))
