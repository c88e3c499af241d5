"""The state of connected workers and their leases, and the heartbeat and back-off times. Forgotten at a restart."""

from dataclasses import dataclass
from hashlib import blake2b

import msgspec

from coordinator.wire.messages import Register
from ingest.backoff import backoff_s


@dataclass(frozen=True)
class LeaseTimings:
    """The scheduler's times, in seconds, and the retry limit."""

    heartbeat_s: float = 1.0
    silence_s: float = 10.0  # a worker, or the coordinator, that sends nothing for this long counts as lost
    lease_s: float = 60.0  # renewed by each heartbeat that lists the lease
    backoff_s: float = 0.5  # after the first failure; doubles with each further one
    backoff_max_s: float = 30.0
    max_failures: int = 5  # blamed failures until quarantine
    suspend_s: float = (
        5.0  # without leases, for the workers of a key whose failures cannot be trusted; doubles each time
    )
    suspend_max_s: float = 3600.0
    full_disk_s: float = 30.0  # without leases, for a worker whose own disk, not the coordinator's, is full


class LeaseState(msgspec.Struct):
    """A lease that a worker holds."""

    attempt: int
    deadline: float  # seconds of the scheduler's clock
    leased: float  # likewise
    executing: bool = False  # a heartbeat has listed it


class WorkerState(msgspec.Struct):
    """A connected worker."""

    registration: Register
    shares_filesystem: bool  # its data folder is the coordinator's
    last_seen: float
    held: dict[str, LeaseState]
    since: float  # when it registered
    done: int = 0  # leases with a result
    executing: tuple[str, ...] = ()
    reachable: bool = True
    is_queued: bool = False  # is in the scheduler's queue of idle workers
    no_leases_until: float = 0.0
    rows: int = 0
    requests: int = 0
    rss: int = 0


def retry_delay_s(task: str, attempt: int, failures: int, timings: LeaseTimings) -> float:
    """Return the seconds until the next attempt: exponential back-off with a jitter factor of 0.5–1.5.

    The jitter is drawn from (task, attempt), so that a replay gives the same delay.
    """
    draw = int.from_bytes(blake2b(f"{task}/{attempt}".encode(), digest_size=8).digest(), "big") / 2**64
    return backoff_s(failures, timings.backoff_s, timings.backoff_max_s) * (0.5 + draw)
