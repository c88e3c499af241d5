"""What an engine carries: the bytes of a request there, the bytes of an answer back. Both are msgpack, checked by type.

An engine may pickle what it is given. It is given `worker.engine.run.run`, which it pickles by name, and bytes.
"""

from __future__ import annotations

from typing import Any

import msgspec

from coordinator.wire.messages import Array, Failure


class _Message(msgspec.Struct, tag_field="t", forbid_unknown_fields=True, frozen=True):
    """Base of all messages."""


class PageRequest(_Message, frozen=True, tag="page"):
    """Send one HTTP request, whose permit is due.

    Attributes:
        version: Of the project where the request was made: a host with another one refuses it.
        url: With path and query, already percent-encoded.
        headers: Without the API key.
        key_sha256: Of the API key that the host must send from its own environment; "": none is sent.
        deadline_s: Seconds for the whole response.
        wire_limit: Bytes that the server may send.
        compress: Gzip a plain body while it arrives.
        follow: Follow redirects.
    """

    version: str
    url: str
    headers: dict[str, str]
    key_sha256: str
    deadline_s: float
    wire_limit: int
    compress: bool
    follow: bool


class LeaseRequest(_Message, frozen=True, tag="lease"):
    """Run a lease.

    Attributes:
        version: As of a `PageRequest`.
        kind: Kind of the lease.
        job: Its job.
        data_dir: Absolute path of the data folder. It is used where `filesystem_id` lies in it.
        filesystem_id: Id of the data folder.
        files: Content of the job's files, by path; empty for a host that has the data folder.
        weights: Policies by SHA-256.
    """

    version: str
    kind: str
    job: dict[str, Any]
    data_dir: str
    filesystem_id: str
    files: dict[str, bytes]
    weights: dict[str, bytes]


class PageAnswer(_Message, frozen=True, tag="page answer"):
    """A response, as `ingest.http.HttpResponse` has it."""

    status: int
    headers: dict[str, str]
    body: bytes
    gzipped: bool
    host: str
    seconds: float
    fetched: str


class PageFault(_Message, frozen=True, tag="page fault"):
    """A request without a usable response: message and kind of an `ingest.errors.SourceError`."""

    message: str
    kind: str


class LeaseAnswer(_Message, frozen=True, tag="lease answer"):
    """The result of a lease.

    Attributes:
        output: As in a Result.
        arrays: As in a Result.
        frames: Raw bytes of each array.
        files: Content of the files that `output` names, by path; empty from a host that has the data folder.
    """

    output: dict[str, Any]
    arrays: tuple[Array, ...] = ()
    frames: tuple[bytes, ...] = ()
    files: dict[str, bytes] = {}


class FilesNeeded(_Message, frozen=True, tag="files needed"):
    """The host lacks these files of the job: send the request again, with their content."""

    paths: tuple[str, ...]


class LeaseFailure(_Message, frozen=True, tag="lease failure"):
    """The lease failed on its host. Worker, task and attempt of the failure are empty: the host does not know them."""

    failure: Failure


EngineRequest = PageRequest | LeaseRequest
EngineAnswer = PageAnswer | PageFault | LeaseAnswer | FilesNeeded | LeaseFailure
encode = msgspec.msgpack.Encoder().encode
decode_request = msgspec.msgpack.Decoder(EngineRequest).decode
decode_answer = msgspec.msgpack.Decoder(EngineAnswer).decode
