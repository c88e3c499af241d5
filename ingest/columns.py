"""Rows as columns (hour, series, value): merge and sort, duplicates, gaps, and the digest of equal data."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ingest.array_types import Array, Bools, Floats, Int32s, Int64s
from ingest.models import HOUR, Gap, format_hour, parse_hour

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SLICE = 1 << 16  # rows hashed at a time: their copy stays in the processor's cache
EVERYTHING = "*"  # variable of the gap of a respondent without any row

SeriesName = tuple[str, str]  # (respondent, variable)


@lru_cache(maxsize=1 << 15)  # a few years of hours; plans ask for the same ones again and again
def hour_number(period: str) -> int:
    """Return hours since 1970-01-01T00 UTC of `YYYY-MM-DDTHH`; another form raises ValueError."""
    return (parse_hour(period) - EPOCH) // HOUR


def hour_text(number: int) -> str:
    """Return `YYYY-MM-DDTHH` of hours since 1970-01-01T00 UTC."""
    return format_hour(EPOCH + int(number) * HOUR)


@lru_cache(maxsize=16)
def hour_table(start: str, end: str) -> dict[str, int]:
    """Return every period of `start` to `end` (both inclusive) with its hour number: parsing a period is one look-up."""
    hours = np.arange(hour_number(start), hour_number(end) + 1)
    return dict(zip(np.datetime_as_string(hours.astype("datetime64[h]")).tolist(), hours.tolist(), strict=True))


@lru_cache(maxsize=16)
def day_table(start: str, end: str) -> dict[str, int]:
    """Return every day, `YYYY-MM-DD`, of `start` to `end` (both inclusive) with the number of its hour 00."""
    return {period[:10]: hour for period, hour in hour_table(start, end).items() if period.endswith("T00")}


@contextmanager
def open_parquet(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file, also where the locale cannot spell its path: Arrow encodes a path as UTF-8, whatever the locale."""
    with pa.OSFile(os.fsencode(path)) as file, pq.ParquetFile(file) as parquet:
        yield parquet


@dataclass(frozen=True)
class Columns:
    """Rows in any order. `series[index[i]]` is the (respondent, variable) of row i; NaN in `value` is a null of the source."""

    series: tuple[SeriesName, ...]
    hour: Int32s  # [row] hours since 1970-01-01T00 UTC, hour-ending
    index: Int32s  # [row]
    value: Floats  # [row]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.hour)

    def keys(self) -> Int64s:
        """Return one integer per row, equal where (hour, series) is equal, ordered by hour and then by series."""
        return self.hour.astype(np.int64) * max(len(self.series), 1) + self.index

    def is_sorted(self) -> bool:
        """Return whether no row comes before an earlier one, by hour and then by series."""
        hour, index = self.hour, self.index
        same = (hour[1:] == hour[:-1]) & (index[1:] >= index[:-1])
        return bool((same | (hour[1:] > hour[:-1])).all())

    def null_keys(self) -> set[tuple[int, str, str]]:
        """Return (hour, respondent, variable) of the null rows."""
        rows = np.flatnonzero(np.isnan(self.value))
        return {(int(self.hour[row]), *self.series[self.index[row]]) for row in rows}

    def nulls(self) -> int:
        """Return the number of null rows."""
        return int(np.isnan(self.value).sum())


EMPTY = Columns((), np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.float64))


def has_duplicates(columns: Columns) -> bool:
    """Return whether any (hour, series) occurs twice."""
    if len(columns) < 2:
        return False
    if columns.is_sorted():
        return bool(((columns.hour[1:] == columns.hour[:-1]) & (columns.index[1:] == columns.index[:-1])).any())
    keys = columns.keys()
    return bool(np.bincount(keys - keys.min()).max() > 1)


def drop_repeats(columns: Columns) -> tuple[Columns, int]:
    """Drop each row that follows an equal one: a source that sends rows in a total order repeats them next to each other.

    Returns:
        The columns, in order, and the number of rows dropped.
    """
    same = (columns.hour[1:] == columns.hour[:-1]) & (columns.index[1:] == columns.index[:-1])
    if not same.any():
        return columns, 0
    value, before = columns.value[1:], columns.value[:-1]
    same &= (value == before) | (np.isnan(value) & np.isnan(before))
    keep = np.concatenate(([True], ~same))
    kept = Columns(columns.series, columns.hour[keep], columns.index[keep], columns.value[keep])
    return kept, int(same.sum())


