"""The extract stage: plan shards, lease them, write a manifest for each proof, build the series, sum up.

`coordinator start --extract` runs it. What is on disk decides what is left to do: manifests are the truth, the journal
is only how far the scheduling had come.
"""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from math import isinf
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import requests

from coordinator.scheduling.events import Outcome, TaskDone
from coordinator.scheduling.rate_limit import RequestBudget
from coordinator.scheduling.scheduler import TaskSpec
from coordinator.server.folder_lock import FolderLock
from coordinator.server.hooks import StageHooks
from coordinator.stages.base import RunResult, build_fleet, reachable_bind, run_tasks
from coordinator.stages.display import choose_display, clock
from coordinator.stages.source import SourceChoice, parse_source
from coordinator.wire.lease_kinds import LeaseKind
from coordinator.workers.hostfile import Hosts, hosts_from
from ingest import manifest
from ingest.catalog import check_respondents
from ingest.coverage import write_coverage
from ingest.emulator.process import Emulator
from ingest.errors import AuthenticationError, SourceError, UsageError
from ingest.models import BuildJob, BuildResult, FetchJob, Shard, ShardResult
from ingest.plan import Build, build_job, expected_requests, plan_builds, plan_shards, plan_update
from ingest.sources.eia import EIA_RATE_LIMIT

UNDER = 0.985  # of a ceiling: requests that a busy machine or the network bunches together must not cross it
BURST = 2  # requests at once; EIA allows 5, and what is left of them takes up a delay of three requests' time
CONNECT_S = 10.0  # for a connection to the source; one over a slow line takes a second
BUCKET = "source"  # the one request budget: one key, one source a run


@dataclass(frozen=True)
class ExtractOptions:
    """All that a run is told."""

    data_dir: Path
    source: SourceChoice
    respondents: tuple[str, ...]
    start: str  # first hour, YYYY-MM-DDTHH
    end: str  # last hour, inclusive
    workers: int
    connections: int
    bind: str
    keys: Path
    rate: float | None  # requests per second; None = the source's policy
    retries: int
    revise_days: int
    update: bool
    rebuild: bool
    hosts: Hosts | None = None


def options_from(settings: Mapping[str, Any], *, update: bool, rebuild: bool) -> ExtractOptions:
    """Resolved settings → ExtractOptions. UsageError for an unknown source or respondent (near matches are named), and for a period
    that the source does not have."""
    check_respondents(settings["respondents"])
    source = parse_source(settings["source"])
    plan_shards(source.kind, settings["respondents"], (settings["start"], settings["end"]))
    return ExtractOptions(
        data_dir=settings["data"],
        source=source,
        respondents=settings["respondents"],
        start=settings["start"],
        end=settings["end"],
        workers=settings["workers"],
        connections=settings["connections"],
        bind=settings["bind"],
        keys=settings["keys"],
        rate=settings["rate"],
        retries=settings["retries"],
        hosts=hosts_from(settings),
        revise_days=settings["revise-days"],
        update=update,
        rebuild=rebuild,
    )


