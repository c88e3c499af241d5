"""Display progress on stderr: a table on a terminal, plain lines elsewhere, JSON lines for programs.

A stage describes its state as a `Rendering`; the displays only format it. `RunView` summarises the server's snapshot.
"""

import json
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from coordinator.scheduling.progress import Part, StageProgress
from coordinator.scheduling.records import CANCELLED
from coordinator.scheduling.waits import WaitStatus
from coordinator.server.status import RunStatus
from coordinator.stages.stage import OutputMode
from ingest.console import printable, unescaped

if TYPE_CHECKING:  # loaded where it draws: a command that is no terminal's starts sooner without it
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

SILENT_S = 5.0  # without a heartbeat, after which the table shows the worker as silent
PLAIN_EVERY_S = 2.0  # between lines without a terminal
QUICK_S = 1.0  # a command that ends sooner shows no progress
REFRESH_S = 0.25
COLUMNS = 80  # of a line
WITH_DOING = (
    64  # columns of a terminal from which the table says what each worker does; in fewer it would be cut to a letter
)
FOLDED = "  … "  # before the rest of a line that is longer


@dataclass(frozen=True)
class WorkerView:
    """One row for each worker."""

    name: str
    executing: tuple[str, ...]
    leases: int
    capacity: int  # leases at once
    done_per_minute: float  # leases
    rows: int
    requests: int
    megabytes: float
    silent_s: float


@dataclass(frozen=True, kw_only=True)
class RunView:
    """The state of a run: tasks by state, verified rows, requests against the budget, time left, workers."""

    stage: str = ""
    progress: StageProgress | None = None
    total: int
    done: int
    leased: int
    quarantined: int
    rows: int
    rows_per_s: float
    requests: int
    requests_per_s: float
    ceiling: float | None  # requests per second that the source's policy allows; None = no limit
    eta_s: float | None  # that the stage still takes
    elapsed_s: float
    workers: tuple[WorkerView, ...] = field(default=())
    waits: tuple[WaitStatus, ...] = field(default=())  # for the source, the longest first


