"""The messages between coordinator and workers: types, frames, bounds. Imports nothing of ours.

A message on the wire is one msgpack frame, a map with the type's name under "t", bounded at `MAX_MESSAGE`; `FileChunk` has a
second, raw frame bounded at `MAX_CHUNK`, and `Result` one for each array that it describes. Every message is validated by type before anyone sees it; what does not
validate is `BadMessage`, counted and dropped. No pickle. A worker's ROUTER identity is the `worker` field of its messages.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from coordinator.wire.lease_kinds import LeaseKind

VERSION = 3
MAX_MESSAGE = 4 << 20  # bytes: a shard's proof with thousands of pages and gaps stays under 2 MiB
MAX_CHUNK = 1 << 20  # bytes: the raw frame of a FileChunk
MAX_ARRAYS = 64  # of a result
MAX_ARRAY = MAX_MESSAGE  # bytes: the raw frame of an array
MAX_DIMENSIONS = 8
ITEM_BYTES = {"float32": 4, "float64": 8}  # dtypes that an array may have
MAX_WEIGHTS = MAX_MESSAGE - 1024  # bytes of a policy's weights, which travel in one frame
MAX_NAME = 256  # characters of an id, a path, a kind
MAX_FILE = 1 << 30  # bytes of one file on its way to the coordinator
MAX_PERMITS = 64  # permits in one request
MAX_CAPACITY = 1024  # leases a worker may hold
MAX_PAUSE = 86_400.0  # seconds
MAX_RANKS = 1024  # of a ring
MAX_REASON = 2_000  # characters
MAX_DEPTH = 32  # of maps and lists in a proof
MAX_LISTED = 20_000  # files that a training needs: a lease that lists them stays under 4 MiB

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME)]
Text = Annotated[str, msgspec.Meta(max_length=16_384)]
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
Attempt = Annotated[int, msgspec.Meta(ge=1, le=1 << 31)]
Elapsed = Annotated[float, msgspec.Meta(ge=0, le=1e9)]  # seconds
Seconds = Annotated[float, msgspec.Meta(ge=0, le=MAX_PAUSE)]
Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Phase = Literal["start", "step", "validate", "checkpoint", "end"]  # of a training: what a rank is at


class BadMessage(Exception):
    """A frame that is not a message of this protocol: garbage, oversized, wrong types."""


class Message(msgspec.Struct, tag_field="t", forbid_unknown_fields=True, frozen=True):
    """Base: a tagged struct."""


# -- worker → coordinator ------------------------------------------------------------------------------------------


class Register(Message, frozen=True, tag="Hello"):
    """First word of a worker, and its answer to `RegisterAgain`."""

    worker: Name  # stable for the life of the process
    host: Name
    pid: Count
    kinds: Annotated[tuple[Name, ...], msgspec.Meta(max_length=64)]  # task kinds it can execute: "fetch", "build", …
    capacity: Annotated[int, msgspec.Meta(ge=1, le=MAX_CAPACITY)]  # leases it will hold at once
    filesystem_id: Name = msgspec.field(
        name="data_id"
    )  # random id found in its data folder: equal to the coordinator's = same file system
    version: Name  # of the package
    python: Name
    protocol: int = VERSION

    @property
    def wants_weights(self) -> bool:
        """Whether the coordinator sends this worker every new policy: it runs rollouts."""
        return LeaseKind.ROLLOUT in self.kinds


class Heartbeat(Message, frozen=True, tag="Heartbeat"):
    """From a thread of its own, so that a busy GIL does not look like a dead worker."""

    worker: Name
    executing: Annotated[
        tuple[tuple[Name, Attempt], ...], msgspec.Meta(max_length=MAX_CAPACITY)
    ]  # (task, attempt) being executed now: a death blames only these
    rows: Count = 0  # rows verified so far by this process
    requests: Count = 0
    rss: Count = 0  # bytes


class Array(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a raw frame holds, in C order and little endian; `refused_frames` says whether it does."""

    name: Name
    dtype: Name
    shape: Annotated[tuple[Count, ...], msgspec.Meta(max_length=MAX_DIMENSIONS)]


class Result(Message, frozen=True, tag="Result"):
    """A lease done: its proof, and as many raw frames as it describes arrays."""

    worker: Name
    task: Name
    attempt: Attempt
    proof: dict[str, Any]
    seconds: Elapsed
    arrays: Annotated[tuple[Array, ...], msgspec.Meta(max_length=MAX_ARRAYS)] = ()


class Failure(Message, frozen=True, tag="Failure"):
    """A lease that could not be done. `error` is a `coordinator.wire.failures.FailureKind`, or the class of an error that has none."""

    worker: Name
    task: Name
    attempt: Attempt
    error: Name
    message: Text
    final: bool = False  # no retry can mend it (authentication, usage)
    blame: bool = True  # counts towards quarantine; False for a full disk or a shutdown


class PermitRequest(Message, frozen=True, tag="PermitRequest"):
    """Ask for `count` request permits of a budget."""

    worker: Name
    bucket: Name
    count: Annotated[int, msgspec.Meta(ge=1, le=MAX_PERMITS)]


class ThrottleReport(Message, frozen=True, tag="ThrottleReport"):
    """A server throttled this worker: the budget slows down for everyone."""

    worker: Name
    bucket: Name
    kind: Name  # "429" | "403" | "html"
    retry_after: Seconds | None = None


