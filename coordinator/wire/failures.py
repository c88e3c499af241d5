"""The kinds of failure on the wire and in the journal. Imports no other module of the project.

`Failure.error` is a string: an exception class without a kind travels by its name. Every decision compares with a member.
"""

from __future__ import annotations

from enum import StrEnum


class FailureKind(StrEnum):
    """Why an attempt ended without a result. The values are the bytes on the wire and in the journal."""

    # Reported by a worker: an exception of ingest.
    USAGE = "UsageError"
    AUTHENTICATION = "AuthenticationError"
    THROTTLED = "Throttled"
    SOURCE = "SourceError"
    STORAGE = "StorageError"
    VERIFICATION = "ProofError"
    # Reported by a worker: a rank's end, or a host that cannot hold one.
    RANK = "RankError"
    RANK_DIED = "RankDied"
    RANK_ENDED = "RankEnded"
    RING_BROKE = "RingBroke"
    HOST_FULL = "HostFull"
    # Reported by a worker: the engine of its leases ended before it answered.
    ENGINE_LOST = "EngineLost"
    # Reported by a worker: anything else.
    CANCELLED = "Cancelled"
    CRASH = "Crash"
    # Found by the coordinator.
    WORKER_LOST = "WorkerLost"
    RELEASED = "Returned"
    BAD_RESULT = "BadProof"
    BAD_ARRAYS = "BadArrays"
    FILES_MISSING = "FilesMissing"
    REFUSED_PATH = "RefusedPath"


# Begins the last line of a rank's log when it cannot join the ring at the addresses that it was given.
LAUNCH_ERROR = "LaunchError"
