"""The rows of a backtest and their file, in the form that `coordinator judge` reads: `unique_id`, `ds`, `cutoff`, `y`, `q0.025`, …."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from ingest.array_types import Floats, Int64s
from ingest.errors import UsageError
from ingest.files import atomic_write
from worker.forecast.model.network import QUANTILES

SUFFIXES = (".parquet", ".csv")


@dataclass(frozen=True)
class WalkRows:
    """What one fit forecasts of one respondent; arrays are [row], in MWh unless stated."""

    respondent: str
    hour: Int64s  # numbers, UTC, hour-ending
    cutoff: Int64s  # hour numbers: the last hour whose actual the forecast may use
    actual: Floats  # NaN where not measured
    quantiles: Floats  # [row, level] of QUANTILES; NaN where there is none

    def where_forecast(self) -> WalkRows:
        """Return the rows that have a forecast."""
        there = np.isfinite(self.quantiles[:, QUANTILES.index(0.5)])
        return WalkRows(
            self.respondent, self.hour[there], self.cutoff[there], self.actual[there], self.quantiles[there]
        )


def check_suffix(path: Path) -> None:
    """Refuse a file whose suffix names no form, before hours of work.

    Raises:
        UsageError: as stated.
    """
    if path.suffix not in SUFFIXES:
        raise UsageError(f"--out {path} ends in no known form; name a {' or a '.join(SUFFIXES)} file")


def to_table(parts: Sequence[WalkRows]) -> pa.Table:
    """Return the rows of several respondents as one table."""
    quantiles = np.concatenate([one.quantiles for one in parts]).astype(np.float32)
    columns = {
        "unique_id": pa.array(
            np.repeat([one.respondent for one in parts], [len(one.hour) for one in parts]).tolist(), pa.string()
        ),
        "ds": _stamps(np.concatenate([one.hour for one in parts])),
        "cutoff": _stamps(np.concatenate([one.cutoff for one in parts])),
        "y": pa.array(np.concatenate([one.actual for one in parts]).astype(np.float32), from_pandas=True),
        **{f"q{level:g}": pa.array(quantiles[:, i], from_pandas=True) for i, level in enumerate(QUANTILES)},
    }
    return pa.table(columns)


def _stamps(hours: Int64s) -> pa.Array:
    return pa.array(hours.astype("datetime64[h]").astype("datetime64[s]"))


def write_rows(table: pa.Table, path: Path) -> None:
    """Write a table as Parquet or, where the file's name ends in .csv, as CSV; it appears complete or not at all."""
    if path.suffix == ".csv":
        for name in ("ds", "cutoff"):
            text = np.datetime_as_string(table[name].to_numpy().astype("datetime64[h]"))
            table = table.set_column(table.column_names.index(name), name, pa.array(text.tolist(), pa.string()))
        sink = pa.BufferOutputStream()
        pa.csv.write_csv(table, sink, pa.csv.WriteOptions(quoting_style="none"))
        atomic_write(path, memoryview(sink.getvalue()))
    else:
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        atomic_write(path, buffer.getvalue())
