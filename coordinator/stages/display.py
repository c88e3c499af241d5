"""Display progress on stderr: a table on a terminal, plain lines elsewhere, JSON lines for programs.

A stage describes its state as a `Rendering`; the displays only format it. `RunView` summarises the server's snapshot.
"""

import json
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import msgspec
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from coordinator.scheduling.records import CANCELLED
from coordinator.scheduling.waits import WaitStatus
from coordinator.server.status import RunStatus
from coordinator.stages.stage import OutputMode
from ingest.console import printable, unescaped

SILENT_S = 5.0  # without a heartbeat, after which the table shows the worker as silent
PLAIN_EVERY_S = 2.0  # between lines without a terminal
QUICK_S = 1.0  # a command that ends sooner shows no progress
REFRESH_S = 0.25


@dataclass(frozen=True)
class WorkerView:
    """One row for each worker."""

    name: str
    executing: tuple[str, ...]
    rows: int
    requests: int
    megabytes: float
    silent_s: float


@dataclass(frozen=True)
class RunView:
    """The state of a run: tasks by state, verified rows, requests against the budget, ETA, workers."""

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
    waits: tuple[WaitStatus, ...] = field(default=())  # for the source, the longest first


def run_view(status: RunStatus, already_done: int, to_come: int = 0) -> RunView:
    """Return the view of a server's status.

    Rows and requests are those that workers of this run verified and sent; the ETA extrapolates from tasks.

    Args:
        status: The server's status.
        already_done: Number of tasks that an earlier run had completed.
        to_come: Number of tasks that the stage will open when others have ended.
    """
    elapsed_s, tasks = status.elapsed_s, status.tasks
    total = sum(tasks.values()) - tasks[CANCELLED] + to_come
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
        waits=status.waits,
    )


def clock(seconds: float | None) -> str:
    """Return seconds as `m:ss`, or `-:--` if unknown."""
    return "-:--" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def headline(view: RunView) -> str:
    """Return the view as one line, for logs and for the top of the table."""
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
    """A state as a line, as a renderable for terminals, and as plain data for programs."""

    line: str
    picture: Callable[[], RenderableType]
    plain: Mapping[str, Any]


def render(view: RunView) -> Rendering:
    """Return the forms in which displays show the view."""
    line = " · ".join([headline(view), *map(str, view.waits)])
    return Rendering(line, lambda: to_rich(view), msgspec.to_builtins(view))


class Display(Protocol):
    """Shows progress and notes."""

    def update(self, what: Rendering) -> None:
        """Show this in place of the last state."""
        ...

    def note(self, line: str) -> None:
        """Print a line that later progress does not overwrite."""
        ...

    def close(self) -> None:
        """End the display."""
        ...


def cell(text: str) -> Text:
    """Return text of a worker for a table: escaped, and without rich's markup."""
    return Text(printable(text))


def to_rich(view: RunView) -> RenderableType:
    """Return the headline, a line for each wait, a table with a row for each worker, and a bar."""
    table = Table(box=None, pad_edge=False, show_edge=False, expand=True)
    table.add_column("worker", no_wrap=True)
    table.add_column("doing", overflow="ellipsis", no_wrap=True, ratio=1)  # the width that the other columns leave
    for title in ("rows", "requests", "MB"):
        table.add_column(title, justify="right", no_wrap=True)
    for worker in view.workers:
        doing = ", ".join(worker.executing) or "idle"
        if worker.silent_s > SILENT_S:
            doing = f"silent for {worker.silent_s:.0f} s; {doing}"
        table.add_row(
            cell(worker.name), cell(doing), f"{worker.rows:,}", f"{worker.requests:,}", f"{worker.megabytes:.0f}"
        )
    bar = ProgressBar(total=max(view.total, 1), completed=view.done)
    waits = [cell(str(wait)) for wait in view.waits]
    return Group(Text(headline(view)), *waits, table, bar)  # the bar comes last, because it ends no line


class TerminalDisplay:
    """A table that rich redraws in place."""

    def __init__(self) -> None:
        """Start drawing."""
        self._console = Console(file=unescaped(sys.stderr))
        self._live = Live(console=self._console, refresh_per_second=4, transient=True)
        self._live.start()

    def update(self, what: Rendering) -> None:
        """Show a state."""
        self._live.update(what.picture())

    def note(self, line: str) -> None:
        """Print a line."""
        self._console.print(printable(line), highlight=False, markup=False)

    def close(self) -> None:
        """End the display."""
        self._live.stop()


class PlainDisplay:
    """A line every few seconds, for logs and CI; the first after `first_s` seconds."""

    def __init__(self, write: Callable[[str], None] | None = None, *, first_s: float = 0.0) -> None:
        """Take the function that writes a line; by default to stderr."""
        self._write = write or (lambda line: print(line, file=sys.stderr, flush=True))
        self._next = time.monotonic() + first_s

    def update(self, what: Rendering) -> None:
        """Show a state."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + PLAIN_EVERY_S
            self._write(printable(what.line))

    def note(self, line: str) -> None:
        """Print a line."""
        self._write(printable(line))

    def close(self) -> None:
        """End the display."""
        pass


class JsonDisplay(PlainDisplay):
    """JSON lines on stderr, as often as plain lines."""

    def update(self, what: Rendering) -> None:
        """Show a state."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + PLAIN_EVERY_S
            self._write(json.dumps({"event": "progress", **what.plain}))

    def note(self, line: str) -> None:
        """Print a line."""
        self._write(json.dumps({"event": "note", "text": line}))


class QuietDisplay:
    """Shows nothing; errors are printed elsewhere."""

    def update(self, what: Rendering) -> None:
        """Show a state."""

    def note(self, line: str) -> None:
        """Print a line."""

    def close(self) -> None:
        """End the display."""
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
    """The progress of a command that is not a run of tasks. `total` 0: its parts are not counted."""

    stage: str
    done: int
    total: int
    elapsed_s: float


def render_steps(view: StepsView) -> Rendering:
    """Return a line and a bar, which only moves if the number of parts is unknown."""
    counted = f" {view.done}/{view.total}" if view.total else ""
    line = f"{view.stage}{counted} · elapsed {clock(view.elapsed_s)}"
    bar = ProgressBar(total=view.total or None, completed=view.done, pulse=not view.total)
    return Rendering(line, lambda: Group(Text(line), bar), asdict(view))


class Steps:
    """Progress of a command that counts its parts: call it with (done, total). A thread refreshes it during long parts.

    `stage` may be changed meanwhile. Commands that end within a second show nothing.
    """

    def __init__(self, stage: str, mode: OutputMode) -> None:
        """Start the thread that shows progress."""
        self.stage = stage
        self._counts = (0, 0)
        self._began = time.monotonic()
        self._display = choose_display(mode, first_s=QUICK_S)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._refresh, name="progress", daemon=True)
        self._thread.start()

    def __call__(self, done: int, total: int) -> None:
        """Take the count of parts."""
        self._counts = (done, total)

    def _refresh(self) -> None:
        while not self._over.wait(REFRESH_S):
            view = StepsView(self.stage, *self._counts, time.monotonic() - self._began)
            self._display.update(render_steps(view))

    def close(self) -> None:
        """End the thread and remove the bar."""
        self._over.set()
        self._thread.join()
        self._display.close()
