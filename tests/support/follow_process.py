"""A follower on an emulated clock: time goes on only where nothing is due. As a program, it can be killed and started again.

    python -m tests.support.follow_process WORLD.json DATA

WORLD.json holds the start, the end, the outages and the options; the emulated time is kept in WORLD.json.now, and every request in
WORLD.json.log.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from coordinator.cli.settings import resolve
from coordinator.scheduling.events import Outcome
from coordinator.stages.extract.plan import ExtractOptions
from coordinator.stages.follow.run import follow
from coordinator.stages.stage import OutputMode
from ingest.emulator.process import Emulator
from ingest.files import atomic_write
from worker.training.rank_runner import free_port


@dataclass(frozen=True)
class World:
    """What is played: hours as YYYY-MM-DDTHH."""

    path: Path
    begin: str
    end: str
    settings: dict[str, Any]
    outages: tuple[tuple[str, str], ...] = ()  # first and last hour without a server
    port: int = 0

    def write(self) -> World:
        made = World(**{**asdict(self), "port": self.port or free_port("127.0.0.1")})
        self.path.write_text(json.dumps({**asdict(made), "path": str(self.path)}))
        return made

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        return self.path.with_suffix(".log")

    @property
    def now(self) -> datetime:
        """The emulated time: of the last run, before it the begin."""
        kept = self.path.with_suffix(".now")
        return datetime.fromisoformat(kept.read_text()) if kept.exists() else hour(self.begin) + timedelta(minutes=10)

    def options(self, data: Path, **other: Any) -> ExtractOptions:
        given = {"data": data, "source": self.url, "workers": 1, **self.settings, **other}
        settings = {name: entry.value for name, entry in resolve(given, {}, data.parent).items()}
        return ExtractOptions.from_settings({**settings, "end": "", "update": True, "rebuild": False})


def hour(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%dT%H").replace(tzinfo=UTC)


class EmulatedClock:
    """The clock of an emulator that this object starts and stops; it stands still while the follower works."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._end = hour(world.end)
        self._now = world.now
        self._emulator: Emulator | None = None
        self._serve()

    def now(self) -> datetime:
        return self._now

    def idle_until(self, moment: datetime) -> None:
        if moment <= self._now:
            return
        if moment > self._end:
            os.kill(os.getpid(), signal.SIGTERM)
            return
        if self._emulator is not None:
            self._emulator.advance((moment - self._now).total_seconds())
        self._now = moment
        atomic_write(self._world.path.with_suffix(".now"), moment.isoformat().encode())
        self._serve()

    def _serve(self) -> None:
        text = f"{self._now:%Y-%m-%dT%H}"
        out = any(first <= text <= last for first, last in self._world.outages)
        if out and self._emulator is not None:
            self._emulator.stop()
            self._emulator = None
        elif not out and self._emulator is None:
            options = (
                "--port",
                str(self._world.port),
                "--clock-scale",
                "0",
                "--log",
                str(self._world.log),
                "--now",
                text,
            )
            self._emulator = Emulator(*options).start()
            self._emulator.advance(self._now.minute * 60)

    def close(self) -> None:
        if self._emulator is not None:
            self._emulator.stop()


def play(world: World, data: Path, run: Path | None = None) -> Outcome:
    """Follow from the emulated time of the last run to the end; `run`: issue the forecasts of this training."""
    for path in (data / "raw").rglob(
        "*.gz"
    ):  # a killed run's pages are dated by this host's clock, which is not the world's
        if path.stat().st_mtime > world.now.timestamp() + 3600:
            os.utime(path, (world.now.timestamp(),) * 2)
    clock = EmulatedClock(world)
    try:
        return follow(world.options(data), OutputMode(), run, clock)
    finally:
        clock.close()


if __name__ == "__main__":
    stored = json.loads(Path(sys.argv[1]).read_text())
    stored |= {"path": Path(stored["path"]), "outages": tuple(map(tuple, stored["outages"]))}
    sys.exit(play(World(**stored), Path(sys.argv[2])).exit_code)
