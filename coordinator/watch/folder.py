"""Read a data folder for the page: the newest status, the events of its runs, the journal's tasks, the curves. Nothing is written.

Everything that is kept has a bound, so a page that stays open does not grow: 300 lines of the log, 600 points of a curve, 600
moments of the rates, 2,000 characters of a line, one byte and the id of a task.
"""

from __future__ import annotations

import platform
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from coordinator.report.model import Control, Floats, Training
from coordinator.server.status import WorkerStatus
from coordinator.stages.run_log import EVENTS, STATUS, RunState
from coordinator.watch.curves import Curve, MetricCurves, control_of, training_of
from coordinator.watch.tasks import JournalFollower, TaskGrid
from ingest.files import LineFollower
from rl.arrays import load as load_arrays
from rl.errors import ControlError

MAX_LINES = 300  # of the log
MAX_TEXT = 2_000  # characters of a line
RATE_S = 10.0  # over which the rates of a worker are taken
FIRST_S, JOURNAL_S = (
    0.02,
    0.1,
)  # of a look, for new records of the journal: the page opens before a long one has been read
SILENT_S = 10.0  # without a status, after which a run counts as gone
NO_CURVE = np.array([]), np.array([])
WorkerRates = tuple[float | None, float | None]  # rows and requests a second; None: not known yet


@dataclass(frozen=True)
class StageRun:
    """The last run of a stage. `status` "": it has not ended."""

    stage: str
    began: float
    status: str = ""
    message: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class LogLine:
    """A note of a run."""

    at: float  # seconds since 1970
    stage: str
    text: str


@dataclass(frozen=True)
class View:
    """All that the page shows, at one moment."""

    data: str
    now: float  # seconds since 1970
    state: RunState | None
    running: bool
    stages: tuple[StageRun, ...]
    log: tuple[LogLine, ...]
    tasks: TaskGrid
    rates: Mapping[str, tuple[Floats, Floats]]  # name → seconds since the stage began, value a second
    training: Training | None
    ring: Mapping[str, tuple[Floats, Floats]]  # name → step, value
    newest: Mapping[str, Any]  # of the training's metrics
    control: Control | None
    host: str = ""  # that reads the folder
    worker_rates: Mapping[str, WorkerRates] = field(default_factory=dict)  # by worker
    missing: bool = False  # the folder has gone, or is not there yet: the rest is what it last held
    problem: str = ""  # why it could not be read


@dataclass
class _Counter:
    at: float = 0.0
    value: float = 0.0
    rate: Curve = field(default_factory=Curve)


@dataclass(frozen=True)
class _Heard:
    """What a worker had done at a moment."""

    at: float
    rows: int
    requests: int


