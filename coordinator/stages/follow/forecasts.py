"""Issue the day's forecasts after a cycle: `coordinator follow --then forecast`. Each is a file, so a restart repeats none.

A forecast that lacks day-ahead forecasts (DF) starts from own history there, and is issued again in later cycles until it has them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

from ingest.errors import UsageError, quoted
from ingest.files import atomic_write
from ingest.zones import zone_of

FOLDER = "forecasts"  # in the data folder: forecasts/PACW/2026-06-24T10.json
COMMAND = (sys.executable, "-m", "worker.forecast")
LIMIT_S = 1_800.0  # for one forecast, which takes seconds: only a hang exceeds it
MAX_ERROR = 300  # characters of an error that are shown


def due_issues(now: datetime, respondents: Sequence[str], issued: Collection[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return each (respondent, issue time) that is due: today's 10:00 local has passed, and its forecast is not on disk.

    Args:
        now: aware.
        respondents: that the model knows.
        issued: as returned, of the forecasts on disk.
    """
    from ingest.calendar import ISSUE_HOUR  # here: pandas takes half a second to load

    found = []
    for respondent in respondents:
        local = now.astimezone(ZoneInfo(zone_of(respondent)))
        issue = respondent, f"{local:%Y-%m-%d}T{ISSUE_HOUR:02d}"
        if local.hour >= ISSUE_HOUR and issue not in issued:
            found.append(issue)
    return found


def trained_respondents(run: Path) -> tuple[str, ...]:
    """Return the respondents that a finished training knows.

    Raises:
        UsageError: there is none in the folder.
    """
    try:
        checkpoint = json.loads((run / "result.json").read_bytes())["checkpoint"]
        return tuple(json.loads((run / checkpoint / "state.json").read_bytes())["respondents"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        where = (
            f"--data {quoted(run.parent)}" if run.name == "train" else f"--run {quoted(run)}"
        )  # DATA/train is the default
        raise UsageError(
            f"{run} holds no finished training: `coordinator start --train {where}` makes one, or name its folder with --run; "
            "leave out --then forecast to follow without forecasts"
        ) from error


def _awaited(path: Path) -> int:
    """Return the number of hours of an issued forecast whose DF was to be on disk and was not."""
    return int(json.loads(path.read_bytes()).get("awaited", 0))


class Forecasts:
    """Runs the forecast command for one respondent after the other while the follower goes on."""

    def __init__(self, data_dir: Path, run: Path, respondents: Sequence[str], command: Sequence[str] = COMMAND) -> None:
        """Take the data folder, the run folder of the training, and the respondents to forecast."""
        self._data_dir, self._run, self._respondents, self._command = data_dir, run, tuple(respondents), tuple(command)
        self._waiting: list[tuple[str, str]] = []
        self._process: subprocess.Popen[str] | None = None
        self._issue = ("", "")
        self._began = 0.0
        logs = data_dir / "logs"
        self._out, self._log = logs / "forecast.out", logs / "forecast.log"

    @property
    def busy(self) -> bool:
        """Whether a forecast runs or waits."""
        return self._process is not None or bool(self._waiting)

    def start_due(self, now: datetime) -> None:
        """Take the forecasts that are due at `now` (aware)."""
        issued = {
            (path.parent.name, path.stem) for path in (self._data_dir / FOLDER).glob("*/*.json") if not _awaited(path)
        }
        self._waiting = due_issues(now, self._respondents, issued)

    def poll(self) -> Iterator[str]:
        """Start the next forecast and store one that has ended; yield a line for each."""
        if self._process is not None:
            if self._process.poll() is None and time.monotonic() - self._began > LIMIT_S:
                self._process.kill()
            if self._process.poll() is not None:
                yield self._take(self._process)
                self._process = None
        if self._process is None and self._waiting:
            self._issue = self._waiting.pop(0)
            respondent, issue = self._issue
            options = ["--data", str(self._data_dir), "--run", str(self._run), "--region", respondent, "--issue", issue]
            self._began = time.monotonic()
            self._out.parent.mkdir(parents=True, exist_ok=True)
            with self._out.open("wb") as out, self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    [*self._command, *options, "--json"], stdin=subprocess.DEVNULL, stdout=out, stderr=log, text=True
                )

    def _take(self, process: subprocess.Popen[str]) -> str:
        respondent, issue = self._issue
        if process.returncode == 0:
            path = self._data_dir / FOLDER / respondent / f"{issue}.json"
            awaited = _awaited(self._out)
            if not path.exists() or awaited < _awaited(path):
                atomic_write(path, self._out.read_bytes())
            self._out.unlink()
            waits = (
                f"; {awaited} hours have no day-ahead forecast (DF) yet, and it is issued again when they have"
                if awaited
                else ""
            )
            return f"forecast of {respondent}, issued {issue} local: {path}{waits}"
        said = ""
        with suppress(OSError, ValueError, KeyError, IndexError, TypeError):
            line = self._log.read_text("utf-8", "replace").strip().splitlines()[-1]
            said = line
            said = str(json.loads(line)["text"])
        return f"forecast of {respondent}, issued {issue} local, FAILED with {process.returncode}: {said[:MAX_ERROR]}"

    def close(self) -> None:
        """End a forecast that runs; the next start issues it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
