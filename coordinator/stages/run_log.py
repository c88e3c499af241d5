"""What a data folder keeps about its runs: events in `logs/run.jsonl`, and the newest status in `logs/status.json`.

The page of `coordinator watch` reads both; the estimates of the next run begin with the times of the last. Neither file decides
anything, so a disk that cannot take them ends no run.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from coordinator.scheduling.progress import Part, PartSeen, StageProgress
from coordinator.server.status import RunStatus
from coordinator.stages.display import Display, Rendering

EVENTS, STATUS = "logs/run.jsonl", "logs/status.json"
MAX_BYTES = 2 << 20  # of the events; then the newest half is kept
STATUS_S = 1.0  # between two writes of the status


class RunState(msgspec.Struct, frozen=True, kw_only=True):
    """The newest status of a run, as `logs/status.json` holds it."""

    at: float  # seconds since 1970
    pid: int
    stage: str
    began: float  # seconds since 1970
    ended: str = ""  # status with which the run ended; "": it goes on
    restarts: int = 0  # of workers
    run: RunStatus
    view: dict[str, Any]  # of the stage, as its JSON lines show it


class RunLog:
    """Append events to `logs/run.jsonl`. Each is a JSON object with its time `t`, seconds since 1970, and its kind `event`."""

    def __init__(self, data_dir: Path) -> None:
        """Take the data folder."""
        self._path = data_dir / EVENTS

    def add(self, event: str, **fields: Any) -> None:
        """Append an event; it is lost where the disk does not take it."""
        line = json.dumps({"t": round(time.time(), 3), "event": event, **fields}) + "\n"
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line)
                if file.tell() <= MAX_BYTES:
                    return
            newest = self._path.read_bytes()[-MAX_BYTES // 2 :]
            temporary = self._path.with_name(f".{self._path.name}.tmp")
            temporary.write_bytes(newest[newest.index(b"\n") + 1 :])
            temporary.replace(self._path)

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield the events, oldest first, without lines that cannot be read."""
        try:
            lines = self._path.read_bytes().splitlines()
        except OSError:
            return
        for line in lines:
            with suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict):
                    yield event

    def add_part(self, stage: str, like: str, part: tuple[str, str], units: float, seconds: float) -> None:
        """Record how long units of a `part` (name, unit) of a stage took. `like`: only runs of the same request compare with it."""
        name, unit = part
        if units > 0 and seconds > 0:
            self.add("part", stage=stage, like=like, name=name, unit=unit, units=units, seconds=round(seconds, 3))

    def costs(self, stage: str, like: str) -> dict[str, float]:
        """Return the seconds per unit of each part of a stage, as the last run of the same request measured them.

        Earlier versions named no unit, and counted in others.
        """
        found: dict[str, float] = {}
        for event in self.events():
            mine = event.get("event") == "part" and (event.get("stage"), event.get("like")) == (stage, like)
            if mine and "unit" in event:
                with suppress(KeyError, TypeError, ZeroDivisionError):
                    found[str(event["name"])] = float(event["seconds"]) / float(event["units"])
        return found

    def last_seconds(self, stage: str, like: str) -> float | None:
        """Return the seconds of the last run of the same request that reached its end; None: there was none."""
        ended = [
            event
            for event in self.events()
            if (event.get("event"), event.get("stage"), event.get("like")) == ("end", stage, like)
            and event.get("status") == "done"
        ]
        seconds = ended[-1].get("seconds") if ended else None
        return float(seconds) if isinstance(seconds, int | float) else None


def with_costs(parts: Sequence[Part], costs: Mapping[str, float]) -> tuple[Part, ...]:
    """Return the parts, expected to take what they took in the last run."""
    return tuple(
        msgspec.structs.replace(part, expected_s=costs[part.name], measured=True) if part.name in costs else part
        for part in parts
    )


def measured(part: Part, own: PartSeen) -> tuple[float, float]:
    """Return the units of a part and the seconds that they took: while it moved, or as a whole where that was too short to tell."""
    if len(own.points) > 2:
        return own.points[-1].done - own.points[0].done, own.points[-1].at_s - own.points[0].at_s
    return part.done - own.before, own.spent_s


class LoggedDisplay:
    """A display whose notes are also events of the run's log."""

    def __init__(self, shown: Display, log: RunLog, stage: str) -> None:
        """Wrap a display."""
        self._shown, self._log, self._stage = shown, log, stage

    def update(self, what: Rendering) -> None:
        """Show a state."""
        self._shown.update(what)

    def note(self, line: str) -> None:
        """Print and log a line."""
        self._log.add("note", stage=self._stage, text=line)
        self._shown.note(line)

    def close(self) -> None:
        """End the display."""
        self._shown.close()


class RunRecorder:
    """Writes what one run of a stage leaves in the log, and its status every second."""

    def __init__(self, data_dir: Path, stage: str, like: str) -> None:
        """Begin a run of `stage`."""
        self._path, self.stage, self._like = data_dir / STATUS, stage, like
        self.log = RunLog(data_dir)
        self.costs = self.log.costs(stage, like)
        self._began, self._next = time.time(), 0.0
        self.log.add("begin", stage=stage, pid=os.getpid())

    def due(self) -> bool:
        """Return whether the next status is to be written."""
        return time.monotonic() >= self._next

    def write(self, run: RunStatus, view: Mapping[str, Any], restarts: int, ended: str = "") -> None:
        """Replace the status file."""
        self._next = time.monotonic() + STATUS_S
        state = RunState(
            at=time.time(),
            pid=os.getpid(),
            stage=self.stage,
            began=self._began,
            ended=ended,
            restarts=restarts,
            run=run,
            view=dict(view),
        )
        temporary = self._path.with_name(f".{self._path.name}.tmp")
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(msgspec.json.encode(state))
            temporary.replace(self._path)

    def end(self, status: str, message: str, progress: StageProgress | None, seen: Mapping[str, PartSeen]) -> None:
        """Record the end of the run, and what its parts took."""
        for part in progress.parts if progress is not None else ():
            if (own := seen.get(part.name)) is not None:
                self.log.add_part(self.stage, self._like, (part.name, part.unit), *measured(part, own))
        seconds = round(time.time() - self._began, 3)
        self.log.add("end", stage=self.stage, like=self._like, status=status, message=message, seconds=seconds)