class FolderReader:
    """Follows one data folder. Not thread-safe."""

    def __init__(self, data_dir: Path) -> None:
        """Take the folder; it may be empty yet, or not be there."""
        self.data_dir = data_dir
        self._reset()

    def _reset(self) -> None:
        data_dir = self.data_dir
        self._last: View | None = None
        self._gone = False
        self._events = LineFollower(data_dir / EVENTS)
        self._journal = JournalFollower(data_dir / "journal.sqlite")
        self._training = MetricCurves(data_dir / "train" / "metrics.jsonl", "step")
        self._control = MetricCurves(data_dir / "control" / "metrics.jsonl", "version")
        self._history: tuple[Floats, Floats] = NO_CURVE
        self._history_of = 0  # modification time of the state that it was read from, nanoseconds
        self._log: deque[LogLine] = deque(maxlen=MAX_LINES)
        self._stages: dict[str, StageRun] = {}
        self._state: RunState | None = None
        self._raw = b""  # that it was decoded from
        self._rates: dict[str, _Counter] = {}
        self._workers: dict[str, deque[_Heard]] = {}
        self._of = 0.0  # when the run whose rates these are began

    def read(self) -> View:
        """Read what is new, and return the view.

        If the folder no longer exists, return the last view. If it exists again, read it from the beginning.
        """
        if not self.data_dir.is_dir():
            self._gone = True
            return replace(self._last or self._read(), now=time.time(), running=False, missing=True)
        if self._gone:
            self._reset()
        self._last = self._read()
        return self._last

    def _read(self) -> View:
        self._read_events()
        self._read_state()
        self._journal.poll(JOURNAL_S if self._last else FIRST_S)
        self._training.poll()
        self._control.poll()
        self._read_history()
        now, state, newest = time.time(), self._state, self._training.newest
        return View(
            data=str(self.data_dir),
            now=now,
            state=state,
            running=state is not None and not state.ended and now - state.at < SILENT_S,
            stages=tuple(self._stages.values()),
            log=tuple(self._log),
            tasks=self._journal.grid(),
            rates={name: _since(one.rate, self._of) for name, one in self._rates.items()},
            training=training_of(self._training, self.data_dir / "train"),
            ring={name: self._training.arrays(name) for name in ("attention_share", "wait_share")},
            newest=dict(newest),
            control=control_of(self._control, self._history, self.data_dir / "control"),
            host=platform.node(),
            worker_rates={name: _rates(heard) for name, heard in self._workers.items()},
        )

    def _read_events(self) -> None:
        lines = self._events.poll()
        if self._events.replaced:
            self._log.clear()
        for line in lines:
            with suppress(msgspec.MsgspecError, KeyError, TypeError, ValueError):
                self._take(msgspec.json.decode(line, type=dict[str, Any]))

    def _take(self, event: Mapping[str, Any]) -> None:
        stage, at = str(event["stage"]), float(event["t"])
        if event["event"] == "note":
            self._log.append(LogLine(at, stage, _bounded(str(event["text"]))))
        elif event["event"] == "begin":
            self._stages.pop(stage, None)  # the stages are in the order of their last beginning
            self._stages[stage] = StageRun(stage, at)
            self._log.append(LogLine(at, stage, f"{stage} begins"))
        elif event["event"] == "end":
            status, seconds = str(event["status"]), float(event["seconds"])
            message = _bounded(str(event.get("message", "")))
            self._stages[stage] = StageRun(stage, at - seconds, status, message, seconds)
            text = f"{stage} ended: {status}" + (f": {message}" if message else "")
            self._log.append(LogLine(at, stage, text))

    def _read_state(self) -> None:
        try:
            raw = (self.data_dir / STATUS).read_bytes()
        except FileNotFoundError:
            self._state, self._raw = None, b""
            return
        except OSError:
            return
        if raw == self._raw:
            return
        with suppress(msgspec.MsgspecError):
            self._state = msgspec.json.decode(raw, type=RunState)
            self._raw = raw
            self._count(self._state)

    def _count(self, state: RunState) -> None:
        """Take the rates between two statuses of a run."""
        if state.began != self._of:
            self._rates, self._workers, self._of = {}, {}, state.began
        run = state.run
        self._workers = {one.name: self._heard(one, state.at) for one in run.workers}
        for name in ("rows", "requests"):
            value = sum(getattr(worker, name) for worker in run.workers) + getattr(run, f"departed_{name}")
            counter = self._rates.setdefault(name, _Counter(state.at, value))
            if state.at > counter.at:
                counter.rate.add(state.at, max(value - counter.value, 0.0) / (state.at - counter.at))
                counter.at, counter.value = state.at, value

    def _heard(self, worker: WorkerStatus, at: float) -> deque[_Heard]:
        """Return what a worker had done at the moments of the last `RATE_S`, the newest included."""
        heard = self._workers.get(worker.name, deque())
        heard.append(_Heard(at, worker.rows, worker.requests))
        while len(heard) > 2 and at - heard[1].at >= RATE_S:
            heard.popleft()
        return heard

    def _read_history(self) -> None:
        """Read the versions that were evaluated, when the learner's state has changed."""
        path = self.data_dir / "control" / "state.pack"
        with suppress(OSError, ControlError, KeyError, TypeError, ValueError):
            changed = path.stat().st_mtime_ns
            if changed != self._history_of:
                meta, _ = load_arrays(path)
                pairs = [(float(one["version"]), float(one["pop"])) for one in meta.get("history", [])]
                self._history = np.array([a for a, _ in pairs]), np.array([b for _, b in pairs])
                self._history_of = changed


def _since(curve: Curve, began: float) -> tuple[Floats, Floats]:
    at, value = curve.arrays()
    return at - began, value


def _rates(heard: deque[_Heard]) -> WorkerRates:
    """Return rows and requests a second between the oldest and the newest moment. None of either is known to be a rate only after `RATE_S`."""
    first, last = heard[0], heard[-1]
    seconds = last.at - first.at

    def rate(count: int) -> float | None:
        return count / seconds if seconds >= RATE_S or (seconds > 0 and count) else None

    return rate(last.rows - first.rows), rate(last.requests - first.requests)


def _bounded(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} … ({len(text):,} characters)"