def run_view(status: RunStatus, to_come: int = 0, stage: str = "") -> RunView:
    """Return the view of a server's status. Rows and requests are those that workers of this run verified and sent.

    Args:
        status: The server's status.
        to_come: Number of tasks that the stage will open when others have ended.
        stage: Its name.
    """
    elapsed_s, tasks = status.elapsed_s, status.tasks
    total = sum(tasks.values()) - tasks[CANCELLED] + to_come
    rows = sum(worker.rows for worker in status.workers) + status.departed_rows
    requests = sum(worker.requests for worker in status.workers) + status.departed_requests
    return RunView(
        stage=stage,
        progress=status.progress,
        total=total,
        done=tasks["done"],
        leased=tasks["leased"],
        quarantined=tasks["quarantined"],
        rows=rows,
        rows_per_s=rows / elapsed_s if elapsed_s > 0 else 0.0,
        requests=requests,
        requests_per_s=requests / elapsed_s if elapsed_s > 0 else 0.0,
        ceiling=next((budget.rate for budget in status.budgets.values()), None),
        eta_s=None if status.progress is None else status.progress.eta_s,
        elapsed_s=elapsed_s,
        workers=tuple(
            WorkerView(
                name=f"{worker.host}:{worker.pid}",
                executing=worker.executing,
                leases=worker.leases,
                capacity=worker.capacity,
                done_per_minute=worker.done_per_minute,
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
    """Return seconds as `m:ss` or `h:mm:ss`, or `-:--` if unknown."""
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def approximate(seconds: float) -> str:
    """Return seconds in words, with the unit that suits: `52 s`, `5 min`, `2 h 10 min`."""
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{60 * hours + minutes} min" if seconds < 90 * 60 else f"{hours} h {minutes} min"


def quantity(value: float) -> str:
    """Return a count in at most five characters: 950, 12.3k, 4.9M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.1f}{unit}" if value < 100 * size else f"{value / size:.0f}{unit}"
    return f"{value:,.0f}"


def joined(parts: Sequence[str], width: int = COLUMNS) -> str:
    """Return the parts as one line that fits `width` columns: the last ones are left out where they do not."""
    line = parts[0]
    for part in parts[1:]:
        if len(line) + len(part) + 3 > width:
            break
        line += f" · {part}"
    return line


def standing(stage: str, progress: StageProgress | None, elapsed_s: float) -> list[str]:
    """Return what every line of a stage begins with: its name and share, the time left, the part that runs.

    Before the time left is known, the share is not, either: what a unit of one part is worth in those of another.
    """
    if progress is None:
        return [stage, f"elapsed {clock(elapsed_s)}"] if stage else [f"elapsed {clock(elapsed_s)}"]
    part = next((part for part in progress.parts if part.name == progress.part), None)
    counted = [counted_part(part)] if part and part.unit else []
    running = counted or ([progress.part] if progress.part else [])
    if progress.eta_s is None:
        return [*([stage] if stage else []), f"elapsed {clock(elapsed_s)}", *running]
    return [f"{stage} {progress.share:.0%}".strip(), f"{clock(progress.eta_s)} left", *running]


def counted_part(part: Part) -> str:
    """Return how far a part is: `fetch 4.9M/11.4M rows`, `40/160 steps`."""
    name = "" if part.unit.startswith(part.name) else f"{part.name} "
    return f"{name}{quantity(part.done)}/{quantity(part.total)} {part.unit}"


def headline(view: RunView) -> str:
    """Return the view as one line of 80 columns, for logs and for the top of the table."""
    allowed = f" of {view.ceiling:.3g}" if view.ceiling is not None else ""
    requests = f"{view.requests_per_s:.1f}{allowed} requests/s"
    parts = standing(view.stage, view.progress, view.elapsed_s)
    if view.quarantined:
        parts.insert(1, f"{view.quarantined} QUARANTINED")
    return joined([*parts, f"{quantity(view.rows_per_s)} rows/s", requests, f"{view.done}/{view.total} tasks"])


@dataclass(frozen=True)
class Rendering:
    """A state as a line of 80 columns and further ones, as a renderable for terminals, and as plain data for programs."""

    line: str
    picture: "Callable[[], RenderableType]"
    plain: Mapping[str, Any]
    more: tuple[str, ...] = ()  # lines: what is waited for


def render(view: RunView) -> Rendering:
    """Return the forms in which displays show the view."""
    return Rendering(headline(view), lambda: to_rich(view), msgspec.to_builtins(view), tuple(map(str, view.waits)))


def folded(line: str, width: int = COLUMNS) -> list[str]:
    """Return a line as lines of at most `width` columns. Those after the first are marked: text of others begins no line."""
    return textwrap.wrap(line, width, subsequent_indent=FOLDED, break_on_hyphens=False) or [line]


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


def cell(text: str) -> "Text":
    """Return text of a worker for a table: escaped, and without rich's markup."""
    from rich.text import Text

    return Text(printable(text))


def to_rich(view: RunView) -> "RenderableType":
    """Return the headline, a line for each wait, a table with a row for each worker, and a bar."""
    from rich.console import Group
    from rich.text import Text

    waits = [Text(part) for wait in view.waits for part in folded(printable(str(wait)))]
    table = ByWidth(lambda width: worker_table(view, with_doing=width >= WITH_DOING))
    return Group(Text(headline(view)), *waits, table, bar(view.progress, view.done, view.total))


@dataclass(frozen=True)
class ByWidth:
    """What a console draws in as many columns as it has."""

    draw: "Callable[[int], RenderableType]"

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "Iterator[RenderableType]":
        """Yield what is drawn, as rich asks for it."""
        yield self.draw(options.max_width)


def worker_table(view: RunView, *, with_doing: bool) -> "Table":
    """Return a table with a row for each worker."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_edge=False, expand=True)
    table.add_column("worker", no_wrap=True)
    if with_doing:
        table.add_column("doing", overflow="ellipsis", no_wrap=True, ratio=1)  # the width that the other columns leave
    for title in ("leases", "rows", "requests", "MB"):
        table.add_column(title, justify="right", no_wrap=True)
    for worker in view.workers:
        doing = ", ".join(worker.executing) or "idle"
        if worker.silent_s > SILENT_S:
            doing = f"silent for {worker.silent_s:.0f} s; {doing}"
        held = f"{worker.leases}/{worker.capacity}"
        counts = (held, f"{worker.rows:,}", f"{worker.requests:,}", f"{worker.megabytes:.0f}")
        table.add_row(cell(worker.name), *([cell(doing)] if with_doing else []), *counts)
    return table


def bar(progress: StageProgress | None, done: float, total: float) -> "ProgressBar":
    """Return the bar of a stage: its share of the work. It comes last, because it ends no line."""
    from rich.progress_bar import ProgressBar

    if progress is not None:
        return ProgressBar(total=1.0, completed=progress.share)
    return ProgressBar(total=max(total, 1), completed=done)


class TerminalDisplay:
    """A table that rich redraws in place."""

    def __init__(self) -> None:
        """Start drawing."""
        from rich.console import Console
        from rich.live import Live

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
            for line in what.more:
                for part in folded(printable(line)):
                    self._write(part)

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

    def picture() -> "RenderableType":
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.text import Text

        bar = ProgressBar(total=view.total or None, completed=view.done, pulse=not view.total)
        return Group(Text(line), bar)

    return Rendering(line, picture, asdict(view))


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
