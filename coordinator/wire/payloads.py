"""The jobs of `port` and `train` leases and the reply to a `port` lease: plain data inside Lease and Result."""

from __future__ import annotations

from typing import Annotated

import msgspec

from coordinator.wire.messages import MAX_FILE, MAX_LISTED, MAX_NAME, MAX_RANKS, Count, Name, Sha256, Text


class FileRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file to transfer. `path` begins with series/, run/ or tables/, however these folders are named on either side."""

    path: Name
    bytes: Annotated[int, msgspec.Meta(ge=0, le=MAX_FILE)]
    sha256: Sha256


class JoinRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Ask a worker for an address at which its rank can join a ring.

    Attributes:
        files: A host that does not share the coordinator's files must hold these before it replies.
    """

    files: Annotated[tuple[FileRef, ...], msgspec.Meta(max_length=MAX_LISTED)] = ()


class RankSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One rank of a ring. Paths are relative to the data folder, or absolute, and are for workers that share it."""

    round: Count
    rank: Count
    addresses: Annotated[tuple[Name, ...], msgspec.Meta(min_length=1, max_length=MAX_RANKS)]  # host:port, in rank order
    run: Text  # run folder
    config: Text = ""  # the training's configuration file, in the run folder; "": the defaults of worker/train.py


class JoinReply(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The address of a worker's rank, host:port, and the BLAS library that multiplies its matrices."""

    address: Annotated[str, msgspec.Meta(max_length=MAX_NAME, pattern=r"^(\[[0-9a-zA-Z:.%]+\]|[^\s:]+):\d{1,5}$")]
    blas: Name
