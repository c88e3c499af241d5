"""State of a ring under supervision: its ranks, the events about them, how rounds and the training end. Plain data."""

from dataclasses import dataclass
from typing import Literal

from coordinator.wire.failures import FailureKind

DONE = ""  # how a rank ended: it has finished its part
# Ends of a rank that are not its worker's fault: its ring failed, it was asked to end, its lease was released.
NOT_WORKERS_FAULT = (
    DONE,
    FailureKind.RING_BROKE,
    FailureKind.RANK_ENDED,
    FailureKind.RELEASED,
    FailureKind.USAGE,
    FailureKind.STORAGE,
    FailureKind.CANCELLED,
)


@dataclass(frozen=True)
class SupervisionTick:
    """Sent a few times a second: the workers that can hold a rank, longest known first; whether the run drains."""

    workers: tuple[str, ...]
    draining: bool = False


@dataclass(frozen=True)
class AddressOffered:
    """A worker's answer to the rendezvous."""

    task: str
    address: str


@dataclass(frozen=True)
class RankDone:
    """A rank's result was accepted."""

    task: str


@dataclass(frozen=True)
class TrainingOutcome:
    """How the training ended. "done": rank 0 exited normally; the stage still has to verify the result."""

    status: Literal["done", "drain", "usage", "storage", "failed", "incomplete"]
    message: str = ""


@dataclass(frozen=True)
class RoundSummary:
    """A round that has ended."""

    round: int
    ranks: int
    step: int  # the furthest one; -1: none
    why: str  # "fault", "grow", or the status with which the run ended


@dataclass
class Rank:
    """One rank of the current round."""

    number: int
    worker: str
    last_progress: float  # time of its newest heartbeat, by the coordinator's clock
    step: int = -1  # the furthest one; -1: none yet
    phase: str = "start"
    heartbeat_count: int = 0
    checkpoint_step: int = 0  # of its newest checkpoint in this round
    stopped_since: float | None = None
    ended: str | None = None  # None: it runs; DONE; else its FailureKind, or the name of an error
    message: str = ""
    fault: str = ""  # why this rank ended the round; "": it did not
