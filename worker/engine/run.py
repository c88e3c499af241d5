"""What runs on the hosts of an engine: `run`, a function of bytes to bytes. It imports nothing of the coordinator but `wire`.

A host that has the data folder works in it. Any other works in a folder of its own: a build's is removed at its end, the datasets of
control leases are kept in the system's temporary folder for the next lease, by the sha256 in their names.
"""

from __future__ import annotations

import hashlib
import os
import platform
import tempfile
import threading
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from coordinator.wire import codec
from coordinator.wire.lease_kinds import LeaseKind
from coordinator.wire.messages import Array, Lease
from ingest.errors import Cancelled, SourceError, UsageError, VerificationError
from ingest.files import DigestCache, atomic_write
from worker.agent.file_transfer import local_path
from worker.agent.handlers import build, failure_of, noop
from worker.agent.lease import Arrays, GraceDeadline, LeaseContext
from worker.control.handler import FOLDER, ControlHandler
from worker.engine.causes import PROJECT, own_version
from worker.engine.messages import (
    EngineAnswer,
    FilesNeeded,
    LeaseAnswer,
    LeaseFailure,
    LeaseRequest,
    PageAnswer,
    PageFault,
    PageRequest,
    decode_request,
    encode,
)

CONTROL_KINDS = (LeaseKind.LABELS, LeaseKind.ROLLOUT, LeaseKind.EVALUATE, LeaseKind.EVOLVE, LeaseKind.DESCEND)
KINDS = (LeaseKind.BUILD, *CONTROL_KINDS, LeaseKind.NOOP)  # that `run` takes; a fetch comes as its page requests
CONNECTIONS = 16  # kept open to a server by one process
_digests = DigestCache()


def run(request: bytes) -> bytes:
    """Answer a request of `worker.engine.messages`. An error of the work is an answer; a raised one is the engine's own."""
    try:
        message = decode_request(request)
    except msgspec.DecodeError:
        return _refusal(None)
    if message.version != own_version():
        return _refusal(message.version)
    if isinstance(message, PageRequest):
        return encode(_page(message))
    try:
        return encode(_lease(message))
    except Exception as error:
        unknown = Lease("unknown", 1, message.kind, {}, 0.0)
        return encode(LeaseFailure(failure_of(error, "unknown", unknown, _api_key())))


def _refusal(wanted: str | None) -> bytes:
    """Return the answer to a request of another version of the project; None: one whose form is not known here."""
    than = "the one that sent this task" if wanted is None else f"{wanted} where this task comes from"
    error = UsageError(
        f"{platform.node()} has {PROJECT} {own_version()}, not {than}: install the same version on all hosts of the engine"
    )
    return encode(LeaseFailure(failure_of(error, "unknown", Lease("unknown", 1, LeaseKind.NOOP, {}, 0.0), _api_key())))


def _api_key() -> str | None:
    return (os.environ.get("EIA_API_KEY") or "").strip() or None


# -- pages ---------------------------------------------------------------------------------------------------------------


def key_digest(key: str) -> str:
    """Return the name of an API key in a request, which never holds the key itself; "" for none."""
    return hashlib.sha256(key.encode()).hexdigest() if key else ""


def _page(request: PageRequest) -> EngineAnswer:
    """Send one HTTP request and return its response, with the key removed from an echo in its headers and left to the caller in its body."""
    from ingest.http import get

    key = _api_key() or ""
    if request.key_sha256 and key_digest(key) != request.key_sha256:
        problem = "has another EIA_API_KEY than" if key else "has no EIA_API_KEY, unlike"
        error = UsageError(
            f"{platform.node()} {problem} the coordinator: set the same one there. It is never sent along"
        )
        return LeaseFailure(failure_of(error, "unknown", Lease("unknown", 1, LeaseKind.FETCH, {}, 0.0), key))
    headers = {**request.headers, **({"X-Api-Key": key} if request.key_sha256 else {})}
    try:
        response = get(
            _session(),
            request.url,
            headers,
            deadline_s=request.deadline_s,
            wire_limit=request.wire_limit,
            check=lambda transfer: None,
            compress=request.compress,
            follow=request.follow,
        )
    except SourceError as error:
        return PageFault(str(error), error.kind)
    return PageAnswer(
        response.status,
        dict(response.headers),
        response.body,
        response.gzipped,
        response.host,
        response.seconds,
        response.fetched,
    )


