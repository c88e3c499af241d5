"""Status client: ask the running coordinator of a data folder; without one, read what the last run left."""

import os
from pathlib import Path
from typing import Any

import msgspec
import zmq

from coordinator.server.key_store import LOCAL, worker_key
from coordinator.server.status import RunStatus
from coordinator.stages.display import headline, run_view
from coordinator.stages.runner import ENDPOINT_FILE
from coordinator.wire import codec
from coordinator.wire.auth import is_loopback, load_worker
from coordinator.wire.messages import Status, StatusRequest
from ingest import manifest
from ingest.console import printable
from ingest.daily_check import DailyTotals, totals
from ingest.disk_use import by_kind, replaced
from ingest.errors import UsageError, quoted

TIMEOUT_MS = 3_000


def fetch_status(data_dir: Path, keys: Path) -> dict[str, Any]:
    """Return the running coordinator's snapshot with `running` True, else counts from the manifests with `running` False.

    Raises:
        UsageError: the folder holds no run at all.
    """
    endpoint = data_dir / ENDPOINT_FILE
    if endpoint.exists():
        snapshot = request_snapshot(endpoint.read_text("utf-8"), keys)
        if snapshot is not None:
            return {"running": True, **msgspec.to_builtins(snapshot), "disk": by_kind(data_dir)}
    if not (data_dir / "manifests").is_dir():
        raise UsageError(
            f"{data_dir} holds no run. Start one with `coordinator start --extract --data {quoted(data_dir)}`."
        )
    summary = manifest.summarise(manifest.shard_results(data_dir), manifest.build_results(data_dir))
    return {
        "running": False,
        "shards": summary.shards,
        "series": summary.builds,
        "rows": summary.rows,
        "total": summary.total,
        "origins": list(summary.origins),
        "daily": msgspec.to_builtins(totals(data_dir, compare=False)),
        "disk": by_kind(data_dir),
        "replaced": sum(one.bytes for one in replaced(data_dir)),
    }


def request_snapshot(endpoint: str, keys: Path) -> RunStatus | None:
    """Send one StatusRequest. None: no answer in time, because the coordinator was killed or has just ended."""
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.IPV6, int("[" in endpoint))
    socket.setsockopt(zmq.ROUTING_ID, f"status-{os.getpid()}".encode())
    try:
        if not is_loopback(endpoint):
            load_worker(worker_key(keys, LOCAL)).connect(socket)
        socket.connect(endpoint)
        socket.send(codec.encode(StatusRequest()))
        if not socket.poll(TIMEOUT_MS):
            return None
        answer = codec.decode(socket.recv(), Status)
        return msgspec.convert(answer.snapshot, RunStatus)
    finally:
        socket.close()
        context.term()


def describe(snapshot: dict[str, Any]) -> str:
    """Return a status as text."""
    if not snapshot["running"]:
        label = printable(", ".join(snapshot["origins"])) or "no data"
        lines = [
            f"no coordinator is running here; {snapshot['shards']} shards and {snapshot['series']} series are verified, "
            f"rows {snapshot['rows']:,} of {snapshot['total']:,} ({label})",
            *([str(msgspec.convert(snapshot["daily"], DailyTotals))] if snapshot["daily"] else []),
            describe_disk(snapshot["disk"]),
        ]
        if replaced_bytes := snapshot["replaced"]:
            lines.append(
                f"newer generations replace {replaced_bytes / 1e6:,.1f} MB of it: `coordinator clean` removes that"
            )
        return "\n".join(lines)
    run = msgspec.convert(snapshot, RunStatus)
    view = run_view(run)
    lines = [run.training or headline(view), *(f"  {wait}" for wait in view.waits)]
    for worker in view.workers:
        doing = ", ".join(worker.executing) or "idle"
        lines.append(
            f"  {worker.name}  {worker.leases} of {worker.capacity} leases, {worker.done_per_minute:,.0f} a minute  {worker.rows:,} rows  "
            f"{worker.requests:,} requests  {worker.megabytes:.0f} MB  {doing}"
        )
    lines += [f"  QUARANTINED {task}: {error}: {message}" for task, error, message in run.quarantined]
    lines.append(describe_disk(snapshot["disk"]))
    return "\n".join(map(printable, lines))


def describe_disk(sizes: dict[str, int]) -> str:
    """Return disk use by kind as one line."""
    parts = ", ".join(f"{kind} {size / 1e6:,.1f}" for kind, size in sizes.items())
    return f"disk {sum(sizes.values()) / 1e6:,.1f} MB: {parts}"
