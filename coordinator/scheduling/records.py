"""Tasks and the journal's records of what happened to them.

The encoded keys and tags are older than the names of the fields and classes: a journal of any earlier version loads.
"""

from typing import Any, Literal

import msgspec

Arrays = tuple[tuple[str, str, tuple[int, ...]], ...]  # (name, dtype, shape) of the raw frames of a result
State = Literal["pending", "leased", "done", "quarantined", "blocked", "dropped"]
CANCELLED: Literal["dropped"] = "dropped"  # the value in journals and in `coordinator status --json`
STATES: tuple[State, ...] = ("pending", "leased", "done", "quarantined", "blocked", CANCELLED)
UNRUNNABLE = ("quarantined", "blocked", CANCELLED)  # a task that depends on one of these cannot run


class TaskSpec(msgspec.Struct, frozen=True):
    """One unit of work. Build it with `journaled_task`, `pinned_task` or `ephemeral_task`.

    Attributes:
        depends_on: Ids of tasks, added before, that must be done first.
        requires_shared_fs: Only a worker that shares the data folder may take it.
        worker: Only this worker may take it; "": any.
        no_retry: Do not retry; report the failure to the stage.
        ephemeral: Do not journal; the stage recreates the task after a restart, under another id.
        arrays: The raw frames that a result must carry.
    """

    id: str
    kind: str
    job: dict[str, Any]
    depends_on: tuple[str, ...] = msgspec.field(default=(), name="after")
    requires_shared_fs: bool = msgspec.field(default=False, name="local")
    worker: str = ""
    no_retry: bool = msgspec.field(default=False, name="once")
    ephemeral: bool = msgspec.field(default=False, name="fleeting")
    arrays: Arrays = ()


def journaled_task(
    id: str, kind: str, job: dict[str, Any], *, depends_on: tuple[str, ...] = (), requires_shared_fs: bool = False
) -> TaskSpec:
    """Return a task that is journaled and retried until it is done or quarantined."""
    return TaskSpec(id, kind, job, depends_on=depends_on, requires_shared_fs=requires_shared_fs)


def pinned_task(id: str, kind: str, job: dict[str, Any], worker: str) -> TaskSpec:
    """Return a task for one worker that is leased once; the stage decides what follows a failure."""
    return TaskSpec(id, kind, job, worker=worker, no_retry=True)


def ephemeral_task(
    id: str, kind: str, job: dict[str, Any], arrays: Arrays, *, worker: str = "", requires_shared_fs: bool = False
) -> TaskSpec:
    """Return a task whose result carries arrays and that is forgotten when it ends: for jobs by the thousand."""
    return TaskSpec(id, kind, job, worker=worker, requires_shared_fs=requires_shared_fs, ephemeral=True, arrays=arrays)


class Task(msgspec.Struct):
    """The state of a task, as the journal's records lead to it."""

    spec: TaskSpec
    order: int  # of arrival in the plan: earlier tasks are leased first
    state: State = "pending"
    attempt: int = 0  # number of the latest lease: the fencing token
    failures: int = 0  # that count towards quarantine
    error: str = ""  # of the last failure
    message: str = ""
    worker: str = ""  # holder of the latest lease
    seconds: float = 0.0
    output: dict[str, Any] | None = msgspec.field(default=None, name="proof")  # kept until the stage has committed it
    confirmed: bool = False  # the stage has committed the result
    pending_deps: int = msgspec.field(default=0, name="unmet")  # tasks in `depends_on` that are not done
    failed_deps: int = msgspec.field(default=0, name="hopeless")  # tasks in `depends_on` that cannot be done


class Record(msgspec.Struct, tag_field="r", frozen=True, forbid_unknown_fields=True):
    """Base of the journal's records: what happened to a task."""

    task: str


class Added(Record, frozen=True, tag="Added"):
    """The task is open: it is new, or it was opened again after it had ended."""

    spec: TaskSpec


class Leased(Record, frozen=True, tag="Leased"):
    """A worker received the task, under an attempt number that is never used again."""

    attempt: int
    worker: str


class Released(Record, frozen=True, tag="Returned"):
    """A lease ended without a result and without a failure that counts."""

    attempt: int
    reason: str


class Failed(Record, frozen=True, tag="Failed"):
    """An attempt ended in an error; it counts towards quarantine if `blamed`."""

    attempt: int
    error: str
    message: str
    blamed: bool
    quarantined: bool


class Done(Record, frozen=True, tag="Done"):
    """A result was accepted, with its output."""

    attempt: int
    worker: str
    seconds: float
    output: dict[str, Any] = msgspec.field(name="proof")


class Committed(Record, frozen=True, tag="Committed"):
    """The stage has stored the result (its manifest)."""


class Cancelled(Record, frozen=True, tag="Dropped"):
    """The task was open, but a new plan does not list it or its stage cancelled it."""


class Snapshot(Record, frozen=True, tag="Kept"):
    """The whole state of a task, in a compacted journal. Snapshots come first, in the tasks' order."""

    was: Task


AnyRecord = Added | Leased | Released | Failed | Done | Committed | Cancelled | Snapshot
