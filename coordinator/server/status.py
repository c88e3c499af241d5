"""The status of a run, as `coordinator status`, the displays and the run's summary show it. The names are the keys of its JSON."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from coordinator.scheduling.progress import StageProgress
from coordinator.scheduling.rate_limit import BudgetStatus
from coordinator.scheduling.records import State
from coordinator.scheduling.waits import WaitStatus
from coordinator.scheduling.worker_state import WorkerState


class WorkerStatus(msgspec.Struct, frozen=True):
    """A connected worker."""

    name: str
    host: str
    pid: int
    shares: bool  # it shares the coordinator's file system
    leases: int
    executing: tuple[str, ...]  # ids of tasks
    rows: int
    requests: int
    rss: int  # bytes
    silent_s: float  # since its last message
    capacity: int = 0  # leases at once; of an engine, 4 for each of --workers
    done: int = 0  # leases with a result, since it registered
    done_per_minute: float = 0.0


def worker_status(name: str, worker: WorkerState, now: float) -> WorkerStatus:
    """Return what a status says about a worker."""
    return WorkerStatus(
        name,
        worker.registration.host,
        worker.registration.pid,
        worker.shares_filesystem,
        len(worker.held),
        worker.executing,
        worker.rows,
        worker.requests,
        worker.rss,
        round(now - worker.last_seen, 3),
        worker.registration.capacity,
        worker.done,
        round(60 * worker.done / max(now - worker.since, 1.0), 1),
    )


class RunStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The status of a run at one moment."""

    training: str | UnsetType = UNSET  # the stage's own line
    progress: StageProgress | None = None  # None: the stage has no end
    tasks: dict[State, int]
    uncommitted: int  # results that the stage has not committed yet
    halt: str  # why no more leases are issued: "", "drain", "stopped", "storage", "authentication"
    dropped_results: int  # stale and duplicate ones
    departed_rows: int  # of workers that have left
    departed_requests: int
    workers: tuple[WorkerStatus, ...]
    waits: tuple[WaitStatus, ...]  # for the source, the longest first
    budgets: dict[str, BudgetStatus]
    counters: dict[str, int]
    elapsed_s: float
    quarantined: tuple[tuple[str, str, str], ...]  # (task, error, message)
