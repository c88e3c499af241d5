"""Events that the scheduler decides on, and the actions it decides: plain data. The worker's messages are events as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from coordinator.scheduling.task_state import AnyRecord, TaskSpec
from coordinator.wire import messages
from coordinator.wire.exit_codes import ExitCode
from coordinator.wire.messages import Deregister, Failure, Heartbeat, Progress, Register, Result

# -- events: the messages Hello, Heartbeat, Progress, Result, Failure, Goodbye, and these ------------------------------


class Restart(msgspec.Struct, frozen=True):
    """First event after a replay: leases are void, unconfirmed proofs are handed out again."""


class AddTasks(msgspec.Struct, frozen=True):
    """These tasks are open. A known one is opened again if it had ended (done and committed, quarantined)."""

    tasks: tuple[TaskSpec, ...]
    whole: bool = False  # these are all there is to do: open tasks that are not listed are dropped


class TerminateTasks(msgspec.Struct, frozen=True):
    """Bring these tasks to their end: what is leased within `grace_s` seconds, what is not leased at once."""

    tasks: tuple[str, ...]
    grace_s: float


class CancelTasks(msgspec.Struct, frozen=True):
    """Nobody waits for these fleeting tasks any more: whoever executes one is told, and they are forgotten."""

    tasks: tuple[str, ...]


class ExcludeWorker(msgspec.Struct, frozen=True):
    """This worker's results are not to be trusted: what it holds goes back, and it may not register again."""

    worker: str
    reason: str


class Confirmed(msgspec.Struct, frozen=True):
    """The stage has committed what `TaskDone` gave it."""

    task: str
    attempt: int


class WorkerLost(msgspec.Struct, frozen=True):
    """Silent for too long, or its connection is gone."""

    worker: str
    reason: str


class Revoked(msgspec.Struct, frozen=True):
    """A worker's key was taken off the list: what it holds goes back, and it is told to stop."""

    worker: str


class Undelivered(msgspec.Struct, frozen=True):
    """A lease could not be sent: the worker's connection is gone or full."""

    worker: str
    task: str
    attempt: int


class Tick(msgspec.Struct, frozen=True):
    """Time has passed: call it a few times per heartbeat, after all waiting messages were handled."""


class Drain(msgspec.Struct, frozen=True):
    """Issue no more leases; finish when those that are out have ended. `reason`: "drain", "storage", "authentication"."""

    reason: Literal["drain", "storage", "authentication"]
    message: str = ""


class Abort(msgspec.Struct, frozen=True):
    """Give back everything at once."""


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
    """A message that goes to a worker, after the journal has been written."""

    worker: str
    message: messages.Message


class TaskDone(msgspec.Struct, frozen=True):
    """The stage commits the proof, idempotently, and answers `Confirmed`."""

    task: TaskSpec
    attempt: int
    worker: str
    seconds: float
    proof: dict[str, Any]
    arrays: tuple[bytes, ...] = ()  # the result's frames, as the task asked for them; empty when handed out again


class TaskQuarantined(msgspec.Struct, frozen=True):
    """A task failed for good or once too often: its last error."""

    task: TaskSpec
    error: str
    message: str


class TaskProgress(msgspec.Struct, frozen=True):
    """A live lease has come this far."""

    task: str
    step: int
    phase: messages.Phase
    heartbeat_count: int
    checkpoint_step: int
    is_stopped: bool


class TaskFailed(msgspec.Struct, frozen=True):
    """A task that is leased once has ended without a result. `error`: a Failure's, else why its lease went back."""

    task: str
    error: str
    message: str


Action = Send | TaskDone | TaskQuarantined | TaskProgress | TaskFailed


class Decision(msgspec.Struct):
    """`records` are committed to the journal before any of `actions` is carried out."""

    records: list[AnyRecord]
    actions: list[Action]


@dataclass(frozen=True)
class Outcome:
    """How a run ended. "incomplete": something is quarantined or blocked; all but "done" can be resumed."""

    status: Literal["done", "incomplete", "drain", "stopped", "storage", "authentication"]
    message: str = ""

    @property
    def exit_code(self) -> ExitCode:
        """0 done, 4 authentication, 75 incomplete but resumable, 130 interrupted."""
        return ExitCode.of_status(self.status)
