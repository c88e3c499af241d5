"""How a run is seen: a rich table on a terminal, plain lines elsewhere, JSON lines for machines. Narration goes to stderr.

`RunView` is a pure summary of the server's snapshot; the three displays only format it.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from coordinator.scheduling.records import CANCELLED
from coordinator.server.status import RunStatus
from coordinator.stages.stage import OutputMode

SILENT_S = 5.0  # seconds without a heartbeat that are worth a word
PLAIN_EVERY_S = 2.0  # seconds between lines when there is no terminal
QUICK_S = 1.0  # a command that ends sooner needs no progress
REFRESH_S = 0.25


@dataclass(frozen=True)
class WorkerView:
    """A line a worker."""

    name: str
    executing: tuple[str, ...]
    rows: int
    requests: int
    megabytes: float
    silent_s: float


@dataclass(frozen=True)
class RunView:
    """What is shown: tasks by state, verified rows, requests against the budget, ETA, workers."""

    total: int
    done: int
    leased: int
    quarantined: int
    rows: int
    rows_per_s: float
    requests: int
    requests_per_s: float
    ceiling: float | None  # requests per second that the source's policy allows; None = no limit
    eta_s: float | None
    elapsed_s: float
    workers: tuple[WorkerView, ...] = field(default=())


def run_view(status: RunStatus, already_done: int) -> RunView:
    """Server status → view. Rows and requests are what workers of this run verified and sent; the ETA goes by tasks.

    `already_done`: tasks that an earlier run had done.
    """
    elapsed_s, tasks = status.elapsed_s, status.tasks
    total = sum(tasks.values()) - tasks[CANCELLED]
    done = tasks["done"]
    fresh = done - already_done
    rows = sum(worker.rows for worker in status.workers) + status.departed_rows
    requests = sum(worker.requests for worker in status.workers) + status.departed_requests
    return RunView(
        total=total,
        done=done,
        leased=tasks["leased"],
        quarantined=tasks["quarantined"],
        rows=rows,
        rows_per_s=rows / elapsed_s if elapsed_s > 0 else 0.0,
        requests=requests,
        requests_per_s=requests / elapsed_s if elapsed_s > 0 else 0.0,
        ceiling=next((budget.rate for budget in status.budgets.values()), None),
        eta_s=elapsed_s / fresh * (total - done) if fresh > 0 else None,
        elapsed_s=elapsed_s,
        workers=tuple(
            WorkerView(
                name=f"{worker.host}:{worker.pid}",
                executing=worker.executing,
                rows=worker.rows,
                requests=worker.requests,
                megabytes=worker.rss / 1e6,
                silent_s=worker.silent_s,
            )
            for worker in status.workers
        ),
    )


def clock(seconds: float | None) -> str:
    """Seconds → `m:ss`, or `-:--` when unknown."""
    return "-:--" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def headline(view: RunView) -> str:
    """One line that says it all, for logs and for the top of the table."""
    budget = f" of {view.ceiling:g} allowed" if view.ceiling is not None else ""
    parts = [
        f"{view.done}/{view.total} tasks",
        f"{view.rows:,} rows verified",
        f"{view.rows_per_s:,.0f} rows/s",
        f"{view.requests_per_s:.1f} requests/s{budget}",
        f"elapsed {clock(view.elapsed_s)}",
        f"ETA {clock(view.eta_s)}",
    ]
    if view.quarantined:
        parts.insert(1, f"{view.quarantined} QUARANTINED")
    return " · ".join(parts)


@dataclass(frozen=True)
class Rendering:
    """What a display shows of a run: a line, a picture for terminals, plain data for machines."""

    line: str
    picture: Callable[[], RenderableType]
    plain: Mapping[str, Any]


def render(view: RunView) -> Rendering:
    """What a display shows of it."""
    return Rendering(headline(view), lambda: to_rich(view), asdict(view))


class Display(Protocol):
    """Where narration goes."""

    def update(self, what: Rendering) -> None:
        """Show this in place of what was shown."""
        ...

    def note(self, line: str) -> None:
        """A line that stays."""
        ...

    def close(self) -> None:
        """Nothing is shown any more."""
        ...


def to_rich(view: RunView) -> RenderableType:
    """The headline, a line a worker, the bar."""
    table = Table(box=None, pad_edge=False, show_edge=False, expand=True)
    table.add_column("worker", no_wrap=True)
    table.add_column("doing", overflow="ellipsis", no_wrap=True, ratio=1)  # what the others leave
    for title in ("rows", "requests", "MB"):
        table.add_column(title, justify="right", no_wrap=True)
    for worker in view.workers:
        doing = ", ".join(worker.executing) or "idle"
        if worker.silent_s > SILENT_S:
            doing = f"silent for {worker.silent_s:.0f} s; {doing}"
        table.add_row(worker.name, doing, f"{worker.rows:,}", f"{worker.requests:,}", f"{worker.megabytes:.0f}")
    bar = ProgressBar(total=max(view.total, 1), completed=view.done)
    return Group(Text(headline(view)), table, bar)  # the bar last: it ends no line


class TerminalDisplay:
    """rich, drawn over and over in place."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._live = Live(console=self._console, refresh_per_second=4, transient=True)
        self._live.start()

    def update(self, what: Rendering) -> None:
        self._live.update(what.picture())

    def note(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False)

    def close(self) -> None:
        self._live.stop()