class ExtractionPlan:
    """Which tasks there are, decided from the options and from the manifests on disk; and what a finished one leads to."""

    def __init__(self, options: ExtractOptions, base_url: str, now: datetime) -> None:
        self._options = options
        self._base_url = base_url
        self._proofs = {proof.shard.key: proof for proof in manifest.shard_results(options.data_dir)}
        self._built = {proof.key: proof.pieces for proof in manifest.build_results(options.data_dir)}
        planned = plan_shards(options.source.kind, options.respondents, (options.start, options.end))
        if options.update:
            planned = plan_update(self._proofs.values(), now, options.revise_days, planned)
        self.shards = tuple(self._widened(shard) for shard in planned)
        self._builds = plan_builds(self.shards, options.respondents)
        self._world = options.source.world or ""
        self.fresh: list[ShardResult] = []  # proved in this run
        self.new_files = 0  # written in this run: pages, pieces, series
        for proof in self._proofs.values():
            self._check_world(proof)

    @property
    def fetched(self) -> int:
        """Planned shards that are proved."""
        return sum(shard.key in self._proofs for shard in self.shards)

    def open_tasks(self) -> list[TaskSpec]:
        """Fetches without a manifest, and builds whose fetches are all proved but whose series is not made of them."""
        fetches = [self._fetch(shard) for shard in self.shards if shard.key not in self._proofs]
        return [*fetches, *self._due(self._builds)]

    def done(self, done: TaskDone) -> list[TaskSpec]:
        """Commit a proof: its manifest, atomic and idempotent. Returns the builds that it makes possible."""
        committed = datetime.now(UTC).isoformat(timespec="seconds")
        if done.task.kind == LeaseKind.BUILD:
            built = msgspec.convert(done.proof, BuildResult)
            manifest.write_build(
                self._options.data_dir, manifest.BuildManifest(built, done.attempt, done.worker, committed)
            )
            self._built[built.key] = built.pieces
            self.new_files += 3
            return []
        proof = msgspec.convert(done.proof, ShardResult)
        self._check_world(proof)
        manifest.write_shard(
            self._options.data_dir, manifest.ShardManifest(proof, done.attempt, done.worker, committed)
        )
        self._proofs[proof.shard.key] = proof
        self.fresh.append(proof)
        self.new_files += len(proof.pages) + 1
        return self._due(build for build in self._builds if proof.shard.key in build.shards)

    def _widened(self, shard: Shard) -> Shard:
        """A bulk file was read for some respondents; where this run wants others too, it is the next generation."""
        while (proof := self._proofs.get(shard.key)) is not None and not self._wanted(shard) <= set(proof.kept):
            shard = replace(shard, generation=shard.generation + 1)
        return shard

    def _wanted(self, shard: Shard) -> set[str]:
        return set(self._options.respondents) if shard.respondent == "ALL" else set()

    def _fetch(self, shard: Shard) -> TaskSpec:
        kept = tuple(sorted(self._wanted(shard)))
        bucket = BUCKET if budget_of(self._options) is not None else ""
        job = FetchJob(shard, self._base_url, respondents=kept, bucket=bucket)
        return TaskSpec(shard.key, LeaseKind.FETCH, msgspec.to_builtins(job))

    def _job(self, build: Build) -> BuildJob | None:
        """The build's job; None while one of its fetches is not proved."""
        if any(key not in self._proofs for key in build.shards):
            return None
        origin = self._proofs[build.shards[0]].origin
        return build_job(build.respondent, build.year, origin, self._proofs.values())

    def _is_due(self, build: Build) -> bool:
        job = self._job(build)
        return (
            job is not None
            and bool(job.pieces)
            and self._built.get(job.key) != tuple(p.file.sha256 for p in job.pieces)
        )

    def _due(self, builds: Iterable[Build]) -> list[TaskSpec]:
        jobs = [job for build in builds if self._is_due(build) and (job := self._job(build)) is not None]
        return [TaskSpec(job.key, LeaseKind.BUILD, msgspec.to_builtins(job), requires_shared_fs=True) for job in jobs]

    def _check_world(self, proof: ShardResult) -> None:
        """Synthetic, recorded and real hours never share a data folder."""
        world = world_of(proof.origin)
        self._world = self._world or world
        if world != self._world:
            raise UsageError(
                f"{self._options.data_dir} and this run don't mix: {self._world} hours on one side, {world} hours on the other "
                f"({proof.shard.key} from {proof.origin}). Name another folder with --data."
            )


def world_of(origin: str) -> str:
    """ "synthetic", "recordings", or "real" for any server that does not say that it is an emulator."""
    return origin if origin in ("synthetic", "recordings") else "real"


def clock_of(base_url: str) -> datetime:
    """The server's own time, from the `Date` of any answer: what may still be revised is reckoned by it.

    SourceError where it does not say.
    """
    try:
        answer = requests.get(base_url, timeout=30, allow_redirects=False, stream=True)
        answer.close()
        return parsedate_to_datetime(answer.headers["Date"]).astimezone(UTC)
    except (requests.RequestException, KeyError, ValueError) as error:
        raise SourceError(f"{base_url} does not say what time it is: {error}. Is it reachable?", "clock") from error


def budget_of(options: ExtractOptions) -> RequestBudget | None:
    """The request budget of this run: just under `--rate`, else just under the source's policy; None where there is no limit."""
    if options.rate is not None:
        return None if isinf(options.rate) else RequestBudget(options.rate * UNDER, burst=BURST)
    ceiling = options.source.rate_limit
    return None if ceiling is None else RequestBudget(ceiling.rate * UNDER, burst=min(BURST, ceiling.burst))


