"""Messages between a learner and its coordinator over a pipe: a msgpack head, then raw frames.

    4 bytes (length of the head, little endian) | head: [message, [bytes of each frame]] | frames

The learner decides which jobs run and what it makes of their results; the coordinator leases the jobs to workers and returns the
results. It passes the frames of a worker's result on without a copy.
"""

from collections.abc import Sequence
from typing import IO, Annotated, Any

import msgspec

from rl.arrays import Spec
from rl.errors import DataError

MAX_HEAD = 64 << 20  # bytes
FrameSize = Annotated[int, msgspec.Meta(ge=0, le=1 << 30)]  # bytes


class LinkMessage(msgspec.Struct, frozen=True, tag_field="say", forbid_unknown_fields=True):
    """Base of all messages of the link."""


# -- learner → coordinator -------------------------------------------------------------------------------------------


class RunJob(LinkMessage, frozen=True, tag="Ask"):
    """Run this job. A number that is sent again restarts its job, and earlier results of it are void."""

    number: int
    kind: str
    job: dict[str, Any]
    arrays: tuple[Spec, ...]
    datasets: tuple[str, ...] = ()  # sha256 of each that it reads; none: it reads the data folder's series


class PublishPolicy(LinkMessage, frozen=True, tag="Publish"):
    """Send this policy, the only frame, to the workers. It comes before any job that names it."""

    version: int
    sha256: str


class DistrustWorker(LinkMessage, frozen=True, tag="Distrust"):
    """Exclude this worker: its results are wrong."""

    worker: str
    reason: str


class PartPlan(msgspec.Struct, frozen=True):
    """A part of a training as it is planned."""

    units: float
    seconds: float  # a unit, before any was measured; 0: unknown
    shared: bool = False  # the workers share it: the seconds are those of one


class WorkPlan(LinkMessage, frozen=True, tag="Plan"):
    """Name the parts of the training, in order. `Progress` then says under these names how far each is."""

    parts: dict[str, PartPlan]


class Progress(LinkMessage, frozen=True, tag="Progress"):
    """Report progress, with figures under the names of metrics.jsonl."""

    stage: str
    done: int
    total: int
    figures: dict[str, float]


class Log(LinkMessage, frozen=True, tag="Note"):
    """Show a line to the user."""

    text: str


class Finished(LinkMessage, frozen=True, tag="Over"):
    """End the training; the last message. `status`: done | usage | storage | failed."""

    status: str
    message: str = ""


# -- coordinator → learner -------------------------------------------------------------------------------------------


class JobResult(LinkMessage, frozen=True, tag="Given"):
    """The result of a job: its arrays as frames, or `proof`, the output of a job without arrays.

    A job that ran twice may have two results.
    """

    number: int
    worker: str
    seconds: float
    proof: dict[str, Any]


FromLearner = RunJob | PublishPolicy | DistrustWorker | WorkPlan | Progress | Log | Finished
ToLearner = JobResult


def send(stream: IO[bytes], message: LinkMessage, frames: Sequence[bytes] = ()) -> None:
    """Write one message and its frames. Raises OSError if the other process has closed the pipe."""
    head = msgspec.msgpack.encode((message, [len(frame) for frame in frames]))
    stream.writelines([len(head).to_bytes(4, "little"), head, *frames])
    stream.flush()


def receive(stream: IO[bytes], kind: Any) -> tuple[Any, tuple[bytes, ...]] | None:
    """Read the next message of the union `kind` and its frames; return None at the end of the stream.

    Raises:
        DataError: The bytes are not a message of `kind`.
    """
    length = int.from_bytes(stream.read(4), "little")
    if not 0 < length <= MAX_HEAD or len(head := stream.read(length)) < length:
        return None
    try:
        message, sizes = msgspec.msgpack.decode(head, type=tuple[kind, tuple[FrameSize, ...]])
    except msgspec.MsgspecError as error:
        raise DataError(f"message of the learner's pipe: {error}") from error
    frames = tuple(stream.read(size) for size in sizes)
    return (message, frames) if tuple(map(len, frames)) == sizes else None