class PlainDisplay:
    """A line every few seconds, for logs and CI."""

    def __init__(self, write: Callable[[str], None] | None = None, *, first_s: float = 0.0) -> None:
        self._write = write or (lambda line: print(line, file=sys.stderr, flush=True))
        self._next = time.monotonic() + first_s

    def update(self, what: Rendering) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + PLAIN_EVERY_S
            self._write(what.line)

    def note(self, line: str) -> None:
        self._write(line)

    def close(self) -> None:
        pass


class JsonDisplay(PlainDisplay):
    """The same, as JSON lines on stderr."""

    def update(self, what: Rendering) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + PLAIN_EVERY_S
            self._write(json.dumps({"event": "progress", **what.plain}))

    def note(self, line: str) -> None:
        self._write(json.dumps({"event": "note", "text": line}))


class QuietDisplay:
    """Nothing but errors."""

    def update(self, what: Rendering) -> None:
        pass

    def note(self, line: str) -> None:
        pass

    def close(self) -> None:
        pass


def choose_display(mode: OutputMode, first_s: float = 0.0) -> Display:
    """Return the display of a command: JSON lines, nothing, a table on a terminal, or plain lines.

    `first_s`: seconds until the first line.
    """
    if mode.quiet:
        return QuietDisplay()
    if mode.as_json:
        return JsonDisplay(first_s=first_s)
    return TerminalDisplay() if sys.stderr.isatty() else PlainDisplay(first_s=first_s)


@dataclass(frozen=True)
class StepsView:
    """Where a command stands that is not a run of tasks. `total` 0: its parts are not counted."""

    stage: str
    done: int
    total: int
    elapsed_s: float


def render_steps(view: StepsView) -> Rendering:
    """A bar where the number of parts is known, else one that only moves."""
    counted = f" {view.done}/{view.total}" if view.total else ""
    line = f"{view.stage}{counted} · elapsed {clock(view.elapsed_s)}"
    bar = ProgressBar(total=view.total or None, completed=view.done, pulse=not view.total)
    return Rendering(line, lambda: Group(Text(line), bar), asdict(view))


class Steps:
    """Progress of a command that counts its parts: call it with (done, total). A thread keeps it fresh while a part takes long.

    `stage` may be changed on the way. Commands that end within a second say nothing.
    """

    def __init__(self, stage: str, mode: OutputMode) -> None:
        self.stage = stage
        self._counts = (0, 0)
        self._began = time.monotonic()
        self._display = choose_display(mode, first_s=QUICK_S)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._refresh, name="progress", daemon=True)
        self._thread.start()

    def __call__(self, done: int, total: int) -> None:
        self._counts = (done, total)

    def _refresh(self) -> None:
        while not self._over.wait(REFRESH_S):
            view = StepsView(self.stage, *self._counts, time.monotonic() - self._began)
            self._display.update(render_steps(view))

    def close(self) -> None:
        """The last word is over: the thread ends and the bar goes."""
        self._over.set()
        self._thread.join()
        self._display.close()
