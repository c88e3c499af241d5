"""Build the series of one respondent and year: merge all generations of its pieces, mask outliers, flag suspects, write Parquet. Deterministic."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ingest.array_types import Bools, Floats, Int8s, Int32s, Int64s
from ingest.balance import balances
from ingest.breaks import REPORTED_BY_EIA, breaks_of
from ingest.citation import all_terms
from ingest.columns import as_arrow, as_numpy, as_strings, hour_number, hour_text
from ingest.models import ALL_RESPONDENTS, BUILD_LAYOUT, REGION_TYPES, BuildJob, BuildResult, Piece, Shard
from ingest.plan import piece_order
from ingest.quality import MEASURED, MISSING, NULL, OK, OUTLIER, REASONS, SUSPECT, UNASKED, judge
from ingest.sources import get_source
from ingest.store import fsync_folders, read_piece, write_file
from ingest.units import ENERGY, unit_of
from ingest.whole_pieces import codes_of, cut_piece

SERIES_FORMAT = 1  # of the files: raised when a reader of the earlier ones would be wrong
PERIOD = pa.timestamp("ms", "UTC")
MAX_INT8_CODES = 128  # distinct values of an int8 index, from 0
MASKS = ("missing", "null", "outlier", "unasked")


@dataclass(frozen=True)
class PieceRows:
    """The rows of one piece and respondent. `variables[code[i]]` is the variable of row i; NaN in `value` is a null of the source."""

    shard: Shard
    variables: tuple[str, ...]
    hour: Int32s  # [row] hours since 1970-01-01T00 UTC, hour-ending
    code: Int32s  # [row]
    value: Floats  # [row] MWh
    until: str = ""  # last hour that had ended when the piece was fetched; "": all of its shard's had


@dataclass(frozen=True)
class Revision:
    """A cell whose value a later piece changed; None is a null of the source."""

    variable: str
    period: str
    generation: int
    before: float | None
    after: float | None


@dataclass(frozen=True)
class MergedGrid:
    """The values of a respondent-year as the source sent them, the latest generation first in rank: arrays [variable, hour]."""

    variables: tuple[str, ...]
    first: int  # hour number of column 0
    raw: Floats  # MWh; NaN where no row or a null was sent
    given: Bools  # a row was sent, with a value or null
    asked: Bools  # the source was asked for the hour on a route that has the variable, after the hour had ended
    vintage: Int32s  # generation of the present value; -1 where no row was sent
    source: Int8s  # index into `sources`; -1 where no row was sent
    sources: tuple[str, ...]
    revisions: tuple[Revision, ...]
    duplicates: int  # rows of a piece beyond the first of their cell


def build(job: BuildJob, data_dir: Path) -> BuildResult:
    """Write series/<respondent>/<year>/{long,wide}.parquet and series.json.

    A damaged piece raises VerificationError; the disk's errors are raised as StorageError.

    Returns:
        The entries of the files, which are durable, and the counts of their cells.
    """
    pieces = sorted(job.pieces, key=lambda piece: piece_order(piece.shard))
    rows = [_rows(data_dir, piece, job.respondent) for piece in pieces]
    cells = merge(with_aliases(rows), job.year)
    reason = classify_cells(cells)
    measured = np.isin(reason, MEASURED)
    value = np.where(measured, cells.raw, np.nan)
    folder = data_dir / "series" / job.respondent / str(job.year)
    summary = {
        "format": SERIES_FORMAT,
        "respondent": job.respondent,
        "year": job.year,
        "origin": job.origin,
        "unit": ENERGY,
        **(
            {"units": other}
            if (other := {name: unit_of(name) for name in cells.variables if unit_of(name) != ENERGY})
            else {}
        ),
        "sources": all_terms((piece.shard.source, job.origin) for piece in pieces),
        "hours": cells.raw.shape[1],
        **_counts(cells, reason),
        "balance": balances(dict(zip(cells.variables, value, strict=True)), months_of(cells)),
        "breaks": _breaks(cells, job),
        "revisions": cells.revisions,
        "pieces": [
            {"shard": piece.shard.key, "file": piece.file.path, "sha256": piece.file.sha256} for piece in pieces
        ],
    }
    long = write_file(data_dir, folder / "long.parquet", _parquet(long_table(cells, value, reason, job)))
    wide = write_file(data_dir, folder / "wide.parquet", _parquet(wide_table(cells, value, reason)))
    text = msgspec.json.format(msgspec.json.encode(summary), indent=1)
    result = BuildResult(
        job.respondent,
        job.year,
        long,
        wide,
        write_file(data_dir, folder / "series.json", text),
        hours=cells.raw.shape[1],
        variables=cells.variables,
        valid=int(measured.sum()),
        masked={
            name: found
            for name in MASKS
            if (found := int((reason == REASONS.index(name)).sum())) or name != "unasked"  # as in earlier versions
        },
        revised=len({(revision.variable, revision.period) for revision in cells.revisions}),
        pieces=tuple(piece.file.sha256 for piece in pieces),
        duplicates=cells.duplicates,
        suspect=int((reason == SUSPECT).sum()),
        layout=BUILD_LAYOUT,
    )
    fsync_folders(data_dir, folder)
    return result


def _breaks(cells: MergedGrid, job: BuildJob) -> list[dict[str, object]]:
    """Return the breaks of a series that EIA's operators reported; a synthetic one has none."""
    reported = job.origin != "synthetic" and set(cells.sources) <= set(REPORTED_BY_EIA)
    return breaks_of(job.respondent, cells.variables, cells.first) if reported else []


