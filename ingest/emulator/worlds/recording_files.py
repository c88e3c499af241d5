"""Read files of recorded hours: columns are found by name, and what can't be an hourly value is refused by name.

Forms: a file of one respondent, named after it (`PACW.csv`); one with a column of respondents, such as EIA's six-month files; long
rows with a column of types, fuels, neighbours or sub-areas; grid files with columns such as `E_PACW_D`. CSV and Parquet, `.gz` too. A file in a
folder that has only a header is left out. Times are UTC and hour-ending; a time with a zone is converted. MISSING means that EIA has no row for the hour; EMPTY, NA or nothing is a row
without a value.
"""

import gzip
import re
import zlib
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from ingest.columns import hour_text
from ingest.files import visible
from ingest.models import REGION_TYPES
from ingest.sources.bulk_layout import LONG, variables_of

SUFFIXES = (".csv", ".csv.gz", ".parquet")
LOOKED_AT = 100  # lines in which a second one that is not empty has to be
LARGEST = 2.0**53  # MWh: a double holds each whole number up to it
HOUR_NS = 3_600_000_000_000

Hours = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]
Texts = npt.NDArray[np.object_]  # [row] upper case, without blanks and commas
Cell = tuple[str, str, str]  # route, respondent, code

# Names as `_plain` gives them: lower case, blanks for underscores, without a unit. The first that a file has counts.
_TIMES = ("utc time at end of hour", "date time", "datetime utc", "datetime", "period", "timestamp", "time", "hour")
_RESPONDENTS = ("balancing authority", "balancing authority code eia", "respondent", "ba code", "ba", "region")
_WIDE = {
    "D": ("raw demand", "demand reported", "demand", "d"),
    "DF": ("forecast demand", "demand forecast", "day-ahead demand forecast", "df"),
    "NG": ("net generation reported", "net generation", "ng"),
    "TI": ("interchange reported", "total interchange", "ti"),
}
_FILES = {"INTERCHANGE": "interchange-data", "SUBREGION": "region-sub-ba-data"}  # EIA's six-month file → route
_KINDS, _FUELS, _VALUE = ("type", "data type"), ("fueltype", "fuel type"), "value"
_DEMAND = ("demand", "d")  # of a column of kinds
_GRID = re.compile(r"E_([A-Z0-9]+)(?:-([A-Z0-9]+))?_([A-Z]+)")
_GRID_FUELS = {"GAS": "NG"}  # the grid files' name of natural gas, which EIA calls NG
_UNIT = re.compile(r"\s*(\((mw|mwh)\)|\bmwh?)$")
_ABSENT = "MISSING"
_NULLS = frozenset(("", "EMPTY", "NA", "N/A", "NAN", "NULL", "NONE", "-", "--"))
_FORMATS = ("ISO8601", "%m/%d/%Y %I:%M:%S %p", "%m/%d/%Y %H:%M:%S", "%m/%d/%Y %H:%M")


MAX_NAMES = 6  # of a file's columns that a message lists
KNOWN = (
    "known columns of values are demand, forecast demand, net generation, total interchange, EIA's `Net Generation (MW) from …`, "
    "E_CODE_D, value with a type or fueltype, and EIA's files of interchange and sub-regions"
)
MOVE = "Move the file out of the folder, or name the files one by one: recordings:PATH,PATH"


class RecordingsError(ValueError):
    """A recording can't be read; the message names the file and the reason."""


