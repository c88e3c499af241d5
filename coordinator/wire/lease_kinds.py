"""The kinds of lease. Imports no other module of the project."""

from __future__ import annotations

from enum import StrEnum


class LeaseKind(StrEnum):
    """What a lease asks of a worker. The values are the bytes on the wire and in the journal."""

    FETCH = "fetch"
    BUILD = "build"
    JOIN = "port"
    TRAIN = "train"
    TABLE = "table"
    # Jobs of a control training: the tags of `rl.distributed.jobs.AnyJob`.
    LABELS = "labels"
    ROLLOUT = "rollout"
    EVALUATE = "evaluate"
    EVOLVE = "evolve"
    DESCEND = "descend"
    # Measures the control plane alone.
    NOOP = "noop"
