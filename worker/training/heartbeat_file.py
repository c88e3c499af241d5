"""A rank's heartbeat file: a JSON line {"step", "phase", "time"} a word, appended by the rank, followed here as it grows."""

from __future__ import annotations

from pathlib import Path

import msgspec

from coordinator.wire.messages import Count, Phase
from ingest.files import LineFollower

MAX_LINE = 4_096  # bytes; a rank writes about 60 a step


class Heartbeat(msgspec.Struct, frozen=True):
    """One word of a rank."""

    step: Count
    phase: Phase
    time: float  # seconds since 1970, by the rank's own clock


class HeartbeatFollower:
    """Follows one file. `last` is the newest whole word, `count` how many there were, `saved` the step of the newest
    checkpoint; what is no word is counted in `bad`."""

    def __init__(self, path: Path) -> None:
        self._lines = LineFollower(path, MAX_LINE)
        self.last: Heartbeat | None = None
        self.count = self.checkpoint_step = self.malformed = 0

    def poll(self) -> bool:
        """Read what was appended; whether there was a new word."""
        before = self.count
        for line in self._lines.poll():
            self._take(line)
        return self.count > before

    def _take(self, line: bytes) -> None:
        try:
            self.last = msgspec.json.decode(line, type=Heartbeat)
            self.count += 1
            if self.last.phase == "checkpoint":
                self.checkpoint_step = self.last.step
        except msgspec.MsgspecError:
            self.malformed += 1
