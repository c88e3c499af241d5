"""Handler registry: which function runs which kind of lease, and how its errors are reported to the coordinator."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from coordinator.wire.failures import FailureKind
from coordinator.wire.lease_kinds import LeaseKind
from coordinator.wire.messages import Failure, Lease
from ingest.console import redact
from ingest.errors import (
    AuthenticationError,
    IngestError,
    SourceError,
    StorageError,
    ThrottledError,
    UsageError,
    VerificationError,
)
from ingest.files import DISK_FULL
from ingest.models import BuildJob, FetchJob
from worker.agent.file_transfer import local_path
from worker.agent.lease import Arrays, LeaseContext
from worker.control.handler import ControlHandler
from worker.training.rank_runner import RankDied, RankEnded, RankError, RankRunner, RingBroke
from worker.training.replica import HostFull

if TYPE_CHECKING:  # imported by the first fetch: see `worker.agent.lease`
    from ingest.page_request import FetchContext

# (job, context) → the result as plain data, or as arrays alone
Handler = Callable[[dict[str, Any], LeaseContext], dict[str, Any] | Arrays]
MAX_TEXT = 4_000  # characters of an error's message


class EngineLostError(IngestError):
    """An engine ended, or could not be started, before it answered.

    Attributes:
        blame: It counts against the lease: the engine was lost during it again and again.
        final: No further attempt is made in this run.
    """

    exit_code = 75

    def __init__(self, message: str, *, blame: bool, final: bool) -> None:
        """Store who is blamed, and whether a retry is useless."""
        super().__init__(message)
        self.blame, self.final = blame, final


# By exact class. Another error of ingest is reported by the name of its class, any other error as a crash.
FAILURES: Mapping[type[Exception], FailureKind] = {
    UsageError: FailureKind.USAGE,
    AuthenticationError: FailureKind.AUTHENTICATION,
    ThrottledError: FailureKind.THROTTLED,
    SourceError: FailureKind.SOURCE,
    StorageError: FailureKind.STORAGE,
    VerificationError: FailureKind.VERIFICATION,
    RankError: FailureKind.RANK,
    RankDied: FailureKind.RANK_DIED,
    RankEnded: FailureKind.RANK_ENDED,
    RingBroke: FailureKind.RING_BROKE,
    HostFull: FailureKind.HOST_FULL,
}


class ReportedFailure(Exception):
    """A lease that failed where an engine ran it: its failure as that host reports it, but for worker, task and attempt."""

    def __init__(self, failure: Failure) -> None:
        """Store the failure."""
        super().__init__(failure.message)
        self.failure = failure


def fetch(job: dict[str, Any], context: LeaseContext) -> dict[str, Any]:
    """Fetch one shard: `FetchJob` → `ShardResult`."""
    return fetch_in(context.data_dir, msgspec.convert(job, FetchJob), context.fetch_context)


def fetch_in(data_dir: Path, job: FetchJob, resources: Callable[[], FetchContext]) -> dict[str, Any]:
    """Fetch one shard with these resources; returns its `ShardResult` as plain data."""
    from ingest.fetch import fetch_shard

    local_path(data_dir, f"raw/{job.shard.key}/origin", ("raw",))
    return msgspec.to_builtins(fetch_shard(job, resources()))


def build(job: dict[str, Any], context: LeaseContext) -> dict[str, Any]:
    """Build the series of one year: `BuildJob` → `BuildResult`."""
    from ingest import build_series

    built = msgspec.convert(job, BuildJob)
    for path in (f"series/{built.respondent}/{built.year}/long.parquet", *(piece.file.path for piece in built.pieces)):
        local_path(context.data_dir, path, ("series", "pieces"))
    return msgspec.to_builtins(build_series.build(built, context.data_dir))


def noop(job: dict[str, Any], context: LeaseContext) -> dict[str, Any]:
    """Run `spin` iterations of an empty loop. `scripts/bench/leases.py` measures the control plane alone with it."""
    spin = int(job.get("spin", 0))
    for _ in range(spin):
        pass
    return {"spun": spin}


def default_handlers(ranks: bool = True) -> dict[str, Handler]:
    """Return a handler for each kind of lease. The handlers of one call share state, those of two calls do not.

    Args:
        ranks: Also take part in the rings of trainings.
    """
    control, rank_runner = ControlHandler(), RankRunner()
    handlers: dict[str, Handler] = {
        LeaseKind.FETCH: fetch,
        LeaseKind.BUILD: build,
        LeaseKind.TABLE: control.build_datasets,
        LeaseKind.LABELS: control.run,
        LeaseKind.ROLLOUT: control.run,
        LeaseKind.EVALUATE: control.run,
        LeaseKind.EVOLVE: control.run,
        LeaseKind.DESCEND: control.run,
        LeaseKind.NOOP: noop,
    }
    if ranks:
        handlers |= {LeaseKind.JOIN: rank_runner.join, LeaseKind.TRAIN: rank_runner.run}
    return handlers


def failure_of(error: Exception, worker: str, lease: Lease, secret: str | None) -> Failure:
    """Convert an exception of a handler to the message for the coordinator.

    Args:
        error: The exception.
        worker: Name of the worker.
        lease: The lease that failed.
        secret: Text that is removed from the message, before it is cut; None for none.
    """
    if isinstance(error, ReportedFailure):
        return msgspec.structs.replace(error.failure, worker=worker, task=lease.task, attempt=lease.attempt)
    if isinstance(error, EngineLostError):
        text = redact(str(error), [secret])[-MAX_TEXT:]
        kind = FailureKind.ENGINE_LOST
        return Failure(worker, lease.task, lease.attempt, kind, text, final=error.final, blame=error.blame)
    name: str = FAILURES.get(type(error), type(error).__name__)
    blame = not isinstance(error, StorageError)
    message = str(error) or name
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        name, blame = FailureKind.STORAGE, False
        message = f"{error}. Free some disk space or make the disk writable, then run the same command again to resume."
    elif not isinstance(error, IngestError):
        name = FailureKind.CRASH
        message = "".join(traceback.format_exception(error))
    return Failure(
        worker,
        lease.task,
        lease.attempt,
        error=name,
        message=redact(message, [secret])[-MAX_TEXT:],
        final=isinstance(error, UsageError | AuthenticationError),
        blame=blame,
    )
