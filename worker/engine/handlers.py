"""Handlers of a worker that runs its leases on an engine. Rate limit, waits, cancellation and results stay the worker's own.

A fetch stays here, and each of its page requests goes to the engine when its permit is due: pages are verified and stored where
the worker is, and after a loss of the engine only the requests in flight are sent again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from coordinator.wire import codec
from coordinator.wire.engines import Factory
from coordinator.wire.filesystem_id import filesystem_id
from coordinator.wire.lease_kinds import LeaseKind
from coordinator.wire.payloads import FileRef
from ingest.errors import Cancelled, SourceError
from ingest.files import atomic_write
from ingest.models import FetchJob
from worker.agent.file_transfer import local_path
from worker.agent.handlers import Handler, ReportedFailure, fetch_in
from worker.agent.lease import Arrays, LeaseContext
from worker.control.handler import FOLDER, ControlHandler
from worker.engine.causes import own_version
from worker.engine.engine import Engine
from worker.engine.messages import (
    EngineAnswer,
    FilesNeeded,
    LeaseAnswer,
    LeaseFailure,
    LeaseRequest,
    PageAnswer,
    PageFault,
    PageRequest,
)
from worker.engine.run import CONTROL_KINDS, KINDS, checked, key_digest

if TYPE_CHECKING:  # requests takes a while to load, and only a fetch needs it
    import requests

    from ingest.http import HttpResponse
    from ingest.outage import Wait
    from ingest.transfer_limits import Transfer

KEY_HEADER = "X-Api-Key"
SENDS = 20  # of one lease's request, because a host lacked its files: each may go to another host


def engine_handlers(factory: Factory) -> tuple[dict[str, Handler], Engine]:
    """Return a handler for each kind of lease that an engine takes, and their engine. Datasets are built where the worker is."""
    engine = Engine(factory)
    leases = _Leases(engine)
    handlers: dict[str, Handler] = {
        LeaseKind.FETCH: lambda job, context: fetch(engine, job, context),
        LeaseKind.TABLE: ControlHandler().build_datasets,
        **{kind: leases.handler(kind) for kind in KINDS},
    }
    return handlers, engine


def _call(
    engine: Engine,
    request: PageRequest | LeaseRequest,
    check: Callable[[], None],
    on_wait: Callable[[Wait | None], None],
) -> EngineAnswer:
    """Return the answer to a request.

    Raises:
        ReportedFailure: it failed on its host.
    """
    answer = engine.call(request, check, on_wait)
    if isinstance(answer, LeaseFailure):
        raise ReportedFailure(answer.failure)
    return answer


# -- fetches -------------------------------------------------------------------------------------------------------------


def fetch(engine: Engine, job: dict[str, Any], context: LeaseContext) -> dict[str, Any]:
    """Fetch one shard: `FetchJob` → `ShardResult`, with every request sent by the engine."""

    def send(session: requests.Session, url: str, headers: Mapping[str, str], **limits: Any) -> HttpResponse:
        return _send(engine, url, headers, on_wait=context.on_wait, **limits)

    fetched = msgspec.convert(job, FetchJob)
    return fetch_in(context.data_dir, fetched, lambda: replace(context.fetch_context(), send=send))


def _send(
    engine: Engine,
    url: str,
    headers: Mapping[str, str],
    *,
    on_wait: Callable[[Wait | None], None],
    deadline_s: float,
    wire_limit: int,
    check: Callable[[Transfer], None],
    compress: bool,
    follow: bool,
) -> HttpResponse:
    """Send a request from a host of the engine, as `ingest.http.get` does from this one.

    Raises:
        SourceError: as `get` raises it.
        ReportedFailure: the host has another API key.
    """
    from requests.structures import CaseInsensitiveDict

    from ingest.http import HttpResponse
    from ingest.transfer_limits import Transfer

    plain = {name: value for name, value in headers.items() if name != KEY_HEADER}
    key = key_digest(headers.get(KEY_HEADER, ""))
    request = PageRequest(own_version(), url, plain, key, deadline_s, wire_limit, compress, follow)
    # A transfer that begins now at each check: only the cancellation counts, because a request may queue in the engine.
    answer = _call(engine, request, lambda: check(Transfer("", deadline_s, deadline_s, wire_limit, check)), on_wait)
    if isinstance(answer, PageFault):
        raise SourceError(answer.message, answer.kind)
    assert isinstance(answer, PageAnswer)
    headers = CaseInsensitiveDict(answer.headers)
    return HttpResponse(
        answer.status, headers, answer.body, answer.gzipped, answer.host, answer.seconds, answer.fetched
    )


# -- leases --------------------------------------------------------------------------------------------------------------


class _Leases:
    """Send leases whole. Where a host of the engine lacks the data folder, their files go along."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._sends_files = False  # a host has asked for files before

    def handler(self, kind: LeaseKind) -> Handler:
        """Return the handler of a kind."""
        return lambda job, context: self._run(kind, job, context)

    def _run(self, kind: LeaseKind, job: dict[str, Any], context: LeaseContext) -> dict[str, Any] | Arrays:
        """Run a lease on the engine, and write the files that come back."""

        def check() -> None:
            if context.cancelled.is_set():
                raise Cancelled("the lease was cancelled")

        folder = context.data_dir / FOLDER if kind in CONTROL_KINDS else context.data_dir
        listed = list(codec.files_in(job))
        if context.transfer is not None and kind in CONTROL_KINDS:  # this worker has to fetch them first
            for path, size, sha256 in listed:
                context.transfer.download(folder, FileRef(path, size, sha256), lambda: None)
        wanted = [path for path, _, _ in listed] if self._sends_files and kind == LeaseKind.BUILD else []
        request = LeaseRequest(
            version=own_version(),
            kind=kind,
            job=job,
            data_dir=str(context.data_dir.resolve()),
            filesystem_id=filesystem_id(context.data_dir),
            files=_read(folder, wanted),
            weights={sha256: context.weights(sha256) for sha256 in _policies(kind, job)},
        )
        for _ in range(SENDS):
            answer = _call(self._engine, request, check, context.on_wait)
            if not isinstance(answer, FilesNeeded):
                break
            self._sends_files = True
            request = msgspec.structs.replace(request, files=_read(folder, [*request.files, *answer.paths]))
        assert isinstance(answer, LeaseAnswer)
        for path, size, sha256 in codec.files_in(answer.output) if answer.files else ():
            target = local_path(context.data_dir, path, ("series",))
            atomic_write(target, checked(path, answer.files.get(path, b""), size, sha256))
        if not answer.arrays:
            return answer.output
        named = zip(answer.arrays, answer.frames, strict=True)
        return Arrays({one.name: np.frombuffer(frame, one.dtype).reshape(one.shape) for one, frame in named})


def _read(folder: Path, paths: list[str]) -> dict[str, bytes]:
    return {path: local_path(folder, path, ("pieces", "tables")).read_bytes() for path in paths}


def _policies(kind: LeaseKind, job: dict[str, Any]) -> list[str]:
    """Return the SHA-256 of each policy that a control job reads."""
    if kind not in CONTROL_KINDS:
        return []
    from rl.distributed.jobs import AnyJob, policies_of

    return policies_of(msgspec.convert({name: value for name, value in job.items() if name != "files"}, AnyJob))