def dry_run(options: ExtractOptions) -> dict[str, Any]:
    """The plan and what it costs, without a request: shards, requests, the least time that EIA's policy allows."""
    extraction = ExtractionPlan(options, "", datetime.now(UTC))
    open_shards = [
        shard for shard in extraction.shards if not manifest.manifest_path(options.data_dir, shard.key).exists()
    ]
    requests = expected_requests(open_shards)
    return {
        "source": options.source.name,
        "data": str(options.data_dir),
        "start": options.start,
        "end": options.end,
        "respondents": list(options.respondents),
        "shards": [shard.key for shard in open_shards],
        "proved": len(extraction.shards) - len(open_shards),
        "requests": requests,
        "policy_seconds": requests / EIA_RATE_LIMIT.rate,
    }


def describe_plan(plan: Mapping[str, Any]) -> str:
    """A dry run as text."""
    lines = [
        f"source {plan['source']}, {plan['start']} to {plan['end']} (UTC, hour-ending), data folder {plan['data']}",
        *(f"  {key}" for key in plan["shards"]),
        f"{len(plan['shards'])} shards to fetch, {plan['proved']} proved already; about {plan['requests']} requests",
        f"at EIA's policy ceiling of {EIA_RATE_LIMIT.rate:g} requests/s: at least {clock(plan['policy_seconds'])}",
    ]
    return "\n".join(lines)


def run(options: ExtractOptions, *, as_json: bool = False, quiet: bool = False) -> dict[str, Any]:
    """Run the stage to its end; the summary, whose `exit_code` says how it ended. The data folder is locked meanwhile.

    AuthenticationError, before anything is asked, where the source needs a key and has none that could be one.
    """
    if options.source.needs_key:
        check_key(os.environ.get("EIA_API_KEY", "").strip())
    began = time.monotonic()
    with ExitStack() as stack:
        stack.enter_context(FolderLock(options.data_dir))
        base_url = options.source.base_url or stack.enter_context(_emulator(options)).url
        if options.rebuild:
            set_journal_aside(options.data_dir)
        extraction = ExtractionPlan(options, base_url, clock_of(base_url) if options.update else datetime.now(UTC))
        tasks = extraction.open_tasks()
        ended = RunResult(Outcome("done"))
        if tasks:
            if options.hosts is None and any(task.kind == LeaseKind.FETCH for task in tasks):
                check_reachable(base_url)
            display = stack.enter_context(closing(choose_display(as_json=as_json, quiet=quiet)))
            budget = budget_of(options)
            budgets = {} if budget is None else {BUCKET: budget}
            fleet = build_fleet(options, display.say)
            ended = run_tasks(
                fleet, tasks, budgets, display, StageHooks(on_task_done=extraction.done, result_types=PROOFS)
            )
        summary = manifest.write_summary(options.data_dir)
        seconds = time.monotonic() - began
        if tasks and summary.builds:
            write_coverage(options.data_dir)
    return _summary(options, extraction, ended, summary, seconds)


PROOFS: dict[str, type] = {LeaseKind.FETCH: ShardResult, LeaseKind.BUILD: BuildResult}


def check_key(key: str) -> None:
    """AuthenticationError for a key that no server would take: it is not sent to one."""
    if not key:
        raise AuthenticationError(
            "EIA_API_KEY is not set. Get a free key at https://www.eia.gov/opendata/register.php and export it, "
            "or use --source bulk (real hours, no key) or --source synthetic."
        )
    if not key.isalnum() or not key.isascii():
        raise AuthenticationError(
            "EIA_API_KEY holds a blank or another character that no key has: copy it once more from EIA's mail, then "
            "`export EIA_API_KEY=…`."
        )


def check_reachable(base_url: str) -> None:
    """SourceError where nothing listens at the source's address. With a proxy in between, only its answers can tell."""
    if requests.utils.get_environ_proxies(base_url):
        return
    address = urlsplit(base_url)
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname or "", port), CONNECT_S).close()
    except OSError as error:
        raise SourceError(
            f"source {base_url} can't be reached: {error.strerror or error}. Is the address right, and its server up? Then run the "
            "same command again; `--source synthetic` needs no network.",
            "unreachable",
        ) from None