@lru_cache(maxsize=1)
def _session() -> Any:
    from ingest.http import make_session

    return make_session(CONNECTIONS)


# -- leases --------------------------------------------------------------------------------------------------------------


def _lease(request: LeaseRequest) -> EngineAnswer:
    here = Path(request.data_dir)
    if _has_id(here, request.filesystem_id):
        return _answer(_handle(request, here))
    if request.kind in CONTROL_KINDS:
        return _with_files(request, _cache_folder(request.filesystem_id), FOLDER)
    with tempfile.TemporaryDirectory(prefix="ring-attention-energy-") as folder:
        return _with_files(request, Path(folder), "")


def _has_id(data_dir: Path, filesystem_id: str) -> bool:
    try:
        return (data_dir / "id").read_text("utf-8").strip() == filesystem_id
    except OSError:
        return False


def _cache_folder(filesystem_id: str) -> Path:
    if not filesystem_id.isalnum():
        raise VerificationError("the request names no data folder")
    folder = Path(tempfile.gettempdir()) / f"ring-attention-energy-{os.getuid()}" / filesystem_id
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _with_files(request: LeaseRequest, data_dir: Path, below: str) -> EngineAnswer:
    """Run a lease in a folder of this host, with the files of its job below `below`; return the content of the result's files."""
    missing = []
    for path, size, sha256 in codec.files_in(request.job):
        target = local_path(data_dir / below, path, ("pieces", "tables"))
        if not _is_complete(target, size, sha256):
            if path not in request.files:
                missing.append(path)
                continue
            atomic_write(target, checked(path, request.files[path], size, sha256))
    if missing:
        return FilesNeeded(tuple(missing))
    answer = _answer(_handle(request, data_dir))
    files = {path: (data_dir / path).read_bytes() for path, _, _ in codec.files_in(answer.output)}
    return LeaseAnswer(answer.output, answer.arrays, answer.frames, files)


def _is_complete(path: Path, size: int, sha256: str) -> bool:
    try:
        return path.stat().st_size == size and _digests.size_and_sha256(path)[1] == sha256
    except FileNotFoundError:
        return False


def checked(path: str, content: bytes, size: int, sha256: str) -> bytes:
    """Return the content of a file that an engine carried.

    Raises:
        VerificationError: it is not the file of this size and digest.
    """
    if len(content) != size or hashlib.sha256(content).hexdigest() != sha256:
        raise VerificationError(f"{path} arrived through the engine with another content than its sha256 says")
    return content


def _handle(request: LeaseRequest, data_dir: Path) -> dict[str, Any] | Arrays:
    context = _context(data_dir, request.weights)
    if request.kind == LeaseKind.BUILD:
        return build(request.job, context)
    if request.kind in CONTROL_KINDS:
        return _control(data_dir).run(request.job, context)
    if request.kind == LeaseKind.NOOP:
        return noop(request.job, context)
    raise UsageError(f"an engine runs no lease of kind {request.kind}: install the same version on all hosts")


_controls: dict[Path, ControlHandler] = {}
_controls_lock = threading.Lock()


def _control(data_dir: Path) -> ControlHandler:
    """Return the handler of this process for a data folder: it keeps datasets and policies for the next lease."""
    with _controls_lock:
        return _controls.setdefault(data_dir, ControlHandler())


def _answer(result: dict[str, Any] | Arrays) -> LeaseAnswer:
    if not isinstance(result, Arrays):
        return LeaseAnswer(result)
    described = tuple(Array(name, str(x.dtype), x.shape) for name, x in result.arrays.items())
    return LeaseAnswer({}, described, tuple(x.tobytes() for x in result.arrays.values()))


def _context(data_dir: Path, weights: Mapping[str, bytes]) -> LeaseContext:
    def policy(sha256: str) -> bytes:
        if sha256 not in weights:
            raise Cancelled(f"policy {sha256[:16]} did not come with its job")
        return weights[sha256]

    def no_fetch() -> Any:
        raise UsageError("a fetch comes to an engine as its page requests")

    return LeaseContext(
        data_dir=data_dir,
        cancelled=threading.Event(),
        on_progress=lambda rows, requests: None,
        fetch_context=no_fetch,
        endpoint="",
        address=None,
        proof_root=data_dir,
        transfer=None,
        silence_s=0.0,
        seconds_since_contact=lambda: 0.0,
        grace=GraceDeadline(),
        report=lambda progress: None,
        weights=policy,
    )
