"""The scheduler's invariants under any order of events: Hypothesis drives workers, faults and restarts with a fake clock."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from coordinator.scheduling.events import (
    AddTasks,
    Confirmed,
    Decision,
    Event,
    Restart,
    Send,
    TaskDone,
    Tick,
    Undelivered,
    WorkerLost,
)
from coordinator.scheduling.records import UNRUNNABLE, AnyRecord, Done, Failed, Leased, TaskSpec
from coordinator.scheduling.scheduler import Scheduler
from coordinator.scheduling.task_state import TaskStore
from coordinator.scheduling.worker_state import LeaseTimings
from coordinator.server import journal
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
)

HERE = "here"
TIMINGS = LeaseTimings(heartbeat_s=1.0, silence_s=5.0, lease_s=8.0, backoff_s=0.5, backoff_max_s=4.0, max_failures=3)
NAMES = st.sampled_from(["w0", "w1", "w2"])
PICK = st.integers(0, 1_000)


class Fleet(RuleBasedStateMachine):
    """Workers that die, repeat messages, send stale ones and stop sending, and a coordinator that crashes."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.records: list[AnyRecord] = []
        self.scheduler = Scheduler(HERE, TIMINGS)
        self.specs: list[TaskSpec] = []
        self.holding: dict[str, dict[str, int]] = {}  # leases that each worker believes it holds
        self.answered: list[Result | Failure] = []
        self.unconfirmed: list[TaskDone] = []
        self.seen_leases: set[tuple[str, int]] = set()
        self.blamed: dict[str, int] = {}
        self.handle(Restart())

    def handle(self, event: Event) -> Decision:
        decision = self.scheduler.decide(event, self.now)
        self.records += decision.records
        for record in decision.records:
            if isinstance(record, Failed):
                self.blamed[record.task] = self.blamed.get(record.task, 0) + record.blamed
        for action in decision.actions:
            if isinstance(action, TaskDone):
                self.unconfirmed.append(action)
            elif isinstance(action, Send):
                self.deliver(action)
        return decision

    def deliver(self, action: Send) -> None:
        held, message = self.holding.get(action.worker), action.message
        if isinstance(message, Lease):
            assert (message.task, message.attempt) not in self.seen_leases, "an attempt number was used twice"
            self.seen_leases.add((message.task, message.attempt))
        if held is None:
            return
        if isinstance(message, Lease):
            assert len(held) < 3, "more leases than capacity"
            held[message.task] = message.attempt
        elif isinstance(message, RegisterAck | ReRegister):
            held.clear()
        elif isinstance(message, AbandonLease) and held.get(message.task) == message.attempt:
            del held[message.task]

    def register(self, name: str, shares: bool) -> None:
        self.holding[name] = {}
        self.handle(Register(name, "h", 1, ("fetch",), 3, HERE if shares else "there", "0", "3"))

    # -- rules ------------------------------------------------------------------------------------------------

    @rule(needed=st.lists(PICK, max_size=2), shared=st.booleans())
    def add(self, needed: list[int], shared: bool) -> None:
        if len(self.specs) < 12:
            needs = tuple({self.specs[i % len(self.specs)].id for i in needed}) if self.specs else ()
            task = TaskSpec(f"t{len(self.specs)}", "fetch", {}, needs, shared)
            self.specs.append(task)
            self.handle(AddTasks((task,)))

    @precondition(lambda self: self.specs)
    @rule(pick=PICK)
    def reopen_a_quarantined_task(self, pick: int) -> None:
        task = self.scheduler.tasks[self.specs[pick % len(self.specs)].id]
        if task.state == "quarantined":
            self.blamed[task.spec.id] = 0
            self.handle(AddTasks((task.spec,)))

    @rule(name=NAMES, shares=st.booleans())
    def join(self, name: str, shares: bool) -> None:
        self.register(name, shares)

    @rule(name=NAMES, listed=PICK)
    def heartbeat(self, name: str, listed: int) -> None:
        held = list(self.holding.get(name, {}).items())
        self.handle(Heartbeat(name, tuple(held[: listed % (len(held) + 1)])))

    @rule(name=NAMES, good=st.booleans(), blame=st.booleans(), final=st.integers(0, 9), lost=st.booleans())
    def answer(self, name: str, good: bool, blame: bool, final: int, lost: bool) -> None:
        held = self.holding.get(name)
        if held:
            task, attempt = held.popitem()
            message = Result(name, task, attempt, {"by": [name, attempt]}, 1.0)
            answer = message if good else Failure(name, task, attempt, "SourceError", "x", final == 0, blame)
            self.answered.append(answer)
            if not lost:
                self.handle(answer)

    @precondition(lambda self: self.answered)
    @rule(pick=PICK)
    def repeat_an_old_message(self, pick: int) -> None:
        self.handle(self.answered[pick % len(self.answered)])

    @rule(name=NAMES)
    def die(self, name: str) -> None:
        worker = self.scheduler.workers.get(name)
        guilty = {} if worker is None else {t: lease.executing for t, lease in worker.held.items()}
        before = {task: self.scheduler.tasks[task].failures for task in guilty}
        self.holding.pop(name, None)
        self.handle(WorkerLost(name, "died"))
        for task, executing in guilty.items():
            assert self.scheduler.tasks[task].failures == before[task] + executing, "only executing tasks are blamed"

    @rule(name=NAMES)
    def leave(self, name: str) -> None:
        failures = {task.spec.id: task.failures for task in self.scheduler.tasks.values()}
        self.holding.pop(name, None)
        self.handle(Deregister(name))
        assert failures == {task.spec.id: task.failures for task in self.scheduler.tasks.values()}

    @rule(name=NAMES)
    def unreachable(self, name: str) -> None:
        held = self.holding.get(name)
        if held:
            self.handle(Undelivered(name, *held.popitem()))

    @rule(seconds=st.sampled_from([0.1, 0.7, 2.0, 6.0, 30.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.handle(Tick())

    @rule(count=st.integers(1, 3))
    def confirm(self, count: int) -> None:
        for _ in range(min(count, len(self.unconfirmed))):
            done = self.unconfirmed.pop(0)
            self.handle(Confirmed(done.task.id, done.attempt))

    @rule()
    def crash_and_restart(self) -> None:
        self.unconfirmed.clear()
        self.scheduler = Scheduler(HERE, TIMINGS)
        for record in self.records:
            self.scheduler.apply(record)
        self.handle(Restart())
        assert not self.scheduler.store.counts["leased"]

    # -- invariants ------------------------------------------------------------------------------------------------

    @invariant()
    def replay_gives_the_live_state(self) -> None:
        store = TaskStore()
        for record in self.records:
            store.apply(record)
        assert store.tasks == self.scheduler.tasks
        assert (store.counts, store.uncommitted) == (self.scheduler.store.counts, self.scheduler.store.uncommitted)

    @rule()
    def compact_the_journal(self) -> None:
        self.records[:] = [journal._decode(journal._encode(record)) for record in self.scheduler.store.snapshot()]

    @invariant()
    def counts_agree_with_a_scan(self) -> None:
        tasks = self.scheduler.tasks
        for state, count in self.scheduler.store.counts.items():
            assert count == sum(task.state == state for task in tasks.values())
        for task in tasks.values():
            states = [tasks[name].state for name in task.spec.depends_on]
            assert task.pending_deps == sum(state != "done" for state in states)
            assert task.failed_deps == sum(state in UNRUNNABLE for state in states)
            assert (task.state == "blocked") <= (task.failed_deps > 0)

    @invariant()
    def every_lease_has_one_holder(self) -> None:
        held = [
            (task, lease.attempt) for worker in self.scheduler.workers.values() for task, lease in worker.held.items()
        ]
        live = [(task.spec.id, task.attempt) for task in self.scheduler.tasks.values() if task.state == "leased"]
        assert sorted(held) == sorted(live)

    @invariant()
    def done_stays_done(self) -> None:
        done: set[str] = set()
        for record in self.records:
            assert not (isinstance(record, Leased | Done | Failed) and record.task in done)
            if isinstance(record, Done):
                done.add(record.task)

    @invariant()
    def quarantine_follows_from_blamed_failures(self) -> None:
        for name, task in self.scheduler.tasks.items():
            assert task.failures == self.blamed.get(name, 0)
            if task.failures >= TIMINGS.max_failures:
                assert task.state == "quarantined"

    def teardown(self) -> None:
        """With well-behaved workers, every task ends."""
        for name in ("w0", "w1", "w2"):
            self.register(name, shares=True)
        for _ in range(200):
            self.confirm(3)
            if self.scheduler.outcome() is not None:
                break
            for name, held in self.holding.items():
                self.handle(Heartbeat(name, tuple(held.items())))
                for task, attempt in list(held.items()):
                    del held[task]
                    self.handle(Result(name, task, attempt, {}, 1.0))
            self.now += 0.5
            self.handle(Tick())
        outcome = self.scheduler.outcome()
        assert outcome is not None and outcome.status in ("done", "incomplete")
        ended = {task.state for task in self.scheduler.tasks.values()}
        assert ended <= {"done", "quarantined", "blocked"}
        self.replay_gives_the_live_state()


Fleet.TestCase.settings = settings(max_examples=80, stateful_step_count=40)
TestFleet = Fleet.TestCase