def drop_repeats_between(pages: Sequence[Columns]) -> tuple[list[Columns], set[int]]:
    """Drop the first row of a page where it equals the last row of the page before.

    Returns:
        The pages, and the indices of those that lost a row.
    """
    kept = list(pages)
    repeated = set()
    for i, (before, page) in enumerate(pairwise(pages), 1):
        if not len(before) or not len(page):
            continue
        last, first = before.value[-1], page.value[0]
        equal = last == first or (np.isnan(last) and np.isnan(first))
        names = before.series[before.index[-1]], page.series[page.index[0]]
        if equal and before.hour[-1] == page.hour[0] and names[0] == names[1]:
            kept[i] = Columns(page.series, page.hour[1:], page.index[1:], page.value[1:])
            repeated.add(i)
    return kept, repeated


def merge(parts: Sequence[Columns]) -> tuple[Columns, Int64s]:
    """Merge parts into one canonical `Columns`: series sorted, rows sorted by hour, respondent, variable.

    Returns:
        The columns, and the index of the part that each row comes from: int64 [row].
    """
    used = {
        part.series[i] for part in parts for i in np.flatnonzero(np.bincount(part.index, minlength=len(part.series)))
    }
    series = tuple(sorted(used))
    position = {name: i for i, name in enumerate(series)}
    indexes = [
        part.index
        if part.series == series
        else np.array([position.get(name, -1) for name in part.series] or [0], np.int32)[part.index]
        for part in parts
    ]
    if len(parts) == 1:  # a page of a file of half a year has 35 MB: no copy of it
        merged = Columns(series, parts[0].hour, indexes[0], parts[0].value)
        owner = np.zeros(len(merged), np.int64)  # memory that is not touched
    else:
        merged = Columns(
            series,
            np.concatenate([part.hour for part in parts] or [EMPTY.hour]),
            np.concatenate(indexes or [EMPTY.index]),
            np.concatenate([part.value for part in parts] or [EMPTY.value]),
        )
        owner = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    if merged.is_sorted():  # as pages come that are sorted by every column
        return merged, owner
    order = np.argsort(merged.keys(), kind="stable")
    owner = owner[order] if len(parts) > 1 else owner
    return Columns(series, merged.hour[order], merged.index[order], merged.value[order]), owner


def duplicate_owners(merged: Columns, owner: Int64s) -> set[int]:
    """Return the parts (as numbered by `merge`) that share an (hour, series) with another row."""
    same = np.flatnonzero((merged.hour[1:] == merged.hour[:-1]) & (merged.index[1:] == merged.index[:-1]))
    return {int(part) for part in np.concatenate([owner[same], owner[same + 1]])}


