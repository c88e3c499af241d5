"""A worker process with handlers for tests: `python agent_process.py ENDPOINT DATA CAPACITY [KEY]`."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from coordinator.wire.auth import load_worker
from ingest.errors import Cancelled
from worker.agent.agent import WorkerConfig, run_agent
from worker.agent.handlers import noop
from worker.agent.lease import LeaseContext


def step(job: dict[str, Any], context: LeaseContext) -> dict[str, Any]:
    """Compute a result that depends on the job alone."""
    value = job["seed"].encode()
    end = time.monotonic() + job.get("seconds", 0.0)
    for _ in range(1_000):
        value = hashlib.sha256(value).digest()
    while time.monotonic() < end and not context.cancelled.wait(0.005):
        pass
    context.on_progress(10, 1)
    return {"value": value.hex()}


def wait(job: dict[str, Any], context: LeaseContext) -> dict[str, Any]:
    """Create the file `begun`.PID, then wait for the file `until` or for cancellation."""
    begun = Path(job["begun"])
    begun.with_name(begun.name + f".{os.getpid()}").touch()
    while not Path(job["until"]).exists():
        if context.cancelled.wait(0.01):
            raise Cancelled("cancelled")
    return {"pid": os.getpid()}


def suicide(job: dict[str, Any], context: LeaseContext) -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def fail(job: dict[str, Any], context: LeaseContext) -> dict[str, Any]:
    raise ZeroDivisionError(f"told to fail with {os.environ.get('EIA_API_KEY')}")


def huge(job: dict[str, Any], context: LeaseContext) -> dict[str, Any]:
    return {"x": "y" * (5 << 20)}


def file(job: dict[str, Any], context: LeaseContext) -> dict[str, Any]:
    """Write a file to the data folder and name it in the result."""
    body = hashlib.sha256(job["seed"].encode()).digest() * (job["bytes"] // 32)
    path = context.data_dir / job["path"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)
    return {"piece": {"path": job["path"], "bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}}


if __name__ == "__main__":
    kinds = {"noop": noop, "step": step, "wait": wait, "suicide": suicide, "fail": fail, "huge": huge, "file": file}
    key = load_worker(Path(sys.argv[4])) if len(sys.argv) > 4 else None
    config = WorkerConfig(
        sys.argv[1],
        Path(sys.argv[2]),
        capacity=int(sys.argv[3]),
        curve=key,
        make_handlers=lambda: kinds,
        no_coordinator_timeout_s=90.0,
    )
    os._exit(run_agent(config, stop_with_parent=True))
