"""Follow a rank's heartbeat file, to which the rank appends JSON lines {"step", "phase", "time"}."""

from pathlib import Path

import msgspec

from coordinator.wire.messages import Count, Phase
from ingest.files import LineFollower

MAX_LINE = 4_096  # bytes; a rank writes about 60 a step


class Heartbeat(msgspec.Struct, frozen=True):
    """One line of a heartbeat file."""

    step: Count
    phase: Phase
    time: float  # seconds since 1970, by the rank's clock


class HeartbeatFollower:
    """Follow one heartbeat file.

    Attributes:
        last: the newest heartbeat.
        count: number of heartbeats.
        checkpoint_step: step of the newest checkpoint.
        malformed: number of lines that are no heartbeat.
    """

    def __init__(self, path: Path) -> None:
        self._lines = LineFollower(path, MAX_LINE)
        self.last: Heartbeat | None = None
        self.count = self.checkpoint_step = self.malformed = 0

    def poll(self) -> bool:
        """Read what was appended. Returns whether there is a new heartbeat."""
        before = self.count
        for line in self._lines.poll():
            try:
                self.last = msgspec.json.decode(line, type=Heartbeat)
            except msgspec.MsgspecError:
                self.malformed += 1
                continue
            self.count += 1
            if self.last.phase == "checkpoint":
                self.checkpoint_step = self.last.step
        return self.count > before
