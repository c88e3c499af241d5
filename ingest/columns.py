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
    keys = columns.keys()
    return bool(np.bincount(keys - keys.min()).max() > 1)


def drop_repeats(columns: Columns) -> tuple[Columns, int]:
    """Drop each row that follows an equal one: a source that sends rows in a total order repeats them next to each other.

    Returns:
        The columns, in order, and the number of rows dropped.
    """
    value, before = columns.value[1:], columns.value[:-1]
    same = (columns.hour[1:] == columns.hour[:-1]) & (columns.index[1:] == columns.index[:-1])
    same &= (value == before) | (np.isnan(value) & np.isnan(before))
    if not same.any():
        return columns, 0
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
        np.array([position.get(name, -1) for name in part.series] or [0], np.int32)[part.index] for part in parts
    ]
    if len(parts) == 1:  # a page of a file of half a year has 35 MB: no copy of it beside the sorted one
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
    order = np.argsort(merged.keys(), kind="stable")
    owner = owner[order] if len(parts) > 1 else owner
    return Columns(series, merged.hour[order], merged.index[order], merged.value[order]), owner


def duplicate_owners(merged: Columns, owner: Int64s) -> set[int]:
    """Return the parts (as numbered by `merge`) that share an (hour, series) with another row."""
    keys = merged.keys()
    same = np.flatnonzero(keys[1:] == keys[:-1])
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
    gaps: list[Gap] = []
    for respondent, (first, last) in sorted(spans.items()):
        series = [i for i, (name, _) in enumerate(columns.series) if name == respondent]
        if not series:
            gaps.append(Gap(respondent, EVERYTHING, hour_text(first), hour_text(last), last - first + 1))
            continue
        row_of = np.full(
            len(columns.series), len(series)
        )  # rows of other respondents go to a last row that is not read
        row_of[series] = np.arange(len(series))
        present = np.zeros((len(series) + 1, (last - first) // step + 3), np.int8)
        present[:, [0, -1]] = 1  # sentinels, so that a gap at either end has two edges
        own = (columns.hour >= first) & (columns.hour <= last)  # a file can list hours beside the span
        if len(series) < len(columns.series):
            own &= np.isin(columns.index, series)
        present[row_of[columns.index[own]], (columns.hour[own] - first) // step + 1] = 1
        edges = np.diff(present[:-1])
        for (row, start), stop in zip(np.argwhere(edges == -1), np.nonzero(edges == 1)[1], strict=True):
            low, high = first + int(start) * step, first + int(stop) * step - 1
            gaps.append(
                Gap(respondent, columns.series[series[row]][1], hour_text(low), hour_text(high), high - low + 1)
            )
    return tuple(gaps)


def digest(columns: Columns) -> str:
    """Return the sha256 of canonical rows (the order of `merge`); equal digests mean equal data.

    It covers the series names as JSON, then hours, indexes and values, little-endian. Every null is the same NaN and
    every zero the same zero.
    """
    value = np.where(np.isnan(columns.value), np.nan, columns.value) + 0.0
    hashed = hashlib.sha256(json.dumps(columns.series, separators=(",", ":")).encode() + b"\n")
    hashed.update(columns.hour.astype("<i4").tobytes())
    hashed.update(columns.index.astype("<i4").tobytes())
    hashed.update(value.astype("<f8").tobytes())
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
    columns = Columns(pairs, hour, index, value)
    keys = columns.keys()
    used = np.bincount(index, minlength=len(pairs)).all()
    if used and pairs == tuple(sorted(set(pairs))) and (keys[1:] > keys[:-1]).all():
        return columns  # as a piece is written; a merge would take three times as long to find the same
    return merge([columns])[0]
