"""Series on disk → float32 `[time, feature]` arrays with a validity mask, for any respondents, variables and period."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ingest.build_series import year_hours
from ingest.columns import hour_number, hour_text
from ingest.errors import UsageError, VerificationError
from ingest.quality import IMPUTED, MISSING, OK, REASONS

Impute = Literal["linear", "week"]

LONGEST_LINE = 24  # hours: "linear" bridges no longer hole
WEEK = 168  # hours


@dataclass(frozen=True)
class SeriesArrays:
    """Hours × features. Whatever is not `mask` was not measured: NaN, or a guess where `imputed` says so."""

    values: NDArray[np.float32]  # [time, feature] MWh
    mask: NDArray[np.bool_]  # [time, feature] a value that the source gave and the outlier rule passed
    reason: NDArray[np.int8]  # [time, feature] index into `ingest.quality.REASONS`
    hours: NDArray[np.datetime64]  # [time] datetime64[s], UTC, hour-ending
    names: tuple[str, ...]  # "<respondent>.<variable>", respondents outermost

    @property
    def imputed(self) -> NDArray[np.bool_]:
        """[time, feature] cells that imputation filled."""
        return self.reason == IMPUTED


@dataclass(frozen=True)
class Available:
    """What is on disk of one respondent."""

    years: tuple[int, ...]
    variables: tuple[str, ...]  # of any year


def respondents_on_disk(data_dir: Path | str) -> tuple[str, ...]:
    """Codes that have a series with demand, in order; UsageError where there is none."""
    folder = Path(data_dir) / "series"
    codes = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if not codes:
        raise UsageError(f"no series under {folder}: `coordinator start --extract --data {data_dir}` makes them")
    return tuple(code for code in codes if "D" in available(data_dir, code).variables)


def available(data_dir: Path | str, respondent: str) -> Available:
    """Years and variables of a respondent's series; UsageError, naming near matches, where there is none."""
    folder = Path(data_dir) / "series"
    _check_years(folder, respondent, range(0))
    paths = sorted((folder / respondent).glob("*/wide.parquet"))
    if not paths:
        raise UsageError(
            f"no series of {respondent} under {folder}; `coordinator start --extract --respondents {respondent}` makes it"
        )
    variables = dict.fromkeys(name for path in paths for name in sorted(_read(path, ())[0]))
    return Available(tuple(int(path.parent.name) for path in paths), tuple(variables))


def load_series(
    data_dir: Path | str,
    respondents: Sequence[str],
    variables: Sequence[str],
    start: str,
    end: str,
    *,
    impute: Impute | None = None,
) -> SeriesArrays:
    """Every hour of `start`…`end` (`YYYY-MM-DDTHH`, both inclusive, UTC hour-ending) of respondents × variables.

    A variable that a respondent has in some of the years only is masked as missing in the others.
    `impute` fills masked cells and marks them: "linear" bridges holes of up to 24 hours between valid neighbours; "week" takes the
    same hour a week before, else a week after. What neither can fill stays NaN.
    UsageError, naming near matches, for a respondent, year or variable that is not on disk; VerificationError for a damaged file.
    """
    if impute not in (None, "linear", "week"):
        raise UsageError(f"imputation {impute!r} is unknown: choose linear, week or None")
    try:
        first, last = hour_number(start), hour_number(end)
    except ValueError as error:
        raise UsageError(f"period {start} to {end} is not of the form YYYY-MM-DDTHH: {error}") from error
    if first > last:
        raise UsageError(f"period {start} to {end} ends before it starts: swap the two")
    folder = Path(data_dir) / "series"
    names = tuple(f"{respondent}.{variable}" for respondent in respondents for variable in variables)
    values = np.full((last - first + 1, len(names)), np.nan)
    reason = np.full(values.shape, MISSING, np.int8)
    for i, respondent in enumerate(respondents):
        own = slice(i * len(variables), (i + 1) * len(variables))
        _fill(folder, respondent, variables, first, values[:, own], reason[:, own])
    mask = reason == OK
    if impute:
        filled = _linear(values) if impute == "linear" else _week(values)
        guessed = ~mask & ~np.isnan(filled)
        values[guessed], reason[guessed] = filled[guessed], IMPUTED
    hours = np.arange(first, last + 1).astype("datetime64[h]").astype("datetime64[s]")
    return SeriesArrays(values.astype(np.float32), mask, reason, hours, names)


