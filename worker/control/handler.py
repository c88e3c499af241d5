"""The leases of a control training on a worker: `rl.distributed.jobs`, one at a time, with the tables of the data folder."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import msgspec

from coordinator.wire.payloads import FileRef
from ingest.errors import Cancelled
from worker.agent.lease import Arrays, LeaseContext

if TYPE_CHECKING:  # loaded by the first lease: scipy is large, and most workers never need it
    from rl.distributed.runner import JobRunner
    from rl.policy import Mlp

FOLDER = "control"  # in the data folder
LOOK_S = 0.1  # between looks at `cancelled`


class ControlHandler:
    """The handlers. Leases wait for one another: threads that share an interpreter would only slow each other down."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._player: JobRunner | None = None
        self._context: LeaseContext | None = None  # of the lease whose turn it is

    def run(self, job: dict[str, Any], context: LeaseContext) -> Arrays:
        """Any of `rl.distributed.jobs` → its arrays. Cancelled when the lease was taken back."""
        while not self._turn.acquire(timeout=LOOK_S):
            if context.cancelled.is_set():
                raise Cancelled("the lease was taken back")
        try:
            if context.cancelled.is_set():
                raise Cancelled("the lease was taken back")
            from rl.distributed.jobs import AnyJob

            self._context = context
            files = msgspec.convert(job.pop("files", ()), tuple[FileRef, ...])
            if context.transfer is not None:
                for file in files:
                    context.transfer.download(context.data_dir / FOLDER, file, lambda: None)
            return Arrays(self._own(context).run(msgspec.convert(job, AnyJob)))
        finally:
            self._context = None
            self._turn.release()

    def build_datasets(self, job: dict[str, Any], context: LeaseContext) -> dict[str, Any]:
        """Make the tables of a training → `worker.control.datasets.DatasetResult`."""
        from worker.control.datasets import DatasetSpec, build_datasets

        return msgspec.to_builtins(
            build_datasets(msgspec.convert(job, DatasetSpec), context.data_dir, context.cancelled)
        )

    def _own(self, context: LeaseContext) -> JobRunner:
        if self._player is None:
            from rl.distributed.runner import JobRunner, LruCache

            policies = LruCache()
            self._player = JobRunner(
                context.data_dir / FOLDER, lambda sha256: policies.get(sha256, lambda: self._policy(sha256))
            )
        return self._player

    def _policy(self, sha256: str) -> Mlp:
        from rl.policy import from_bytes

        assert self._context is not None
        return from_bytes(self._context.weights(sha256), f"weights {sha256[:16]}")
