"""Read coverage, extraction and provenance of a data folder from its manifests and series."""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path

import numpy as np

from coordinator.report.model import Absent, Control, Extraction, Hours, Provenance, ResponseRate, Revised, Training
from coordinator.stages.extract.plan import world_of
from ingest import manifest
from ingest.citation import all_terms
from ingest.coverage import SeriesSummary, coverage, read_summaries
from ingest.daily_check import totals
from ingest.errors import quoted
from ingest.manifest import Manifest
from ingest.models import ShardResult, is_daily
from ingest.sources import get_source

BINS = 60  # parts of the span of a run
MINUTE_S = 60.0
LEAST_S = 1.0  # span: a rate over less is meaningless


def hours(data_dir: Path) -> Hours | Absent:
    """Return coverage, gaps, masks and revisions.

    A damaged file raises `VerificationError`.
    """
    builds = list(manifest.build_results(data_dir))
    if not builds:
        return Absent("no series was built in this folder", f"coordinator start --extract --data {quoted(data_dir)}")
    summary = manifest.summarise(manifest.shard_results(data_dir), builds)
    summaries = read_summaries(data_dir)
    gaps = (gap for gap in summary.gaps if not is_daily(gap.route))  # of days: `daily` counts them
    return Hours(
        coverage=coverage(summaries),
        gaps=tuple(sorted(gaps, key=lambda gap: (-gap.hours, gap.respondent, gap.variable, gap.start))),
        valid=summary.valid,
        masked=summary.masked,
        suspect=summary.suspect,
        revised=tuple(_revised(one) for one in summaries if one.revisions),
        daily=totals(data_dir),
    )


def _revised(one: SeriesSummary) -> Revised:
    periods = sorted(revision.period for revision in one.revisions)
    cells = len({(revision.variable, revision.period) for revision in one.revisions})
    return Revised(one.respondent, one.year, cells, periods[0], periods[-1])


def extraction(data_dir: Path) -> Extraction | Absent:
    """Return what was fetched, and how fast.

    A damaged manifest raises `VerificationError`.
    """
    shards = list(manifest.shard_manifests(data_dir))
    if not shards:
        return Absent("nothing was fetched into this folder", f"coordinator start --extract --data {quoted(data_dir)}")
    results = [one.result for one in shards]
    rows: Counter[str] = Counter()
    for result in results:
        rows[result.shard.respondent] += result.rows
    return Extraction(
        summary=manifest.summarise(results, manifest.build_results(data_dir)),
        rows=dict(sorted(rows.items())),
        rate=response_rate([page.fetched for result in results for page in result.pages], _ceiling(shards)),
        retried=sum(one.attempt > 1 for one in shards),
        workers=len({one.worker for one in shards}),
    )


def _ceiling(shards: Sequence[Manifest[ShardResult]]) -> float | None:
    """Return the source's rate limit in requests per second; None for an emulator, which may be asked as fast as it answers."""
    real = {one.result.shard.source for one in shards if world_of(one.result.origin) == "real"}
    limits = {get_source(name).rate_limit for name in real}
    limit = limits.pop() if len(limits) == 1 else None
    return None if limit is None else limit.rate


def response_rate(fetched: Sequence[str], ceiling: float | None) -> ResponseRate | None:
    """Return the rate of responses from their arrival times (UTC, ISO 8601); None without any."""
    if not fetched:
        return None
    moments = np.sort([datetime.fromisoformat(one).timestamp() for one in fetched])
    span = float(moments[-1] - moments[0])
    shown = max(span, LEAST_S)
    counts, _ = np.histogram(moments - moments[0], BINS, (0.0, shown))
    within = np.searchsorted(moments, moments + MINUTE_S) - np.arange(len(moments))
    return ResponseRate(
        first=min(fetched),
        last=max(fetched),
        span_s=shown,
        responses=len(moments),
        bins=counts / (shown / BINS),
        busiest=float(within.max()) / min(shown, MINUTE_S),
        ceiling=ceiling,
    )


def provenance(data_dir: Path, training: Training | Absent, control: Control | Absent) -> Provenance | Absent:
    """Return sources, versions, seeds and machines, as far as the runs recorded them.

    A damaged manifest raises `VerificationError`.
    """
    shards = list(manifest.shard_manifests(data_dir))
    if not shards:
        return Absent("nothing was fetched into this folder", f"coordinator start --extract --data {quoted(data_dir)}")
    results = [one.result for one in shards]
    origins = tuple(sorted({result.origin for result in results}))
    versions = sorted({page.api_version for result in results for page in result.pages} - {""})
    sources = sorted({f"{result.shard.source}/{result.shard.route}" for result in results})
    workers = sorted({one.worker for one in shards})
    committed = sorted(one.committed for one in shards)
    rows = [
        ("hours", ", ".join(f"{origin} ({world_of(origin)})" for origin in origins)),
        ("routes", ", ".join(sources)),
        ("version of the API, as it reports", ", ".join(versions) or "not reported"),
        ("generations", f"{max(result.shard.generation for result in results) + 1}"),
        ("verified (UTC)", f"{committed[0]} to {committed[-1]}"),
        ("workers (machine and process)", ", ".join(workers)),
        ("program", f"ring-attention-energy {metadata.version('ring-attention-energy')}, which also wrote this page"),
    ]
    if isinstance(training, Training):
        rows += [
            ("seed of the training", str(training.config.get("seed", "not recorded"))),
            ("weights of the forecaster, sha256", str(training.result.get("sha256", "not finished"))),
        ]
    if isinstance(control, Control):
        rows += [
            ("control policy, sha256", str(control.result.get("sha256", "not finished"))),
            ("seed of the control training", str(control.result.get("seed", "not recorded"))),
            ("machine of its learner", str(control.result.get("machine", "not recorded"))),
        ]
    terms = all_terms((result.shard.source, result.origin) for result in results)
    return Provenance(origins, terms, tuple(rows))
