"""The journaled state of all tasks: records and their fold. Pure; a replay of the journal is `Ledger.apply` on each record."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import msgspec

State = Literal["pending", "leased", "done", "quarantined", "blocked", "dropped"]
UNRUNNABLE = ("quarantined", "blocked", "dropped")  # a task that needs one of these can't run


class TaskSpec(msgspec.Struct, frozen=True):
    """One unit of work. `after`: ids of tasks, added before, that must be done first.

    `once`: leased once; without a result it is dropped, and its stage, which is told, decides what follows.
    `fleeting`: not in the journal, and forgotten when it has ended: for work by the thousand that its stage asks for again after a
    restart, under other ids. `arrays`: (name, dtype, shape) of the raw frames that its result must carry.
    """

    id: str
    kind: str
    job: dict[str, Any]
    depends_on: tuple[str, ...] = msgspec.field(default=(), name="after")
    requires_shared_fs: bool = msgspec.field(
        default=False, name="local"
    )  # only a worker that shares the data folder may take it
    worker: str = ""  # only this worker may take it
    no_retry: bool = msgspec.field(default=False, name="once")
    ephemeral: bool = msgspec.field(default=False, name="fleeting")
    arrays: tuple[tuple[str, str, tuple[int, ...]], ...] = ()


class Task(msgspec.Struct):
    """The journaled state of a task."""

    spec: TaskSpec
    order: int  # of arrival in the plan: earlier tasks are leased first
    state: State = "pending"
    attempt: int = 0  # number of the latest lease: the fencing token
    failures: int = 0  # blamed ones
    error: str = ""  # of the last failure
    message: str = ""
    worker: str = ""  # holder of the latest lease
    seconds: float = 0.0
    proof: dict[str, Any] | None = None  # kept until the commit is confirmed
    confirmed: bool = False
    pending_deps: int = msgspec.field(default=0, name="unmet")  # tasks in `after` that are not done
    failed_deps: int = msgspec.field(default=0, name="hopeless")  # tasks in `after` that can't be done


# -- records: what the journal keeps ---------------------------------------------------------------------------------


class Record(msgspec.Struct, tag_field="r", frozen=True, forbid_unknown_fields=True):
    """Base: what happened to a task."""

    task: str


class Added(Record, frozen=True, tag="Added"):
    """A task is open: new, or opened again however it had ended."""

    spec: TaskSpec


class Leased(Record, frozen=True, tag="Leased"):
    """Given to a worker, under a number that is never used again."""

    attempt: int
    worker: str


class Released(Record, frozen=True, tag="Returned"):
    """A lease went back; nobody is to blame."""

    attempt: int
    reason: str


class Failed(Record, frozen=True, tag="Failed"):
    """An attempt ended in an error; `blamed` ones count towards quarantine."""

    attempt: int
    error: str
    message: str
    blamed: bool
    quarantined: bool


class Done(Record, frozen=True, tag="Done"):
    """An attempt's result was taken, with its proof."""

    attempt: int
    worker: str
    seconds: float
    proof: dict[str, Any]


class Committed(Record, frozen=True, tag="Committed"):
    """The stage has written what the proof stands for (its manifest)."""


class Cancelled(Record, frozen=True, tag="Dropped"):
    """Open, but not in the new plan, or withdrawn by its stage."""


class Snapshot(Record, frozen=True, tag="Kept"):
    """All that was known of a task when the journal was written anew. These come first, in the tasks' order."""

    was: Task


AnyRecord = Added | Leased | Released | Failed | Done | Committed | Cancelled | Snapshot


