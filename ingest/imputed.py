"""Estimates of the missing demand of a data folder, from all of its series: in memory for the loader, or as files beside the series.

`imputed/<respondent>/<year>.parquet` has one row for each estimated cell. Series are never changed by it.
"""

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ingest.array_types import Bools, Floats
from ingest.build_series import PERIOD, year_hours
from ingest.catalog import REGION, RESPONDENTS
from ingest.columns import as_arrow, as_strings, hour_text
from ingest.errors import UsageError, quoted
from ingest.impute import METHODS, Estimate, Load, departures, impute, neighbours_of
from ingest.loader import read_wide
from ingest.models import FileEntry
from ingest.quality import MISSING, NULL, OUTLIER
from ingest.snapshot import read_whole
from ingest.store import fsync_folders, write_file

FOLDER = "imputed"
Progress = Callable[[int, int], None]  # years done, years in all
ABSENT = (MISSING, NULL, OUTLIER)  # reasons of a cell to estimate: asked for, without a valid value


@dataclass(frozen=True)
class Written:
    """The files of estimates, and their rows."""

    cells: int
    files: tuple[FileEntry, ...]


@dataclass(frozen=True)
class YearOfLoads:
    """The demand of every series of a year, by `<respondent>.<variable>`."""

    year: int
    loads: dict[str, Load]
    absent: dict[str, Bools]  # cells to estimate

    @cached_property
    def departures(self) -> dict[str, Floats]:
        """The departures from the profile of each, for the choice of neighbours."""
        return {name: departures(load) for name, load in self.loads.items()}

    def estimate(self, name: str) -> Estimate:
        """Return the estimates of one series.

        A region is no neighbour of an authority: it holds the authority's demand, or in its place what EIA put there, or nothing.
        """
        others = {other: own for other, own in self.departures.items() if _is_region(name) or not _is_region(other)}
        neighbours = neighbours_of(name, others)
        return impute(self.loads[name], {other: self.loads[other].demand for other in neighbours}, self.absent[name])


def _is_region(name: str) -> bool:
    known = RESPONDENTS.get(name.partition(".")[0])
    return known is not None and known.kind == REGION


def is_demand(variable: str) -> bool:
    """Return whether a variable is imputed: demand, of a respondent or a sub-area."""
    return variable == "D" or variable.startswith("D.")


def read_year(folder: Path, year: int) -> YearOfLoads:
    """Read the demand of every respondent of a year from a folder of series; a damaged file raises VerificationError."""
    loads: dict[str, Load] = {}
    absent: dict[str, Bools] = {}
    for path in sorted(folder.glob(f"[!.]*/{year}/wide.parquet")):
        respondent = path.parent.parent.name
        known, _ = read_wide(path, ())
        wanted = sorted(name for name in known if name in ("DF", "NG", "TI") or is_demand(name))
        _, table = read_wide(path, wanted)
        forecast = table["DF"][0] if "DF" in table else None
        balance = table["NG"][0] - table["TI"][0] if {"NG", "TI"} <= table.keys() else None
        for variable in filter(is_demand, wanted):
            value, reason = table[variable]
            whole = variable == "D"
            name = f"{respondent}.{variable}"
            loads[name] = Load(value, forecast if whole else None, balance if whole else None)
            absent[name] = np.isin(reason, ABSENT)
    return YearOfLoads(year, loads, absent)


def estimate_period(folder: Path, names: Sequence[str], first: int, stop: int) -> Estimate:
    """Return the estimates of series over hours of one or several years; a damaged file raises VerificationError.

    Args:
        folder: folder of series.
        names: `<respondent>.<variable>`; one that is not demand has no estimates.
        first: hour number of the first hour.
        stop: hour number after the last.

    Returns:
        Arrays [hour, name].
    """
    value, low, high = np.full((3, stop - first, len(names)), np.nan)
    found = Estimate(value, low, high, np.zeros(value.shape, np.int8))
    for year in range(int(hour_text(first)[:4]), int(hour_text(stop - 1)[:4]) + 1):
        start, hours = year_hours(year)
        inside = slice(max(first, start) - start, min(stop, start + hours) - start)
        rows = slice(inside.start + start - first, inside.stop + start - first)
        one: YearOfLoads | None = None
        for column, name in enumerate(names):
            if not is_demand(name.partition(".")[2]):
                continue
            one = one or read_year(folder, year)
            if name in one.loads and one.absent[name][inside].any():
                estimate = one.estimate(name)
                found.value[rows, column] = estimate.value[inside]
                found.low[rows, column], found.high[rows, column] = estimate.low[inside], estimate.high[inside]
                found.code[rows, column] = estimate.code[inside]
    return found


