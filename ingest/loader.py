"""Load series from disk as float32 [time, feature] arrays with a validity mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ingest.arguments import names_of, period_of
from ingest.array_types import Bools, Floats, Int8s
from ingest.build_series import SERIES_FORMAT, year_hours
from ingest.catalog import RESPONDENTS, near_matches, variable_near
from ingest.columns import hour_text, open_parquet
from ingest.errors import UsageError, VerificationError, quoted
from ingest.files import visible
from ingest.models import REGION_TYPES
from ingest.periods import Moment
from ingest.plan import parse_span
from ingest.quality import IMPUTED, MEASURED, MISSING, REASONS
from ingest.settings import parse_codes
from ingest.snapshot import read_whole, series_folder

if TYPE_CHECKING:
    import pandas as pd

    from ingest.impute import Estimate

Impute = Literal["linear", "week", "neighbours"]

LONGEST_LINE = 24  # hours: the longest gap that "linear" fills
WEEK = 168  # hours


@dataclass(frozen=True)
class SeriesArrays:
    """Series of hours × features. A cell outside `mask` was not measured: it is NaN, or an estimate where `imputed` is true."""

    values: NDArray[np.float32]  # [time, feature] MWh
    mask: Bools  # [time, feature] the source sent a value, and the outlier rule did not mask it
    reason: Int8s  # [time, feature] index into `ingest.quality.REASONS`
    hours: NDArray[np.datetime64]  # [time] datetime64[s], UTC, hour-ending
    names: tuple[str, ...]  # "<respondent>.<variable>", respondents outermost
    # of impute="neighbours", [time, feature]: the interval of an estimate, MWh, and the bits of `ingest.impute.METHODS` it rests on
    low: NDArray[np.float32] | None = None
    high: NDArray[np.float32] | None = None
    imputation: Int8s | None = None

    @property
    def imputed(self) -> Bools:
        """Cells that imputation filled: bool [time, feature]."""
        return self.reason == IMPUTED

    def to_frame(self, *, local_time: bool = False) -> pd.DataFrame:
        """Return a pandas DataFrame: one row an hour, one column a series; a cell without a value is NaN.

        Args:
            local_time: add a column `<respondent>.local_time` for each respondent: the end of the hour in its time zone.

        Returns:
            The frame, float32, with the index `period` (end of the hour, UTC). `attrs["units"]` names the unit of each column.
        """
        from ingest.frame import to_frame

        return to_frame(self, local_time=local_time)


@dataclass(frozen=True)
class Available:
    """The years and variables of one respondent on disk."""

    years: tuple[int, ...]
    variables: tuple[str, ...]  # of any year


def respondents_on_disk(data_dir: Path | str) -> tuple[str, ...]:
    """Return the codes that have a series with demand, sorted.

    Raises:
        UsageError: there is no series at all.
    """
    folder = series_folder(Path(data_dir))
    codes = sorted(path.name for path in visible(folder.iterdir(), folder)) if folder.is_dir() else []
    if not codes:
        raise UsageError(
            f"no series in {data_dir}; run `coordinator start --extract --data {quoted(data_dir)}` to make them"
        )
    return tuple(code for code in codes if "D" in available(data_dir, code).variables)


def available(data_dir: Path | str, respondent: str) -> Available:
    """Return years and variables of a respondent's series; where there is none, UsageError names near matches."""

    def read(folder: Path) -> Available:
        paths = wide_paths(Path(data_dir), folder, respondent, range(0))
        variables = dict.fromkeys(name for path in paths.values() for name in sorted(read_wide(path, ())[0]))
        return Available(tuple(paths), tuple(variables))

    return read_whole(Path(data_dir), read)