def _fill(
    folder: Path,
    respondent: str,
    variables: Sequence[str],
    first: int,
    values: NDArray[np.float64],
    reason: NDArray[np.int8],
) -> None:
    """Write one respondent's hours from `first` on into `values` and `reason`, `[time, variable]`."""
    last = first + len(values) - 1
    years = range(int(hour_text(first)[:4]), int(hour_text(last)[:4]) + 1)
    _check_years(folder, respondent, years)
    known: set[str] = set()
    for year in years:
        path = folder / respondent / str(year) / "wide.parquet"
        there, table = _read(path, variables)
        known.update(there)
        start, hours = year_hours(year)
        low, high = max(first, start), min(last + 1, start + hours)
        for column, variable in enumerate(variables):
            if variable in there:
                value, code = table[variable]
                values[low - first : high - first, column] = value[low - start : high - start]
                reason[low - first : high - first, column] = code[low - start : high - start]
    if strangers := [variable for variable in variables if variable not in known]:
        raise UsageError(
            f"{respondent} has no variable {', '.join(strangers)} in {years[0]}…{years[-1]}; "
            f"it has {', '.join(sorted(known))}{_near(strangers, known)}"
        )


def _read(
    path: Path, variables: Sequence[str]
) -> tuple[set[str], dict[str, tuple[NDArray[np.float64], NDArray[np.int8]]]]:
    """All variables of a wide file, and of those asked for that it has: values with NaN, and reason codes, `[hour]`."""
    try:
        with pq.ParquetFile(path) as file:
            there = {name.removeprefix("reason.") for name in file.schema_arrow.names if name.startswith("reason.")}
            wanted = [variable for variable in variables if variable in there]
            table = file.read([*wanted, *(f"reason.{variable}" for variable in wanted)])
    except (OSError, pa.ArrowException) as error:
        raise VerificationError(f"can't read {path}: {error}; run `coordinator verify`") from error
    return there, {name: (table[name].to_numpy(), _codes(table[f"reason.{name}"])) for name in wanted}


def _codes(column: pa.ChunkedArray) -> NDArray[np.int8]:
    whole = column.combine_chunks()
    lookup = np.array([REASONS.index(name) for name in whole.dictionary.to_pylist()], np.int8)
    return lookup[whole.indices.to_numpy()]


def _check_years(folder: Path, respondent: str, years: range) -> None:
    if not (folder / respondent).is_dir():
        have = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        there = f"there are {', '.join(have)}{_near([respondent], have)}" if have else "there is none"
        raise UsageError(
            f"no series of {respondent} under {folder}: {there}; "
            f"`coordinator start --extract --respondents {respondent}` makes it"
        )
    have = sorted(path.parent.name for path in (folder / respondent).glob("*/wide.parquet"))
    if absent := [str(year) for year in years if str(year) not in have]:
        raise UsageError(
            f"no series of {respondent} for {', '.join(absent)}: there are {', '.join(have) or 'none'}; "
            f"`coordinator start --extract --respondents {respondent} --start {absent[0]} --end {absent[-1]}` makes them"
        )


def _near(words: Iterable[str], known: Iterable[str]) -> str:
    choices = list(known)
    near = [match for word in words for match in difflib.get_close_matches(word, choices, n=2, cutoff=0.4)]
    return f" (did you mean {' or '.join(dict.fromkeys(near))}?)" if near else ""


def _linear(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Lines over holes of at most `LONGEST_LINE` hours that have a valid value on both sides."""
    filled = values.copy()
    for column in filled.T:
        valid = np.flatnonzero(~np.isnan(column))
        if valid.size < 2:
            continue
        hole = np.flatnonzero(np.isnan(column))
        hole = hole[(hole > valid[0]) & (hole < valid[-1])]
        after = np.searchsorted(valid, hole)
        hole = hole[valid[after] - valid[after - 1] - 1 <= LONGEST_LINE]
        column[hole] = np.interp(hole, valid, column[valid])
    return filled


def _week(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The measured value of the same hour a week before, else a week after, inside the period loaded."""
    before, after = np.full_like(values, np.nan), np.full_like(values, np.nan)
    before[WEEK:], after[:-WEEK] = values[:-WEEK], values[WEEK:]
    return np.where(np.isnan(values), np.where(np.isnan(before), after, before), values)
