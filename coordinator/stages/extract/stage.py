"""The extract stage: plan shards, lease them, commit their results, build the series, summarise the data folder.

`coordinator start --extract` runs it. The manifests on disk decide what is left to do; the journal holds only the
scheduling's progress.
"""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from coordinator.scheduling.events import Outcome
from coordinator.scheduling.rate_limit import BudgetStatus
from coordinator.server.folder_lock import FolderLock
from coordinator.stages.display import approximate, choose_display
from coordinator.stages.documents import LAST_RUN, PLANNED, DryRun, StageSummary
from coordinator.stages.extract.controller import ExtractController
from coordinator.stages.extract.plan import BUCKET, ExtractOptions, make_plan
from coordinator.stages.extract.work import ExtractWork
from coordinator.stages.fleet import build_fleet, reachable_bind
from coordinator.stages.run_log import RunLog
from coordinator.stages.runner import RunResult, StageRunner
from coordinator.stages.stage import OutputMode
from coordinator.wire.exit_codes import ExitCode
from coordinator.wire.lease_kinds import LeaseKind
from ingest import checksums, daily, manifest, snapshot, tls
from ingest.asked import Absence, absences
from ingest.console import printable
from ingest.coverage import write_coverage
from ingest.daily_check import DailyTotals
from ingest.daily_check import totals as daily_totals
from ingest.emulator.process import Emulator
from ingest.errors import AuthenticationError, SourceError
from ingest.models import ALL_RESPONDENTS, RouteGap, ShardResult
from ingest.plan import expected_requests

CONNECT_S = 10.0  # for a connection to the source; one over a slow line takes a second
WHOLE = ("done", "incomplete")  # outcomes after which no build is left half-way; what is quarantined keeps its series
MAX_GAPS = 12  # that a summary lists as text
MAX_SHARDS = 8  # that a dry run lists as text


class ExtractDryRun(DryRun, frozen=True, kw_only=True):
    """The shards to fetch and what they cost."""

    source: str
    data: str
    start: str
    end: str
    respondents: tuple[str, ...]
    shards: tuple[str, ...]
    proved: int
    requests: int
    policy_seconds: float  # at the ceiling that the source states; 0 where it states none
    policy_rate: float  # requests per second, likewise
    notes: tuple[str, ...] = ()  # one line for each part of the requested period that the plan leaves out
    key: str = ""  # why the source would refuse the run's API key, and what to do; "": nothing is known against it

    @property
    def has_work(self) -> bool:
        """Whether a shard is to be fetched."""
        return bool(self.shards)

    def to_text(self) -> str:
        """Return the plan as text: the first shards, then what they cost."""
        more = len(self.shards) - MAX_SHARDS
        lines = [
            *self.notes,
            f"source {self.source}, {self.start} to {self.end} (UTC, hour-ending), data folder {self.data}",
            *(f"  {key}" for key in self.shards[:MAX_SHARDS]),
            *([f"  … {more} more, all listed with --json"] if more > 0 else []),
            f"{len(self.shards)} shards to fetch, {self.proved} already verified; about {self.requests} requests",
        ]
        if self.policy_rate:
            lines.append(
                f"at the source's policy ceiling of {self.policy_rate:g} requests/s: at least {approximate(self.policy_seconds)}"
            )
        lines += [self.duration] if self.duration else []
        lines += [self.key] if self.key else []
        return "\n".join(map(printable, lines))


class ExtractSummary(StageSummary, frozen=True, kw_only=True):
    """What the data folder holds, and what this run did. Hours, rows and gaps are of the whole folder."""

    source: str
    origins: tuple[str, ...]
    data: str
    shards: int  # planned
    proved: int  # of them, verified
    series: int
    rows: int
    total: int
    duplicates: int
    nulls: int
    gap_hours: int
    gaps: tuple[RouteGap, ...]
    masked: dict[str, int]
    suspect: int  # kept, and flagged
    revised: int
    new_shards: int
    new_rows: int
    new_files: int
    requests: int
    reused_pages: int
    faults: dict[str, int]
    quarantined: list[tuple[str, str, str]]  # task, error, message
    budgets: dict[str, BudgetStatus]
    worker_restarts: int
    peak_worker_mb: float
    seconds: float
    rows_per_s: float
    notes: tuple[str, ...]  # one line for each part of the requested period that the plan leaves out
    absent: tuple[Absence, ...]  # respondents and routes without any row in the period
    daily: DailyTotals | None = None  # of the whole folder, where the request has daily routes


