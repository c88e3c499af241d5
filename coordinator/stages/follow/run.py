"""`coordinator follow`: the server, the workers and the source's clock around a `FollowController`, until a signal ends them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from coordinator.scheduling.events import Outcome
from coordinator.server.folder_lock import FolderLock
from coordinator.stages.display import PlainDisplay, QuietDisplay, Rendering
from coordinator.stages.extract.plan import BUCKET, ExtractOptions
from coordinator.stages.extract.stage import bundled_emulator, check_key, server_time
from coordinator.stages.fleet import build_fleet
from coordinator.stages.follow.controller import Clock, FollowController
from coordinator.stages.follow.forecasts import Forecasts, trained_respondents
from coordinator.stages.follow.state import CycleSummary
from coordinator.stages.runner import StageRunner
from coordinator.stages.stage import OutputMode
from ingest import manifest
from ingest.console import printable
from ingest.errors import SourceError
from ingest.schedule import PUBLISH_S, REVISE_HOUR

PROGRESS_S = 30.0  # between two lines of a cycle that takes longer: the first one, of years of hours


class SourceClock:
    """The source's clock: this host's, corrected by the source's `Date` at the start."""

    def __init__(self, base_url: str, note: Callable[[str], None]) -> None:
        """Ask the source once; where it does not answer, this host's clock has to do, and `note` says so."""
        self._ahead = timedelta()
        try:
            self._ahead = server_time(base_url) - datetime.now(UTC)
        except SourceError as error:
            note(f"{error} Until then the clock of this host counts.")

    def now(self) -> datetime:
        """Return the time, aware."""
        return datetime.now(UTC) + self._ahead

    def idle_until(self, moment: datetime) -> None:
        """Do nothing, because the clock advances without help."""


class CycleDisplay(PlainDisplay):
    """Notes, and a line of progress every half minute while a cycle runs."""

    def __init__(self, *, as_json: bool) -> None:
        """Write to stderr, as text or as JSON lines."""
        super().__init__()
        self._as_json = as_json

    def update(self, what: Rendering) -> None:
        """Show a state."""
        now = time.monotonic()
        if not what.plain["running"]:
            self._next = now + PROGRESS_S
        elif now >= self._next:
            self._next = now + PROGRESS_S
            self._write(json.dumps({"event": "progress", **what.plain}) if self._as_json else printable(what.line))

    def note(self, line: str) -> None:
        """Print a line."""
        self._write(json.dumps({"event": "note", "text": line}) if self._as_json else printable(line))


def print_cycle(cycle: CycleSummary, *, as_json: bool) -> None:
    """Print the line of a cycle on stdout."""
    document = json.dumps({"event": "cycle", **msgspec.to_builtins(cycle)})
    print(document if as_json else printable(str(cycle)), flush=True)


def follow(options: ExtractOptions, mode: OutputMode, run: Path | None = None, clock: Clock | None = None) -> Outcome:
    """Keep the data folder up to date until a signal drains the run; return how it ended: "done" where nothing was under way.

    Args:
        options: what to follow, from the first hour of its period.
        mode: how to report.
        run: run folder of the training whose forecasts are issued; None: none are.
        clock: the source's; None: this host's, corrected by the source.

    Raises:
        AuthenticationError: the source needs a key, and none that could be one is set; nothing was requested.
        UsageError: `run` holds no finished training, or the data folder cannot be used.
    """
    if options.source.needs_key:
        check_key(os.environ.get("EIA_API_KEY", "").strip())
    known = [] if run is None else [code for code in trained_respondents(run) if code in options.respondents]
    with ExitStack() as stack:
        stack.enter_context(FolderLock(options.data_dir))
        emulator = None if options.source.base_url else stack.enter_context(bundled_emulator(options))
        base_url = options.source.base_url or (emulator.url if emulator else "")
        display = QuietDisplay() if mode.quiet else CycleDisplay(as_json=mode.as_json)
        for note in (*options.notes, *manifest.set_damaged_builds_aside(options.data_dir)):
            display.note(note)
        clock = clock or SourceClock(base_url, display.note)
        forecasts = None if run is None else Forecasts(options.data_dir, run, known)
        if forecasts is not None:
            stack.callback(forecasts.close)
        controller = FollowController(
            options, base_url, clock, lambda cycle: print_cycle(cycle, as_json=mode.as_json), forecasts
        )
        display.note(
            f"following {', '.join(options.respondents)} of {options.source.name} in {options.data_dir}: new hours at "
            f":{PUBLISH_S // 60:02d}, revised ones at {REVISE_HOUR}:{PUBLISH_S // 60:02d}, UTC. Ctrl-C ends it."
        )
        fleet = build_fleet(options, display.note)
        budgets = {} if options.budget is None else {BUCKET: options.budget}
        supervise = emulator.revive if emulator else str
        return StageRunner(fleet, controller, display, budgets, supervise).run().outcome