def write_estimates(data_dir: Path, workers: int = 1, progress: Progress = lambda done, total: None) -> Written:
    """Write the estimates of every year on disk, of one finished run; the same bytes for any number of workers.

    The disk's errors are raised as StorageError, a damaged series as VerificationError.

    Args:
        data_dir: data folder.
        workers: processes, each of which takes a year at a time.
        progress: called with the number of years done and of all.

    Returns:
        What was written.

    Raises:
        UsageError: there is no series.
    """
    return read_whole(data_dir, lambda folder: _write_estimates(data_dir, folder, workers, progress))


def _write_estimates(data_dir: Path, folder: Path, workers: int, progress: Progress) -> Written:
    years = sorted({int(path.parent.name) for path in folder.glob("[!.]*/*/wide.parquet")})
    if not years:
        raise UsageError(
            f"no series in {data_dir}; run `coordinator start --extract --data {quoted(data_dir)}` to make them"
        )
    tasks = [(data_dir, folder, year) for year in years]
    written: list[Written] = []
    with ExitStack() as stack:
        if workers > 1:
            pool = stack.enter_context(ProcessPoolExecutor(min(workers, len(years)), get_context("spawn")))
            results: Iterable[Written] = pool.map(write_year, *zip(*tasks, strict=True))
        else:
            results = (write_year(*task) for task in tasks)
        for one in results:
            written.append(one)
            progress(len(written), len(years))
    files = tuple(sorted((file for one in written for file in one.files), key=lambda file: file.path))
    for old in set((data_dir / FOLDER).glob("*/*.parquet")) - {data_dir / file.path for file in files}:
        old.unlink()  # of a series that misses nothing any more
    return Written(sum(one.cells for one in written), files)


def write_year(data_dir: Path, folder: Path, year: int) -> Written:
    """Write the estimates of one year, a file for each respondent that has any."""
    one = read_year(folder, year)
    tables: dict[str, list[pa.Table]] = {}
    for name in one.loads:
        if one.absent[name].any():
            respondent, _, variable = name.partition(".")
            table = _table(respondent, variable, year, one.estimate(name))
            if len(table):
                tables.setdefault(respondent, []).append(table)
    files = tuple(_write(data_dir, respondent, year, own) for respondent, own in tables.items())
    return Written(sum(len(table) for own in tables.values() for table in own), files)


def _write(data_dir: Path, respondent: str, year: int, tables: list[pa.Table]) -> FileEntry:
    sink = io.BytesIO()
    pq.write_table(pa.concat_tables(tables).unify_dictionaries(), sink, compression="zstd", compression_level=1)
    path = data_dir / FOLDER / respondent / f"{year}.parquet"
    entry = write_file(data_dir, path, sink.getvalue())
    fsync_folders(data_dir, path.parent)
    return entry


def _table(respondent: str, variable: str, year: int, estimate: Estimate) -> pa.Table:
    """Return one row for each estimated hour of a series."""
    at = np.flatnonzero(estimate.code)
    hours = (year_hours(year)[0] + at).astype(np.int64) * 3_600_000
    codes, index = np.unique(estimate.code[at], return_inverse=True)
    zeros = as_arrow(np.zeros(at.size, np.int8), pa.int8())
    return pa.table(
        {
            "period": as_arrow(hours, PERIOD),
            "respondent": pa.DictionaryArray.from_arrays(zeros, as_strings([respondent])),
            "variable": pa.DictionaryArray.from_arrays(zeros, as_strings([variable])),
            "imputed": as_arrow(estimate.value[at], pa.float64()),
            "imputed_low": as_arrow(estimate.low[at], pa.float64()),
            "imputed_high": as_arrow(estimate.high[at], pa.float64()),
            "imputation": pa.DictionaryArray.from_arrays(
                as_arrow(index.astype(np.int8), pa.int8()), as_strings([method_text(int(code)) for code in codes])
            ),
        }
    )


def method_text(code: int) -> str:
    """Return what an estimate rests on, e.g. `profile+neighbours`; "" for none."""
    return "+".join(_methods(code))


def _methods(code: int) -> Iterator[str]:
    for bit, name in METHODS.items():
        if code & bit:
            yield name
