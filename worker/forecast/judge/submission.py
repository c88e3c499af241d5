"""Read a file of forecasts in long form, one row for each respondent, hour and cutoff.

Columns: `unique_id` (respondent), `ds` (end of the hour), `cutoff` (end of the last hour whose actual the forecast may use), both UTC; `y`
(actual, optional); and the forecast, MWh, in one of two forms: `q0.1`, `q0.5`, … or, as StatsForecast's `cross_validation` writes it,
`<model>`, `<model>-lo-80`, `<model>-hi-80`, …. CSV, or Parquet.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from ingest.array_types import Floats, Int64s
from ingest.catalog import check_respondents
from ingest.columns import hour_text
from ingest.errors import UsageError

KEYS = ("unique_id", "ds", "cutoff")
HOURS_LIMIT = (0, 1_000_000)  # hour numbers: 1970 to 2084
_QUANTILE = re.compile(r"q(0?\.\d+)")
_BOUND = re.compile(r"(.+)-(lo|hi)-(\d+(?:\.\d+)?)")
_HELP = "`coordinator judge --help` names the columns"


@dataclass(frozen=True)
class Rows:
    """The forecasts of one respondent, by hour and cutoff; arrays are [row], in MWh unless stated."""

    respondent: str
    hour: Int64s  # numbers
    cutoff: Int64s  # hour numbers
    actual: Floats  # as the file states it; NaN where it does not
    point: Floats
    quantiles: Floats  # [row, level], ascending

    def part(self, respondent: str, rows: slice) -> Rows:
        """Return the rows of one respondent."""
        hour, cutoff = self.hour[rows], self.cutoff[rows]
        return Rows(respondent, hour, cutoff, self.actual[rows], self.point[rows], self.quantiles[rows])


@dataclass(frozen=True)
class Submission:
    """The forecasts of one model."""

    model: str
    levels: tuple[float, ...]  # ascending; none where the file has a point forecast alone
    respondents: tuple[Rows, ...]


def read_submission(path: Path, model: str = "") -> Submission:
    """Read a file of forecasts.

    Args:
        path: CSV, or Parquet where it ends with .parquet.
        model: which one, where the file has several.

    Raises:
        UsageError: it is no such file; the message names the file, the column and the next command.
    """
    table = _read(path)
    if missing := [name for name in KEYS if name not in table.column_names]:
        raise UsageError(f"{path} has no column {', '.join(missing)}; {_HELP}")
    if not table.num_rows:
        raise UsageError(f"{path} has no rows; write one for each respondent, hour and cutoff")
    who, columns = _columns(path, [name for name in table.column_names if name not in (*KEYS, "y")], model)
    levels = tuple(level for level in sorted(columns) if level)
    hour, cutoff = _hours(path, table, "ds"), _hours(path, table, "cutoff")
    values = {level: _numbers(path, table, name) for level, name in columns.items()}
    quantiles = np.stack([values[level] for level in levels], axis=1) if levels else np.empty((len(hour), 0))
    point = values[0.0] if 0.0 in values else values[0.5]
    actual = _numbers(path, table, "y") if "y" in table.column_names else np.full(len(hour), np.nan)
    names, region = np.unique(np.array(table["unique_id"].cast(pa.string()).to_pylist(), str), return_inverse=True)
    try:
        check_respondents(names.tolist())
    except UsageError as error:
        raise UsageError(f"{path}: unique_id: {error}") from error
    order = np.lexsort((hour, cutoff, region))
    region, hour, cutoff = region[order], hour[order], cutoff[order]
    again = (np.diff(region) == 0) & (np.diff(hour) == 0) & (np.diff(cutoff) == 0)
    if again.any():
        at = int(np.flatnonzero(again)[0])
        raise UsageError(
            f"{path}: unique_id {names[region[at]]}, ds {hour_text(int(hour[at]))}, cutoff {hour_text(int(cutoff[at]))} has two rows "
            f"({int(again.sum()):,} are repeated); keep one of each"
        )
    if (np.diff(quantiles, axis=1) < 0).any():
        quantiles = np.sort(quantiles, axis=1)  # crossed quantiles are put in order, as ours are
    whole = Rows("", hour, cutoff, actual[order], point[order], quantiles[order])
    bounds = np.searchsorted(region, np.arange(len(names) + 1))
    parts = tuple(whole.part(str(name), slice(*bounds[i : i + 2])) for i, name in enumerate(names))
    return Submission(who, levels, parts)


def _read(path: Path) -> pa.Table:
    try:
        if path.suffix == ".parquet":
            return pq.read_table(path)
        text = pa.csv.ConvertOptions(column_types={name: pa.string() for name in KEYS}, strings_can_be_null=True)
        return pa.csv.read_csv(path, convert_options=text)
    except (OSError, pa.ArrowInvalid) as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else str(error).splitlines()[0]
        raise UsageError(f"{path} can't be read ({reason}); name a CSV or .parquet file; {_HELP}") from error


def _columns(path: Path, names: list[str], model: str) -> tuple[str, dict[float, str]]:
    """Return the model, and its columns by level; 0 is the point forecast."""
    plain = {float(found[1]): name for name in names if (found := _QUANTILE.fullmatch(name))}
    if plain:
        if model and model != path.stem:
            raise UsageError(f"{path} holds the quantiles of one model, without a name: leave --model {model} out")
        if 0.5 not in plain:
            raise UsageError(f"{path} has quantiles but no column q0.5, which is the point forecast; add it")
        return path.stem, plain
    bounds = {name: found for name in names if (found := _BOUND.fullmatch(name))}
    models = [name for name in names if name not in bounds and name != "index"]
    if not models:
        raise UsageError(f"{path} has no forecast: no column q0.5, and none named after a model; {_HELP}")
    if model and model not in models:
        raise UsageError(f"{path} has no column {model}; --model is one of {', '.join(models)}")
    if not model and len(models) > 1:
        raise UsageError(f"{path} has {len(models)} models, {', '.join(models)}; name one with --model {models[0]}")
    who = model or models[0]
    columns = {0.0: who, 0.5: who}
    for name, found in bounds.items():
        tail = (1 - float(found[3]) / 100) / 2
        if found[1] == who and 0 < tail < 0.5:
            columns[round(tail if found[2] == "lo" else 1 - tail, 6)] = name
    return who, columns if len(columns) > 2 else {0.0: who}


def _hours(path: Path, table: pa.Table, name: str) -> Int64s:
    """Return a column of times as hour numbers."""
    column = table[name].to_pandas()
    try:
        moments = pd.to_datetime(column, utc=True, format=None if column.dtype.kind == "M" else "ISO8601")
    except (ValueError, TypeError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0]
        raise UsageError(f"{path}: {name} is no time in every row ({reason}); write e.g. 2019-01-31T05, UTC") from error
    seconds = moments.dt.tz_localize(None).to_numpy().astype("datetime64[s]")
    number = seconds.astype(np.int64) // 3600
    bad = np.isnat(seconds) | (number < HOURS_LIMIT[0]) | (number > HOURS_LIMIT[1])
    bad |= np.where(bad, 0, seconds.astype(np.int64) % 3600) != 0
    if bad.any():
        at = int(np.flatnonzero(bad)[0])
        raise UsageError(
            f"{path}: {name} {column.iloc[at]} of row {at + 1} is no whole hour; write e.g. 2019-01-31T05, UTC"
        )
    return np.asarray(number, np.int64)


def _numbers(path: Path, table: pa.Table, name: str) -> Floats:
    """Return a column of numbers, NaN where it is empty or not finite."""
    try:
        values = table[name].cast(pa.float64()).to_numpy()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"{path}: {name} is no number in every row ({reason}); write MWh, or nothing") from error
    return np.where(np.isfinite(values), values, np.nan)
