"""Faults of hosts and cables under a training, and what each costs: seconds to notice, to go on, to have the host back; work repeated."""

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

# What the coordinator says when it has seen that something is wrong with a ring or a host.
SEEN = re.compile(r"failed:|the ring failed|no progress for|cannot take part|trying to reach|ring of \d+ of \d+")


@dataclass(frozen=True)
class Kind:
    """`breaks`: the ring can't go on as it is. `undo`: the host is well again."""

    name: str
    do: Callable[[Host], None]
    undo: Callable[[Host], None]
    breaks: bool = True


def _fill(host: Host) -> None:
    """No room is left on its disk, and its rank is gone: it would have to begin again there."""
    host.fill_disk()
    for process in host.running("worker/train.py"):
        process.kill()


KINDS = (
    Kind("host death", Host.kill, Host.boot),
    Kind("cable pulled", Host.cut, Host.mend),
    Kind("loss on the way to it", lambda host: host.lose("to"), Host.mend),
    Kind("loss on the way from it", lambda host: host.lose("from"), Host.mend),
    Kind("host frozen", Host.freeze, Host.thaw),
    Kind("disk full", _fill, Host.free_disk),
    Kind("link at 2 Mbit/s", lambda host: host.shape(2), Host.mend, breaks=False),
)


class Watched:
    """A training over a fleet, as its files and its coordinator's words show it from outside."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.metrics = fleet.data / "train" / "metrics.jsonl"

    def live(self) -> list[dict[str, Any]]:
        """The metrics of every step so far, where rank 0 writes them: on the first host of the ring."""
        found: list[dict[str, Any]] = []
        for host in self.fleet.bed.hosts[:1]:
            path = host.data / "mirror" / "run" / "metrics.jsonl"
            lines = path.read_text().splitlines() if path.exists() else []
            found = [json.loads(line) for line in lines if '"loss"' in line and line.endswith("}")]
        return found

    def step(self) -> int:
        lines = self.live()
        return int(lines[-1]["step"]) if lines else 0

    def size(self) -> int:
        """Ranks of the ring that made the newest step."""
        lines = self.live()
        return int(lines[-1]["ranks"]) if lines else 0

    def suffer(self, kind: Kind, host: Host, draw: random.Random) -> dict[str, Any]:
        """One fault at a random moment on one host, and its end; what it cost."""
        wanted = len(self.fleet.bed.hosts)
        goal = self.step() + draw.randint(1, 4)
        self.fleet.until(lambda: self.size() == wanted and self.step() >= goal, f"step {goal} of a whole ring")
        said, before = len(self.fleet.narration()), self.step()
        began = time.monotonic()
        kind.do(host)
        row: dict[str, Any] = {"fault": kind.name, "host": host.name, "step": before}
        if kind.breaks:
            self.fleet.until(
                lambda: SEEN.search(self.fleet.narration()[said:]), f"the coordinator to notice: {kind.name}"
            )
            row["notice_s"] = time.monotonic() - began
            self.fleet.until(lambda: 0 < self.size() < wanted, f"a ring without {host.name}")
            row["recover_s"] = time.monotonic() - began
            at = [int(n) for n in re.findall(r"from checkpoint (\d+)", self.fleet.narration()[said:])]
            row["steps_repeated"] = max(0, before - at[0]) if at else 0
        else:
            self.fleet.until(lambda: self.step() > before + 1, f"steps over a slow link of {host.name}")
            row["recover_s"] = time.monotonic() - began
        began = time.monotonic()
        kind.undo(host)
        self.fleet.until(lambda: self.size() == wanted, f"{host.name} to take part again")
        row["back_s"] = time.monotonic() - began
        return self.fleet.line(row)


class Played:
    """A control training over a fleet: every iteration is a line of its metrics, on the coordinator's host."""

    KINDS = tuple(kind for kind in KINDS if kind.name != "disk full")  # nothing is written where episodes are played

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.metrics = fleet.data / "control" / "metrics.jsonl"

    def version(self) -> int:
        return self.metrics.read_text().count("\n") if self.metrics.exists() else 0

    def knows(self, host: Host) -> bool:
        return host.name in self.fleet.players()

    def suffer(self, kind: Kind, host: Host, draw: random.Random) -> dict[str, Any]:
        """As `Watched.suffer`; the next version after the one that was under way counts as recovery."""
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
