"""Ephemeral tasks under any order of events: none is journaled or kept, each is done once, excluded workers get none."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from coordinator.scheduling.events import (
    AddTasks,
    CancelTasks,
    Confirmed,
    Event,
    ExcludeWorker,
    Restart,
    Send,
    TaskDone,
    Tick,
    WorkerLost,
)
from coordinator.scheduling.records import CANCELLED, Added, TaskSpec, ephemeral_task
from coordinator.scheduling.scheduler import Scheduler
from coordinator.scheduling.task_state import TaskStore
from coordinator.scheduling.worker_state import LeaseTimings
from coordinator.wire.messages import (
    AbandonLease,
    Deregister,
    Failure,
    Heartbeat,
    Lease,
    Register,
    RegisterAck,
    ReRegister,
    Result,
    Shutdown,
)

HERE = "here"
TIMINGS = LeaseTimings(
    heartbeat_s=1.0, silence_s=5.0, lease_s=8.0, backoff_s=0.5, backoff_max_s=2.0, max_failures=10_000
)
NAMES = st.sampled_from(["w0", "w1", "w2", "w3"])
PICK = st.integers(0, 1_000)
ARRAYS = (("cost", "float64", (3,)),)


class Fleet(RuleBasedStateMachine):
    """Workers that register, die, fail and are excluded; a stage that adds and cancels tasks."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.scheduler = Scheduler(HERE, TIMINGS)
        self.added = 0
        self.wanted: set[str] = set()
        self.done: set[str] = set()
        self.excluded: set[str] = set()
        self.holding: dict[str, dict[str, int]] = {}
        self.handle(Restart())

    def handle(self, event: Event) -> None:
        decision = self.scheduler.decide(event, self.now)
        assert not decision.records, "an ephemeral task was journaled"
        for action in decision.actions:
            if isinstance(action, TaskDone):
                assert action.task.id in self.wanted, "done twice, or after it was cancelled"
                assert action.worker not in self.excluded
                self.wanted.remove(action.task.id)
                self.done.add(action.task.id)
                self.handle(Confirmed(action.task.id, action.attempt))
            elif isinstance(action, Send):
                self.deliver(action)

    def deliver(self, action: Send) -> None:
        message = action.message
        if isinstance(message, Lease):
            assert action.worker not in self.excluded, "a lease for an excluded worker"
            assert message.task in self.wanted
        if isinstance(message, Shutdown):
            assert action.worker in self.excluded
            self.holding.pop(action.worker, None)
        held = self.holding.get(action.worker)
        if held is None:
            return
        if isinstance(message, Lease):
            held[message.task] = message.attempt
        elif isinstance(message, RegisterAck | ReRegister):
            held.clear()
        elif isinstance(message, AbandonLease) and held.get(message.task) == message.attempt:
            del held[message.task]

    @rule(pinned=st.none() | NAMES)
    def add(self, pinned: str | None) -> None:
        name = f"control/{self.added:04d}"
        self.added += 1
        self.wanted.add(name)
        spec = ephemeral_task(name, "rollout", {}, ARRAYS, worker=pinned or "", requires_shared_fs=True)
        self.handle(AddTasks((spec,)))

    @rule(name=NAMES)
    def join(self, name: str) -> None:
        self.holding[name] = {}
        self.handle(Register(name, "h", 1, ("rollout",), 2, HERE, "0", "3"))

    @rule(name=NAMES, listed=PICK)
    def heartbeat(self, name: str, listed: int) -> None:
        held = list(self.holding.get(name, {}).items())
        self.handle(Heartbeat(name, tuple(held[: listed % (len(held) + 1)])))

    @rule(name=NAMES, good=st.booleans(), again=st.booleans())
    def answer(self, name: str, good: bool, again: bool) -> None:
        if held := self.holding.get(name):
            task, attempt = held.popitem()
            said = Result(name, task, attempt, {}, 0.1) if good else Failure(name, task, attempt, "BadArrays", "")
            for _ in range(1 + again):
                self.handle(said)

    @rule(name=NAMES)
    def die(self, name: str) -> None:
        self.holding.pop(name, None)
        self.handle(WorkerLost(name, "died"))

    @rule(name=NAMES)
    def leave(self, name: str) -> None:
        self.holding.pop(name, None)
        self.handle(Deregister(name))

    @precondition(lambda self: self.wanted)
    @rule(pick=PICK)
    def cancel(self, pick: int) -> None:
        name = sorted(self.wanted)[pick % len(self.wanted)]
        self.wanted.remove(name)
        self.handle(CancelTasks((name, "control/unknown")))
        # A worker that was lost is asked to register, and so to abandon its leases, with its next message.
        known = [held for worker, held in self.holding.items() if worker in self.scheduler.workers]
        assert not any(name in held for held in known), "the worker was not told"

    @precondition(lambda self: len(self.excluded) < 2)
    @rule(name=NAMES)
    def exclude(self, name: str) -> None:
        self.excluded.add(name)
        self.handle(ExcludeWorker(name, "wrong numbers"))

    @rule(seconds=st.sampled_from([0.5, 3.0, 9.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.handle(Tick())

    @rule()
    def whole_plan_keeps_ephemeral_tasks(self) -> None:
        self.handle(AddTasks((), whole=True))

    @invariant()
    def store_holds_exactly_the_wanted_tasks(self) -> None:
        assert set(self.scheduler.tasks) == self.wanted
        counts = self.scheduler.store.counts
        assert sum(counts.values()) == len(self.wanted) and counts["done"] == counts[CANCELLED] == 0

    def teardown(self) -> None:
        """When the other workers are gone, one good worker does all tasks that are not pinned to another."""
        for name in list(self.scheduler.workers):
            self.handle(WorkerLost(name, "died"))
        self.holding = {}
        tasks = self.scheduler.tasks
        self.handle(CancelTasks(tuple(name for name in sorted(self.wanted) if tasks[name].spec.worker)))
        self.wanted = set(tasks)
        self.holding["good"] = {}
        self.handle(Register("good", "h", 1, ("rollout",), 2, HERE, "0", "3"))
        for _ in range(200):
            self.now += 1.0
            self.handle(Heartbeat("good", tuple(self.holding["good"].items())))
            self.handle(Tick())
            while self.holding["good"]:
                task, attempt = self.holding["good"].popitem()
                self.handle(Result("good", task, attempt, {}, 0.1))
            if not self.wanted:
                break
        assert not self.wanted, "a task that no worker does"


Fleet.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestFleet = Fleet.TestCase


def test_compacted_journal_has_no_ephemeral_tasks() -> None:
    """Tasks that are added after the compaction get the same order numbers."""
    store = TaskStore()
    specs = (TaskSpec("a", "noop", {}), TaskSpec("f", "rollout", {}, ephemeral=True), TaskSpec("b", "noop", {}))
    for spec in specs:
        store.apply(Added(spec.id, spec))
    again = TaskStore()
    for record in store.snapshot():
        again.apply(record)
    assert list(again.tasks) == ["a", "b"]
    for one in (store, again):
        one.apply(Added("c", TaskSpec("c", "noop", {}, ("b",))))
    assert {name: task for name, task in store.tasks.items() if name != "f"} == again.tasks
