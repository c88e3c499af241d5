"""EIA's key-less six-month files `EIA930_<file>_<year>_{Jan_Jun,Jul_Dec}.csv`: every balancing authority, no region.

The routes BALANCE, INTERCHANGE and SUBREGION are the files of that name; ADJUSTED is what else BALANCE holds: EIA's imputed and
adjusted values, as the variables `imputed.D`, `adjusted.NG.COL`, ….

https://www.eia.gov/electricity/gridmonitor/about. A file covers half a year of *local* dates, so its last UTC hours
fall on the first day of the next half; they stay in this shard's piece. Columns are found by name, because the set of
columns changes from year to year. BALANCE reads the plain reported column of a variable, never "(Imputed)" or "(Adjusted)".
Hydro is "Hydropower and Pumped Storage" in older files and "Hydropower Excluding Pumped Storage" in newer ones; both
are WAT. A variable that is empty in every hour of a balancing authority counts as not reported.
"""

from __future__ import annotations

import csv as text_csv
import gzip
import io
import re
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from ingest.array_types import Floats, Int32s, Int64s
from ingest.catalog import REGION, RESPONDENTS, SUB_AREAS
from ingest.columns import EMPTY, EPOCH, Columns, SeriesName, as_numpy, as_strings, hour_number
from ingest.errors import SourceError, UsageError
from ingest.gunzip import DAMAGED, GzipReader
from ingest.http import HttpResponse, plain_body, raise_for_response
from ingest.models import ALL_RESPONDENTS, HOUR, FetchJob
from ingest.sources.base import EIA_LICENCE, Page, Source
from ingest.sources.bulk_layout import ADJUSTED, LONG, layout_of

T = TypeVar("T")