class ExtractStage:
    """Implements `Stage` for extractions."""

    def options_from(self, settings: Mapping[str, Any]) -> ExtractOptions:
        """Return the options of resolved settings. See `ExtractOptions.from_settings` for its errors."""
        return ExtractOptions.from_settings(settings)

    def dry_run(self, options: ExtractOptions, after: str) -> ExtractDryRun:
        """Return the shards to fetch, the requests and the least time that the source's policy allows, without a request."""
        now = datetime.now(UTC)
        options = options.at(now)
        plan = make_plan(options, now)
        count = expected_requests(plan.missing)
        limit = options.source.rate_limit
        least_s = count / limit.rate if limit else 0.0
        costs = RunLog(options.data_dir).costs("extract", options.like)
        work = ExtractWork(plan.missing, len(plan.builds), emulated=options.source.world == "synthetic")
        seconds = work.planned_s(costs, least_s)
        return ExtractDryRun(
            eta_s=seconds,
            eta_from=LAST_RUN if "fetch" in costs else PLANNED,
            source=options.source.name,
            data=str(options.data_dir),
            start=options.start,
            end=options.end,
            respondents=options.respondents,
            shards=tuple(shard.key for shard in plan.missing),
            proved=len(plan.shards) - len(plan.missing),
            requests=count,
            policy_seconds=least_s,
            policy_rate=limit.rate if limit else 0.0,
            notes=options.notes,
            key=key_problem(os.environ.get("EIA_API_KEY", "").strip()) if options.source.needs_key else "",
        )

    def run(self, options: ExtractOptions, mode: OutputMode) -> ExtractSummary:
        """Run the stage to its end, with the data folder locked.

        Raises:
            AuthenticationError: the source needs a key, and none that could be one is set; nothing was requested.
        """
        if options.source.needs_key:
            check_key(os.environ.get("EIA_API_KEY", "").strip())
        began = time.monotonic()
        with ExitStack() as stack:
            stack.enter_context(FolderLock(options.data_dir))
            emulator = None if options.source.base_url else stack.enter_context(bundled_emulator(options))
            base_url = options.source.base_url or (emulator.url if emulator else "")
            if options.rebuild:
                set_journal_aside(options.data_dir)
            aside = manifest.set_damaged_builds_aside(options.data_dir)
            options = replace(options, notes=(*options.notes, *aside))
            now = server_time(base_url) if options.update else datetime.now(UTC)
            options = options.at(now)
            like = options.like
            controller = ExtractController(make_plan(options, now), like=like)
            budget = options.budget
            tasks = controller.open_tasks(base_url, limited=budget is not None)
            result = RunResult(Outcome("done"))
            if tasks:
                if options.hosts is None and any(task.kind == LeaseKind.FETCH for task in tasks):
                    check_reachable(base_url)
                display = stack.enter_context(closing(choose_display(mode)))
                fleet = build_fleet(options, display.note)
                budgets = {} if budget is None else {BUCKET: budget}
                checksums.remove(options.data_dir)
                if (
                    snapshot.current(options.data_dir) is None
                ):  # the series of an earlier version, which this run may replace
                    snapshot.publish(options.data_dir, manifest.build_results(options.data_dir))
                supervise = emulator.revive if emulator else str
                result = StageRunner(fleet, controller, display, budgets, supervise).run(tasks)
            changed = bool(tasks)
            if result.outcome.status in WHOLE:
                changed |= build_daily(options.data_dir, controller.results)
            totals = manifest.write_summary(options.data_dir)
            seconds = time.monotonic() - began
            if changed and totals.builds:
                write_coverage(options.data_dir)
            if changed or (totals.shards and not (options.data_dir / checksums.NAME).exists()):
                checksums.write(options.data_dir, checksums.data_files(options.data_dir))
            if result.outcome.status in WHOLE:
                snapshot.publish(options.data_dir, manifest.build_results(options.data_dir))
            built = len(controller.built_now)
            RunLog(options.data_dir).add_part(
                "extract", like, ("finish", "series"), built, time.monotonic() - controller.last_done_at
            )
        asked = any(shard.daily for shard in controller.plan.shards)
        return _summary(options, controller, result, totals, seconds, daily_totals(options.data_dir) if asked else None)

    def describe(self, summary: ExtractSummary) -> str:
        """Return a summary as text: the verified data, the missing data by name, and the work of this run."""
        label = ", ".join(summary.origins) or "no data"
        lines = [
            *summary.notes,
            *map(str, summary.absent),
            f"{summary.proved} of {summary.shards} shards verified for this request",
            f"{summary.data} holds {summary.series} series ({label}): rows {summary.rows:,} = Σ total {summary.total:,} · duplicates "
            f"{summary.duplicates} · nulls {summary.nulls:,} · missing at the source {summary.gap_hours:,} hour{'s' * (summary.gap_hours != 1)}",
        ]
        lines += [
            f"  gap {gap.respondent} {gap.variable} of {gap.route} {gap.start} to {gap.end} ({gap.length})"
            for gap in summary.gaps[:MAX_GAPS]
        ]
        if len(summary.gaps) > MAX_GAPS:
            lines.append(f"  … {len(summary.gaps) - MAX_GAPS} more, all listed in {summary.data}/manifest.json")
        if (
            summary.masked
        ):  # not "unasked", the rest of the years of which hours were asked for: nothing is wrong with it
            masked = ", ".join(f"{reason} {cells:,}" for reason, cells in summary.masked.items() if reason != "unasked")
            lines.append(f"masked values by reason: {masked}")
        if summary.daily:
            lines.append(str(summary.daily))
        if summary.suspect:
            lines.append(f"kept and flagged as suspect: {summary.suspect:,} values")
        if summary.new_shards:
            lines.append(
                f"this run: {summary.new_shards} shards, {summary.new_rows:,} rows in {summary.seconds:.1f} s "
                f"({summary.rows_per_s:,.0f} rows/s), {summary.requests} requests, {summary.reused_pages} pages reused"
            )
        elif summary.new_files:
            lines.append(f"this run: no new shard; {summary.new_files} files of series built from the shards on disk")
        elif summary.status == "done":
            lines.append("nothing was left to do")
        if summary.faults:
            faults = ", ".join(f"{kind} {count}" for kind, count in sorted(summary.faults.items()))
            lines.append(f"faults of the source, all retried: {faults}")
        told: set[str] = set()  # one cause may end many tasks: it stands with the first
        for task, error, message in summary.quarantined:
            lines.append(f"QUARANTINED {task}: {error}" + (", as above" if message in told else f": {message}"))
            told.add(message)
        return "\n".join(map(printable, lines))


