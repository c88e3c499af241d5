"""Events that the scheduler decides on, and the actions that it returns, as plain data.

The messages Register, Heartbeat, Progress, Result, Failure and Deregister are events as they are.
"""

from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from coordinator.scheduling.records import AnyRecord, TaskSpec
from coordinator.wire import messages
from coordinator.wire.exit_codes import ExitCode
from coordinator.wire.messages import Deregister, Failure, Heartbeat, Progress, Register, Result

# -- events -----------------------------------------------------------------------------------------------------------


class Restart(msgspec.Struct, frozen=True):
    """The first event after a replay: void all leases and hand unconfirmed results to the stage again."""


class AddTasks(msgspec.Struct, frozen=True):
    """Open tasks. A known one is opened again if it had ended (done and committed, quarantined, cancelled)."""

    tasks: tuple[TaskSpec, ...]
    whole: bool = False  # these are all tasks of the run: cancel open tasks that are not listed


class TerminateTasks(msgspec.Struct, frozen=True):
    """End these tasks: leased ones gracefully within `grace_s` seconds, the others at once."""

    tasks: tuple[str, ...]
    grace_s: float


class CancelTasks(msgspec.Struct, frozen=True):
    """Cancel and forget these ephemeral tasks, and abandon their leases."""

    tasks: tuple[str, ...]


class ExcludeWorker(msgspec.Struct, frozen=True):
    """Exclude a worker: release its leases and refuse re-registration."""

    worker: str
    reason: str


class Confirmed(msgspec.Struct, frozen=True):
    """The stage has committed the result of a `TaskDone`."""

    task: str
    attempt: int


class WorkerLost(msgspec.Struct, frozen=True):
    """A worker was silent for too long, or its process or connection ended."""

    worker: str
    reason: str


class Revoked(msgspec.Struct, frozen=True):
    """A worker's key was removed from the allow-list: release its leases and shut it down."""

    worker: str


class Undelivered(msgspec.Struct, frozen=True):
    """A lease could not be sent: the worker's connection is gone or its queue is full."""

    worker: str
    task: str
    attempt: int


class Tick(msgspec.Struct, frozen=True):
    """Time has passed. Due a few times per heartbeat, after all waiting messages."""


class Drain(msgspec.Struct, frozen=True):
    """Issue no more leases; the run ends when the current ones have ended."""

    reason: Literal["drain", "storage", "authentication"]
    message: str = ""


class Abort(msgspec.Struct, frozen=True):
    """Release all leases and end the run at once."""


Event = (
    Register
    | Heartbeat
    | Progress
    | Result
    | Failure
    | Deregister
    | Restart
    | AddTasks
    | TerminateTasks
    | CancelTasks
    | ExcludeWorker
    | Confirmed
    | WorkerLost
    | Revoked
    | Undelivered
    | Tick
    | Drain
    | Abort
)


# -- actions ----------------------------------------------------------------------------------------------------------


class Send(msgspec.Struct, frozen=True):
    """Send a message to a worker."""

    worker: str
    message: messages.Message


class TaskDone(msgspec.Struct, frozen=True):
    """Have the stage commit a result, idempotently; then decide `Confirmed`."""

    task: TaskSpec
    attempt: int
    worker: str
    seconds: float
    output: Any  # as it was sent; a stage gets it in the type of the task's kind
    arrays: tuple[bytes, ...] = ()  # the frames that the task's spec lists; empty when handed out again


class TaskQuarantined(msgspec.Struct, frozen=True):
    """Report a task that is given up: a failure was final, or the number of blamed ones reached the limit."""

    task: TaskSpec
    error: str
    message: str


class TaskProgress(msgspec.Struct, frozen=True):
    """Report the progress of a live lease."""

    task: str
    step: int
    phase: messages.Phase
    heartbeat_count: int
    checkpoint_step: int
    is_stopped: bool


class TaskFailed(msgspec.Struct, frozen=True):
    """Report a task with `no_retry` that ended without a result."""

    task: str
    error: str  # of the worker's Failure; FailureKind.RELEASED when its lease was released
    message: str  # of the Failure, or the reason of the release


Action = Send | TaskDone | TaskQuarantined | TaskProgress | TaskFailed


class Decision(msgspec.Struct):
    """What follows from an event: commit `records` to the journal, then carry out `actions`."""

    records: list[AnyRecord]
    actions: list[Action]


@dataclass(frozen=True)
class Outcome:
    """How a run ended. "incomplete": a task is quarantined or blocked. Every status but "done" can be resumed."""

    status: Literal["done", "incomplete", "drain", "stopped", "storage", "authentication"]
    message: str = ""

    @property
    def exit_code(self) -> ExitCode:
        """The program's exit code: 0 done, 4 authentication, 75 incomplete but resumable, 130 interrupted."""
        return ExitCode.of_status(self.status)
