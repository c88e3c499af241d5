"""A ring as supervision sees it: its ranks, what is heard of them, how rounds and a whole training end. Plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from coordinator.wire.failures import FailureKind

DONE = ""  # a rank's end: its part was done
# A rank's end that says nothing against its worker: its ring broke, it was asked to, its lease went back.
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
    """A few times a second: the workers that can take a rank, longest known first; whether all is to end."""

    workers: tuple[str, ...]
    draining: bool = False


@dataclass(frozen=True)
class AddressOffered:
    """A worker's answer to the roll call."""

    task: str
    address: str


@dataclass(frozen=True)
class RankDone:
    """A rank's result was taken."""

    task: str


@dataclass(frozen=True)
class TrainingOutcome:
    """How the training ended. "done": rank 0 ended well; whether it proved anything is for the stage to see."""

    status: Literal["done", "drain", "usage", "storage", "failed", "incomplete"]
    message: str = ""


@dataclass(frozen=True)
class RoundSummary:
    """A round that is over."""

    round: int
    ranks: int
    step: int  # the furthest; -1: none
    why: str  # "fault", "grow", or how the run ended with it


@dataclass
class Rank:
    """One rank of the round."""

    number: int
    worker: str
    heard: float  # when it last said something new, by the coordinator's clock
    step: int = -1  # the furthest; -1: none yet
    phase: str = "start"
    beats: int = 0
    saved: int = 0  # step of its newest checkpoint in this round
    stopped_since: float | None = None
    ended: str | None = None  # None: lives; DONE; else its FailureKind, or an error's name
    message: str = ""
    fault: str = ""  # why the round's end is its fault
