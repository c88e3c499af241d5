"""The state of all tasks, as a fold over the journal's records: replay a journal with `TaskStore.apply` on each record.

Deterministic, no I/O (sans-I/O).
"""

from collections.abc import Iterator

import msgspec

from coordinator.scheduling.records import (
    CANCELLED,
    STATES,
    UNRUNNABLE,
    Added,
    AnyRecord,
    Cancelled,
    Committed,
    Done,
    Failed,
    Leased,
    Released,
    Snapshot,
    State,
    Task,
)


class TaskStore:
    """All tasks. Equal stores have equal `tasks`; every other attribute follows from them."""

    def __init__(self) -> None:
        self.tasks: dict[str, Task] = {}
        self.counts: dict[State, int] = dict.fromkeys(STATES, 0)
        self.uncommitted = 0  # done, but not yet confirmed by the stage
        self.newly_ready: list[Task] = []  # became runnable since the scheduler last looked
        self._journaled = 0  # tasks that are not ephemeral: their order is that of the journal
        self._dependents: dict[str, list[str]] = {}

    def apply(self, record: AnyRecord) -> None:
        """Change a task. Nothing else changes one.

        KeyError or ValueError is raised for a record that does not follow from those before it.
        """
        if isinstance(record, Added):
            self._apply_added(record)
            return
        if isinstance(record, Snapshot):
            self._apply_snapshot(record.was)
            return
        task = self.tasks[record.task]
        self._change(task, record)
        if task.spec.ephemeral and (task.state == CANCELLED or task.confirmed):
            self.counts[task.state] -= 1
            del self.tasks[record.task]

    def _change(self, task: Task, record: Leased | Released | Failed | Done | Committed | Cancelled) -> None:
        if isinstance(record, Leased):
            if task.state != "pending" or record.attempt != task.attempt + 1:
                raise ValueError(f"{record.task}: lease {record.attempt} cannot follow {task.state} {task.attempt}")
            task.attempt, task.worker = record.attempt, record.worker
            self._move(task, "leased")
        elif isinstance(record, Committed):
            if task.state != "done" or task.confirmed:
                raise ValueError(f"{record.task}: there is no result to commit")
            task.confirmed, task.output = True, None
            self.uncommitted -= 1
        elif isinstance(record, Cancelled):
            self._move(task, CANCELLED)
        elif task.state != "leased" or record.attempt != task.attempt:
            raise ValueError(
                f"{record.task}: attempt {record.attempt} ended, but the task is {task.state} {task.attempt}"
            )
        elif isinstance(record, Done):
            task.worker, task.seconds, task.output = record.worker, record.seconds, record.output
            self.uncommitted += 1
            self._move(task, "done")
        else:
            quarantined = False
            if isinstance(record, Failed):
                task.failures += record.blamed
                task.error, task.message, quarantined = record.error, record.message, record.quarantined
            self._move(task, CANCELLED if task.spec.no_retry else "quarantined" if quarantined else "pending")

    def snapshot(self) -> Iterator[AnyRecord]:
        """Return the fewest records that lead to this state: one for each task that is not ephemeral."""
        journaled = ((name, task) for name, task in self.tasks.items() if not task.spec.ephemeral)
        return (Snapshot(name, msgspec.structs.replace(task)) for name, task in journaled)

    def _apply_snapshot(self, was: Task) -> None:
        if was.order != self._journaled:
            raise ValueError(f"{was.spec.id} was number {was.order}, but {self._journaled} tasks are in the journal")
        self._journaled += 1
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
            raise ValueError(f"{spec.id} is ephemeral: it cannot depend on other tasks")
        task = Task(spec, order=self._journaled) if known is None else known
        if known is None:
            self._journaled += not spec.ephemeral
            self.tasks[spec.id] = task
            self.counts["pending"] += 1
        else:
            if task.state == "leased" or (task.state == "done" and not task.confirmed):
                raise ValueError(f"{spec.id} is {task.state}: it cannot be opened again now")
            for name in task.spec.depends_on:
                self._dependents[name].remove(spec.id)
            task.spec, task.failures, task.error, task.message = spec, 0, "", ""
            task.output, task.confirmed, task.worker, task.seconds = None, False, "", 0.0
        task.pending_deps = task.failed_deps = 0
        for name in spec.depends_on:
            needed = self.tasks.get(name)
            if needed is None or needed.order >= task.order:
                raise ValueError(f"{spec.id} depends on {name}, which was not added before it")
            self._dependents.setdefault(name, []).append(spec.id)
            task.pending_deps += needed.state != "done"
            task.failed_deps += needed.state in UNRUNNABLE
        self._move(task, "pending")

    def _move(self, task: Task, state: State) -> None:
        """Change a task's state, and those of the tasks that depend on it."""
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
            undone = (old == "done") - (state == "done")
            failed = (state in UNRUNNABLE) - (old in UNRUNNABLE)
            if not undone and not failed:
                continue
            for name in self._dependents.get(task.spec.id, ()):
                dependent = self.tasks[name]
                dependent.pending_deps += undone
                dependent.failed_deps += failed
                if dependent.failed_deps and dependent.state == "pending":
                    moves.append((dependent, "blocked"))
                elif not dependent.failed_deps and dependent.state == "blocked":
                    moves.append((dependent, "pending"))
                elif dependent.state == "pending" and not dependent.pending_deps:
                    self.newly_ready.append(dependent)
