"""What each kind of lease does, and what its errors mean to the coordinator."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from coordinator.wire.failures import FailureKind
from coordinator.wire.lease_kinds import LeaseKind
from coordinator.wire.messages import Failure, Lease
from ingest import build_series
from ingest.errors import (
    AuthenticationError,
    IngestError,
    SourceError,
    StorageError,
    ThrottledError,
    UsageError,
    VerificationError,
)
from ingest.fetch import fetch_shard
from ingest.files import DISK_FULL
from ingest.models import BuildJob, FetchJob
from worker.agent.lease import Arrays, LeaseContext
from worker.control.handler import ControlHandler
from worker.training.rank_runner import RankDied, RankEnded, RankError, RankRunner, RingBroke
from worker.training.replica import HostFull

# (job, what the worker lends) → proof, or arrays and no proof
Handler = Callable[[dict[str, Any], LeaseContext], dict[str, Any] | Arrays]
MAX_TEXT = 4_000  # characters of an error's message
# By exact class. Another error of ingest travels by its class's name, any other error as a crash.
FAILURES: Mapping[type[Exception], FailureKind] = {
    UsageError: FailureKind.USAGE,
    AuthenticationError: FailureKind.AUTHENTICATION,
    ThrottledError: FailureKind.THROTTLED,
    SourceError: FailureKind.SOURCE,
    StorageError: FailureKind.STORAGE,
    VerificationError: FailureKind.PROOF,
    RankError: FailureKind.RANK,
    RankDied: FailureKind.RANK_DIED,
    RankEnded: FailureKind.RANK_ENDED,
    RingBroke: FailureKind.RING_BROKE,
    HostFull: FailureKind.HOST_FULL,
}


def fetch(job: dict[str, Any], context: LeaseContext) -> dict[str, Any]:
    """FetchJob → ShardResult."""
    return msgspec.to_builtins(fetch_shard(msgspec.convert(job, FetchJob), context))


def build(job: dict[str, Any], context: LeaseContext) -> dict[str, Any]:
    """BuildJob → BuildResult."""
    return msgspec.to_builtins(build_series.build(msgspec.convert(job, BuildJob), context.data_dir))


def noop(job: dict[str, Any], context: LeaseContext) -> dict[str, Any]:
    """Turns `spin` times round a loop: measures the control plane alone."""
    spin = int(job.get("spin", 0))
    for _ in range(spin):
        pass
    return {"spun": spin}


RANKS = (LeaseKind.JOIN, LeaseKind.TRAIN)  # kinds that make a worker's host one of a ring
_ranks = RankRunner()
_control = ControlHandler()
HANDLERS: Mapping[str, Handler] = {
    LeaseKind.FETCH: fetch,
    LeaseKind.BUILD: build,
    LeaseKind.JOIN: _ranks.join,
    LeaseKind.TRAIN: _ranks.run,
    LeaseKind.TABLE: _control.build_datasets,
    LeaseKind.LABELS: _control.run,
    LeaseKind.ROLLOUT: _control.run,
    LeaseKind.EVALUATE: _control.run,
    LeaseKind.EVOLVE: _control.run,
    LeaseKind.DESCEND: _control.run,
    LeaseKind.NOOP: noop,
}


def failure_of(error: Exception, worker: str, lease: Lease, secret: str | None) -> Failure:
    """An exception of a handler → what the coordinator is told. `secret` is cut out of the message."""
    name: str = FAILURES.get(type(error), type(error).__name__)
    blame = not isinstance(error, StorageError)
    message = str(error) or name
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        name, blame = FailureKind.STORAGE, False
        message = f"{error}. Free space or mend the disk, then run the same command again: it goes on where it stopped."
    elif not isinstance(error, IngestError):
        name = FailureKind.CRASH
        message = "".join(traceback.format_exception(error))
    if secret:
        message = message.replace(secret, "[key]")
    return Failure(
        worker,
        lease.task,
        lease.attempt,
        error=name,
        message=message[-MAX_TEXT:],
        final=isinstance(error, UsageError | AuthenticationError),
        blame=blame,
    )