def _rows(data_dir: Path, piece: Piece, respondent: str) -> PieceRows:
    if piece.shard.respondent != ALL_RESPONDENTS:
        return rows_of(read_piece(data_dir, piece.file), piece.shard, respondent, piece.until)
    whole = cut_piece(data_dir, piece.file)
    return PieceRows(piece.shard, whole.variables, *whole.rows(respondent), piece.until)


def rows_of(table: pa.Table, shard: Shard, respondent: str, until: str = "") -> PieceRows:
    """Return the rows of `respondent` in the table of a piece."""
    respondents, own = codes_of(table, "respondent")
    variables, code = codes_of(table, "variable")
    hour, value = (as_numpy(table.column(name).combine_chunks()) for name in ("hour", "value"))
    if respondents != (respondent,):
        keep = own == (respondents.index(respondent) if respondent in respondents else -1)
        hour, code, value = hour[keep], code[keep], value[keep]
    return PieceRows(shard, variables, hour, code, value, until)


def with_aliases(pieces: Sequence[PieceRows]) -> list[PieceRows]:
    """Return pieces in which the rows of a source's own variable are there under EIA's name as well, unless another source gives that one."""
    given = {
        rows.variables[code]
        for rows in pieces
        for code in np.flatnonzero(np.bincount(rows.code, minlength=len(rows.variables)))
    }
    found = []
    for rows in pieces:
        aliases = get_source(rows.shard.source).aliases
        for code, name in enumerate(rows.variables):
            own = rows.code == code
            if name in aliases and aliases[name] not in given and own.any():
                rows = replace(
                    rows,
                    variables=(*rows.variables, aliases[name]),
                    hour=np.concatenate([rows.hour, rows.hour[own]]),
                    code=np.concatenate([rows.code, np.full(np.count_nonzero(own), len(rows.variables), np.int32)]),
                    value=np.concatenate([rows.value, rows.value[own]]),
                )
        found.append(rows)
    return found


