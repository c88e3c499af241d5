"""Supervision under any order of faults: hypothesis drives `ElasticRing` over the real scheduler, with workers and ranks that fail."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from coordinator.scheduling.events import (
    Confirmed,
    Decision,
    Drain,
    Event,
    Restart,
    Send,
    TaskDone,
    TaskFailed,
    TaskProgress,
    Tick,
    Undelivered,
    WorkerLost,
)
from coordinator.scheduling.records import AnyRecord
from coordinator.scheduling.scheduler import Scheduler
from coordinator.scheduling.task_state import TaskStore
from coordinator.scheduling.worker_state import LeaseTimings
from coordinator.stages.train.elastic import ElasticRing
from coordinator.stages.train.ring_state import NOT_WORKERS_FAULT, AddressOffered, RankDone, SupervisionTick
from coordinator.stages.train.stall import SupervisionTimeouts
from coordinator.wire.messages import (
    AbandonLease,
    Deregister,
    Failure,
    Heartbeat,
    Lease,
    Progress,
    Register,
    Result,
    TerminateLease,
)

HERE = "here"
PICK = st.integers(0, 1_000)
TIMEOUTS = SupervisionTimeouts(
    join_s=4.0, rejoin_s=1.0, no_worker_s=1e6, address_s=2.0, stopped_s=2.0, min_s=4.0, max_rounds_without_progress=4
)
# Errors with which a rank may end, without or after a request.
ENDS = st.sampled_from(["RankDied", "RingBroke", "Crash", "RankEnded"])


@dataclass
class Held:
    """A rank's process at a worker."""

    attempt: int
    round: int
    step: int = 0
    beats: int = 0
    saved: int = 0
    grace: float | None = None


@dataclass
class Worker:
    ranks: dict[str, Held] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)
    silent: bool = False


