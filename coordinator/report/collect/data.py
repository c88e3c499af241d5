"""Coverage, extraction and provenance of a data folder, from its manifests and series."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path

import numpy as np

from coordinator.report.model import Absent, Control, Extraction, Hours, Pace, Provenance, Revised, Training
from coordinator.stages.extract.plan import world_of
from ingest import manifest
from ingest.coverage import SeriesSummary, coverage, read_summaries
from ingest.manifest import ShardManifest
from ingest.sources import get_source

BINS = 60  # parts of the span of a run
MINUTE_S = 60.0
LEAST_S = 1.0  # span: a rate over less means nothing


def hours(data_dir: Path) -> Hours | Absent:
    """Coverage, gaps, masks, revisions. VerificationError for a damaged file."""
    builds = list(manifest.build_results(data_dir))
    if not builds:
        return Absent("no series was built in this folder", f"coordinator start --extract --data {data_dir}")
    summary = manifest.summarise(manifest.shard_results(data_dir), builds)
    summaries = read_summaries(data_dir)
    return Hours(
        coverage=coverage(summaries),
        gaps=tuple(sorted(summary.gaps, key=lambda gap: (-gap.hours, gap.respondent, gap.variable, gap.start))),
        valid=summary.valid,
        masked=summary.masked,
        revised=tuple(_revised(one) for one in summaries if one.revisions),
    )


def _revised(one: SeriesSummary) -> Revised:
    periods = sorted(revision.period for revision in one.revisions)
    cells = len({(revision.variable, revision.period) for revision in one.revisions})
    return Revised(one.respondent, one.year, cells, periods[0], periods[-1])


def extraction(data_dir: Path) -> Extraction | Absent:
    """What was fetched, and how fast. VerificationError for a damaged manifest."""
    shards = list(manifest.shard_manifests(data_dir))
    if not shards:
        return Absent("nothing was fetched into this folder", f"coordinator start --extract --data {data_dir}")
    proofs = [one.result for one in shards]
    rows: Counter[str] = Counter()
    for proof in proofs:
        rows[proof.shard.respondent] += proof.rows
    return Extraction(
        summary=manifest.summarise(proofs, manifest.build_results(data_dir)),
        rows=dict(sorted(rows.items())),
        pace=pace([page.fetched for proof in proofs for page in proof.pages], _ceiling(shards)),
        restarts=sum(one.attempt > 1 for one in shards),
        workers=len({one.worker for one in shards}),
    )


def _ceiling(shards: Sequence[ShardManifest]) -> float | None:
    """The policy of the source, where it is a real one; an emulator on this host may be asked as fast as it answers."""
    real = {one.result.shard.source for one in shards if world_of(one.result.origin) == "real"}
    limits = {get_source(name).rate_limit for name in real}
    limit = limits.pop() if len(limits) == 1 else None
    return None if limit is None else limit.rate


def pace(fetched: Sequence[str], ceiling: float | None) -> Pace | None:
    """Moments (UTC, ISO 8601) at which answers came → their rate; None where there are none. Pure."""
    if not fetched:
        return None
    moments = np.sort([datetime.fromisoformat(one).timestamp() for one in fetched])
    span = float(moments[-1] - moments[0])
    shown = max(span, LEAST_S)
    counts, _ = np.histogram(moments - moments[0], BINS, (0.0, shown))
    within = np.searchsorted(moments, moments + MINUTE_S) - np.arange(len(moments))
    return Pace(
        first=min(fetched),
        last=max(fetched),
        span_s=shown,
        answers=len(moments),
        bins=counts / (shown / BINS),
        busiest=float(within.max()) / min(shown, MINUTE_S),
        ceiling=ceiling,
    )


def provenance(data_dir: Path, training: Training | Absent, control: Control | Absent) -> Provenance | Absent:
    """Sources, versions, seeds and machines, as far as the runs recorded them. VerificationError for a damaged manifest."""
    shards = list(manifest.shard_manifests(data_dir))
    if not shards:
        return Absent("nothing was fetched into this folder", f"coordinator start --extract --data {data_dir}")
    proofs = [one.result for one in shards]
    origins = tuple(sorted({proof.origin for proof in proofs}))
    versions = sorted({page.api_version for proof in proofs for page in proof.pages} - {""})
    sources = sorted({f"{proof.shard.source}/{proof.shard.route}" for proof in proofs})
    workers = sorted({one.worker for one in shards})
    committed = sorted(one.committed for one in shards)
    rows = [
        ("hours", ", ".join(f"{origin} ({world_of(origin)})" for origin in origins)),
        ("routes", ", ".join(sources)),
        ("version of the API, by its own word", ", ".join(versions) or "not said"),
        ("generations", f"{max(proof.shard.generation for proof in proofs) + 1}"),
        ("proved (UTC)", f"{committed[0]} to {committed[-1]}"),
        ("workers (machine and process)", ", ".join(workers)),
        ("program", f"ring-attention-energy {metadata.version('ring-attention-energy')}, which also made this page"),
    ]
    if isinstance(training, Training):
        rows.append(("seed of the training", str(training.config.get("seed", "not recorded"))))
        rows.append(("weights of the forecaster, sha256", str(training.result.get("sha256", "not finished"))))
    if isinstance(control, Control):
        rows.append(("control policy, sha256", str(control.result.get("sha256", "not finished"))))
        rows.append(("seed of the control training", str(control.result.get("seed", "not recorded"))))
        rows.append(("machine of its learner", str(control.result.get("machine", "not recorded"))))
    return Provenance(origins, tuple(rows))