def _emulator(options: ExtractOptions) -> Emulator:
    """On loopback, unless hosts have to reach it too."""
    recordings = [word for path in options.source.recordings for word in ("--recordings", path)]
    bind = reachable_bind(options.bind, options.hosts).removeprefix("tcp://").rpartition(":")[0]
    return Emulator("--world", options.source.world or "synthetic", "--host", bind.strip("[]"), *recordings)


def set_journal_aside(data_dir: Path) -> None:
    """Move a journal out of the way, as `journal.sqlite*.aside`: the manifests on disk say what is left to do."""
    for path in data_dir.glob("journal.sqlite*"):
        if path.suffix != ".aside":
            path.replace(path.with_name(path.name + ".aside"))


def _summary(
    options: ExtractOptions, extraction: ExtractionPlan, ended: RunResult, summary: manifest.Summary, seconds: float
) -> dict[str, Any]:
    fresh = extraction.fresh
    snapshot = ended.snapshot or {}
    rows = sum(proof.rows for proof in fresh)
    return {
        "exit_code": ended.outcome.exit_code,
        "status": ended.outcome.status,
        "message": ended.outcome.message,
        "source": options.source.name,
        "origins": list(summary.origins),
        "data": str(options.data_dir),
        "shards": len(extraction.shards),
        "proved": extraction.fetched,
        "series": summary.builds,
        "rows": summary.rows,
        "total": summary.total,
        "duplicates": summary.duplicates,
        "nulls": summary.nulls,
        "gap_hours": summary.gap_hours,
        "gaps": [msgspec.to_builtins(gap) for gap in summary.gaps],
        "masked": summary.masked,
        "revised": summary.revised,
        "new_shards": len(fresh),
        "new_rows": rows,
        "new_files": extraction.new_files,
        "requests": sum(proof.requests for proof in fresh),
        "reused_pages": sum(proof.reused for proof in fresh),
        "faults": dict(sum((Counter(proof.faults) for proof in fresh), Counter())),
        "quarantined": snapshot.get("quarantined", []),
        "budgets": snapshot.get("budgets", {}),
        "worker_restarts": ended.restarts,
        "peak_worker_mb": ended.peak_rss / 1e6,
        "seconds": seconds,
        "rows_per_s": rows / seconds,
    }


def describe_summary(summary: Mapping[str, Any], most_gaps: int = 12) -> str:
    """A summary as text: what is proved, what is missing by name, what this run did."""
    label = ", ".join(summary["origins"]) or "no data"
    lines = [
        f"{summary['proved']} of {summary['shards']} shards proved, {summary['series']} series, in {summary['data']} ({label})",
        f"rows {summary['rows']:,} = Σ total {summary['total']:,} · duplicates {summary['duplicates']} · "
        f"nulls {summary['nulls']:,} · missing at the source {summary['gap_hours']:,} hours",
    ]
    lines += [
        f"  gap {gap['respondent']} {gap['variable']} {gap['start']} to {gap['end']} ({gap['hours']} h)"
        for gap in summary["gaps"][:most_gaps]
    ]
    if len(summary["gaps"]) > most_gaps:
        lines.append(f"  … {len(summary['gaps']) - most_gaps} more: all are in {summary['data']}/manifest.json")
    if summary["masked"]:
        masked = ", ".join(f"{reason} {cells:,}" for reason, cells in summary["masked"].items())
        lines.append(f"masked hours by reason: {masked}")
    if summary["new_shards"]:
        lines.append(
            f"this run: {summary['new_shards']} shards, {summary['new_rows']:,} rows in {summary['seconds']:.1f} s "
            f"({summary['rows_per_s']:,.0f} rows/s), {summary['requests']} requests, {summary['reused_pages']} pages reused"
        )
    elif summary["status"] == "done":
        lines.append("nothing was left to do")
    if summary["faults"]:
        lines.append(
            "faults met and mended: " + ", ".join(f"{kind} {n}" for kind, n in sorted(summary["faults"].items()))
        )
    lines += [f"QUARANTINED {task}: {error}: {message}" for task, error, message in summary["quarantined"]]
    return "\n".join(lines)
