"""Control lease handler: runs the jobs of `rl.distributed.jobs`, one at a time, on the datasets of the data folder."""

import threading
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from coordinator.wire.payloads import FileRef
from ingest.errors import Cancelled
from worker.agent.lease import Arrays, LeaseContext

if TYPE_CHECKING:  # imported by the first lease: scipy is large, and most workers never need it
    from rl.distributed.runner import JobRunner

FOLDER = "control"  # in the data folder
POLL_S = 0.1  # between checks of `cancelled`


class ControlHandler:
    """Handler of all leases of a control training.

    Jobs run one after the other: threads that share an interpreter would only slow each other down. The datasets and
    policies that a job loads are kept for the next one, so a handler serves one data folder.
    """

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._runner: JobRunner | None = None
        self._context: LeaseContext | None = None  # of the lease whose turn it is

    def run(self, job: dict[str, Any], context: LeaseContext) -> Arrays:
        """Run a job of `rl.distributed.jobs` to its arrays; downloads the datasets that it lists first.

        Raises:
            Cancelled: The lease was cancelled before its turn.
        """
        while not self._turn.acquire(timeout=POLL_S):
            if context.cancelled.is_set():
                raise Cancelled("the lease was cancelled")
        try:
            if context.cancelled.is_set():
                raise Cancelled("the lease was cancelled")
            from rl.distributed.jobs import AnyJob

            self._context = context
            files = msgspec.convert(job.pop("files", ()), tuple[FileRef, ...])
            if context.transfer is not None:
                for file in files:
                    context.transfer.download(context.data_dir / FOLDER, file, lambda: None)
            if self._runner is None:
                self._runner = self._make_runner(context.data_dir / FOLDER)
            return Arrays(self._runner.run(msgspec.convert(job, AnyJob)))
        finally:
            self._context = None
            self._turn.release()

    def build_datasets(self, job: dict[str, Any], context: LeaseContext) -> dict[str, Any]:
        """Build the datasets of a training: `DatasetSpec` → `DatasetResult` of `worker.control.datasets`."""
        from worker.control.datasets import DatasetSpec, build_datasets

        spec = msgspec.convert(job, DatasetSpec)
        return msgspec.to_builtins(build_datasets(spec, context.data_dir, context.cancelled))

    def _make_runner(self, folder: Path) -> "JobRunner":
        """Return a runner that reads datasets from `folder` and gets policies through the lease whose turn it is."""
        from rl.distributed.runner import CACHED, JobRunner
        from rl.policy import Mlp, from_bytes

        @lru_cache(CACHED)
        def load_policy(sha256: str) -> Mlp:
            assert self._context is not None
            return from_bytes(self._context.weights(sha256), f"policy {sha256[:16]}")

        return JobRunner(folder, load_policy)
