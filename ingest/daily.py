"""Daily values: merge the pieces of EIA's daily routes into `daily/<respondent>.parquet`. Deterministic.

A day is a local day of the respondent, in the zone that EIA's table gives it (`ingest.zones`). The values are EIA's own sums of
their hours; no outlier rule judges them, `ingest.daily_check` compares them with the sums of the hours on disk. They are few (a
respondent has about 10,000 a year), so the coordinator builds them itself when the fetches of a run have ended.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ingest.array_types import Int8s, Int64s
from ingest.build_series import MergedGrid, Revision, merge, rows_of
from ingest.citation import Terms, all_terms
from ingest.columns import as_arrow, as_strings, open_parquet
from ingest.errors import VerificationError
from ingest.files import visible
from ingest.models import DAY, Piece, ShardResult
from ingest.plan import asked_until, piece_order
from ingest.quality import MISSING, NULL, OK, REASONS, UNASKED
from ingest.snapshot import DAILY
from ingest.store import fsync_folders, read_piece, write_file
from ingest.units import ENERGY
from ingest.zones import midnights, zone_of

DAILY_FORMAT = 1  # of the files: raised when a reader of the earlier ones would be wrong
SUMMARY = b"daily_values"  # key of the metadata
DAILY_REASONS = (OK, MISSING, NULL, UNASKED)
Counts = dict[str, dict[str, dict[str, list[int]]]]  # year → variable → reason → days by month, [12]


@dataclass(frozen=True)
class DailyJob:
    """The daily values of one respondent, from every generation of their pieces, oldest first."""

    respondent: str
    origin: str
    pieces: tuple[Piece, ...]


class PieceName(msgspec.Struct, frozen=True):
    """A piece that the values were made of."""

    shard: str
    sha256: str


class DailySummary(msgspec.Struct, frozen=True, kw_only=True):
    """What a file holds, and what it was made of: JSON under the key `SUMMARY` of its metadata."""

    format: int = DAILY_FORMAT
    respondent: str
    timezone: str  # IANA
    origin: str
    unit: str = ENERGY  # of a day
    sources: tuple[Terms, ...]
    first: str  # first day with a row, YYYY-MM-DD
    last: str
    counts: Counts
    revisions: tuple[Revision, ...]  # `period` is hour 00 of the day
    pieces: tuple[PieceName, ...]

    def days(self, reason: str) -> int:
        """Return the number of values with a reason: days of all variables together."""
        return sum(sum(reasons.get(reason, ())) for variables in self.counts.values() for reasons in variables.values())


def jobs_of(results: Iterable[ShardResult]) -> list[DailyJob]:
    """Return the jobs of the fetches of daily routes, by respondent; one without a row has none."""
    own: dict[str, list[ShardResult]] = defaultdict(list)
    for result in results:
        if result.shard.daily:
            own[result.shard.respondent].append(result)
    jobs = []
    for respondent, found in sorted(own.items()):
        if not any(result.rows for result in found):
            continue
        found.sort(key=lambda result: piece_order(result.shard))
        pieces = tuple(Piece(result.piece, result.shard, asked_until(result)) for result in found)
        jobs.append(DailyJob(respondent, found[0].origin, pieces))
    return jobs


def stale_jobs(data_dir: Path, results: Iterable[ShardResult]) -> list[DailyJob]:
    """Return the jobs whose files are missing, damaged, or made of other pieces."""
    return [job for job in jobs_of(results) if not _is_current(data_dir, job)]


def _is_current(data_dir: Path, job: DailyJob) -> bool:
    try:
        return read_summary(path_of(data_dir / DAILY, job.respondent)).pieces == _names(job)
    except VerificationError:
        return False


def path_of(folder: Path, respondent: str) -> Path:
    """Return the path of the file of a respondent in a folder of daily values."""
    return folder / f"{respondent}.parquet"


def read_summary(path: Path) -> DailySummary:
    """Return the summary in a file of daily values.

    Raises:
        VerificationError: it is missing, damaged, or of another format.
    """
    try:
        with open_parquet(path) as file:
            found = msgspec.json.decode(file.schema_arrow.metadata[SUMMARY], type=DailySummary)
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise VerificationError(f"can't read {path}: {error}; run `coordinator verify`") from error
    if found.format != DAILY_FORMAT:
        raise VerificationError(f"{path} is of format {found.format}; this version reads {DAILY_FORMAT}: extract again")
    return found


def respondents_in(folder: Path) -> tuple[str, ...]:
    """Return the respondents of a folder of daily values, sorted."""
    return tuple(sorted(path.stem for path in visible(folder.glob("*.parquet"), folder)))


def summaries_in(folder: Path) -> list[DailySummary]:
    """Return every summary of a folder of daily values, by respondent; a damaged one raises VerificationError."""
    return [read_summary(path_of(folder, respondent)) for respondent in respondents_in(folder)]


def build(data_dir: Path, job: DailyJob) -> None:
    """Write the file of a respondent; a damaged piece raises VerificationError, the disk's errors StorageError."""
    sink = io.BytesIO()
    pq.write_table(contents(data_dir, job), sink, compression="zstd", compression_level=1)
    write_file(data_dir, path_of(data_dir / DAILY, job.respondent), sink.getvalue())
    fsync_folders(data_dir, data_dir / DAILY)


