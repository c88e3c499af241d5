"""The messages between coordinator and workers, with their limits: heartbeats, leases, results, rate limit permits, files.

A message on the wire is one msgpack frame, a map with the type's tag under "t", bounded at `MAX_MESSAGE`. `FileChunk` and
`FilePart` have a second, raw frame (`FileChunk`'s is bounded at `MAX_CHUNK`), and `Result` one for each array that it describes.
`coordinator.wire.codec` validates every message by type before other code sees it; an invalid one is a `BadMessage`, counted and dropped.
No pickle. A worker's ROUTER identity is the `worker` field of its messages. Some tags and encoded keys are older than the names of
classes and fields: the wire format does not change with a rename.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from coordinator.wire.lease_kinds import LeaseKind

VERSION = 4
MAX_MESSAGE = 4 << 20  # bytes: a shard's result with thousands of pages and gaps stays under 2 MiB
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
MAX_DEPTH = 32  # of maps and lists in a result
MAX_LINE = 300  # characters of a line that is shown as it comes
MAX_ITEMS = 131_072  # values, lists and maps of one message to the coordinator: 4,096 pages have 50,000
MAX_LISTED = 20_000  # files that a lease lists: it stays under 4 MiB

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME)]
Text = Annotated[str, msgspec.Meta(max_length=16_384)]
Line = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_LINE, pattern=r"^[ -~]*\Z")]  # printable ASCII
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
Rows = Annotated[int, msgspec.Meta(ge=0, le=10**12)]  # of one worker: a million years of one respondent are 10^11
Memory = Annotated[int, msgspec.Meta(ge=0, le=1 << 44)]  # bytes: 16 TiB
Attempt = Annotated[int, msgspec.Meta(ge=1, le=1 << 31)]
Elapsed = Annotated[float, msgspec.Meta(ge=0, le=1e9)]  # seconds
Seconds = Annotated[float, msgspec.Meta(ge=0, le=MAX_PAUSE)]
Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Phase = Literal["start", "step", "validate", "checkpoint", "end"]  # of a rank's training


class BadMessage(Exception):
    """A frame is not a valid message of this protocol: garbage, oversized, wrong types."""


class Message(msgspec.Struct, tag_field="t", forbid_unknown_fields=True, frozen=True):
    """Base of all messages."""


# -- worker → coordinator ------------------------------------------------------------------------------------------


class Register(Message, frozen=True, tag="Hello"):
    """Register a worker: its first message, and its answer to `ReRegister`. It holds no lease then."""

    worker: Name  # stable for the life of the process
    host: Name
    pid: Count
    kinds: Annotated[tuple[Name, ...], msgspec.Meta(max_length=64)]  # task kinds it can execute: "fetch", "build", …
    capacity: Annotated[int, msgspec.Meta(ge=1, le=MAX_CAPACITY)]  # leases held at once
    filesystem_id: Name = msgspec.field(
        name="data_id"
    )  # of its data folder: equal to the coordinator's on the same file system
    version: Name  # of the package
    python: Name
    protocol: int = VERSION
    # BLAS and kernel of its numpy: hosts that tell the same compute the same bits. "": it does not tell.
    arithmetic: Annotated[str, msgspec.Meta(max_length=MAX_NAME)] = ""

    @property
    def wants_weights(self) -> bool:
        """Whether the coordinator sends this worker every new policy: it runs rollouts."""
        return LeaseKind.ROLLOUT in self.kinds


class Waiting(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Describe a wait of a lease for something outside the cluster: a source that does not serve."""

    task: Name
    attempt: Attempt
    what: Line  # host of the source
    reason: Line
    since_s: Elapsed  # seconds that the wait lasts
    next_s: Seconds  # seconds until the next try
    request: Annotated[int, msgspec.Meta(ge=1, le=1 << 31)]  # number of the try


class Heartbeat(Message, frozen=True, tag="Heartbeat"):
    """Report that the worker is alive, and what it executes. A separate thread sends it, so that a busy GIL does not look like a death."""

    worker: Name
    # (task, attempt) being executed now: a death blames only these.
    executing: Annotated[tuple[tuple[Name, Attempt], ...], msgspec.Meta(max_length=MAX_CAPACITY)]
    rows: Rows = 0  # rows verified so far by this process
    requests: Rows = 0
    rss: Memory = 0
    waiting: Annotated[tuple[Waiting, ...], msgspec.Meta(max_length=MAX_CAPACITY)] = ()