class TaskStore:
    """All tasks. Equal ledgers have equal `tasks`; what else is here follows from them."""

    def __init__(self) -> None:
        self.tasks: dict[str, Task] = {}
        self.counts: dict[State, int] = dict.fromkeys(
            ("pending", "leased", "done", "quarantined", "blocked", "dropped"), 0
        )
        self.uncommitted = 0  # done, but not yet confirmed by the stage
        self._kept = 0  # tasks that are not fleeting: their order is that of the journal
        self.newly_ready: list[Task] = []  # became runnable since the scheduler last looked
        self._dependents: dict[str, list[str]] = {}

    def apply(self, record: AnyRecord) -> None:
        """The only thing that changes a `Task`. KeyError or ValueError for a record that does not follow from those before."""
        if isinstance(record, Added):
            self._apply_added(record)
            return
        if isinstance(record, Snapshot):
            self._apply_snapshot(record.was)
            return
        task = self.tasks[record.task]
        self._change(task, record)
        if task.spec.ephemeral and (task.state == "dropped" or task.confirmed):
            self.counts[task.state] -= 1
            del self.tasks[record.task]

    def _change(self, task: Task, record: Leased | Released | Failed | Done | Committed | Cancelled) -> None:
        if isinstance(record, Leased):
            if task.state != "pending" or record.attempt != task.attempt + 1:
                raise ValueError(f"{record.task}: lease {record.attempt} can't follow {task.state} {task.attempt}")
            task.attempt, task.worker = record.attempt, record.worker
            self._move(task, "leased")
        elif isinstance(record, Committed):
            if task.state != "done" or task.confirmed:
                raise ValueError(f"{record.task}: nothing to commit")
            task.confirmed, task.proof = True, None
            self.uncommitted -= 1
        elif isinstance(record, Cancelled):
            self._move(task, "dropped")
        else:
            if task.state != "leased" or record.attempt != task.attempt:
                raise ValueError(
                    f"{record.task}: attempt {record.attempt} ended, but {task.state} {task.attempt} is known"
                )
            if isinstance(record, Done):
                task.worker, task.seconds, task.proof = record.worker, record.seconds, record.proof
                self.uncommitted += 1
                self._move(task, "done")
            elif isinstance(record, Failed):
                task.failures += record.blamed
                task.error, task.message = record.error, record.message
                self._move(
                    task, "dropped" if task.spec.no_retry else "quarantined" if record.quarantined else "pending"
                )
            else:
                self._move(task, "dropped" if task.spec.no_retry else "pending")

    def snapshot(self) -> Iterator[AnyRecord]:
        """The fewest records that lead to this state: one a task, and none of a fleeting one."""
        lasting = ((name, task) for name, task in self.tasks.items() if not task.spec.ephemeral)
        return (Snapshot(name, msgspec.structs.replace(task)) for name, task in lasting)

    def _apply_snapshot(self, was: Task) -> None:
        if was.order != self._kept:
            raise ValueError(f"{was.spec.id} was number {was.order}, but {self._kept} are known")
        self._kept += 1
        task = self.tasks[was.spec.id] = msgspec.structs.replace(was)
        for name in task.spec.depends_on:
            self._dependents.setdefault(name, []).append(was.spec.id)
        self.counts[task.state] += 1
        self.uncommitted += task.state == "done" and not task.confirmed
        if task.state == "pending" and not task.pending_deps:
            self.newly_ready.append(task)

    def _apply_added(self, record: Added) -> None:
        spec, known = record.spec, self.tasks.get(record.task)
        if spec.ephemeral and spec.depends_on:
            raise ValueError(f"{spec.id} is fleeting: it can't wait for others")
        task = Task(spec, order=self._kept) if known is None else known
        if known is None:
            self._kept += not spec.ephemeral
            self.tasks[spec.id] = task
            self.counts["pending"] += 1
        else:
            if task.state == "leased" or (task.state == "done" and not task.confirmed):
                raise ValueError(f"{spec.id} is {task.state}: it can't be opened again now")
            for name in task.spec.depends_on:
                self._dependents[name].remove(spec.id)
            task.spec, task.failures, task.error, task.message = spec, 0, "", ""
            task.proof, task.confirmed, task.worker, task.seconds = None, False, "", 0.0
        task.pending_deps = task.failed_deps = 0
        for name in spec.depends_on:
            needed = self.tasks.get(name)
            if needed is None or needed.order >= task.order:
                raise ValueError(f"{spec.id} comes after {name}, which was not added before it")
            self._dependents.setdefault(name, []).append(spec.id)
            task.pending_deps += needed.state != "done"
            task.failed_deps += needed.state in UNRUNNABLE
        self._move(task, "pending")

    def _move(self, task: Task, state: State) -> None:
        """Change a state, and what follows from it for the tasks that wait for it."""
        moves = [(task, state)]
        while moves:
            task, state = moves.pop()
            old = task.state
            if state == "pending" and task.failed_deps:
                state = "blocked"
            self.counts[old] -= 1
            self.counts[state] += 1
            task.state = state
            if state == "pending" and not task.pending_deps:
                self.newly_ready.append(task)
            met = (old == "done") - (state == "done")
            failed_deps = (state in UNRUNNABLE) - (old in UNRUNNABLE)
            if not met and not failed_deps:
                continue
            for name in self._dependents.get(task.spec.id, ()):
                waiting = self.tasks[name]
                waiting.pending_deps += met
                waiting.failed_deps += failed_deps
                if waiting.failed_deps and waiting.state == "pending":
                    moves.append((waiting, "blocked"))
                elif not waiting.failed_deps and waiting.state == "blocked":
                    moves.append((waiting, "pending"))
                elif waiting.state == "pending" and not waiting.pending_deps:
                    self.newly_ready.append(waiting)