def contents(data_dir: Path, job: DailyJob) -> pa.Table:
    """Return what the file of a respondent holds, its metadata included; a damaged piece raises VerificationError."""
    rows = [
        rows_of(read_piece(data_dir, piece.file), piece.shard, job.respondent, piece.until)
        for piece in sorted(job.pieces, key=lambda piece: piece_order(piece.shard))
    ]
    zone = zone_of(job.respondent)
    years = sorted({int(shard.start[:4]) for shard in (piece.shard for piece in job.pieces)})
    grids = {year: merge(rows, year) for year in years}
    tables = [_table(grid, job, zone) for grid in grids.values()]
    table = pa.concat_tables(tables).unify_dictionaries().combine_chunks()
    given = np.concatenate([_days(grid)[grid.given[:, ::DAY].any(axis=0)] for grid in grids.values()])
    summary = DailySummary(
        respondent=job.respondent,
        timezone=zone,
        origin=job.origin,
        sources=all_terms((piece.shard.source, job.origin) for piece in job.pieces),
        first=str(np.datetime64(int(given.min()), "D")),
        last=str(np.datetime64(int(given.max()), "D")),
        counts={str(year): _counts(grid) for year, grid in grids.items() if grid.variables},
        revisions=tuple(revision for grid in grids.values() for revision in grid.revisions),
        pieces=_names(job),
    )
    return table.replace_schema_metadata({SUMMARY: msgspec.json.encode(summary)})


def _names(job: DailyJob) -> tuple[PieceName, ...]:
    return tuple(PieceName(piece.shard.key, piece.file.sha256) for piece in job.pieces)


def _reasons(grid: MergedGrid) -> Int8s:
    """Return the reason of each value, an index into `DAILY_REASONS`: int8 [variable, day]."""
    given, raw, asked = (part[:, ::DAY] for part in (grid.given, grid.raw, grid.asked))
    ok, missing, null, unasked = range(len(DAILY_REASONS))
    return np.where(given, np.where(np.isnan(raw), null, ok), np.where(asked, missing, unasked)).astype(np.int8)


def _days(grid: MergedGrid) -> Int64s:
    """Return the days of a grid, in days since 1970-01-01."""
    return np.arange(grid.first, grid.first + grid.raw.shape[1], DAY) // DAY


def _table(grid: MergedGrid, job: DailyJob, zone: str) -> pa.Table:
    """Return one row for each variable and day of a year."""
    days, count = _days(grid), len(grid.variables)
    length = np.diff(midnights(zone, int(days[0]), int(days[-1])))
    raw, vintage = grid.raw[:, ::DAY].ravel(), grid.vintage[:, ::DAY].ravel()

    def label(codes: Int64s, names: Iterable[str]) -> pa.DictionaryArray:
        return pa.DictionaryArray.from_arrays(as_arrow(codes.astype(np.int16), pa.int16()), as_strings(list(names)))

    same = np.zeros(len(raw), np.int64)
    return pa.table(
        {
            "day": as_arrow(np.tile(days, count).astype(np.int32), pa.date32()),
            "respondent": label(same, [job.respondent]),
            "variable": label(np.repeat(np.arange(count), len(days)), grid.variables),
            "timezone": label(same, [zone]),
            "hours": as_arrow(np.tile(length, count).astype(np.int8), pa.int8()),
            "value": as_arrow(raw, pa.float64(), np.isnan(raw)),
            "reason": label(_reasons(grid).ravel().astype(np.int64), [REASONS[code] for code in DAILY_REASONS]),
            "vintage": as_arrow(vintage, pa.int32(), vintage < 0),
            "origin": label(same, [job.origin]),
        }
    )


def _counts(grid: MergedGrid) -> dict[str, dict[str, list[int]]]:
    """Return values of a year by variable, reason and month."""
    months = _days(grid).astype("datetime64[D]").astype("datetime64[M]").astype(np.int64) % 12
    return {
        variable: {
            REASONS[reason]: np.bincount(months[row == code], minlength=12).tolist()
            for code, reason in enumerate(DAILY_REASONS)
            if (row == code).any()
        }
        for variable, row in zip(grid.variables, _reasons(grid), strict=True)
    }
