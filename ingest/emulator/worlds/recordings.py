"""The recordings world: real hours from files, exactly the hours that the files hold.

Three forms are read, in the order given; where two files hold the same hour, the value of the later file counts:
- `CODE.csv` with `date_time` (UTC, hour-ending), `demand (MW)`, `forecast demand (MW)`: D and DF. MISSING means that EIA
  has no row for the hour, so no row is served; EMPTY means a row without a value, so null is served.
- Parquet with timestamp, region, data_type ("demand", "generation"), fuel_type, value: D and fuels.
- CSV with an hour index and columns E_CODE_{D,NG,TI,fuel} and E_CODE-CODE_ID: all of region, fuel and interchange.
A folder means the CSV and Parquet files in it. Nothing is revised, repaired or invented.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from ingest.emulator.worlds.base import ABSENT, NULL, VALUE, Block

_GRID_FUELS = {"GAS": "NG"}  # the grid files' name of natural gas, which EIA calls NG
_GRID = re.compile(r"E_([A-Z0-9]+)(?:-([A-Z0-9]+))?_([A-Z]+)")
Cell = tuple[str, str, str]  # route, respondent, code
Part = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]  # hours, values (NaN for null)


class RecordingsError(ValueError):
    """A recording can't be read; the message names the file and the reason."""


class RecordingsWorld:
    """Serve the recorded hours of CSV and Parquet files."""

    name = "recordings"
    note = "Recorded hours served by a local emulator; not an answer of EIA."

    def __init__(self, paths: list[Path]) -> None:
        """Read every file.

        Args:
            paths: Files, or folders of files.

        Raises:
            RecordingsError: A file can't be read, or there is no recorded hour.
        """
        found: dict[tuple[str, str], dict[str, list[Part]]] = defaultdict(lambda: defaultdict(list))
        for path in _files(paths):
            for (route, respondent, code), hours, values in _read(path):
                found[route, respondent][code].append((hours, values))
        if not found:
            raise RecordingsError(
                f"no recorded hours in {', '.join(map(str, paths))}; give --recordings FILE or FOLDER"
            )
        self._blocks = {key: _block(columns) for key, columns in found.items()}
        self._first = min(block.first for block in self._blocks.values())
        self._last = max(block.first + len(block.values) - 1 for block in self._blocks.values())

    def respondents(self, route: str) -> tuple[str, ...]:
        """Return the recorded respondents of a route, sorted."""
        return tuple(sorted(respondent for kind, respondent in self._blocks if kind == route))

    def codes(self, route: str) -> tuple[str, ...]:
        """Return the recorded types, fuels or neighbours of a route, sorted."""
        return tuple(
            sorted({code for (kind, _), block in self._blocks.items() if kind == route for code in block.codes})
        )

    def span(self, now: int) -> tuple[int, int]:
        """Return the first and the last recorded hour; `now` has no effect."""
        return self._first, self._last

    def settled_before(self, now: int) -> int:
        """Return the hour after the last one: nothing is revised."""
        return self._last + 1

    def block(self, route: str, respondent: str, start: int, end: int, now: int) -> Block | None:
        """Return the recorded hours from `start` to `end`; `now` has no effect."""
        block = self._blocks.get((route, respondent))
        return block.between(start, end) if block else None


def _files(paths: list[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(child for child in path.iterdir() if child.suffix in (".csv", ".parquet"))
        elif path.is_file():
            yield path
        else:
            raise RecordingsError(f"{path}: no such file or folder")


def _block(columns: dict[str, list[Part]]) -> Block:
    codes = tuple(sorted(columns))
    first = min(int(hours.min()) for parts in columns.values() for hours, _ in parts)
    last = max(int(hours.max()) for parts in columns.values() for hours, _ in parts)
    values = np.zeros((last - first + 1, len(codes)), np.int32)
    state = np.full(values.shape, ABSENT, np.uint8)
    for column, code in enumerate(codes):
        for hours, recorded in columns[code]:
            null = np.isnan(recorded)
            state[hours - first, column] = np.where(null, NULL, VALUE)
            values[hours - first, column] = np.where(null, 0, np.round(recorded)).astype(np.int32)
    return Block(first, codes, values, state)


def _read(path: Path) -> Iterator[tuple[Cell, npt.NDArray[np.int64], npt.NDArray[np.float64]]]:
    if path.suffix == ".parquet":
        yield from _read_parquet(path)
        return
    table = pd.read_csv(path, index_col=0, dtype=str, keep_default_na=False)
    try:
        hours = _hours(pd.DatetimeIndex(pd.to_datetime(table.index, format="ISO8601")))
    except ValueError:
        raise RecordingsError(f"{path}: the first column is not a time") from None
    if table.columns.tolist() == ["demand (MW)", "forecast demand (MW)"]:
        for name, kind in zip(table.columns, ("D", "DF"), strict=True):
            there = (table[name] != "MISSING").to_numpy()
            if there.any():
                values = _numbers(path, table[name][there].replace("EMPTY", ""))
                yield ("region-data", path.stem, kind), hours[there], values
        return
    known = [(name, match) for name in table.columns if (match := _GRID.fullmatch(name))]
    if not known:
        raise RecordingsError(f"{path}: neither a demand file nor a grid file with columns such as E_PACW_D")
    for name, match in known:
        respondent, other, code = match.groups()
        route = "interchange-data" if other else "region-data" if code in ("D", "DF", "NG", "TI") else "fuel-type-data"
        yield (route, respondent, other or _GRID_FUELS.get(code, code)), hours, _numbers(path, table[name])


def _read_parquet(path: Path) -> Iterator[tuple[Cell, npt.NDArray[np.int64], npt.NDArray[np.float64]]]:
    with path.open("rb") as file:  # Arrow cannot open a path that the locale cannot spell
        table = pd.read_parquet(file)
    if missing := {"timestamp", "region", "data_type", "fuel_type", "value"} - set(table.columns):
        raise RecordingsError(f"{path}: lacks the column {', '.join(sorted(missing))}")
    for (kind, respondent, fuel), part in table.groupby(["data_type", "region", "fuel_type"], dropna=False):
        route, code = ("region-data", "D") if kind == "demand" else ("fuel-type-data", str(fuel))
        yield (route, str(respondent), code), _hours(pd.DatetimeIndex(part["timestamp"])), part["value"].to_numpy(float)


def _hours(index: pd.DatetimeIndex) -> npt.NDArray[np.int64]:
    return index.to_numpy().astype("datetime64[h]").astype(np.int64)


def _numbers(path: Path, texts: pd.Series) -> npt.NDArray[np.float64]:
    try:
        return np.array([float(text) if text else np.nan for text in texts.tolist()])
    except ValueError as error:
        raise RecordingsError(f"{path}: {error}") from None
