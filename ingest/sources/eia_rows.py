"""Read the rows of an EIA page as arrays, without an object for each: 5,000 rows in a quarter of the time of a JSON decoder.

EIA's server writes every row alike: `{"period":"2024-01-01T00"`, the texts of its series, `"value":"123"`, the unit. A row is told
from another by its period, its digits and its series alone, so rows are compared as bytes and one row of each series is
decoded as JSON. A page that is laid out in any other way, to the byte, is left to the decoder: nothing here is a guess.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np

from ingest.array_types import Array, Bools, Floats, Int32s, Int64s
from ingest.columns import hour_table

FIRST, LAST = b'"data":[{"period":"', b'}],"description":'
START, VALUE, NULL = b'{"period":"', b'"value":', b"null"
PERIOD = len(START)  # where the period is in a row
HEAD = PERIOD + 13  # where the texts of the series begin, with the quote that ends the period
DIGITS = 12  # characters of a value: fewer than a float64 holds exactly
MINUS = 254  # stands for a sign among digits
WORD = 8  # bytes compared at once
MAX_SERIES = 64  # a page with more kinds of rows is read faster by the decoder


@dataclass(frozen=True)
class ScannedRows:
    """The rows of a page in order, and the page without them."""

    envelope: bytes
    samples: list[Any]  # one decoded row of each series
    kind: Int64s  # [row] index into `samples`
    hour: Int32s  # [row] hours since 1970-01-01T00 UTC
    value: Floats  # [row] NaN where the source has null


def scan(plain: bytes, start: str, end: str, decode: Callable[[bytes], Any]) -> ScannedRows | None:
    """Return the rows of a page, or None where it has none or is laid out otherwise.

    Args:
        plain: the page.
        start: the first period that it may hold, `YYYY-MM-DDTHH`.
        end: the last.
        decode: returns `period` and `value` of the JSON of one row, and what else the caller needs of a series.
    """
    first, last = plain.find(FIRST), plain.rfind(LAST)
    if first < 0 or last < first:
        return None
    first += len(FIRST) - len(START)
    stop = last + 1
    starts = first + np.flatnonzero(np.frombuffer(plain, np.uint8, stop - first, first) == ord("{"))
    tail = _tail(plain, int(starts[1]) - 1 if len(starts) > 1 else stop)
    ends = np.append(starts[1:] - 1, stop) - len(tail)  # of the values
    if tail == b"" or (ends - starts < HEAD + len(VALUE) + DIGITS + 1).any():
        return None
    found = _values(_bytes_at(plain, ends - (DIGITS + 1), DIGITS + 1))
    if found is None:
        return None
    value, at = found[0], ends - found[1]
    if not (
        plain.startswith(START, first)
        and _same(plain, ends[:-1], tail + b"," + START)
        and plain.startswith(tail, int(ends[-1]))
        and _same(plain, at - len(VALUE), VALUE)
    ):
        return None
    hour = _hours(plain, starts + PERIOD, start, end)
    kinds = _series(plain, starts + HEAD, at - len(VALUE))
    if hour is None or kinds is None:
        return None
    samples = []
    for row in kinds[1]:
        try:
            sample = decode(plain[starts[row] : ends[row] + len(tail)])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        period = plain[starts[row] + PERIOD : starts[row] + HEAD].decode()
        null = bool(np.isnan(value[row]))
        if sample.period != period or (sample.value is None) != null or not (null or sample.value == value[row]):
            return None  # a key that comes twice, e.g.
        samples.append(sample)
    return ScannedRows(plain[:first] + plain[stop:], samples, kinds[0], hour, value)


def _tail(plain: bytes, stop: int) -> bytes:
    """Return what follows the value in the row that ends at `stop`; b"" where that is nowhere."""
    at = plain.rfind(VALUE, max(0, stop - 256), stop)
    end = plain.find(b",", at, stop)
    return plain[end:stop] if at >= 0 and end >= 0 else b""


def _bytes_at(plain: bytes, at: Int64s, size: int) -> Array:
    """Return `size` bytes from each place: uint8 [place, size]."""
    strided: Array = np.ndarray((len(plain) - size + 1,), f"V{size}", plain, 0, (1,))
    return strided[at].view(np.uint8).reshape(-1, size)


def _words_at(plain: bytes, at: Int64s, count: int = 1) -> Array:
    """Return the bytes from each place as numbers: uint64 [place, count]."""
    return _bytes_at(plain, at, count * WORD).view(np.uint64)


def _same(plain: bytes, at: Int64s, text: bytes) -> bool:
    """Return whether a text, of eight bytes or more, is at each place."""
    count = len(text) // WORD
    head = np.frombuffer(text, np.uint64, count)
    end = np.frombuffer(text, np.uint64, 1, len(text) - WORD)
    return bool((_words_at(plain, at, count) == head).all() and (_words_at(plain, at + len(text) - WORD) == end).all())


def _values(text: Array) -> tuple[Floats, Int64s] | None:
    """Return values, and the bytes that each takes; None where one is not written as `"123"`, `"-123"` or `null`.

    Args:
        text: uint8 [row, `DIGITS` + 1], the bytes up to the end of each value.
    """
    columns = np.ascontiguousarray(text.T)
    null: Bools = np.logical_and.reduce([columns[i - len(NULL)] == NULL[i] for i in range(len(NULL))])
    inside = columns[-1] == ord('"')  # rows whose value goes on, from its end to its start
    if not (inside | null).all():
        return None
    value, size = np.zeros(len(text)), np.where(inside, 2, len(NULL))
    before = np.full(len(text), 255, np.uint8)  # the character after this one
    for place in range(DIGITS):
        character = columns[-2 - place]
        digit = character - np.uint8(ord("0"))
        ends = inside & (character == ord('"'))
        minus = inside & (character == ord("-"))
        # The first digit is no zero, unless it is the only one; a minus is the first character, before a digit that is no zero.
        if ((ends | minus) & (before == 0) & (minus | (place > 1))).any() or (minus & (before > 9)).any():
            return None
        if (inside & ~ends & ~minus & (digit > 9)).any() or (ends & (before == 255)).any():
            return None
        inside &= ~ends
        if not inside.any():
            return np.where(null, np.nan, value), size
        if (inside & (before == MINUS)).any():
            return None
        size += inside
        value += np.where(inside & ~minus, digit, 0) * 10.0**place
        np.negative(value, out=value, where=minus)
        before = np.where(minus, MINUS, digit)
    return None


def _hours(plain: bytes, at: Int64s, start: str, end: str) -> Int32s | None:
    """Return the hour numbers of the periods from each place; None where one is none, or outside `start` to `end`."""
    size = HEAD - PERIOD
    first, last = _words_at(plain, at)[:, 0], _words_at(plain, at + (size - WORD))[:, 0]
    new = np.flatnonzero((first[1:] != first[:-1]) | (last[1:] != last[:-1])) + 1  # rows of an hour are together
    runs = np.concatenate([[0], new])
    known = _numbers(start, end)
    try:
        hours = [known[text] for text in _bytes_at(plain, at[runs], size).view(f"S{size}")[:, 0].tolist()]
    except KeyError:
        return None
    return np.repeat(np.array(hours, np.int32), np.diff(np.append(runs, len(at))))


@lru_cache(maxsize=16)
def _numbers(start: str, end: str) -> dict[bytes, int]:
    return {text.encode(): number for text, number in hour_table(start, end).items()}


def _series(plain: bytes, starts: Int64s, ends: Int64s) -> tuple[Int64s, list[int]] | None:
    """Return a number for each row, equal where the bytes from start to end are, and the first row of each number.

    None where there are too many. The first and the last words of a text are compared, which together are all of it.
    """
    sizes = ends - starts
    count = int(sizes.min()) // WORD
    rest = -(-(int(sizes.max()) - count * WORD) // WORD)
    if not 0 < rest <= count:
        return None
    words = np.concatenate([_words_at(plain, starts, count), _words_at(plain, ends - rest * WORD, rest)], axis=1)
    key = words.sum(axis=1)
    number = np.full(len(starts), -1, np.int64)
    rows: list[int] = []
    row = 0
    while number[row] < 0:
        if len(rows) == MAX_SERIES:
            return None
        number[key == key[row]] = len(rows)
        rows.append(row)
        row = int(number.argmin())
    alike = (words == words[rows][number]).all() and (sizes == sizes[rows][number]).all()
    return (number, rows) if alike else None
