"""Validate what a worker hands in for a fetch or a build against its lease: names, counts, and the rows of the piece itself.

The coordinator writes nothing of a result before this check passes. The check cannot detect invented values that are well formed.
"""

import io
import re
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from coordinator.scheduling.records import TaskSpec
from coordinator.server.lease_files import NO_FILES, SHA, LeaseFiles
from coordinator.wire.lease_kinds import LeaseKind
from ingest.build_series import year_hours
from ingest.columns import Columns, digest, find_gaps, from_table, hour_number, open_parquet
from ingest.errors import VerificationError
from ingest.files import file_sha256
from ingest.manifest import SAFE_HOUR
from ingest.models import (
    ALL_RESPONDENTS,
    BUILD_LAYOUT,
    BuildJob,
    BuildResult,
    FetchJob,
    FileEntry,
    ShardResult,
    parse_hour,
    step_of,
)
from ingest.sources import get_source
from ingest.store import read_content

MAX_FILES = 4_096  # of a fetch: a year has about 40 pages; responses that a retry replaced count too
MAX_BYTES = 4 << 30  # of a fetch: a six-month bulk file is about 0.1 GB
MAX_PIECE = (
    256 << 20
)  # bytes of a piece, and of its columns after decompression; half a year of all respondents is about 30 MB
MAX_COUNT = 1_000_000  # requests of one shard, faults of one kind: a shard's pages, attempts and rounds stay far below
MAX_KINDS = 64  # kinds of faults
MAX_TEXT = 2_000  # characters of a page's request, time and version
ORIGIN = re.compile(r"[A-Za-z0-9.:_\-\[\]]{0,255}")  # a world, or a host's name or address
PIECE_COLUMNS = {"hour": "int32", "respondent": "string", "variable": "string", "value": "double"}


def lease_files(task: TaskSpec) -> LeaseFiles:
    """Return the files of a fetch (pages and piece, named by their content) or of a build (its three, under fixed names)."""
    if task.kind == LeaseKind.FETCH:
        key = task.id
        suffix = re.escape(get_source(key.partition("/")[0]).suffix)
        pages = rf"raw/{re.escape(key)}/\d{{8,}}-{SHA}{suffix}"
        piece = rf"pieces/{re.escape(key.replace('/', '__'))}-{SHA}\.parquet"
        return LeaseFiles((pages, piece), MAX_FILES, MAX_BYTES)
    if task.kind == LeaseKind.BUILD:
        folder = re.escape(task.id.removeprefix("build/"))
        return LeaseFiles((rf"series/{folder}/(long\.parquet|wide\.parquet|series\.json)",), 3, MAX_BYTES)
    return NO_FILES


def check_result(task: TaskSpec, output: ShardResult | BuildResult, data_dir: Path) -> None:
    """Check a result, whose files have the sizes that it states, against its task.

    Raises:
        VerificationError: It contradicts the lease, its own files, or itself.
    """
    try:
        if isinstance(output, ShardResult):
            _check_fetch(msgspec.convert(task.job, FetchJob), output, data_dir)
        else:
            _check_build(msgspec.convert(task.job, BuildJob), output, data_dir)
    except (pa.ArrowException, OSError, KeyError, ValueError, OverflowError, AttributeError, IndexError) as error:
        raise VerificationError(f"{task.id}: the files of the result cannot be read: {error}") from error


def _check_fetch(job: FetchJob, result: ShardResult, data_dir: Path) -> None:
    key = job.shard.key
    _expect(key, "shard", result.shard, job.shard)
    _expect(key, "respondents kept", result.kept, job.respondents)
    _expect(key, "first hour of gaps", result.gaps_from, job.gaps_from)
    if result.asked_at and not SAFE_HOUR.fullmatch(result.asked_at):
        parse_hour(result.asked_at)
    _check_counters(key, result)
    _check_pages(job, result, data_dir)
    columns = _open_piece(data_dir, result.piece)
    source = get_source(job.shard.source)
    if source.paged:  # of other sources, rows of a response are not rows of the piece
        _expect(key, "rows in the piece", len(columns), result.rows - result.duplicates)
    _expect(key, "nulls in the piece", columns.nulls(), result.nulls)
    _expect(key, "digest of the piece's rows", digest(columns), result.digest)
    if ((columns.hour[1:] == columns.hour[:-1]) & (columns.index[1:] == columns.index[:-1])).any():
        raise VerificationError(f"{key}: the piece holds an hour of one variable twice")
    wanted = set(job.respondents) if job.shard.respondent == ALL_RESPONDENTS else {job.shard.respondent}
    if others := sorted({respondent for respondent, _ in columns.series} - wanted):
        raise VerificationError(f"{key}: the piece holds respondents of another lease: {', '.join(others)[:200]}")
    first, last = hour_number(job.shard.start), hour_number(job.shard.end) + source.spill_hours
    if len(columns) and not (first <= columns.hour.min() and columns.hour.max() <= last):
        raise VerificationError(f"{key}: the piece holds hours outside {job.shard.start} to {job.shard.end}")
    if (columns.hour % step_of(job.shard.route)).any():
        raise VerificationError(f"{key}: the piece holds an hour within a day")
    if np.isinf(columns.value).any():
        raise VerificationError(f"{key}: the piece holds a value that is not a number")
    gaps = find_gaps(columns, source.spans(job, columns), step_of(job.shard.route))
    _expect(key, "gaps", set(result.gaps), set(gaps))