def find_gaps(columns: Columns, spans: dict[str, tuple[int, int]], step: int = 1) -> tuple[Gap, ...]:
    """Find the runs of hours that each series in `columns` lacks.

    Args:
        columns: the rows.
        spans: respondent → first and last hour number (inclusive) that it should have.
        step: hours from one value to the next: 24 for rows of days, whose spans begin and end with a day.

    Returns:
        Gaps by series, then time. A respondent without any row is one gap of the variable `EVERYTHING`.
    """
    if not spans:
        return ()
    low, high = min(first for first, _ in spans.values()), max(last for _, last in spans.values())
    present = np.zeros((len(columns.series), (high - low) // step + 3), np.int8)
    hour, index = columns.hour, columns.index
    if len(hour) and not (low <= hour.min() and hour.max() <= high):  # a file can list hours beside the span
        own = (hour >= low) & (hour <= high)
        hour, index = hour[own], index[own]
    present[index, (hour - low) // step + 1] = 1
    rows: dict[str, list[int]] = {respondent: [] for respondent in spans}
    for row, (respondent, _) in enumerate(columns.series):
        first, last = spans.get(respondent, (high + 1, high))
        # Sentinels, so that a gap at either end has two edges; without a span nothing is a gap.
        present[row, : (first - low) // step + 1], present[row, (last - low) // step + 2 :] = 1, 1
        if respondent in rows:
            rows[respondent].append(row)
    edges = np.diff(present)
    runs: dict[int, list[tuple[int, int]]] = {}
    for (row, start), stop in zip(np.argwhere(edges == -1).tolist(), np.nonzero(edges == 1)[1].tolist(), strict=True):
        runs.setdefault(row, []).append((low + start * step, low + stop * step))
    gaps: list[Gap] = []
    for respondent, (first, last) in sorted(spans.items()):
        if not rows[respondent]:
            gaps.append(Gap(respondent, EVERYTHING, hour_text(first), hour_text(last), last - first + 1))
        for row in rows[respondent]:
            for start, stop in runs.get(row, ()):
                variable = columns.series[row][1]
                gaps.append(Gap(respondent, variable, hour_text(start), hour_text(stop - 1), stop - start))
    return tuple(gaps)


def digest(columns: Columns) -> str:
    """Return the sha256 of canonical rows (the order of `merge`); equal digests mean equal data.

    It covers the series names as JSON, then hours, indexes and values, little-endian. Every null is the same NaN and
    every zero the same zero.
    """
    hashed = hashlib.sha256(json.dumps(columns.series, separators=(",", ":")).encode() + b"\n")
    hashed.update(np.ascontiguousarray(columns.hour, "<i4").data)
    hashed.update(np.ascontiguousarray(columns.index, "<i4").data)
    for low in range(0, len(columns), SLICE):
        value = np.asarray(columns.value[low : low + SLICE] + 0.0, "<f8")
        value[np.isnan(value)] = np.nan
        hashed.update(value.data)
    return hashed.hexdigest()


def to_table(columns: Columns) -> pa.Table:
    """Return canonical columns as an Arrow table: hour int32, respondent and variable (dictionary of string), value float64 with nulls."""

    def labels(names: list[str]) -> pa.DictionaryArray:
        distinct = sorted(set(names))
        lookup = np.array([distinct.index(name) for name in names] or [0], np.int32)
        return pa.DictionaryArray.from_arrays(as_arrow(lookup[columns.index], pa.int32()), as_strings(distinct))

    arrays = [
        as_arrow(columns.hour, pa.int32()),
        labels([respondent for respondent, _ in columns.series]),
        labels([variable for _, variable in columns.series]),
        as_arrow(columns.value, pa.float64(), np.isnan(columns.value)),
    ]
    return pa.Table.from_arrays(arrays, ["hour", "respondent", "variable", "value"])


def as_arrow(values: Array, kind: pa.DataType, null: Bools | None = None) -> pa.Array:
    """Return a numpy array [n] as Arrow, without `pa.array`, which would import pandas: seconds of start-up."""
    valid = None if null is None else pa.py_buffer(np.packbits(~null, bitorder="little").tobytes())
    return pa.Array.from_buffers(kind, len(values), [valid, pa.py_buffer(np.ascontiguousarray(values))])


def as_strings(names: Sequence[str]) -> pa.StringArray:
    """Return names as Arrow, also without `pa.array`."""
    encoded = [name.encode() for name in names]
    offsets = np.cumsum([0, *map(len, encoded)]).astype(np.int32)
    return pa.StringArray.from_buffers(len(names), pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded)))


def as_numpy(array: pa.Array) -> Array:
    """Return Arrow numbers as numpy [n] without pandas, as a view where there are no nulls; null floats become NaN."""
    kind = np.dtype(array.type.to_pandas_dtype())
    if not len(array):
        return np.empty(0, kind)
    valid, data = array.buffers()
    values = np.frombuffer(data, kind, len(array), array.offset * kind.itemsize)
    if valid is None or not array.null_count:
        return values
    bits = np.unpackbits(np.frombuffer(valid, np.uint8), bitorder="little")[array.offset : array.offset + len(array)]
    return np.where(bits, values, np.nan)


def from_table(table: pa.Table) -> Columns:
    """Return the table of a piece as canonical columns."""
    respondent, variable = (table.column(name).combine_chunks() for name in ("respondent", "variable"))
    variables = variable.dictionary.to_pylist()
    pairs = tuple((one, other) for one in respondent.dictionary.to_pylist() for other in variables)
    index = as_numpy(respondent.indices).astype(np.int32) * len(variables) + as_numpy(variable.indices)
    hour, value = (as_numpy(table.column(name).combine_chunks()) for name in ("hour", "value"))
    used = np.bincount(index, minlength=len(pairs)) > 0
    named = tuple(pair for pair, one in zip(pairs, used.tolist(), strict=True) if one)
    if named == tuple(sorted(set(named))):
        columns = Columns(named, hour, (np.cumsum(used, dtype=np.int32) - 1)[index], value)
        if columns.is_sorted():
            return columns  # as a piece is written; a merge would take several times as long to find the same
    return merge([Columns(pairs, hour, index, value)])[0]
