"""Inject faults of hosts and cables into a training, and measure seconds to detect, to resume, to have the host back, and repeated work."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from scripts.testbed.bed import Host
from tests.support.cluster_fleet import Fleet

# What the coordinator prints when it has detected a failure of a ring or a host.
SEEN = re.compile(r"failed:|the ring failed|no progress for|cannot take part|trying to reach|ring of \d+ of \d+")


@dataclass(frozen=True)
class Kind:
    """A kind of fault. `breaks`: the ring can't continue unchanged. `undo`: repair the host."""

    name: str
    do: Callable[[Host], None]
    undo: Callable[[Host], None]
    breaks: bool = True


def _fill(host: Host) -> None:
    """Fill its disk and kill its rank, which would have to restart there."""
    host.fill_disk()
    for process in host.running("worker/train.py"):
        process.kill()


KINDS = (
    Kind("host death", Host.kill, Host.boot),
    Kind("cable pulled", Host.cut, Host.repair_link),
    Kind("loss on the way to it", lambda host: host.lose("to"), Host.repair_link),
    Kind("loss on the way from it", lambda host: host.lose("from"), Host.repair_link),
    Kind("host frozen", Host.freeze, Host.thaw),
    Kind("disk full", _fill, Host.free_disk),
    Kind("link at 2 Mbit/s", lambda host: host.shape(2), Host.repair_link, breaks=False),
)


class TrainingFaults:
    """Faults of a training on a fleet, observed from outside by its files and the coordinator's output."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.metrics = fleet.data / "train" / "metrics.jsonl"

    def live(self) -> list[dict[str, Any]]:
        """Return the metrics of every step so far, from the first host of the ring, where rank 0 writes them."""
        found: list[dict[str, Any]] = []
        for host in self.fleet.bed.hosts[:1]:
            path = host.data / "mirror" / "run" / "metrics.jsonl"
            lines = path.read_text().splitlines() if path.exists() else []
            found = [json.loads(line) for line in lines if '"loss"' in line and line.endswith("}")]
        return found

    def step(self) -> int:
        """Return the newest step."""
        lines = self.live()
        return int(lines[-1]["step"]) if lines else 0

    def size(self) -> int:
        """Return the number of ranks at the newest step."""
        lines = self.live()
        return int(lines[-1]["ranks"]) if lines else 0

    def inject(self, kind: Kind, host: Host, draw: random.Random) -> dict[str, Any]:
        """Inject a fault at a random moment on one host, repair it, and return its cost."""
        wanted = len(self.fleet.bed.hosts)
        goal = self.step() + draw.randint(1, 4)
        self.fleet.until(lambda: self.size() == wanted and self.step() >= goal, f"step {goal} of a whole ring")
        said, before = len(self.fleet.log_text()), self.step()
        began = time.monotonic()
        kind.do(host)
        row: dict[str, Any] = {"fault": kind.name, "host": host.name, "step": before}
        if kind.breaks:
            self.fleet.until(
                lambda: SEEN.search(self.fleet.log_text()[said:]), f"the coordinator to notice: {kind.name}"
            )
            row["notice_s"] = time.monotonic() - began
            self.fleet.until(lambda: 0 < self.size() < wanted, f"a ring without {host.name}")
            row["recover_s"] = time.monotonic() - began
            at = [int(n) for n in re.findall(r"from checkpoint (\d+)", self.fleet.log_text()[said:])]
            row["steps_repeated"] = max(0, before - at[0]) if at else 0
        else:
            self.fleet.until(lambda: self.step() > before + 1, f"steps over a slow link of {host.name}")
            row["recover_s"] = time.monotonic() - began
        began = time.monotonic()
        kind.undo(host)
        self.fleet.until(lambda: self.size() == wanted, f"{host.name} to take part again")
        row["back_s"] = time.monotonic() - began
        return self.fleet.line(row)


class ControlFaults:
    """Faults of a control training on a fleet: every iteration is a line of its metrics, on the coordinator's host."""

    KINDS = tuple(kind for kind in KINDS if kind.name != "disk full")  # hosts that play episodes write no file

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.metrics = fleet.data / "control" / "metrics.jsonl"

    def version(self) -> int:
        """Return the newest version."""
        return self.metrics.read_text().count("\n") if self.metrics.exists() else 0

    def knows(self, host: Host) -> bool:
        """Return whether a worker of the host is registered."""
        return host.name in self.fleet.registered_hosts()

    def inject(self, kind: Kind, host: Host, draw: random.Random) -> dict[str, Any]:
        """As `TrainingFaults.inject`; recovery is the version after the one in progress."""
        goal = self.version() + draw.randint(1, 4)
        self.fleet.until(lambda: self.version() >= goal and self.knows(host), f"version {goal}, and {host.name} in it")
        before, began = self.version(), time.monotonic()
        kind.do(host)
        row: dict[str, Any] = {"fault": kind.name, "host": host.name, "version": before}
        self.fleet.until(lambda: self.version() > before + 1, f"versions after {kind.name}")
        row["recover_s"] = time.monotonic() - began
        if kind.breaks:
            self.fleet.until(lambda: not self.knows(host), f"the coordinator to notice: {kind.name}")
            row["notice_s"] = time.monotonic() - began
        began = time.monotonic()
        kind.undo(host)
        self.fleet.until(lambda: self.knows(host), f"{host.name} to take part again")
        row["back_s"] = time.monotonic() - began
        return self.fleet.line(row)