def merge(pieces: Sequence[PieceRows], year: int) -> MergedGrid:
    """Merge pieces in the order given: a later row replaces an earlier one, an equal one changes nothing.

    A null of a later generation replaces a value too; an hour that a later piece lacks keeps its value.

    Args:
        pieces: rows of one respondent, in the order of `plan.piece_order`.
        year: UTC year; other hours are ignored.

    Returns:
        Arrays [variable, hour] over all hours of the year.
    """
    first, hours = year_hours(year)
    inside = [(rows, np.flatnonzero((rows.hour >= first) & (rows.hour < first + hours))) for rows in pieces]
    names = {rows.variables[code] for rows, keep in inside for code in np.flatnonzero(np.bincount(rows.code[keep]))}
    variables = tuple(sorted(names, key=rank))
    sources = tuple(sorted({rows.shard.source for rows in pieces}))
    shape = len(variables), hours
    raw, given = np.full(shape, np.nan), np.zeros(shape, np.bool_)
    vintage, source = np.full(shape, -1, np.int32), np.full(shape, -1, np.int8)
    revisions: list[Revision] = []
    duplicates = 0
    for rows, keep in inside:
        places = np.array([variables.index(name) if name in names else -1 for name in rows.variables] or [0])
        at = (places[rows.code] * hours + (rows.hour - first))[keep]
        value, before, known = rows.value[keep], raw.take(at), given.take(at)
        seen = np.zeros(raw.size, np.bool_)
        seen[at] = True
        duplicates += at.size - int(np.count_nonzero(seen))
        differs = ~known
        if known.any():
            differs |= ~((value == before) | (np.isnan(value) & np.isnan(before)))
            # Neighbouring six-month files both list the hours at their border, one of them without values.
            differs &= ~(known & np.isnan(value) & (vintage.take(at) == rows.shard.generation))
        for i in np.flatnonzero(differs & known):
            name, period = variables[at[i] // hours], hour_text(first + int(at[i] % hours))
            revisions.append(Revision(name, period, rows.shard.generation, _plain(before[i]), _plain(value[i])))
        changed = at[differs]
        raw.put(changed, value[differs])
        given.put(changed, True)
        vintage.put(changed, rows.shard.generation)
        source.put(changed, sources.index(rows.shard.source))
    asked = _asked(inside, variables, first, hours)
    return MergedGrid(variables, first, raw, given, asked, vintage, source, sources, tuple(revisions), duplicates)


def _asked(inside: Sequence[tuple[PieceRows, Int64s]], variables: tuple[str, ...], first: int, hours: int) -> Bools:
    """Return the cells that a piece of a route with their variable covers: bool [variable, hour].

    Args:
        inside: pieces, each with the indices of its rows that count.
        variables: of the result.
        first: hour number of column 0.
        hours: number of columns.
    """
    has: dict[str, set[tuple[str, str]]] = {name: set() for name in variables}  # variable → its routes
    for rows, keep in inside:
        for code in np.flatnonzero(np.bincount(rows.code[keep])):
            has[rows.variables[code]].add((rows.shard.source, rows.shard.route))
    asked = np.zeros((len(variables), hours), np.bool_)
    for rows, _ in inside:
        low, high = hour_number(rows.shard.start) - first, hour_number(rows.until or rows.shard.end) + 1 - first
        route = rows.shard.source, rows.shard.route
        asked[[route in has[name] for name in variables], max(low, 0) : max(high, 0)] = True
    return asked


def classify_cells(cells: MergedGrid) -> Int8s:
    """Return the reason code of every cell, an index into `quality.REASONS`: int8 [variable, hour]."""
    energy = {name: raw for name, raw in zip(cells.variables, cells.raw, strict=True) if unit_of(name) == ENERGY}
    judged, code = judge(energy), np.zeros(cells.given.shape, np.int8)  # a price may be anything
    for row, name in enumerate(cells.variables):
        if name in judged:
            code[row] = judged[name]
    absent = np.where(cells.asked, MISSING, UNASKED)
    reason = np.where(cells.given, np.where(np.isnan(cells.raw), NULL, OK), absent)
    return np.where(code == OK, reason, code).astype(np.int8)


def year_hours(year: int) -> tuple[int, int]:
    """Return the hour number of `<year>-01-01T00` and the number of hours of that UTC year: 8,760 or 8,784."""
    first = hour_number(f"{year}-01-01T00")
    return first, hour_number(f"{year + 1}-01-01T00") - first


def months_of(cells: MergedGrid) -> Int8s:
    """Return the calendar month, 1…12, of the end of each hour in UTC: int8 [hour]."""
    year = datetime.fromtimestamp(cells.first * 3600, UTC).year
    starts = [hour_number(f"{year}-{month:02d}-01T00") for month in range(1, 13)]
    return np.searchsorted(starts, np.arange(cells.first, cells.first + cells.raw.shape[1]), side="right").astype(
        np.int8
    )


def long_table(cells: MergedGrid, value: Floats, reason: Int8s, job: BuildJob) -> pa.Table:
    """Return one row per cell, sorted by variable, then period; `value` (MWh) and `reason` are [variable, hour]."""
    count, hours = cells.raw.shape
    size = count * hours
    absent = ~cells.given.ravel()
    code_type = np.int8 if count <= MAX_INT8_CODES else np.int16  # int8 keeps the bytes of files as they were
    return pa.table(
        {
            "period": as_arrow(np.tile(_milliseconds(cells), count), PERIOD),
            "respondent": _labels(np.zeros(size, np.int8), (job.respondent,)),
            "variable": _labels(np.repeat(np.arange(count).astype(code_type), hours), cells.variables),
            "value": _numbers(value.ravel()),
            "raw": _numbers(cells.raw.ravel()),
            "reason": _reasons(reason.ravel()),
            "vintage": as_arrow(cells.vintage.ravel(), pa.int32(), absent),
            "source": _labels(cells.source.ravel(), cells.sources, absent),
            "origin": _labels(np.zeros(size, np.int8), (job.origin,)),
        }
    )


def wide_table(cells: MergedGrid, value: Floats, reason: Int8s) -> pa.Table:
    """Return one row per hour: `period`, one column per variable, and `reason.<variable>` for each.

    `value` (MWh) and `reason` are [variable, hour].
    """
    columns: dict[str, Any] = {"period": as_arrow(_milliseconds(cells), PERIOD)}
    for variable, row in zip(cells.variables, value, strict=True):
        columns[variable] = _numbers(row)
    for variable, codes in zip(cells.variables, reason, strict=True):
        columns[f"reason.{variable}"] = _reasons(codes)
    return pa.table(columns)


def rank(variable: str) -> tuple[int, str]:
    """Return the sort key of a variable: region types in EIA's order, fuels, then the rest, by name."""
    if variable in REGION_TYPES:
        return REGION_TYPES.index(variable), ""
    return (len(REGION_TYPES) if variable.startswith("NG.") else len(REGION_TYPES) + 1), variable


def _counts(cells: MergedGrid, reason: Int8s) -> Mapping[str, Any]:
    """Return counts of cells by variable, reason and month, for the coverage picture and for readers that do not open the Parquet."""
    months = months_of(cells)
    table = {
        variable: {
            REASONS[code]: np.bincount(months[row == code], minlength=13)[1:].tolist()
            for code in (OK, MISSING, NULL, OUTLIER, UNASKED, SUSPECT)
            if code not in (UNASKED, SUSPECT) or (row == code).any()
        }
        for variable, row in zip(cells.variables, reason, strict=True)
    }
    return {"month_hours": np.bincount(months, minlength=13)[1:].tolist(), "variables": table}


def _milliseconds(cells: MergedGrid) -> Int64s:
    return np.arange(cells.first, cells.first + cells.raw.shape[1], dtype=np.int64) * 3_600_000


def _labels(
    codes: NDArray[np.int8] | NDArray[np.int16], names: Sequence[str], absent: Bools | None = None
) -> pa.DictionaryArray:
    kind = pa.int8() if codes.dtype == np.int8 else pa.int16()
    indices = as_arrow(codes if absent is None else np.where(absent, 0, codes).astype(codes.dtype), kind, absent)
    return pa.DictionaryArray.from_arrays(indices, as_strings(names))


def _reasons(codes: Int8s) -> pa.DictionaryArray:
    """Return reasons as Arrow. Without the newer ones the dictionary is that of earlier versions, so that the bytes are too."""
    return _labels(codes, REASONS[: max(UNASKED, int(codes.max(initial=0)) + 1)])


def _numbers(values: Floats) -> pa.Array:
    """Return Arrow numbers; NaN becomes null."""
    return as_arrow(values, pa.float64(), np.isnan(values))


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _parquet(table: pa.Table) -> bytes:
    labels = [field.name for field in table.schema if pa.types.is_dictionary(field.type)]
    numbers = {field.name: "BYTE_STREAM_SPLIT" for field in table.schema if pa.types.is_floating(field.type)}
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", compression_level=1, use_dictionary=labels, column_encoding=numbers)
    return sink.getvalue()
