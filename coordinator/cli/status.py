"""`coordinator status`: asks the running coordinator of a data folder, or reads what the last one left."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import zmq

from coordinator.server.key_store import LOCAL, worker_key
from coordinator.stages.base import ENDPOINT_FILE
from coordinator.stages.display import headline, run_view
from coordinator.wire import codec
from coordinator.wire.auth import is_loopback, load_worker
from coordinator.wire.messages import Status, StatusRequest
from ingest import manifest
from ingest.errors import UsageError

PATIENCE_MS = 3_000


def status(data_dir: Path, keys: Path) -> dict[str, Any]:
    """The running coordinator's snapshot with `running` True, else counts from the manifests with `running` False.

    UsageError when the folder holds no run at all.
    """
    endpoint = data_dir / ENDPOINT_FILE
    if endpoint.exists():
        snapshot = ask(endpoint.read_text(), keys)
        if snapshot is not None:
            return {"running": True, **snapshot}
    if not (data_dir / "manifests").is_dir():
        raise UsageError(f"{data_dir} holds no run. Start one with `coordinator start --extract --data {data_dir}`.")
    summary = manifest.summarise(manifest.shard_results(data_dir), manifest.build_results(data_dir))
    return {
        "running": False,
        "shards": summary.shards,
        "series": summary.builds,
        "rows": summary.rows,
        "total": summary.total,
        "origins": list(summary.origins),
    }


def ask(endpoint: str, keys: Path) -> dict[str, Any] | None:
    """One StatusRequest. None when nobody answers in time: the coordinator was killed, or just ended."""
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.ROUTING_ID, f"status-{os.getpid()}".encode())
    try:
        if not is_loopback(endpoint):
            load_worker(worker_key(keys, LOCAL)).connect(socket)
        socket.connect(endpoint)
        socket.send(codec.encode(StatusRequest()))
        if not socket.poll(PATIENCE_MS):
            return None
        answer = codec.decode(socket.recv(), Status)
        return dict(answer.snapshot)
    finally:
        socket.close()
        context.term()


def describe(snapshot: dict[str, Any]) -> str:
    """A status as text."""
    if not snapshot["running"]:
        label = ", ".join(snapshot["origins"]) or "no data"
        return (
            f"no coordinator is running here; {snapshot['shards']} shards and {snapshot['series']} series are proved, "
            f"rows {snapshot['rows']:,} of {snapshot['total']:,} ({label})"
        )
    view = run_view(snapshot, already_done=0)
    lines = [snapshot.get("training") or headline(view)]
    for worker in view.workers:
        doing = ", ".join(worker.executing) or "idle"
        lines.append(
            f"  {worker.name}  {worker.rows:,} rows  {worker.requests:,} requests  {worker.megabytes:.0f} MB  {doing}"
        )
    lines += [f"  QUARANTINED {task}: {error}: {message}" for task, error, message in snapshot["quarantined"]]
    return "\n".join(lines)