class Training(RuleBasedStateMachine):
    """Workers register, leave or send no heartbeats; ranks step, stop, succeed or fail; the coordinator crashes and restarts."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.records: list[AnyRecord] = []
        self.names = 0
        self.workers: dict[str, Worker] = {}  # alive, as the coordinator should come to see it
        self.done: list[TaskDone] = []
        self.blamed: set[str] = set()  # rank tasks whose end is their own fault
        self.begin()

    def begin(self) -> None:
        self.scheduler = Scheduler(HERE, LeaseTimings(heartbeat_s=1.0, silence_s=5.0, lease_s=8.0))
        for record in self.records:
            self.scheduler.apply(record)
        numbers = [int(name.split("/")[1]) for name in self.scheduler.tasks]
        self.ring = ElasticRing(3, "train", first=max(numbers, default=0) + 1, timeouts=TIMEOUTS)
        self.first = self.ring.round + 1
        self.handle(Restart())

    def handle(self, event: Event) -> None:
        events = [event]
        while events:
            decision: Decision = self.scheduler.decide(events.pop(0), self.now)
            self.records += decision.records
            for action in decision.actions:
                if isinstance(action, Send):
                    self.deliver(action)
                elif isinstance(action, TaskDone):
                    if action.task.kind == "port":
                        events += self.tell(AddressOffered(action.task.id, action.output["address"]))
                    else:
                        events += self.tell(RankDone(action.task.id))
                    events.append(Confirmed(action.task.id, action.attempt))
                elif isinstance(action, TaskFailed | TaskProgress):
                    events += self.tell(action)

    def tell(self, event: SupervisionTick | AddressOffered | RankDone | TaskProgress | TaskFailed) -> list[Event]:
        if isinstance(event, TaskFailed) and event.error not in NOT_WORKERS_FAULT:
            self.blamed.add(event.task)
        over = self.ring.outcome
        told = [what for what in self.ring.decide(event, self.now) if not isinstance(what, str)]
        assert over is None or (not told and self.ring.outcome is over), "nothing follows a outcome"
        return list(told)

    def deliver(self, action: Send) -> None:
        worker, message = self.workers.get(action.worker), action.message
        if worker is None:
            return
        if isinstance(message, Lease):
            if message.kind == "port":
                worker.ports[message.task] = message.attempt
            else:
                assert not worker.ranks, "two ranks on one worker"
                living = {held.round for other in self.workers.values() for held in other.ranks.values()}
                assert living <= {message.job["round"]}, "a rank of an earlier round still runs"
                worker.ranks[message.task] = Held(message.attempt, message.job["round"])
        elif isinstance(message, AbandonLease):
            worker.ranks.pop(message.task, None)
        elif isinstance(message, TerminateLease) and message.task in worker.ranks:
            worker.ranks[message.task].grace = message.grace_s

    # -- what may happen ------------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.workers) < 5)
    @rule()
    def join(self) -> None:
        self.names += 1
        name = f"w{self.names}"
        self.workers[name] = Worker()
        self.handle(Register(name, "h", 1, ("port", "train"), 4, HERE, "0", "3"))

    def pick(self, number: int) -> str | None:
        return sorted(self.workers)[number % len(self.workers)] if self.workers else None

    @rule(number=PICK)
    def die(self, number: int) -> None:
        if (name := self.pick(number)) is not None:
            del self.workers[name]
            self.handle(WorkerLost(name, "ended with signal 9"))

    @rule(number=PICK)
    def leave(self, number: int) -> None:
        if (name := self.pick(number)) is not None:
            del self.workers[name]
            self.handle(Deregister(name))

    @rule(number=PICK)
    def fall_silent(self, number: int) -> None:
        """Its ranks end by their leash before the coordinator has lost it."""
        if (name := self.pick(number)) is not None:
            worker = self.workers[name]
            worker.silent = True
            worker.ranks.clear()

    @rule(number=PICK)
    def unreachable(self, number: int) -> None:
        if (name := self.pick(number)) is not None and (ports := self.workers[name].ports):
            task, attempt = ports.popitem()
            self.handle(Undelivered(name, task, attempt))

    @rule(seconds=st.sampled_from([0.2, 1.0, 1.0, 3.0]))
    def time_passes(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until - 1e-9:
            self.now += 0.2
            self.handle(Tick())
            for name, worker in list(self.workers.items()):
                if worker.silent:
                    if name not in self.scheduler.workers:
                        del self.workers[name]
                    continue
                held = [(task, rank.attempt) for task, rank in worker.ranks.items()] + list(worker.ports.items())
                self.handle(Heartbeat(name, tuple(held)))
            fit = tuple(self.scheduler.workers)
            for event in self.tell(SupervisionTick(fit, self.scheduler.is_draining)):
                self.handle(event)

    @rule(number=PICK)
    def answer_ports(self, number: int) -> None:
        for name, worker in list(self.workers.items()):
            for task, attempt in list(worker.ports.items()):
                if not worker.silent and number % 7:
                    del worker.ports[task]
                    address = f"127.0.0.1:{20_000 + int(name[1:]) % 4}"
                    self.handle(Result(name, task, attempt, {"address": address, "blas": "x"}, 0.1))

    @rule(saved=st.booleans())
    def step(self, saved: bool) -> None:
        for name, worker in list(self.workers.items()):
            for task, rank in list(worker.ranks.items()):
                rank.step, rank.beats = rank.step + 1, rank.beats + 1
                rank.saved = rank.step if saved else rank.saved
                phase = "checkpoint" if saved else "step"
                self.handle(Progress(name, task, rank.attempt, rank.step, phase, rank.beats, rank.saved))  # type: ignore[arg-type]

    @rule(number=PICK)
    def stop_a_rank(self, number: int) -> None:
        if (name := self.pick(number)) is not None:
            for task, rank in list(self.workers[name].ranks.items()):
                self.handle(
                    Progress(name, task, rank.attempt, rank.step, "step", rank.beats, rank.saved, is_stopped=True)
                )

    @rule(number=PICK, error=ENDS)
    def end_a_rank(self, number: int, error: str) -> None:
        if (name := self.pick(number)) is not None and not self.workers[name].silent:
            for task, rank in list(self.workers[name].ranks.items()):
                del self.workers[name].ranks[task]
                self.handle(Failure(name, task, rank.attempt, error, "why", blame=error in ("RankDied", "Crash")))

    @rule()
    def obey(self) -> None:
        for name, worker in list(self.workers.items()):
            for task, rank in list(worker.ranks.items()):
                if rank.grace is not None:
                    del worker.ranks[task]
                    self.handle(Failure(name, task, rank.attempt, "RankEnded", "as asked", blame=False))

    @rule()
    def crash_and_restart(self) -> None:
        """All workers of the host die with it."""
        self.workers.clear()
        self.begin()

    # -- what must hold ------------------------------------------------------------------------------------------------

    @invariant()
    def a_round_is_one_ring(self) -> None:
        ranks = [task.spec for task in self.scheduler.tasks.values() if task.spec.kind == "train"]
        rings: dict[str, list[dict]] = {}
        for spec in ranks:
            rings.setdefault(spec.id.split("/")[1], []).append({**spec.job, "worker": spec.worker})
        for jobs in rings.values():
            assert [job["rank"] for job in jobs] == list(range(len(jobs)))
            assert all(job["addresses"] == jobs[0]["addresses"] for job in jobs)
            assert len(jobs[0]["addresses"]) == len(set(jobs[0]["addresses"])) == len(jobs)
            assert len({job["worker"] for job in jobs}) == len(jobs)

    @invariant()
    def a_rank_is_leased_once(self) -> None:
        assert all(task.attempt <= 1 and task.state != "quarantined" for task in self.scheduler.tasks.values())

    @invariant()
    def only_a_rank_that_failed_stopped_or_fell_behind_is_blamed(self) -> None:
        if self.ring.stage not in ("running", "draining"):
            return  # the next round has its number already, but the ranks are still the last round's
        for rank in self.ring.ranks:
            task = f"train/{self.ring.round}/rank/{rank.number}"
            if rank.fault and task not in self.blamed:
                assert "stopped" in rank.fault or "nothing new" in rank.fault

    @invariant()
    def replay_is_the_live_state(self) -> None:
        store = TaskStore()
        for record in self.records:
            store.apply(record)
        assert store.tasks == self.scheduler.tasks
        assert store.counts == self.scheduler.store.counts

    def teardown(self) -> None:
        """Without further faults the training ends, and with it every lease."""
        for _ in range(3):
            self.names += 1
            self.workers[f"w{self.names}"] = Worker()
            self.handle(Register(f"w{self.names}", "h", 1, ("port", "train"), 4, HERE, "0", "3"))
        for _ in range(400):
            if self.ring.outcome is not None:
                break
            self.time_passes(0.4)
            self.answer_ports(1)
            self.obey()
            if self.ring.stage == "running":
                living = [(name, worker) for name, worker in self.workers.items() if worker.ranks]
                if len(living) == len(self.ring.ranks):
                    for name, worker in living:
                        for task, rank in list(worker.ranks.items()):
                            del worker.ranks[task]
                            self.handle(Result(name, task, rank.attempt, {}, 1.0))
        outcome = self.ring.outcome
        assert outcome is not None, (self.ring.stage, self.ring.ranks)
        assert outcome.status in ("done", "failed")
        self.time_passes(8.0)
        self.answer_ports(1)
        self.time_passes(8.0)
        assert self.scheduler.outcome() is not None
        self.replay_is_the_live_state()


Training.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestTraining = Training.TestCase


def test_a_drain_ends_every_lease_of_a_running_ring() -> None:
    world = Training()
    world.join()
    world.join()
    world.time_passes(5.0)
    world.answer_ports(1)
    world.time_passes(1.0)
    world.step(False)
    assert world.ring.stage == "running"
    world.handle(Drain("drain"))
    world.time_passes(0.4)
    world.obey()
    world.time_passes(0.4)
    assert world.ring.outcome is not None
    assert world.ring.outcome.status == "drain"
    assert world.scheduler.outcome() is not None
