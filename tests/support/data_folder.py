"""Make a data folder without a network: pages, pieces, manifests and series of given values."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ingest import manifest
from ingest.build_series import build
from ingest.columns import Columns, digest, find_gaps, hour_number, hour_text, merge
from ingest.models import BuildResult, FetchJob, PageEntry, Shard, ShardResult, step_of
from ingest.plan import build_job
from ingest.routes import EIA_ROUTES, EIA_ZONES
from ingest.sources import get_source
from ingest.store import write_page, write_piece
from ingest.zones import zone_of

ABSENT = np.inf  # in the values given: no row for this hour; NaN is a null
PAGE_ROWS = 5000
COMMITTED = "2026-01-01T00:00:00+00:00"


def shard(respondent: str = "PACW", start: str = "2024-01-01T00", end: str = "2024-12-31T23", **other: Any) -> Shard:
    return Shard("eia", other.pop("route", "region-data"), respondent, start, end, **other)


def commit(data_dir: Path, one: Shard, values: Mapping[str, ArrayLike], origin: str = "synthetic") -> ShardResult:
    """Store the pages, piece and manifest of `values` (EIA code → one value per hour or day of the shard, or `ABSENT`)."""
    result = store(data_dir, one, values, origin)
    manifest.write(data_dir, manifest.Manifest(result, 1, "test", COMMITTED))
    return result


def store(data_dir: Path, one: Shard, values: Mapping[str, ArrayLike], origin: str = "synthetic") -> ShardResult:
    route, step, first = EIA_ROUTES[one.route], step_of(one.route), hour_number(one.start)
    count = one.hours // step
    table = {code: np.broadcast_to(np.asarray(column, float), count) for code, column in sorted(values.items())}
    zone = {"timezone": EIA_ZONES[zone_of(one.respondent)]} if one.daily else {}
    rows = [
        {
            "period": hour_text(first + at * step)[: 10 if one.daily else None],
            route.respondent: one.respondent,
            route.code: code,
            **zone,
            "value": None if np.isnan(column[at]) else str(column[at]),
        }
        for at in range(count)
        for code, column in table.items()
        if column[at] != ABSENT
    ]
    reader = get_source("eia")
    job = FetchJob(one, "")
    pages: list[PageEntry] = []
    parts: list[Columns] = []
    for offset in range(0, max(len(rows), 1), PAGE_ROWS):
        content = page_body(rows[offset : offset + PAGE_ROWS], len(rows))
        page = reader.parse(job, content)
        file = write_page(data_dir, one, offset, content, reader.suffix)
        pages.append(PageEntry(file, offset, page.rows, page.total, COMMITTED, 0.01))
        parts.append(page.columns)
    merged, _ = merge(parts)
    return ShardResult(
        shard=one,
        origin=origin,
        total=len(rows),
        rows=len(rows),
        nulls=merged.nulls(),
        gaps=find_gaps(merged, reader.spans(job, merged), step),
        pages=tuple(pages),
        piece=write_piece(data_dir, one, merged),
        digest=digest(merged),
        requests=len(pages),
        reused=0,
    )


def page_body(rows: list[dict[str, Any]], total: int) -> bytes:
    body = {"response": {"total": str(total), "data": rows}, "apiVersion": "2.1.8"}
    return gzip.compress(json.dumps(body).encode(), 1, mtime=0)


def build_all(data_dir: Path) -> list[BuildResult]:
    """Build and commit every respondent-year that has hourly pieces, and the summary."""
    shards = list(manifest.shard_results(data_dir))
    keys = sorted({(one.shard.respondent, int(one.shard.start[:4])) for one in shards if not one.shard.daily})
    results = []
    for respondent, year in keys:
        result = build(build_job(respondent, year, shards[0].origin, shards), data_dir)
        manifest.write(data_dir, manifest.Manifest(result, 1, "test", COMMITTED))
        results.append(result)
    manifest.write_summary(data_dir)
    return results


def daily(hours: int, middle: float = 3000.0, swing: float = 600.0) -> np.ndarray[Any, Any]:
    """Return a plain load: one cycle per day, whole MWh."""
    return np.round(middle + swing * np.sin(np.arange(hours) * 2 * np.pi / 24))


def one_month(folder: Path) -> Path:
    """Make one respondent's month, verified and built. Returns the data folder."""
    commit(folder, shard("PACW", "2024-01-01T00", "2024-01-31T23"), {"D": 3000.0, "DF": 3100.0})
    build_all(folder)
    return folder