def load_series(
    data_dir: Path | str,
    respondents: Sequence[str] | str,
    variables: Sequence[str] | str,
    start: Moment,
    end: Moment,
    *,
    impute: Impute | None = None,
) -> SeriesArrays:
    """Load every hour of a period, of respondents × variables.

    A variable that a respondent has in only some of the years is masked as missing in the others. All values are of one
    finished run, also while another one updates the folder (`ingest.snapshot`). A damaged file raises VerificationError.

    Args:
        data_dir: data folder.
        respondents: EIA codes in either case, or one of them.
        variables: `D`, `DF`, `NG`, `TI`, `NG.<fuel>`, `ID.<neighbour>`, `D.<sub-area>` in either case, or one of them.
        start: first hour (UTC, hour-ending): `YYYY-MM-DDTHH`, `YYYY-MM-DD`, `YYYY-MM`, `YYYY`, a date, datetime, Timestamp or
            datetime64. A time without a zone is UTC.
        end: last hour, inclusive, in the same forms: a day means all of its hours.
        impute: fill masked cells and mark them. "linear" fills gaps of up to 24 hours between valid neighbours; "week"
            takes the same hour a week before, or a week after. "neighbours" estimates demand from its profile, the forecast,
            the balance and other respondents on disk, with an interval (`ingest.impute`). Other cells stay NaN.

    Returns:
        Arrays [time, feature], MWh, with a mask.

    Raises:
        UsageError: a respondent, year or variable is not on disk (near matches are named), or an argument is malformed.
    """
    if impute not in (None, "linear", "week", "neighbours"):
        raise UsageError(f"imputation {impute!r} is unknown; choose linear, week, neighbours or None")
    if not isinstance(data_dir, str | Path):
        raise UsageError(f'data_dir {data_dir!r} is no folder: write its path as text, e.g. "data", or as a Path')
    respondents = parse_codes(names_of("respondents", respondents, '"PACW"'))
    variables = canonical_variables(names_of("variables", variables, '"D"'))
    first, stop = parse_span(*period_of(start, end))
    names = tuple(f"{respondent}.{variable}" for respondent in respondents for variable in variables)

    def read(folder: Path) -> tuple[Floats, Int8s, Estimate | None]:
        values = np.full((stop - first, len(names)), np.nan)
        reason = np.full(values.shape, MISSING, np.int8)
        for i, respondent in enumerate(respondents):
            own = slice(i * len(variables), (i + 1) * len(variables))
            _fill(Path(data_dir), folder, respondent, variables, first, values[:, own], reason[:, own])
        if impute != "neighbours":
            return values, reason, None
        from ingest.imputed import estimate_period  # here: it imports this module

        return values, reason, estimate_period(folder, names, first, stop)

    values, reason, estimate = read_whole(Path(data_dir), read)
    mask = np.isin(reason, MEASURED)
    if impute:
        filled = estimate.value if estimate else _linear(values) if impute == "linear" else _week(values)
        guessed = ~mask & ~np.isnan(filled)
        values[guessed], reason[guessed] = filled[guessed], IMPUTED
    hours = np.arange(first, stop).astype("datetime64[h]").astype("datetime64[s]")
    series = SeriesArrays(values.astype(np.float32), mask, reason, hours, names)
    if estimate is None:
        return series
    low, high = estimate.low.astype(np.float32), estimate.high.astype(np.float32)
    return replace(series, low=low, high=high, imputation=estimate.code)


def canonical_variables(names: Sequence[str] | str) -> list[str]:
    """Return variables, those of EIA in upper case; names of other sources keep theirs."""
    given = [names] if isinstance(names, str) else names
    return [upper if (upper := name.upper()) in REGION_TYPES or upper.startswith("NG.") else name for name in given]


def _fill(
    data_dir: Path,
    folder: Path,
    respondent: str,
    variables: Sequence[str],
    first: int,
    values: Floats,
    reason: Int8s,
) -> None:
    """Write one respondent's hours from `first` on into `values` and `reason`, both [time, variable].

    Raises:
        UsageError: a variable is in none of the years.
    """
    last = first + len(values) - 1
    years = range(int(hour_text(first)[:4]), int(hour_text(last)[:4]) + 1)
    paths = wide_paths(data_dir, folder, respondent, years)
    known: set[str] = set()
    for year in years:
        _check_format(data_dir, paths[year])
        available_here, table = read_wide(paths[year], variables)
        known.update(available_here)
        start, hours = year_hours(year)
        low, high = max(first, start), min(last + 1, start + hours)
        for column, variable in enumerate(variables):
            if variable in table:
                value, code = table[variable]
                values[low - first : high - first, column] = value[low - start : high - start]
                reason[low - first : high - first, column] = code[low - start : high - start]
    if unknown := [variable for variable in variables if variable not in known]:
        raise UsageError(
            f"{respondent} has no variable {', '.join(unknown)} in {years[0]}…{years[-1]}; "
            f"it has {', '.join(sorted(known))}{variable_near(unknown, sorted(known))}"
        )