HEADER_LIMIT = 1 << 16  # bytes of the header line; EIA's has 5,000
PLAIN_LIMIT = 1 << 30  # bytes of one file, unpacked; EIA's have about 100 MB
MAX_CELLS = 32 << 20  # kept rows x variables: half a year of every balancing authority is 20 million
BLOCK = 4 << 20  # bytes of CSV parsed at a time
LOCAL_LAG_HOURS = 24  # the latest local midnight is well under a day behind UTC
# From the first hour (T00) of a half-year in UTC to the first that its file lists in Pacific standard time (T09), and from its
# last (T23) to the last in Eastern daylight time (T04).
LATEST_START, EARLIEST_END = 9, 5
_NULLS = ["", "NA", "N/A", "n/a", "NaN", "-", "--"]
_USUAL = re.compile(
    r"([0-9]{2})/([0-9]{2})/([0-9]{4}) (1[0-2]|[1-9]):00:00 ([AP])M"
)  # read 20 times faster than by `strptime`
_FORMATS = ("%m/%d/%Y %I:%M:%S %p", "%m/%d/%Y %H:%M:%S", "%m/%d/%Y %H:%M", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S")


class Bulk(Source):
    """EIA's six-month files: one request per shard, no key. EIA states no limit of requests for them."""

    url = "https://www.eia.gov"
    licence = EIA_LICENCE
    citation = "U.S. Energy Information Administration, Form EIA-930, six-month files, https://www.eia.gov/electricity/gridmonitor/"
    routes = ("BALANCE", *LONG, ADJUSTED)
    default_routes = ("BALANCE",)
    first_hour = "2015-07-01T00"  # EIA-930's first file, https://www.eia.gov/todayinenergy/detail.php?id=46117
    deadline_s = 1800.0
    wire_limit = 512 << 20  # sent as plain text, compressed while it arrives
    suffix = ".csv.gz"
    compress = True
    shard_months = 6
    whole_files = True
    # A worker fetches up to four files at once, and each takes 240 MB while it is parsed, and 100 while its piece is written.
    exclusive = threading.Lock()
    spill_hours = 12  # a file is cut in local time

    def serves(self, respondent: str) -> bool:
        """Return whether it is a balancing authority."""
        one = RESPONDENTS.get(respondent)  # None: newer than the table
        return one is None or one.kind != REGION

    def route_serves(self, route: str, respondent: str) -> bool:
        """Return whether a file has the respondent: SUBREGION those with sub-areas."""
        return route != "SUBREGION" or respondent == ALL_RESPONDENTS or respondent in SUB_AREAS

    def route_first_hour(self, route: str) -> str:
        """Return the first hour of a route's files: sub-areas report since July 2018."""
        return "2018-07-01T00" if route == "SUBREGION" else self.first_hour

    def check_respondents(self, codes: Sequence[str]) -> None:
        """Refuse regions.

        Raises:
            UsageError: the respondent is a region; the files have balancing authorities only.
        """
        if regions := [code for code in codes if not self.serves(code)]:
            raise UsageError(
                f"EIA's bulk files hold balancing authorities only, not the regions {', '.join(regions)}; "
                "use CISO instead of CAL and ERCO instead of TEX, or use `--source eia`"
            )

    def request(self, job: FetchJob, offset: int) -> str:
        """Return the path of the file whose local dates the shard covers.

        Raises:
            UsageError: the shard's period is not half a year.
        """
        year, start, end = job.shard.start[:4], job.shard.start[4:], job.shard.end[4:]
        halves = {("-01-01T00", "-06-30T23"): "Jan_Jun", ("-07-01T00", "-12-31T23"): "Jul_Dec"}
        half = halves.get((start, end))
        if half is None or job.shard.end[:4] != year:
            raise UsageError(f"{job.shard.key}: a bulk file covers January to June or July to December of one year")
        file = "BALANCE" if job.shard.route == ADJUSTED else job.shard.route
        return f"/electricity/gridmonitor/sixMonthFiles/EIA930_{file}_{year}_{half}.csv"

    def expected_rows(self, offset: int, total: int) -> int | None:
        """Return `total`, the lines of the file."""
        return total

    def receive(self, job: FetchJob, response: HttpResponse, key: str | None) -> tuple[bytes, Page]:
        """Return the bytes to store and the page; see `Source.receive`."""
        if response.status != 200:
            raise_for_response(response, plain_body(response))
        with GzipReader(fileobj=io.BytesIO(response.body)) as file:
            raise_for_response(response, _guarded(lambda: file.read(256)))
        return response.body, self.parse(job, response.body)

    def parse(self, job: FetchJob, stored: bytes) -> Page:
        """Return the page of a stored file."""
        with self.exclusive:
            return _guarded(lambda: _parse(job, stored))

    def spans(self, job: FetchJob, columns: Columns) -> dict[str, tuple[int, int]]:
        """Return the hours that a file lists in any zone of the contiguous states, and those beside them that it does list.

        For a respondent that the file does not list: the shard's period. Hours before `job.gaps_from` do not count.
        """
        first, last = hour_number(job.shard.start), hour_number(job.shard.end)
        asked = hour_number(job.gaps_from) if job.gaps_from else first
        served = [name for name in job.respondents if self.route_serves(job.shard.route, name)]
        spans = {name: (max(first, asked), last) for name in served}
        count = len(columns.series)
        lows, highs = np.full(count, first + LATEST_START, np.int32), np.full(count, last + EARLIEST_END, np.int32)
        np.minimum.at(lows, columns.index, columns.hour)
        np.maximum.at(highs, columns.index, columns.hour)
        named: set[str] = set()
        for (name, _), low, high in zip(columns.series, lows.tolist(), highs.tolist(), strict=True):
            if name not in named:  # its first series
                named.add(name)
                spans[name] = (max(low, asked), high)
        return {name: (low, high) for name, (low, high) in spans.items() if low <= high}


def _guarded(read: Callable[[], T]) -> T:
    """Return `read()`.

    Raises:
        SourceError: kind "csv", for every way in which a gzip stream breaks.
    """
    try:
        return read()
    except (*DAMAGED, pa.ArrowInvalid, text_csv.Error, UnicodeDecodeError) as error:
        raise SourceError(f"the file is truncated or damaged: {error}", "csv") from error


class _LineCounter(io.RawIOBase):
    """A stream that counts the lines that pass through it."""

    def __init__(self, inner: gzip.GzipFile) -> None:
        """Wrap `inner`."""
        self.inner = inner
        self.newlines = self.bytes = 0
        self.last = b"\n"

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Return the number of bytes read into `buffer`.

        Raises:
            SourceError: kind "csv": the file is larger than `PLAIN_LIMIT`.
        """
        chunk = self.inner.read(len(buffer))
        buffer[: len(chunk)] = chunk
        self.bytes += len(chunk)
        if self.bytes > PLAIN_LIMIT:
            raise SourceError(f"the file unpacks to more than {PLAIN_LIMIT >> 20} MiB", "csv")
        self.newlines += chunk.count(b"\n")
        self.last = chunk[-1:] or self.last
        return len(chunk)

    @property
    def lines(self) -> int:
        """Lines of data read so far: without the header, with a last line that lacks its newline."""
        return self.newlines - 1 + (self.last != b"\n")


def _parse(job: FetchJob, stored: bytes) -> Page:
    """Return the page of a file, decoded in one pass, a block at a time; only the rows of `job.respondents` are kept.

    Raises:
        SourceError: kind "csv", "foreign" (hours outside the shard) or "repeated".
    """
    with GzipReader(fileobj=io.BytesIO(stored)) as file:
        line = file.readline(HEADER_LIMIT + 1)
    if len(line) > HEADER_LIMIT:
        raise SourceError(f"the header line has more than {HEADER_LIMIT >> 10} KiB", "csv")
    header = next(text_csv.reader([line.decode("utf-8-sig", "replace")]), [])
    who, when, code, variables = layout_of(job.shard.route, header)
    labels = [who, code] if code else [who]
    texts = dict.fromkeys((*labels, when), pa.dictionary(pa.int32(), pa.string()))
    convert = csv.ConvertOptions(
        include_columns=[*texts, *variables],
        column_types=texts | dict.fromkeys(variables, pa.string()),
        strings_can_be_null=True,
        null_values=_NULLS,
    )
    counter = _LineCounter(GzipReader(fileobj=io.BytesIO(stored)))
    rows = kept = 0
    hours: list[Int32s] = [EMPTY.hour]
    owners: list[Int32s] = [EMPTY.index]
    values: dict[str, list[Floats]] = {name: [EMPTY.value] for name in variables}
    known: dict[tuple[str, ...], int] = {}  # respondent, and code where the file has one → number in `owners`
    times: dict[str, int] = {}
    wanted = as_strings(job.respondents)
    with csv.open_csv(
        pa.PythonFile(counter, "r"),
        read_options=csv.ReadOptions(block_size=BLOCK, column_names=header, skip_rows=1, use_threads=False),
        convert_options=convert,
    ) as reader:
        for batch in reader:
            rows += batch.num_rows
            if job.respondents:
                batch = batch.filter(pc.is_in(batch.column(who).cast(pa.string()), wanted))
            kept += batch.num_rows
            if kept * len(variables) > MAX_CELLS:
                raise SourceError(f"the file has more than {MAX_CELLS:,} values", "foreign")
            hours.append(_hours(batch.column(when), times))
            owners.append(_owners([batch.column(name) for name in labels], known))
            for name, parts in values.items():
                parts.append(_numbers(batch.column(name)))
    hour, owner = np.concatenate(hours), np.concatenate(owners)
    cells = [
        (variables[name], np.concatenate(values.pop(name))) for name in variables
    ]  # pop: one copy of the file at a time
    equal, differing = _repeats(hour, owner, [column for _, column in cells])
    if len(equal):
        keep = np.ones(len(hour), np.bool_)
        keep[equal] = False
        hour, owner, cells = hour[keep], owner[keep], [(name, column[keep]) for name, column in cells]
    names, cells_of = _joined(cells)
    del cells
    first, last = hour_number(job.shard.start), hour_number(job.shard.end) + LOCAL_LAG_HOURS
    if len(hour) and (hour.min() < first or hour.max() > last):
        raise SourceError(f"the file contains hours outside {job.shard.start}…{job.shard.end}", "foreign")
    if differing:
        raise SourceError("an hour of one balancing authority occurs twice, with different values", "repeated")
    columns = _melt(hour, owner, cells_of, _series_of(known, names, job.shard.route))
    return Page(columns, rows, counter.lines, duplicates=len(equal))


def _owners(columns: list[pa.DictionaryArray], known: dict[tuple[str, ...], int]) -> Int32s:
    """Return the number of each line's labels, int32 [line]; new ones are added to `known`.

    Raises:
        SourceError: kind "csv": a line has no label.
    """
    if any(column.null_count for column in columns):
        raise SourceError("a line has no balancing authority or no code", "csv")
    names = [column.dictionary.to_pylist() for column in columns]
    index = np.zeros(len(columns[0]), np.int64)
    for column, own in zip(columns, names, strict=True):
        index = index * max(len(own), 1) + as_numpy(column.indices)
    found, inverse = np.unique(index, return_inverse=True)
    numbers = []
    for number in found.tolist():
        label: tuple[str, ...] = ()
        for own in reversed(names):
            number, place = divmod(number, max(len(own), 1))
            label = (own[place], *label)
        numbers.append(known.setdefault(label, len(known)))
    return np.array(numbers or [0], np.int32)[inverse]


def _series_of(known: dict[tuple[str, ...], int], variables: tuple[str, ...], route: str) -> list[list[SeriesName]]:
    """Return the series of each number in `owners`, one for each column of values."""
    long = LONG.get(route)
    return [
        [(label[0], long.prefix + label[1].upper() if long else variable) for variable in variables] for label in known
    ]


def _repeats(hours: Int32s, owners: Int32s, values: list[Floats]) -> tuple[Int64s, bool]:
    """Find the lines that share owner and hour with an earlier one.

    Args:
        hours: int32 [line].
        owners: int32 [line].
        values: float64 [line], one array for each column of the file.

    Returns:
        The lines that equal the one before them: int64 [repeat]; and whether any differs from it.
    """
    order = np.lexsort((hours, owners))
    one, other = order[:-1], order[1:]
    same = np.flatnonzero((owners[one] == owners[other]) & (hours[one] == hours[other]))
    one, other = one[same], other[same]
    equal = np.ones(len(same), np.bool_)
    for column in values:
        before, after = column[one], column[other]
        equal &= (before == after) | (np.isnan(before) & np.isnan(after))
    return other[equal], not equal.all()


def _joined(columns: list[tuple[str, Floats]]) -> tuple[tuple[str, ...], list[Floats]]:
    """Return the variables of a file and the values [line] of each: of several columns, the first with a value in a line counts.

    A file of the half-year in which a column is renamed can have both.
    """
    joined: dict[str, Floats] = {}
    for variable, values in columns:
        own = joined.get(variable)
        joined[variable] = values if own is None else np.where(np.isnan(own), values, own)
    return tuple(joined), list(joined.values())


def _melt(hours: Int32s, owners: Int32s, values: list[Floats], series_of: list[list[SeriesName]]) -> Columns:
    """Return wide rows as columns in canonical order, without the variables that an owner never reports. It empties `values`.

    Args:
        hours: int32 [row], each once for an owner.
        owners: int32 [row], index into `series_of`.
        values: float64 [row], one array for each variable; each goes when it is copied, so that the file is held about once.
        series_of: the series of an owner, one for each variable.
    """
    if not len(hours):
        return EMPTY
    order = np.argsort(owners, kind="stable")
    ends = np.cumsum(np.bincount(owners, minlength=len(series_of)))
    first = np.r_[0, ends[:-1]]  # of the rows of an owner in `order`: each has one
    reported = np.stack([np.logical_or.reduceat(~np.isnan(column[order]), first) for column in values])
    named = sorted((series_of[owner][i], i, owner) for i, owner in np.argwhere(reported).tolist())
    rows = {(i, owner): row for row, (_, i, owner) in enumerate(named)}
    hours = hours[order]
    base = int(hours.min())
    hours -= base
    # [series, hour], turned at once below: writing the result in its own order touches all of its memory for each series.
    dense = np.empty((len(named), int(hours.max()) + 1))
    there = np.zeros(dense.shape, np.bool_)
    spans = [slice(low, high) for low, high in zip(first.tolist(), ends.tolist(), strict=True)]
    for i in reversed(range(len(values))):
        column = values.pop()[order]
        for owner in np.flatnonzero(reported[i]).tolist():
            row, at = rows[i, owner], hours[spans[owner]]
            dense[row, at], there[row, at] = column[spans[owner]], True
    hour = np.repeat(np.arange(dense.shape[1], dtype=np.int32) + base, there.sum(axis=0))
    index = np.tile(np.arange(len(named), dtype=np.int32), dense.shape[1])
    value = np.ascontiguousarray(dense.T).ravel()
    if not there.all():
        kept = np.ascontiguousarray(there.T).ravel()
        index, value = index[kept], value[kept]
    return Columns(tuple(name for name, _, _ in named), hour, index.astype(np.int32, copy=False), value)


def _hours(column: pa.DictionaryArray, known: dict[str, int]) -> Int32s:
    """Return the hour numbers [row] of UTC times at the end of an hour, parsed once per distinct text of a file.

    Args:
        column: the texts.
        known: text → hour number; new ones are added. Each block of a file repeats the hours of the others.

    Raises:
        SourceError: kind "csv": a line has no time.
    """
    if column.null_count:
        raise SourceError("a line has no UTC time", "csv")
    texts = column.dictionary.to_pylist()
    known.update((text, _hour(text)) for text in texts if text not in known)
    return np.array([known[text] for text in texts] or [0], np.int32)[as_numpy(column.indices)]


def _hour(text: str) -> int:
    """Return the hour number of a time in any of the formats that EIA has used.

    Raises:
        SourceError: kind "csv".
    """
    if usual := _USUAL.fullmatch(text):
        month, day, year, hour, half = usual.groups()
        with suppress(ValueError):  # no such day: `strptime` says so
            days = date(int(year), int(month), int(day)).toordinal() - EPOCH.toordinal()
            return days * 24 + int(hour) % 12 + 12 * (half == "P")
    for form in _FORMATS:
        try:
            since = datetime.strptime(text, form).replace(tzinfo=UTC) - EPOCH
        except ValueError:
            continue
        if since % HOUR:
            break
        return since // HOUR
    raise SourceError(f"{text!r} is not the UTC end of an hour", "csv")


def _numbers(column: pa.StringArray) -> Floats:
    """Return `"1,060"` as 1060.0 and an empty cell as NaN: float64 [row].

    Raises:
        SourceError: kind "csv": a cell is infinite, or "nan".
    """
    plain = pc.replace_substring(column, ",", "")
    numbers: Floats = as_numpy(pc.cast(plain, pa.float64()))
    if np.isfinite(numbers).sum() + column.null_count != len(column):
        raise SourceError("a value is not a finite number", "csv")
    return numbers
