"""Export series to one CSV or Parquet file: a row for each respondent and hour, a column for each variable, units in the names."""

import errno
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from ingest.array_types import Int64s
from ingest.build_series import rank, year_hours
from ingest.catalog import variable_near
from ingest.columns import as_arrow, as_strings, hour_number
from ingest.errors import UsageError, quoted
from ingest.files import storage_errors
from ingest.loader import canonical_variables, read_wide, wide_paths
from ingest.periods import parse_period
from ingest.quality import REASONS
from ingest.snapshot import read_whole
from ingest.units import unit_of
from ingest.zones import zone_of

SECONDS = pa.timestamp("s", "UTC")
ISO_8601 = "%Y-%m-%dT%H:%M:%SZ"
SUFFIXES = (".csv", ".csv.gz", ".parquet")
Progress = Callable[[int, int], None]  # respondents begun, respondents in all


@dataclass(frozen=True)
class ExportRequest:
    """What to export. Empty means everything that is on disk."""

    respondents: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()
    period: str = ""  # YYYY[-MM[-DD]][:YYYY[-MM[-DD]]], UTC
    local_time: bool = False
    reasons: bool = False


@dataclass(frozen=True)
class Exported:
    """The file that was written."""

    path: str
    rows: int
    columns: tuple[str, ...]
    bytes: int


def export(
    data_dir: Path, out: Path, request: ExportRequest, progress: Progress = lambda done, total: None
) -> Exported:
    """Write series to `out`, atomically; its suffix names the format. All values are of one finished run.

    Columns: `period_utc` (end of the hour), `period_local` where asked for, `respondent`, and `<variable>_<unit>` for each
    variable. A cell without a valid value is empty. `<variable>_reason` follows where asked for: `ok` or `suspect` beside a value,
    else why there is none (`ingest.quality.REASONS`).

    Args:
        data_dir: data folder.
        out: file to write: `.csv`, `.csv.gz` or `.parquet`.
        request: respondents, variables and period.
        progress: called with the number of respondents begun and of all.

    Raises:
        UsageError: another suffix, an unknown respondent or variable, or a period of which there is nothing.
    """
    if not out.name.endswith(SUFFIXES):
        raise UsageError(f"--out {out}: the suffix names the format; choose {', '.join(SUFFIXES)}")
    if out.is_dir():
        raise UsageError(f"--out {out}: {os.strerror(errno.EISDIR)}; name a file")
    if not out.parent.is_dir():
        raise UsageError(
            f"--out {out}: the folder {out.parent} does not exist; `mkdir -p {quoted(out.parent)}` makes it"
        )
    return read_whole(data_dir, lambda folder: _export(data_dir, folder, out, request, progress))


def _export(data_dir: Path, folder: Path, out: Path, request: ExportRequest, progress: Progress) -> Exported:
    first, last = (0, 1 << 40)
    if request.period:
        first, last = map(hour_number, parse_period(request.period, "period"))
    known = sorted(path.name for path in folder.glob("[!.]*")) if folder.is_dir() else []
    codes = request.respondents or known
    files = {code: wide_paths(data_dir, folder, code, range(0)) for code in codes}
    inside = {
        code: {year: path for year, path in own.items() if _clip(year, first, last)[0] < _clip(year, first, last)[1]}
        for code, own in files.items()
    }
    if not any(inside.values()):
        raise UsageError(
            f"{data_dir} has no series{f' in {request.period}' if request.period else ''}; "
            f"run `coordinator start --extract --data {quoted(data_dir)}` to make them"
        )
    on_disk = {name for own in inside.values() for path in own.values() for name in read_wide(path, ())[0]}
    variables = canonical_variables(request.variables) or sorted(on_disk, key=rank)
    if unknown := [name for name in variables if name not in on_disk]:
        raise UsageError(
            f"--variables {','.join(unknown)}: not on disk; there are {', '.join(sorted(on_disk, key=rank))}"
            f"{variable_near(unknown, sorted(on_disk))}"
        )
    period = SECONDS if out.name.endswith(".parquet") else pa.string()
    schema = _schema(variables, period, request)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    rows = 0
    try:
        with storage_errors(out), _writer(temporary, out.name, schema) as writer:
            for done, (code, own) in enumerate(inside.items()):
                progress(done, len(inside))
                for year, path in own.items():
                    table = _table(code, year, path, variables, schema, _clip(year, first, last))
                    writer.write_table(table)
                    rows += len(table)
        with storage_errors(out):
            temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    return Exported(str(out), rows, tuple(schema.names), out.stat().st_size)


def _clip(year: int, first: int, last: int) -> tuple[int, int]:
    """Return the part of a year that is exported, as indices of its hours: first, and one beyond the last."""
    start, hours = year_hours(year)
    return max(first - start, 0), min(last + 1 - start, hours)


def _schema(variables: Sequence[str], period: pa.DataType, request: ExportRequest) -> pa.Schema:
    fields = [("period_utc", period), *([("period_local", pa.string())] if request.local_time else [])]
    fields.append(("respondent", pa.string()))
    for name in variables:
        fields.append((f"{name}_{unit_of(name)}", pa.float64()))
        if request.reasons:
            fields.append((f"{name}_reason", pa.string()))
    return pa.schema(fields)


def _writer(path: Path, name: str, schema: pa.Schema) -> AbstractContextManager[Any]:
    if name.endswith(".parquet"):
        return pq.ParquetWriter(path, schema, compression="zstd")
    sink = pa.CompressedOutputStream(str(path), "gzip") if name.endswith(".gz") else str(path)
    return pyarrow.csv.CSVWriter(sink, schema, write_options=pyarrow.csv.WriteOptions(quoting_style="needed"))


def _table(
    code: str, year: int, path: Path, variables: Sequence[str], schema: pa.Schema, part: tuple[int, int]
) -> pa.Table:
    """Return the rows of one respondent and year, `part` of its hours."""
    low, high = part
    _, cells = read_wide(path, variables)
    hours = np.arange(low, high) + year_hours(year)[0]
    periods = as_arrow(hours * 3600, SECONDS)
    if schema.field("period_utc").type != SECONDS:  # in the form of `period_local`; Arrow's own has a blank for the T
        periods = pc.strftime(periods, ISO_8601)
    columns: list[pa.Array] = [periods]
    if "period_local" in schema.names:
        columns.append(as_strings(_local(code, hours)))
    columns.append(as_strings([code] * (high - low)))
    for name in variables:
        values = cells[name][0][low:high] if name in cells else np.full(high - low, np.nan)
        columns.append(as_arrow(np.ascontiguousarray(values), pa.float64(), np.isnan(values)))
        if f"{name}_reason" in schema.names:  # of a year that lacks the variable: nobody asked for it
            codes = cells[name][1][low:high].tolist() if name in cells else [REASONS.index("unasked")] * (high - low)
            columns.append(as_strings([REASONS[one] for one in codes]))
    return pa.Table.from_arrays(columns, schema=schema)


def _local(code: str, hours: Int64s) -> list[str]:
    """Return the end of each hour in the respondent's time zone, ISO 8601 with its offset."""
    zone = ZoneInfo(zone_of(code))
    return [datetime.fromtimestamp(hour * 3600, zone).isoformat() for hour in hours.tolist()]
