"""The messages between coordinator and workers: types, frames, bounds. Imports nothing of ours.

A message on the wire is one msgpack frame `[tag, fields…]`-like map with its tag, bounded at `MAX_MESSAGE`; `FileChunk` has a
second, raw frame bounded at `MAX_CHUNK`. Every message is validated by type before anyone sees it; what does not
validate is `BadMessage`, counted and dropped. No pickle.
"""

from __future__ import annotations

from typing import Any

import msgpack
import msgspec

VERSION = 1
MAX_MESSAGE = 4 << 20  # bytes: a shard's proof with thousands of pages and gaps stays under 2 MiB
MAX_CHUNK = 1 << 20  # bytes: the raw frame of a FileChunk
MAX_NAME = 256  # characters of an id, a path, a kind


class BadMessage(Exception):
    """A frame that is not a message of this protocol: garbage, oversized, wrong types."""


class Message(msgspec.Struct, tag_field="t", forbid_unknown_fields=True, frozen=True):
    """Base: a tagged struct."""


# -- worker → coordinator ------------------------------------------------------------------------------------------


class Hello(Message, frozen=True):
    """First word of a worker, and its answer to `RegisterAgain`."""

    worker: str  # stable for the life of the process
    host: str
    pid: int
    kinds: tuple[str, ...]  # task kinds it can execute: "fetch", "build", …
    capacity: int  # leases it will hold at once
    data_id: str  # random id found in its data folder: equal to the coordinator's = same file system
    version: str  # of the package
    python: str
    protocol: int = VERSION


class Heartbeat(Message, frozen=True):
    """From a thread of its own, so that a busy GIL does not look like a dead worker."""

    worker: str
    executing: tuple[tuple[str, int], ...]  # (task, attempt) being executed now: a death blames only these
    rows: int = 0  # rows verified so far by this process
    requests: int = 0
    rss: int = 0  # bytes


class Result(Message, frozen=True):
    """A lease done: its proof."""

    worker: str
    task: str
    attempt: int
    proof: dict[str, Any]
    seconds: float


class Failure(Message, frozen=True):
    """A lease that could not be done. `error` is the error's class, one of ingest's tree or "Crash"."""

    worker: str
    task: str
    attempt: int
    error: str
    message: str
    final: bool = False  # no retry can mend it (authentication, usage)
    blame: bool = True  # counts towards quarantine; False for a full disk or a shutdown


class PermitRequest(Message, frozen=True):
    """Ask for `count` request permits of a budget."""

    worker: str
    bucket: str
    count: int


class ThrottleReport(Message, frozen=True):
    """A server throttled this worker: the budget slows down for everyone."""

    worker: str
    bucket: str
    kind: str  # "429" | "403" | "html"
    retry_after: float | None = None  # seconds


class FileChunk(Message, frozen=True):
    """A piece of a file, for a coordinator that does not share the worker's file system. The bytes are the second frame."""

    worker: str
    task: str
    attempt: int
    path: str
    offset: int
    size: int  # of the whole file
    sha256: str  # of the whole file


class Goodbye(Message, frozen=True):
    """The worker leaves; what it held goes back without blame."""

    worker: str


# -- coordinator → worker ------------------------------------------------------------------------------------------


class Welcome(Message, frozen=True):
    heartbeat_s: float
    silence_s: float  # without a word from the coordinator for this long, a worker stops what it does
    share_files: bool  # True: same file system; False: send files in chunks before the result


class RegisterAgain(Message, frozen=True):
    """The coordinator does not know this worker (it restarted): say Hello again, drop what you hold."""


class HeartbeatAck(Message, frozen=True):
    pass


class Lease(Message, frozen=True):
    """Work, fenced by `attempt`: a result of an older attempt is acknowledged and dropped."""

    task: str
    attempt: int
    kind: str
    job: dict[str, Any]
    deadline_s: float  # seconds from receipt; heartbeats renew it


class Ack(Message, frozen=True):
    """Result, failure or chunk received. `accepted` False: stale or duplicate; either way, forget it."""

    task: str
    attempt: int
    accepted: bool
    path: str = ""  # FileChunk: which file
    offset: int = 0  # FileChunk: bytes held so far; the next chunk starts here


class PermitGrant(Message, frozen=True):
    """One delay a permit, in seconds from receipt: send no request of this grant before its delay is over."""

    bucket: str
    delays: tuple[float, ...]


class Cancel(Message, frozen=True):
    """Stop executing this attempt; no answer is expected."""

    task: str
    attempt: int


class Stop(Message, frozen=True):
    """End: `drain` True finishes what is leased first."""

    drain: bool
    reason: str = ""


# -- anyone → coordinator: a look from another terminal --------------------------------------------------------------


class StatusRequest(Message, frozen=True):
    pass


class Status(Message, frozen=True):
    """A snapshot for `coordinator status`: counts, workers, budgets, as plain data."""

    snapshot: dict[str, Any]


ToCoordinator = Hello | Heartbeat | Result | Failure | PermitRequest | ThrottleReport | FileChunk | Goodbye | StatusRequest
ToWorker = Welcome | RegisterAgain | HeartbeatAck | Lease | Ack | PermitGrant | Cancel | Stop | Status


def encode(message: Message) -> bytes:
    """Message → one msgpack frame. BadMessage when it is over `MAX_MESSAGE`."""
    frame: bytes = msgpack.packb(msgspec.to_builtins(message), use_bin_type=True)
    if len(frame) > MAX_MESSAGE:
        raise BadMessage(f"{type(message).__name__} of {len(frame)} bytes is over the limit of {MAX_MESSAGE}")
    return frame


def decode(frame: bytes, kind: Any) -> Any:
    """One frame → a message of the union `kind` (`ToCoordinator` or `ToWorker`). BadMessage for anything else."""
    if len(frame) > MAX_MESSAGE:
        raise BadMessage(f"frame of {len(frame)} bytes is over the limit of {MAX_MESSAGE}")
    try:
        plain = msgpack.unpackb(frame, raw=False, strict_map_key=True, max_bin_len=0, max_ext_len=0)
        return msgspec.convert(plain, type=kind)
    except (msgspec.ValidationError, ValueError, TypeError, msgpack.exceptions.UnpackException, RecursionError) as error:
        raise BadMessage(str(error) or type(error).__name__) from error