def server_time(base_url: str) -> datetime:
    """Return the server's clock, which decides which hours may still be revised: the `Date` of any answer.

    A server without a clock may leave the header out (RFC 9110, 6.6.1); then it is this host's clock.

    Raises:
        SourceError: no answer, or a certificate that is not trusted.
    """
    if urlsplit(base_url).scheme == "https":
        tls.trusted_context()
    try:
        answer = requests.get(base_url, timeout=30, allow_redirects=False, stream=True)
        answer.close()
    except requests.RequestException as error:
        raise tls.certificate_error(urlsplit(base_url).hostname or base_url, error) or SourceError(
            f"{base_url} does not answer a request for its clock: {error}. Check the address, then run the same command again.",
            "clock",
        ) from error
    try:
        return parsedate_to_datetime(answer.headers["Date"]).astimezone(UTC)
    except (KeyError, ValueError):
        return datetime.now(UTC)


def check_key(key: str) -> None:
    """Refuse a key that no server would take, before it is sent to one.

    Raises:
        AuthenticationError: the key is empty, or holds a character that no key has.
    """
    if problem := key_problem(key):
        raise AuthenticationError(problem)


def key_problem(key: str) -> str:
    """Return why no server would take a key, and what to do; "" where one may."""
    if not key:
        return (
            "EIA_API_KEY is not set. Get a free key at https://www.eia.gov/opendata/register.php and export it, "
            "or use --source bulk (real hours, no key) or --source synthetic."
        )
    if not key.isalnum() or not key.isascii():
        return (
            "EIA_API_KEY holds a blank or another character that no key has. Copy it again from EIA's mail, then "
            "`export EIA_API_KEY=…`."
        )
    return ""


