"""A real server with the extract stage behind it, and a worker of one socket that hands in what a test tells it to."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from coordinator.scheduling.worker_state import LeaseTimings
from coordinator.server.hooks import StageHooks
from coordinator.server.key_store import CoordinatorKeys
from coordinator.stages.extract.controller import ExtractController
from coordinator.stages.extract.plan import ExtractionPlan
from coordinator.wire.codec import files_in
from coordinator.wire.messages import MAX_CHUNK, Ack, FileChunk, Lease, Result
from ingest.models import Shard, ShardResult
from ingest.plan import plan_builds
from tests.support.data_folder import daily, store
from tests.support.serving import Peer, Running

Proof = dict[str, Any]
KINDS = ("fetch", "build")
PATIENT = LeaseTimings(heartbeat_s=0.2, backoff_s=0.0, max_failures=1 << 30)  # leases again at once, and never gives up


def extraction(
    data_dir: Path,
    shards: tuple[Shard, ...],
    base_url: str = "http://127.0.0.1:9",
    *,
    key: CoordinatorKeys | None = None,
    timings: LeaseTimings = PATIENT,
    bundled: str = "",
) -> tuple[Running, ExtractController]:
    """Serve the fetches of `shards`, and the builds that they open; `bundled`: the origin of all hours, where it is known."""
    data_dir.mkdir(exist_ok=True)
    respondents = tuple(sorted({shard.respondent for shard in shards}))
    builds = plan_builds(shards, respondents)
    plan = ExtractionPlan(data_dir, shards, builds, frozenset(respondents), bundled, {}, {}, bundled)
    controller = ExtractController(plan)
    hooks = StageHooks(
        on_task_done=controller.on_task_done,
        lease_files=controller.lease_files,
        check_result=controller.check_result,
        result_types=controller.result_types,
    )
    specs = tuple(controller.open_tasks(base_url, limited=False))
    return Running(data_dir, (), key=key, hooks=hooks, specs=specs, timings=timings), controller


def truth(folder: Path, one: Shard) -> ShardResult:
    """Store an honest fetch of a shard in a worker's own folder."""
    return store(folder, one, {"D": daily(one.hours), "NG": daily(one.hours) + 1})


def upload(peer: Peer, lease: Lease, path: str, body: bytes, sha256: str | None = None) -> Ack:
    """Send a whole file, and return the last answer."""
    sha256 = sha256 or hashlib.sha256(body).hexdigest()
    for offset in range(0, max(len(body), 1), MAX_CHUNK):
        part = body[offset : offset + MAX_CHUNK]
        peer.send(FileChunk(peer.name, lease.task, lease.attempt, path, offset, len(body), sha256), part)
        answer = peer.receive(Ack)
    return answer


def hand_in(peer: Peer, lease: Lease, folder: Path, proof: Proof, change: Callable[[Proof], None] | None = None) -> Ack:
    """Upload the files that a result names, as `folder` has them, then send the result, changed by a lie."""
    for path, _, _ in files_in(proof):
        upload(peer, lease, path, (folder / path).read_bytes())
    if change is not None:
        change(proof)
    peer.send(Result(peer.name, lease.task, lease.attempt, proof, 0.1))
    return peer.receive(Ack)


def plain(result: ShardResult) -> Proof:
    """Return a result as a worker sends it."""
    proof: Proof = msgspec.to_builtins(result)
    return proof


def tree(folder: Path) -> dict[str, str]:
    """Return every file below a folder → sha256."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
