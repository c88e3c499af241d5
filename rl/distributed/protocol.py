"""What a learner and its coordinator say to each other over a pipe: framed `rl.arrays`, each a message and its arrays.

The learner decides what is played and what to make of it; the coordinator leases it out and hands back what came.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import IO, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from rl.arrays import Spec, pack, unpack
from rl.errors import DataError

MAX_FRAME = 1 << 30  # bytes


class LinkMessage(msgspec.Struct, frozen=True, tag_field="say", forbid_unknown_fields=True):
    """Base: a tagged struct."""


# -- learner → coordinator -------------------------------------------------------------------------------------------


class RunJob(LinkMessage, frozen=True, tag="Ask"):
    """Have this done. A number that was asked for before is asked for again: what came for it is void."""

    number: int
    kind: str
    job: dict[str, Any]
    arrays: tuple[Spec, ...]
    datasets: tuple[str, ...] = ()  # sha256 of those that it reads; none: it reads the data folder's series


class PublishPolicy(LinkMessage, frozen=True, tag="Publish"):
    """A policy, the array `data` (uint8), before any job that names it."""

    version: int
    sha256: str


class DistrustWorker(LinkMessage, frozen=True, tag="Distrust"):
    """This worker's results are wrong."""

    worker: str
    reason: str


class Progress(LinkMessage, frozen=True, tag="Progress"):
    """How far it has come; figures as metrics.jsonl has them."""

    stage: str
    done: int
    total: int
    figures: dict[str, float]


class Log(LinkMessage, frozen=True, tag="Note"):
    """A line for people."""

    text: str


class Finished(LinkMessage, frozen=True, tag="Over"):
    """The last word. `status`: done | usage | storage | failed."""

    status: str
    message: str = ""


# -- coordinator → learner -------------------------------------------------------------------------------------------


class JobResult(LinkMessage, frozen=True, tag="Given"):
    """What came for a number: a result's arrays, or a proof. A second one may come where a job was issued twice."""

    number: int
    worker: str
    seconds: float
    proof: dict[str, Any]


FromLearner = RunJob | PublishPolicy | DistrustWorker | Progress | Log | Finished
ToLearner = JobResult


def send(stream: IO[bytes], word: LinkMessage, arrays: Mapping[str, NDArray] | None = None) -> None:
    """One message, `arrays` of any shape and dtype after it. OSError where nobody reads."""
    content = pack(msgspec.to_builtins(word), arrays or {})
    stream.write(len(content).to_bytes(4, "little"))
    stream.write(content)
    stream.flush()


def receive(stream: IO[bytes], kind: Any) -> tuple[Any, dict[str, NDArray]] | None:
    """The next message of the union `kind`, and its arrays, of the shapes and dtypes that `send` had; None at the end.

    DataError for what is none.
    """
    head = stream.read(4)
    length = int.from_bytes(head, "little")
    content = stream.read(length) if len(head) == 4 and length <= MAX_FRAME else b""
    if len(head) < 4 or len(content) < length:
        return None
    meta, arrays = unpack(content, "link")
    try:
        return msgspec.convert(meta, kind), arrays
    except msgspec.ValidationError as error:
        raise DataError(f"link: {error}") from error


def as_bytes(data: NDArray) -> bytes:
    """Of the array of a `PublishPolicy`, uint8 [bytes]."""
    return np.asarray(data, np.uint8).tobytes()