class Array(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Describe a raw frame: an array in C order and little endian. `codec.validate_frames` checks the frame."""

    name: Name
    dtype: Name
    shape: Annotated[tuple[Count, ...], msgspec.Meta(max_length=MAX_DIMENSIONS)]


class Result(Message, frozen=True, tag="Result"):
    """Deliver the output of a lease, with one raw frame for each array that it describes."""

    worker: Name
    task: Name
    attempt: Attempt
    output: dict[str, Any] = msgspec.field(name="proof")
    seconds: Elapsed
    arrays: Annotated[tuple[Array, ...], msgspec.Meta(max_length=MAX_ARRAYS)] = ()


class Failure(Message, frozen=True, tag="Failure"):
    """Report a failed lease. `error` is a `coordinator.wire.failures.FailureKind`, or the class of an exception that has none."""

    worker: Name
    task: Name
    attempt: Attempt
    error: Name
    message: Text
    final: bool = False  # a retry cannot succeed (authentication, usage)
    blame: bool = True  # counts towards quarantine; False for a full disk or a shutdown


class PermitRequest(Message, frozen=True, tag="PermitRequest"):
    """Ask for `count` request permits of a rate limit."""

    worker: Name
    bucket: Name
    count: Annotated[int, msgspec.Meta(ge=1, le=MAX_PERMITS)]


class ThrottleReport(Message, frozen=True, tag="ThrottleReport"):
    """Report that a server throttled this worker: all workers slow down."""

    worker: Name
    bucket: Name
    kind: Name  # "429" | "403" | "html" | "5xx"
    retry_after: Seconds | None = None


class Progress(Message, frozen=True, tag="Progress"):
    """Report the progress of a rank: its newest heartbeat, forwarded a few times a second at most."""

    worker: Name
    task: Name
    attempt: Attempt
    step: Count
    phase: Phase
    heartbeat_count: Count = msgspec.field(name="beats")  # heartbeats of the rank in all; 0: none yet
    checkpoint_step: Count = msgspec.field(name="saved")  # step of its newest checkpoint; 0: none yet
    is_stopped: bool = msgspec.field(default=False, name="stopped")  # the process exists, but is suspended (SIGSTOP)


class FileChunk(Message, frozen=True, tag="FileChunk"):
    """Send a chunk of a file to a coordinator on another file system. The bytes are the second frame.

    An empty frame at offset 0 asks how much the coordinator holds: the `Ack` has the next offset.
    """

    worker: Name
    task: Name
    attempt: Attempt
    path: Name
    offset: Count
    size: Annotated[int, msgspec.Meta(ge=0, le=MAX_FILE)]  # of the whole file
    sha256: Sha256  # of the whole file


class WeightsRequest(Message, frozen=True, tag="WeightsRequest"):
    """Ask for a policy that was published before this worker registered, or that it missed."""

    worker: Name
    sha256: Sha256


class FileRequest(Message, frozen=True, tag="FileRequest"):
    """Ask for the part of a file, listed by this lease, that begins at `offset`."""

    worker: Name
    task: Name
    attempt: Attempt
    path: Name
    offset: Count


class Deregister(Message, frozen=True, tag="Goodbye"):
    """Deregister the worker; its leases are released without blame."""

    worker: Name


# -- coordinator → worker ------------------------------------------------------------------------------------------


class RegisterAck(Message, frozen=True, tag="Welcome"):
    """Accept a registration: the heartbeat times, and whether files must be transferred."""

    heartbeat_s: float
    silence_s: float  # without a message from the coordinator for this long, a worker abandons its leases
    share_files: bool  # True: same file system; False: send files in chunks before the result


class ReRegister(Message, frozen=True, tag="RegisterAgain"):
    """Ask an unknown worker to abandon its leases and register: the coordinator restarted."""


class HeartbeatAck(Message, frozen=True, tag="HeartbeatAck"):
    """Answer a heartbeat."""


class Lease(Message, frozen=True, tag="Lease"):
    """Assign a task. `attempt` is its fencing token: a result of an older attempt is acknowledged and dropped."""

    task: str
    attempt: int
    kind: str
    job: dict[str, Any]
    deadline_s: float  # seconds from receipt; heartbeats renew it


class Ack(Message, frozen=True, tag="Ack"):
    """Acknowledge a result, failure or chunk. `accepted` False: it was stale or a duplicate. The worker forgets it either way."""

    task: str
    attempt: int
    accepted: bool
    path: str = ""  # FileChunk: which file
    offset: int = 0  # FileChunk: bytes held so far; the next chunk starts here


class FilePart(Message, frozen=True, tag="FilePart"):
    """Send a requested part of a file; the bytes are the second frame. No bytes: the file is not (any more) the listed one."""

    task: str
    attempt: int
    path: str
    offset: int


class PermitGrant(Message, frozen=True, tag="PermitGrant"):
    """Grant permits: one delay each, in seconds from receipt, before which its request must not be sent.

    No delays: the coordinator does not limit this bucket.
    """

    bucket: str
    delays: tuple[float, ...]


class PermitsRevoked(Message, frozen=True, tag="PermitsVoid"):
    """Revoke unused permits of a bucket after a throttle; ask again."""

    bucket: str


class Weights(Message, frozen=True, tag="Weights"):
    """Send a policy: a new one to every worker that runs rollouts, or a requested one. No data: it is not known (any more)."""

    version: Count
    sha256: Sha256  # of `data`
    data: Annotated[bytes, msgspec.Meta(max_length=MAX_WEIGHTS)]


class AbandonLease(Message, frozen=True, tag="Cancel"):
    """Stop executing this attempt at once; no reply is expected."""

    task: str
    attempt: int


class TerminateLease(Message, frozen=True, tag="End"):
    """Terminate this attempt gracefully within `grace_s` (it may save its work), then by force; a Failure reports its end."""

    task: str
    attempt: int
    grace_s: Seconds


class Shutdown(Message, frozen=True, tag="Stop"):
    """End the worker. `drain` True: after its leases have ended."""

    drain: bool
    reason: str = ""


# -- status -----------------------------------------------------------------------------------------------------------


class StatusRequest(Message, frozen=True, tag="StatusRequest"):
    """Ask for the status: anyone on loopback; with keys, only the coordinator's own key."""


class Status(Message, frozen=True, tag="Status"):
    """Answer with a `coordinator.server.status.RunStatus` as plain data."""

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