class Progress(Message, frozen=True, tag="Progress"):
    """How far a lease that goes on for hours has come: the newest word of a rank, passed on a few times a second at most."""

    worker: Name
    task: Name
    attempt: Attempt
    step: Count
    phase: Phase
    heartbeat_count: Count = msgspec.field(name="beats")  # words that the rank has said in all; 0: none yet
    checkpoint_step: Count = msgspec.field(name="saved")  # step of its newest checkpoint; 0: none yet
    is_stopped: bool = msgspec.field(
        default=False, name="stopped"
    )  # its process exists, but the system does not run it (SIGSTOP)


class FileChunk(Message, frozen=True, tag="FileChunk"):
    """A piece of a file, for a coordinator that does not share the worker's file system. The bytes are the second frame.

    An empty frame at offset 0 asks how much is held: the `Ack` says where to go on.
    """

    worker: Name
    task: Name
    attempt: Attempt
    path: Name
    offset: Count
    size: Annotated[int, msgspec.Meta(ge=0, le=MAX_FILE)]  # of the whole file
    sha256: Sha256  # of the whole file


class WeightsRequest(Message, frozen=True, tag="WeightsRequest"):
    """Ask for weights that were made before this worker came, or missed."""

    worker: Name
    sha256: Sha256


class FileRequest(Message, frozen=True, tag="FileRequest"):
    """Ask for the piece of a file, listed by this lease, that begins at `offset`."""

    worker: Name
    task: Name
    attempt: Attempt
    path: Name
    offset: Count


class Deregister(Message, frozen=True, tag="Goodbye"):
    """The worker leaves; what it held goes back without blame."""

    worker: Name


# -- coordinator → worker ------------------------------------------------------------------------------------------


class RegisterAck(Message, frozen=True, tag="Welcome"):
    """The answer to Hello: the times to keep, and how files travel."""

    heartbeat_s: float
    silence_s: float  # without a word from the coordinator for this long, a worker stops what it does
    share_files: bool  # True: same file system; False: send files in chunks before the result


class ReRegister(Message, frozen=True, tag="RegisterAgain"):
    """The coordinator does not know this worker (it restarted): say Hello again, drop what you hold."""


class HeartbeatAck(Message, frozen=True, tag="HeartbeatAck"):
    """The coordinator is there."""


class Lease(Message, frozen=True, tag="Lease"):
    """Work, fenced by `attempt`: a result of an older attempt is acknowledged and dropped."""

    task: str
    attempt: int
    kind: str
    job: dict[str, Any]
    deadline_s: float  # seconds from receipt; heartbeats renew it


class Ack(Message, frozen=True, tag="Ack"):
    """Result, failure or chunk received. `accepted` False: stale or duplicate; either way, forget it."""

    task: str
    attempt: int
    accepted: bool
    path: str = ""  # FileChunk: which file
    offset: int = 0  # FileChunk: bytes held so far; the next chunk starts here


class FilePart(Message, frozen=True, tag="FilePart"):
    """A piece of a file that was asked for; the bytes are the second frame. None: it is not (any more) what the lease listed."""

    task: str
    attempt: int
    path: str
    offset: int


class PermitGrant(Message, frozen=True, tag="PermitGrant"):
    """One delay a permit, in seconds from receipt: send no request of this grant before its delay is over.

    No delays at all: the coordinator has no such budget.
    """

    bucket: str
    delays: tuple[float, ...]


class PermitsRevoked(Message, frozen=True, tag="PermitsVoid"):
    """The server throttled somebody: permits of this bucket that were not used yet are void; ask again."""

    bucket: str


class Weights(Message, frozen=True, tag="Weights"):
    """A policy, in one frame: to every worker that plays when it is made, and to whoever asks. No data: it is not known (any more)."""

    version: Count
    sha256: Sha256  # of `data`
    data: Annotated[bytes, msgspec.Meta(max_length=MAX_WEIGHTS)]


class AbandonLease(Message, frozen=True, tag="Cancel"):
    """Stop executing this attempt; no answer is expected."""

    task: str
    attempt: int


class TerminateLease(Message, frozen=True, tag="End"):
    """Bring this attempt to its end within `grace_s` (it may save what it did), then by force; a Failure says when it is over."""

    task: str
    attempt: int
    grace_s: Seconds


class Shutdown(Message, frozen=True, tag="Stop"):
    """End: `drain` True finishes what is leased first."""

    drain: bool
    reason: str = ""


# -- anyone → coordinator: a look from another terminal --------------------------------------------------------------


class StatusRequest(Message, frozen=True, tag="StatusRequest"):
    """Anybody's question on loopback; with keys, the coordinator's own alone."""


class Status(Message, frozen=True, tag="Status"):
    """A snapshot for `coordinator status`: counts, workers, budgets, as plain data."""

    snapshot: dict[str, Any]


FromWorker = (
    Register
    | Heartbeat
    | Progress
    | Result
    | Failure
    | PermitRequest
    | ThrottleReport
    | FileChunk
    | FileRequest
    | WeightsRequest
    | Deregister
)
ToCoordinator = FromWorker | StatusRequest
ToWorker = (
    RegisterAck
    | ReRegister
    | HeartbeatAck
    | Lease
    | Ack
    | FilePart
    | PermitGrant
    | PermitsRevoked
    | Weights
    | AbandonLease
    | TerminateLease
    | Shutdown
    | Status
)