def files_of(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield files, and the CSV and Parquet files in folders by name, but those with only a header.

    Raises:
        RecordingsError: a path does not exist, or a folder has no such file.
    """
    for path in paths:
        if path.is_dir():
            inside = sorted(visible(path.iterdir(), path))
            files = [child for child in _tables_in(path) if not _is_header(child)]
            if not files:
                folders = ", ".join(child.name for child in inside if child.is_dir())
                raise RecordingsError(
                    f"{path}: no {', '.join(SUFFIXES)} file with rows in it"
                    + (f"; name a folder in it: {folders}" if folders else "")
                )
            yield from files
        elif path.is_file():
            yield path
        else:
            raise RecordingsError(f"{path}: no such file or folder")


def headers_in(paths: Iterable[Path]) -> list[Path]:
    """Return the files in folders that have only a header: a list of columns, such as that of eia-grid."""
    return [child for path in paths if path.is_dir() for child in _tables_in(path) if _is_header(child)]


def _tables_in(folder: Path) -> list[Path]:
    inside = sorted(visible(folder.iterdir(), folder))
    return [child for child in inside if child.is_file() and child.name.lower().endswith(SUFFIXES)]


def _is_header(path: Path) -> bool:
    """Return whether a CSV file has one line and no more; one that can't be read has not."""
    if path.name.lower().endswith(".parquet"):
        return False
    opened = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with opened(path, "rt", encoding="utf-8-sig") as file:
            return len([line for line in islice(file, LOOKED_AT) if line.strip()]) == 1
    except (OSError, ValueError, EOFError, zlib.error):
        return False


def read_file(path: Path) -> Iterator[tuple[Cell, Hours, Values]]:
    """Yield the recorded cells of a file: hour numbers [row], in order and each once, and MWh [row], NaN for a null.

    Raises:
        RecordingsError: the file has no known columns, or a cell that is no hourly value.
    """
    table = _table(path)
    names = {_plain(name): name for name in reversed(table.columns.tolist())}  # of two equal names the first counts
    time = next((names[name] for name in _TIMES if name in names), table.columns[0])
    hours = _hours(path, table[time])
    who = next((names[name] for name in _RESPONDENTS if name in names), None)
    owners = _owners(path, table, who)
    for cell, rows, own in _cells(path, table, names, owners):
        there = np.ones(len(own), np.bool_) if own.dtype == np.float64 else own != _ABSENT
        if there.any():
            at = hours[rows][there]
            yield cell, *_single(path, cell, at, _numbers(path, cell, own[there], at))


def recorded_series(paths: Iterable[Path]) -> frozenset[tuple[str, str]]:
    """Return each route and respondent that files or folders have a value or a null of.

    Raises:
        RecordingsError: a file can't be read.
    """
    return frozenset((route, respondent) for path in files_of(paths) for (route, respondent, _), *_ in read_file(path))


def _table(path: Path) -> pd.DataFrame:
    """Return a file as texts.

    Raises:
        RecordingsError: the file is empty, damaged, or no table.
    """
    try:
        if path.name.lower().endswith(".parquet"):
            with path.open("rb") as file:  # Arrow cannot open a path that the locale cannot spell
                table = pd.read_parquet(file)
            if not isinstance(table.index, pd.RangeIndex):
                table = table.reset_index()
        else:
            table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig", skipinitialspace=True)
    except pd.errors.EmptyDataError:
        raise RecordingsError(f"{path}: the file is empty") from None
    except (OSError, ValueError, EOFError, zlib.error) as error:  # pandas' and Arrow's errors are ValueErrors
        raise RecordingsError(f"{path}: {error}") from None
    if table.empty:
        raise RecordingsError(f"{path}: no row below the header")
    return table.set_axis([str(name).strip() for name in table.columns], axis=1)


def _plain(name: str) -> str:
    words = " ".join(name.replace("_", " ").lower().split())
    return _UNIT.sub("", words)


def _owners(path: Path, table: pd.DataFrame, column: str | None) -> list[tuple[str, npt.NDArray[np.int64]]]:
    """Return respondents and their rows; without a column of them, all rows are of the respondent that the file is named after."""
    if column is None:
        return [(path.name.partition(".")[0].upper(), np.arange(len(table)))]
    codes, known = pd.factorize(_labels(table[column]).str.upper())
    return [(str(name), np.flatnonzero(codes == i)) for i, name in enumerate(known)]


def _cells(
    path: Path, table: pd.DataFrame, names: dict[str, str], owners: list[tuple[str, npt.NDArray[np.int64]]]
) -> Iterator[tuple[Cell, npt.NDArray[np.int64], Texts | Values]]:
    """Yield each cell with its rows and what they hold.

    Raises:
        RecordingsError: no column is known.
    """
    everything = np.arange(len(table))
    if grid := [(name, match) for name in table.columns if (match := _GRID.fullmatch(name))]:
        for name, match in grid:
            respondent, other, code = match.groups()
            fuel = not other and code not in REGION_TYPES
            route = "interchange-data" if other else "fuel-type-data" if fuel else "region-data"
            code = other or (_GRID_FUELS.get(code, code) if fuel else code)
            yield (route, respondent, code), everything, _texts(table[name])
        return
    kind = next((names[name] for name in (*_KINDS, *_FUELS) if name in names), None)
    if kind is not None and _VALUE in names:
        yield from _long(table, names, owners)
        return
    for file, route in _FILES.items():
        layout = LONG[file]
        column = next((names[name] for name in layout.code if name in names), None)
        if column is not None and (value := names.get(_plain(layout.value))):
            held = _texts(table[value])
            codes = _labels(table[column]).str.upper().to_numpy()
            for respondent, rows in owners:
                for code in sorted(set(codes[rows])):
                    own = rows[codes[rows] == code]
                    yield (route, respondent, code), own, held[own]
            return
    wide = {
        ("region-data", code): [names[name]]
        for code, known in _WIDE.items()
        if (name := next((name for name in known if name in names), ""))
    }
    for name, variable in variables_of(table.columns.tolist()).items():
        if variable.startswith("NG."):
            wide.setdefault(("fuel-type-data", variable.removeprefix("NG.")), []).append(name)
    if not wide:
        raise RecordingsError(
            f"{path}: no column of hourly values among {', '.join(table.columns[:MAX_NAMES])}; {KNOWN}. {MOVE}"
        )
    for (route, code), columns in wide.items():
        held = _texts(table[columns[0]])
        for name in columns[1:]:  # two names of one fuel: the first with a value counts
            held = np.where(_null(held), _texts(table[name]), held)
        for respondent, rows in owners:
            own = held[rows]
            if route == "region-data" or not _null(own).all():  # an empty fuel is not reported
                yield (route, respondent, code), rows, own


def _long(
    table: pd.DataFrame, names: dict[str, str], owners: list[tuple[str, npt.NDArray[np.int64]]]
) -> Iterator[tuple[Cell, npt.NDArray[np.int64], Texts | Values]]:
    """Yield the cells of rows that name their type or fuel."""
    held = _texts(table[names[_VALUE]])
    kinds, fuels = (
        _labels(table[names[found]]) if (found := next((n for n in known if n in names), "")) else None
        for known in (_KINDS, _FUELS)
    )
    for respondent, rows in owners:
        labels = pd.DataFrame(
            {"kind": "" if kinds is None else kinds.iloc[rows], "fuel": "" if fuels is None else fuels.iloc[rows]},
            index=rows,
        )
        for key, part in labels.groupby(["kind", "fuel"], sort=True):
            kind, fuel = map(str, key)
            if kind.lower() in _DEMAND:
                cell = ("region-data", respondent, "D")
            elif kind.upper() in REGION_TYPES:
                cell = ("region-data", respondent, kind.upper())
            else:
                cell = ("fuel-type-data", respondent, fuel.upper())
            own = part.index.to_numpy()
            yield cell, own, held[own]


def _labels(column: pd.Series) -> pd.Series:
    """Return codes as text without blanks; an empty cell is "". From pandas 3 on `astype(str)` leaves it a NaN, which `groupby` drops with its rows."""
    return column.astype(object).where(column.notna(), "").astype(str).str.strip()


def _texts(column: pd.Series) -> Texts | Values:
    """Return the texts of a column; of Parquet's numbers, the numbers."""
    if pd.api.types.is_numeric_dtype(column):
        return column.to_numpy(np.float64, na_value=np.nan)
    texts = ["" if text is None else str(text).replace(",", "").strip().upper() for text in column.tolist()]
    return np.array(texts, object)


def _null(held: Texts | Values) -> npt.NDArray[np.bool_]:
    return np.isnan(held) if held.dtype == np.float64 else np.array([text in _NULLS for text in held], np.bool_)


def _hours(path: Path, column: pd.Series) -> Hours:
    """Return the hour numbers of times, which are the ends of hours.

    Raises:
        RecordingsError: a text is no time, or not at the end of an hour.
    """
    codes, distinct = pd.factorize(column)
    for form in _FORMATS:
        try:
            times = pd.to_datetime(distinct, utc=True, format=None if distinct.dtype != object else form)
            break
        except (ValueError, TypeError):
            continue
    else:
        raise RecordingsError(
            f"{path}: the column {column.name!r} is not a time, e.g. {str(distinct[0])!r}; the first column, date_time or period "
            f"has the ends of hours, UTC, and {KNOWN}. {MOVE}"
        )
    if (codes < 0).any() or times.isna().any():
        raise RecordingsError(f"{path}: row {int(np.argmax(codes < 0)) + 1} has no time in {column.name!r}")
    ends = times.tz_localize(None).to_numpy().astype("datetime64[ns]").astype(np.int64)
    if (odd := np.flatnonzero(ends % HOUR_NS)).size:
        shares = len(ends) / len(np.unique(ends // HOUR_NS))
        step = (
            f"it has about {shares:.0f} rows an hour: average them first"
            if shares > 1.5
            else "give the ends of hours, UTC"
        )
        raise RecordingsError(f"{path}: {distinct[odd[0]]} is not the end of an hour; {step}")
    return (ends // HOUR_NS)[codes]


def _numbers(path: Path, cell: Cell, held: Texts | Values, hours: Hours) -> Values:
    """Return MWh [row], NaN for a null.

    Raises:
        RecordingsError: a text is no number, or beyond what a value can be.
    """
    values = np.empty(len(held))
    if held.dtype == np.float64:
        values[:] = held
    else:
        for row, text in enumerate(held.tolist()):
            try:
                values[row] = np.nan if text in _NULLS else float(text)
            except ValueError:
                raise RecordingsError(
                    f"{path}: {text!r} of {_name(cell)} {hour_text(hours[row])} is not a number"
                ) from None
    with np.errstate(invalid="ignore"):
        beyond = np.flatnonzero(np.abs(values) > LARGEST)
    if beyond.size:
        row = int(beyond[0])
        raise RecordingsError(f"{path}: {held[row]} of {_name(cell)} {hour_text(hours[row])} is not a value in MWh")
    return values


def _single(path: Path, cell: Cell, hours: Hours, values: Values) -> tuple[Hours, Values]:
    """Return rows by hour, an equal one for the same hour once.

    Raises:
        RecordingsError: two rows for the same hour differ.
    """
    order = np.argsort(hours, kind="stable")
    hours, values = hours[order], values[order]
    again = np.flatnonzero(hours[1:] == hours[:-1]) + 1
    before, after = values[again - 1], values[again]
    differs = np.flatnonzero((before != after) & ~(np.isnan(before) & np.isnan(after)))
    if differs.size:
        row = again[differs[0]]
        raise RecordingsError(
            f"{path}: two rows of {_name(cell)} for {hour_text(hours[row])}: {values[row - 1]:g} and {values[row]:g}"
        )
    keep = np.ones(len(hours), np.bool_)
    keep[again] = False
    return hours[keep], values[keep]


def _name(cell: Cell) -> str:
    route, respondent, code = cell
    return f"{respondent} {'NG.' if route == 'fuel-type-data' else ''}{code}"