def check_reachable(base_url: str, timeout_s: float = CONNECT_S) -> None:
    """Try a connection to the source, and its certificate. It is skipped behind a proxy, because it would reach only the proxy.

    Args:
        base_url: The source's address.
        timeout_s: Seconds for the connection.

    Raises:
        SourceError: nothing listens at the address, or its certificate is not trusted.
    """
    if requests.utils.get_environ_proxies(base_url):
        return
    address = urlsplit(base_url)
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        with socket.create_connection((address.hostname or "", port), timeout_s) as connection:
            if address.scheme == "https":
                tls.check_certificate(connection, address.hostname or "")
    except OSError as error:
        raise SourceError(
            f"Cannot connect to source {base_url}: {error.strerror or error}. Check the address and that its server runs, then run "
            "the same command again; `--source synthetic` needs no network.",
            "unreachable",
        ) from None


def bundled_emulator(options: ExtractOptions) -> Emulator:
    """Return the bundled emulator: on loopback, unless hosts have to reach it too."""
    recordings = [word for path in options.source.recordings for word in ("--recordings", path)]
    if (
        recordings
    ):  # recorded hours have happened: the emulated clock of the synthetic hours would call the latest ones future
        recordings += ["--now", f"{datetime.now(UTC):%Y-%m-%dT%H}"]
    bind = reachable_bind(options.bind, options.hosts).removeprefix("tcp://").rpartition(":")[0]
    return Emulator("--world", options.source.world or "synthetic", "--host", bind.strip("[]"), *recordings)


def build_daily(data_dir: Path, results: Iterable[ShardResult]) -> bool:
    """Write the daily values whose pieces have changed; return whether there were any."""
    jobs = daily.stale_jobs(data_dir, results)
    if jobs:
        checksums.remove(data_dir)
    for job in jobs:
        daily.build(data_dir, job)
    return bool(jobs)


def set_journal_aside(data_dir: Path) -> None:
    """Rename a journal to `journal.sqlite*.aside`: the manifests on disk decide what is left to do."""
    for path in data_dir.glob("journal.sqlite*"):
        if path.suffix != ".aside":
            path.replace(path.with_name(path.name + ".aside"))


def _summary(
    options: ExtractOptions,
    controller: ExtractController,
    result: RunResult,
    totals: manifest.Summary,
    seconds: float,
    daily_values: DailyTotals | None,
) -> ExtractSummary:
    fetched, status = controller.fetched, result.status
    rows = sum(one.rows for one in fetched)
    shards = controller.plan.shards
    absent = absences(shards, controller.results, options.respondents)
    code, message = result.outcome.exit_code, result.outcome.message
    ended: str = result.outcome.status
    own = {(shard.route, shard.respondent) for shard in shards}
    asked = sum(len(options.respondents) if respondent == ALL_RESPONDENTS else 1 for _, respondent in own)
    if code == ExitCode.DONE and absent and len(absent) == asked and not options.update:
        code, ended = ExitCode.FAILED, "empty"
        message = f"{options.source.name} has no hour of what was asked for. Check --source, --respondents, --start and --end."
    return ExtractSummary(
        exit_code=code,
        status=ended,
        message=message,
        source=options.source.name,
        origins=totals.origins,
        data=str(options.data_dir),
        shards=len(shards),
        proved=controller.verified,
        series=totals.builds,
        rows=totals.rows,
        total=totals.total,
        duplicates=totals.duplicates,
        nulls=totals.nulls,
        gap_hours=totals.gap_hours,
        gaps=totals.gaps,
        masked=totals.masked,
        suspect=totals.suspect,
        revised=totals.revised,
        new_shards=len(fetched),
        new_rows=rows,
        new_files=controller.new_files,
        requests=sum(one.requests for one in fetched),
        reused_pages=sum(one.reused for one in fetched),
        faults=dict(sum((Counter(one.faults) for one in fetched), Counter())),
        quarantined=[] if status is None else list(status.quarantined),
        budgets={} if status is None else status.budgets,
        worker_restarts=result.restarts,
        peak_worker_mb=result.peak_rss / 1e6,
        seconds=seconds,
        rows_per_s=rows / seconds,
        notes=options.notes,
        absent=absent,
        daily=daily_values,
    )
