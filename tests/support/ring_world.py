"""Simulated workers and ranks around `ElasticRing`: leases are taken as they are offered, and the test advances the clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from coordinator.scheduling.events import AddTasks, TaskFailed, TaskProgress, TerminateTasks
from coordinator.scheduling.records import TaskSpec
from coordinator.stages.train.elastic import ElasticRing
from coordinator.stages.train.ring_state import AddressOffered, RankDone, SupervisionTick
from coordinator.stages.train.stall import SupervisionTimeouts
from coordinator.wire.messages import Phase


@dataclass
class World:
    """`workers` are known to the coordinator and answer port leases at once, unless they are in `mute`."""

    wanted: int = 2
    workers: list[str] = field(default_factory=lambda: ["a", "b"])
    timeouts: SupervisionTimeouts = field(default_factory=SupervisionTimeouts)
    mute: set[str] = field(default_factory=set)
    now: float = 1_000.0
    open: dict[str, TaskSpec] = field(default_factory=dict)
    asked: dict[str, float] = field(default_factory=dict)  # rank's task → the grace period of the request to end
    said: list[str] = field(default_factory=list)
    draining: bool = False
    heartbeats: dict[str, int] = field(default_factory=dict)
    saved: dict[str, int] = field(default_factory=dict)
    opened: list[tuple[TaskSpec, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ring = ElasticRing(self.wanted, "train", timeouts=self.timeouts)

    def handle(self, event: Any) -> None:
        for told in self.ring.decide(event, self.now):
            if isinstance(told, str):
                self.said.append(told)
            elif isinstance(told, AddTasks):
                self.opened.append(told.tasks)
                self.open |= {spec.id: spec for spec in told.tasks}
            else:
                assert isinstance(told, TerminateTasks)
                for name in told.tasks:
                    self.asked.setdefault(name, told.grace_s)
                    self.asked[name] = min(self.asked[name], told.grace_s)
        ports = [(name, spec) for name, spec in self.open.items() if spec.kind == "port"]
        for name, spec in ports:
            if name in self.open and spec.worker in self.workers and spec.worker not in self.mute:
                del self.open[name]
                self.handle(
                    AddressOffered(name, f"10.0.0.{1 + sum(spec.worker.encode()) % 250}:{20_000 + len(self.said)}")
                )

    def passes(self, seconds: float = 0.2) -> None:
        """Advance the clock, with a tick every 0.2 s."""
        until = self.now + seconds
        while self.now < until - 1e-9:
            self.now += min(0.2, until - self.now)
            self.handle(SupervisionTick(tuple(self.workers), self.draining))

    @property
    def ranks(self) -> dict[int, str]:
        """Rank → its open task."""
        return {int(name.split("/")[-1]): name for name, spec in self.open.items() if spec.kind == "train"}

    def say(self, rank: int, step: int, phase: Phase = "step", *, stopped: bool = False) -> None:
        name = self.ranks[rank]
        if not stopped:
            self.heartbeats[name] = self.heartbeats.get(name, 0) + 1
        if phase == "checkpoint":
            self.saved[name] = step
        self.handle(TaskProgress(name, step, phase, self.heartbeats.get(name, 0), self.saved.get(name, 0), stopped))

    def steps(self, first: int, last: int, seconds: float = 1.0, every: int = 10) -> None:
        """Report the steps of all ranks, with a checkpoint after each `every` steps."""
        for step in range(first, last + 1):
            self.passes(seconds)
            for rank in list(self.ranks):
                self.say(rank, step)
                if step % every == 0:
                    self.say(rank, step, "checkpoint")

    def ends(self, rank: int, error: str, message: str = "why") -> None:
        name = self.ranks[rank]
        del self.open[name]
        self.handle(TaskFailed(name, error, message) if error else RankDone(name))

    def obey(self) -> None:
        """End every rank that was asked to end."""
        for rank, name in list(self.ranks.items()):
            if name in self.asked:
                self.ends(rank, "RankEnded")

    def form(self) -> None:
        """Advance the clock until a ring runs."""
        for _ in range(400):
            self.passes()
            if self.ring.stage == "running":
                return
        raise AssertionError(f"no ring: {self.ring.stage} {self.said}")