def _check_counters(key: str, result: ShardResult) -> None:
    counters = {"requests": result.requests, "reused pages": result.reused, "duplicates": result.duplicates}
    counters |= result.faults
    bad = [name for name, count in counters.items() if not 0 <= count <= MAX_COUNT]
    if bad or len(result.faults) > MAX_KINDS or any(not kind.isprintable() or len(kind) > 64 for kind in counters):
        raise VerificationError(
            f"{key}: a counter of the result is not between 0 and {MAX_COUNT}: {bad[:3]}"[:MAX_TEXT]
        )
    if not ORIGIN.fullmatch(result.origin):
        raise VerificationError(f"{key}: origin {result.origin[:100]!r} is neither a world nor a host")


def _check_pages(job: FetchJob, result: ShardResult, data_dir: Path) -> None:
    key, source = job.shard.key, get_source(job.shard.source)
    _expect(key, "rows of the pages", sum(page.rows for page in result.pages), result.rows)
    _expect(key, "rows against the source's total", result.rows, result.total)
    if not 0 <= result.rows <= MAX_PIECE:  # bounds the offsets that the next line lists
        raise VerificationError(f"{key}: {result.rows} rows are more than a shard can have")
    offsets = source.offsets(job, result.total if source.paged else None)
    found = tuple(page.offset for page in result.pages)
    beyond = (*offsets, result.total)  # an empty page beyond the end confirms a total
    if found != offsets and not (source.paged and found == beyond):
        raise VerificationError(
            f"{key}: the result lists {len(found)} pages in place of the {len(offsets)} of its lease"
        )
    for page in result.pages:
        path = page.file.path
        if not path.startswith(f"raw/{key}/{page.offset:08d}-"):
            raise VerificationError(f"{key}: {path} is not the page at offset {page.offset}")
        if source.paged:
            _expect(key, f"total of {path}", page.total, result.total)
        if (expected := source.expected_rows(page.offset, page.total)) is not None:
            _expect(key, f"rows of {path}", page.rows, expected)
        if not 0 <= page.seconds <= 1e9 or any(
            len(text) > MAX_TEXT or not text.isprintable() for text in (page.fetched, page.api_version, page.request)
        ):
            raise VerificationError(f"{key}: {path} has an unusable time, version or request")
        _expect(key, f"sha256 of {path}", file_sha256(data_dir / path), page.file.sha256)


def _open_piece(data_dir: Path, file: FileEntry) -> Columns:
    """Return the columns of a piece, after its size, its schema and what its metadata says about its decompressed size."""
    if not file.path.startswith("pieces/"):
        raise VerificationError(f"{file.path} is not a piece")
    if file.bytes > MAX_PIECE:
        raise VerificationError(f"{file.path} has {file.bytes} bytes, more than {MAX_PIECE}")
    content = read_content(data_dir, file)
    piece = pq.ParquetFile(io.BytesIO(content))
    kinds = {
        field.name: str(field.type).removeprefix("dictionary<values=").split(",")[0] for field in piece.schema_arrow
    }
    groups = [piece.metadata.row_group(i) for i in range(piece.num_row_groups)]
    size = sum(group.column(j).total_uncompressed_size for group in groups for j in range(group.num_columns))
    if kinds != PIECE_COLUMNS or size > MAX_PIECE or piece.metadata.num_rows > MAX_PIECE:
        raise VerificationError(f"{file.path} has columns {kinds} and {size} bytes of them"[:MAX_TEXT])
    return from_table(piece.read(use_threads=False))


def _check_build(job: BuildJob, result: BuildResult, data_dir: Path) -> None:
    key, cells = job.key, result.hours * len(result.variables)
    _expect(key, "series", (result.respondent, result.year), (job.respondent, job.year))
    _expect(key, "pieces", result.pieces, tuple(piece.file.sha256 for piece in job.pieces))
    _expect(key, "hours", result.hours, year_hours(job.year)[1])
    _expect(key, "layout", result.layout, BUILD_LAYOUT)
    _expect(key, "cells by reason", result.valid + sum(result.masked.values()), cells)
    if (
        min(result.valid - result.suspect, result.suspect, result.revised, result.duplicates, *result.masked.values())
        < 0
    ):
        raise VerificationError(f"{key}: a counter of the result is negative")
    folder = f"series/{job.respondent}/{job.year}"
    for file, name in ((result.long, "long.parquet"), (result.wide, "wide.parquet"), (result.summary, "series.json")):
        _expect(key, "file", file.path, f"{folder}/{name}")
        _expect(key, f"sha256 of {file.path}", file_sha256(data_dir / file.path), file.sha256)
    for file, rows in ((result.long, cells), (result.wide, result.hours)):
        with open_parquet(data_dir / file.path) as parquet:
            _expect(key, f"rows of {file.path}", parquet.metadata.num_rows, rows)


def _expect(key: str, what: str, found: object, expected: object) -> None:
    if found != expected:
        raise VerificationError(f"{key}: {what}: found {found}, expected {expected}"[:MAX_TEXT])