def _check_format(data_dir: Path, path: Path) -> None:
    """Check the format that the series.json beside a wide file states.

    Raises:
        UsageError: it is of another version of this program.
        VerificationError: series.json can't be read.
    """
    about = path.with_name("series.json")
    try:
        found = msgspec.json.decode(about.read_bytes(), type=_Format).format
    except FileNotFoundError:
        return  # `coordinator verify` names it
    except (OSError, ValueError) as error:
        raise VerificationError(f"can't read {about}: {error}; run `coordinator verify`") from error
    if found != SERIES_FORMAT:
        raise UsageError(
            f"{about} is of format {found}; this version reads {SERIES_FORMAT}. `mv {quoted(data_dir)} {quoted(f'{data_dir}.old')}` and extract again, "
            "or install the version that wrote it."
        )


class _Format(msgspec.Struct):
    format: int = 0


def read_wide(path: Path, variables: Sequence[str]) -> tuple[set[str], dict[str, tuple[Floats, Int8s]]]:
    """Read a wide file.

    Returns:
        Its variables; and of the requested ones that it has, values with NaN and reason codes, both [hour].

    Raises:
        VerificationError: the file can't be read.
    """
    try:
        with open_parquet(path) as file:
            known = {name.removeprefix("reason.") for name in file.schema_arrow.names if name.startswith("reason.")}
            wanted = [variable for variable in variables if variable in known]
            table = file.read([*wanted, *(f"reason.{variable}" for variable in wanted)])
    except (OSError, pa.ArrowException) as error:
        raise VerificationError(f"can't read {path}: {error}; run `coordinator verify`") from error
    return known, {name: (table[name].to_numpy(), _codes(table[f"reason.{name}"])) for name in wanted}


def _codes(column: pa.ChunkedArray) -> Int8s:
    """Return the reason code of each row: int8 [hour]."""
    whole = column.combine_chunks()
    lookup = np.array([REASONS.index(name) for name in whole.dictionary.to_pylist()], np.int8)
    return lookup[whole.indices.to_numpy()]


def wide_paths(data_dir: Path, folder: Path, respondent: str, years: range) -> dict[int, Path]:
    """Return the wide files of a respondent by year, from the `folder` of series of the data folder.

    Raises:
        UsageError: there is none, or none of one of `years`; names what there is, and the command that makes the rest.
    """
    paths = {int(path.parent.name): path for path in sorted((folder / respondent).glob("*/wide.parquet"))}
    command = f"coordinator start --extract --data {quoted(data_dir)} --respondents {respondent}"
    if not paths:
        if not data_dir.is_dir():
            raise UsageError(f"there is no folder {data_dir}: correct its name, or run `{command}` to make it")
        have = sorted(path.name for path in visible(folder.glob("*"), folder) if path.name != respondent)
        found = f"there are {', '.join(have)}" if have else "there is none"
        if respondent not in RESPONDENTS:
            raise UsageError(f"unknown respondent {respondent}{near_matches(respondent)}; in {data_dir} {found}")
        raise UsageError(f"no series of {respondent} in {data_dir}: {found}; run `{command}` to make it")
    if absent := [year for year in years if year not in paths]:
        raise UsageError(
            f"no series of {respondent} for {', '.join(map(str, absent))}: there are {', '.join(map(str, paths))}; "
            f"run `{command} --start {absent[0]} --end {absent[-1]}` to make them"
        )
    return paths


def _linear(values: Floats) -> Floats:
    """Return values with gaps of at most `LONGEST_LINE` hours between two valid values filled by linear interpolation."""
    filled = values.copy()
    for column in filled.T:
        valid = np.flatnonzero(~np.isnan(column))
        if valid.size < 2:
            continue
        gap = np.flatnonzero(np.isnan(column))
        gap = gap[(gap > valid[0]) & (gap < valid[-1])]
        after = np.searchsorted(valid, gap)
        gap = gap[valid[after] - valid[after - 1] - 1 <= LONGEST_LINE]
        column[gap] = np.interp(gap, valid, column[valid])
    return filled


def _week(values: Floats) -> Floats:
    """Return values with absent cells filled from the same hour a week before, or a week after, inside the loaded period."""
    before, after = np.full_like(values, np.nan), np.full_like(values, np.nan)
    before[WEEK:], after[:-WEEK] = values[:-WEEK], values[WEEK:]
    return np.where(np.isnan(values), np.where(np.isnan(before), after, before), values)
