"""EIA's key-less six-month files `EIA930_BALANCE_<year>_{Jan_Jun,Jul_Dec}.csv`: every balancing authority, no region.

https://www.eia.gov/electricity/gridmonitor/about. A file covers half a year of *local* dates, so its last UTC hours
fall on the first day of the next half; they stay in this shard's piece. Columns are found by name, because the set of
columns changes from year to year. The plain reported column of a variable counts, never "(Imputed)" or "(Adjusted)".
Hydro is "Hydropower and Pumped Storage" in older files and "Hydropower Excluding Pumped Storage" in newer ones; both
are WAT. A variable that is empty in every hour of a balancing authority counts as not reported.
"""

from __future__ import annotations

import csv as text_csv
import gzip
import io
import re
import zlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from ingest.array_types import Floats, Int32s
from ingest.catalog import REGION, RESPONDENTS
from ingest.columns import EMPTY, EPOCH, Columns, has_duplicates, hour_number
from ingest.errors import SourceError, UsageError
from ingest.http import HttpResponse, plain_body, raise_for_response
from ingest.models import HOUR, MAX_VARIABLES, FetchJob
from ingest.routes import variable_of
from ingest.sources.base import EIA_LICENCE, Page, Source

T = TypeVar("T")

HEADER_LIMIT = 1 << 16  # bytes of the header line; EIA's has 5,000
PLAIN_LIMIT = 1 << 30  # bytes of one file, unpacked; EIA's have about 100 MB
MAX_CELLS = 32 << 20  # kept rows x variables: half a year of every balancing authority is 20 million
BLOCK = 4 << 20  # bytes of CSV parsed at a time
LOCAL_LAG_HOURS = 24  # the latest local midnight is well under a day behind UTC
# From the first hour (T00) of a half-year in UTC to the first that its file lists in Pacific standard time (T09), and from its
# last (T23) to the last in Eastern daylight time (T04).
LATEST_START, EARLIEST_END = 9, 5
# Names of columns and of fuels in lower case: their case does not count.
_RESPONDENT, _UTC = "balancing authority", "utc time at end of hour"
_TYPES = {
    "demand forecast (mw)": "DF",
    "demand (mw)": "D",
    "net generation (mw)": "NG",
    "total interchange (mw)": "TI",
}
_NULLS = ["", "NA", "N/A", "n/a", "NaN", "-", "--"]
_FUELS = {
    "coal": "COL",
    "natural gas": "NG",
    "nuclear": "NUC",
    "all petroleum products": "OIL",
    "hydropower and pumped storage": "WAT",
    "hydropower excluding pumped storage": "WAT",
    "hydropower": "WAT",
    "pumped storage": "PS",
    "solar": "SUN",
    "solar without integrated battery storage": "SUN",
    "solar with integrated battery storage": "SNB",
    "wind": "WND",
    "wind without integrated battery storage": "WND",
    "wind with integrated battery storage": "WNB",
    "battery storage": "BAT",
    "other energy storage": "OES",
    "unknown energy storage": "UES",
    "geothermal": "GEO",
    "other fuel sources": "OTH",
    "unknown fuel sources": "UNK",
}
_FUEL_COLUMN = re.compile(r"net generation \(mw\) from (.+?)(?: \((?:imputed|adjusted)\))?$")
_FORMATS = ("%m/%d/%Y %I:%M:%S %p", "%m/%d/%Y %H:%M:%S", "%m/%d/%Y %H:%M", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S")


def variables_of(header: list[str]) -> dict[str, str]:
    """Return column → variable, for the plain columns of a file's header. Case and blanks of names do not count.

    An unknown fuel keeps its name (`Net Generation (MW) from Green Tea` → `NG.GREEN_TEA`), so that nothing that a new
    vintage adds is lost. Two columns can be of one variable, e.g. "Solar" and "Solar without Integrated Battery Storage".
    """
    found: dict[str, str] = {}
    for column in header:
        name = _plain(column)
        match = _FUEL_COLUMN.fullmatch(name)
        if name in _TYPES:
            found[column] = _TYPES[name]
        elif match and not name.endswith(("(imputed)", "(adjusted)")):
            code = _FUELS.get(match[1]) or re.sub(r"\W+", "_", match[1]).upper().strip("_")
            found[column] = variable_of("fuel-type-data", code)
    return found


def _plain(name: str) -> str:
    return " ".join(name.lower().split())


class Bulk(Source):
    """EIA's six-month files: one request per shard, no key. EIA states no limit of requests for them."""

    url = "https://www.eia.gov"
    licence = EIA_LICENCE
    citation = "U.S. Energy Information Administration, Form EIA-930, six-month files, https://www.eia.gov/electricity/gridmonitor/"
    routes = ("BALANCE",)
    first_hour = "2015-07-01T00"  # EIA-930's first file, https://www.eia.gov/todayinenergy/detail.php?id=46117
    deadline_s = 1800.0
    wire_limit = 512 << 20  # sent as plain text, compressed while it arrives
    suffix = ".csv.gz"
    compress = True
    shard_months = 6
    whole_files = True
    spill_hours = 12  # a file is cut in local time

    def serves(self, respondent: str) -> bool:
        """Return whether it is a balancing authority."""
        one = RESPONDENTS.get(respondent)  # None: newer than the table
        return one is None or one.kind != REGION

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
        return f"/electricity/gridmonitor/sixMonthFiles/EIA930_{job.shard.route}_{year}_{half}.csv"

    def expected_rows(self, offset: int, total: int) -> int | None:
        """Return `total`, the lines of the file."""
        return total

    def receive(self, job: FetchJob, response: HttpResponse, key: str | None) -> tuple[bytes, Page]:
        """Return the bytes to store and the page; see `Source.receive`."""
        if response.status != 200:
            raise_for_response(response, plain_body(response))
        with gzip.GzipFile(fileobj=io.BytesIO(response.body)) as file:
            raise_for_response(response, _guarded(lambda: file.read(256)))
        return response.body, self.parse(job, response.body)

    def parse(self, job: FetchJob, stored: bytes) -> Page:
        """Return the page of a stored file."""
        return _guarded(lambda: _parse(job, stored))

    def spans(self, job: FetchJob, columns: Columns) -> dict[str, tuple[int, int]]:
        """Return the hours that a file lists in any zone of the contiguous states, and those beside them that it does list.

        For a respondent that the file does not list: the shard's period. Hours before `job.gaps_from` do not count.
        """
        first, last = hour_number(job.shard.start), hour_number(job.shard.end)
        asked = hour_number(job.gaps_from) if job.gaps_from else first
        spans = {name: (max(first, asked), last) for name in job.respondents}
        respondents = np.array([respondent for respondent, _ in columns.series])
        for name in set(respondents.tolist()):
            hours = columns.hour[np.flatnonzero(respondents == name)[0] == columns.index]
            low, high = min(int(hours.min()), first + LATEST_START), max(int(hours.max()), last + EARLIEST_END)
            spans[name] = (max(low, asked), high)
        return {name: (low, high) for name, (low, high) in spans.items() if low <= high}


def _guarded(read: Callable[[], T]) -> T:
    """Return `read()`.

    Raises:
        SourceError: kind "csv", for every way in which a gzip stream breaks.
    """
    try:
        return read()
    except (EOFError, gzip.BadGzipFile, zlib.error, pa.ArrowInvalid, text_csv.Error, UnicodeDecodeError) as error:
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
    with gzip.GzipFile(fileobj=io.BytesIO(stored)) as file:
        line = file.readline(HEADER_LIMIT + 1)
    if len(line) > HEADER_LIMIT:
        raise SourceError(f"the header line has more than {HEADER_LIMIT >> 10} KiB", "csv")
    header = next(text_csv.reader([line.decode("utf-8-sig", "replace")]), [])
    variables = variables_of(header)
    if len(variables) > MAX_VARIABLES:
        raise SourceError(f"the file has more than {MAX_VARIABLES} variables", "foreign")
    named = {_plain(name): name for name in reversed(header)}
    if missing := {_RESPONDENT, _UTC, *_TYPES} - named.keys():
        raise SourceError(f"the file has no column {', '.join(sorted(missing))}", "csv")
    who, when = named[_RESPONDENT], named[_UTC]
    texts = dict.fromkeys((who, when), pa.dictionary(pa.int32(), pa.string()))
    convert = csv.ConvertOptions(
        include_columns=[*texts, *variables],
        column_types=texts | dict.fromkeys(variables, pa.string()),
        strings_can_be_null=True,
        null_values=_NULLS,
    )
    counter = _LineCounter(gzip.GzipFile(fileobj=io.BytesIO(stored)))
    rows = kept = 0
    hours: list[Int32s] = [EMPTY.hour]
    respondents: list[npt.NDArray[np.object_]] = [np.empty(0, object)]
    values: list[Floats] = [np.empty((0, len(variables)))]
    wanted = pa.array(job.respondents, pa.string())
    with csv.open_csv(
        pa.PythonFile(counter, "r"),
        read_options=csv.ReadOptions(block_size=BLOCK, column_names=header, skip_rows=1),
        convert_options=convert,
    ) as reader:
        for batch in reader:
            rows += batch.num_rows
            if job.respondents:
                batch = batch.filter(pc.is_in(batch.column(who).cast(pa.string()), wanted))
            kept += batch.num_rows
            if kept * len(variables) > MAX_CELLS:
                raise SourceError(f"the file has more than {MAX_CELLS:,} values", "foreign")
            hours.append(_hours(batch.column(when)))
            respondents.append(batch.column(who).to_numpy(zero_copy_only=False))
            values.append(np.column_stack([_numbers(batch.column(name)) for name in variables]))
    lines = _distinct(np.concatenate(hours), np.concatenate(respondents), np.concatenate(values))
    columns = _melt(*lines[:2], *_joined(lines[2], tuple(variables.values())))
    first, last = hour_number(job.shard.start), hour_number(job.shard.end) + LOCAL_LAG_HOURS
    if len(columns) and (columns.hour.min() < first or columns.hour.max() > last):
        raise SourceError(f"the file contains hours outside {job.shard.start}…{job.shard.end}", "foreign")
    if has_duplicates(columns):
        raise SourceError("an hour of one balancing authority occurs twice, with different values", "repeated")
    return Page(columns, rows, counter.lines, duplicates=kept - len(lines[0]))


def _distinct(
    hours: Int32s, respondents: npt.NDArray[np.object_], values: Floats
) -> tuple[Int32s, npt.NDArray[np.object_], Floats]:
    """Return lines (`values` [line, variable]) without those that equal an earlier line of their respondent and hour."""
    codes = np.unique(respondents.astype(str), return_inverse=True)[1] if len(respondents) else np.empty(0, np.int64)
    order = np.lexsort((hours, codes))
    one, other = order[:-1], order[1:]
    same = np.flatnonzero((codes[one] == codes[other]) & (hours[one] == hours[other]))
    before, after = values[one[same]], values[other[same]]
    equal = ((before == after) | (np.isnan(before) & np.isnan(after))).all(axis=1)
    keep = np.ones(len(hours), np.bool_)
    keep[other[same[equal]]] = False
    return hours[keep], respondents[keep], values[keep]


def _joined(values: Floats, variables: tuple[str, ...]) -> tuple[Floats, tuple[str, ...]]:
    """Return values [line, variable] with one column for each variable: of several, the first with a value in a line counts.

    A file of the half-year in which a column is renamed can have both.
    """
    distinct = tuple(dict.fromkeys(variables))
    if len(distinct) == len(variables):
        return values, variables
    joined = np.full((len(values), len(distinct)), np.nan)
    for column, variable in enumerate(variables):
        own = joined[:, distinct.index(variable)]
        own[:] = np.where(np.isnan(own), values[:, column], own)
    return joined, distinct


def _melt(
    hours: Int32s,
    respondents: npt.NDArray[np.object_],
    values: Floats,
    variables: tuple[str, ...],
) -> Columns:
    """Return wide rows (`values` [row, variable]) as columns, without the variables that a respondent never reports."""
    series: list[tuple[str, str]] = []
    hour, index, value = [EMPTY.hour], [EMPTY.index], [EMPTY.value]
    for respondent in sorted(set(respondents.tolist())):
        rows = np.flatnonzero(respondents == respondent)
        block = values[rows]
        for i in np.flatnonzero(~np.isnan(block).all(axis=0)):
            hour.append(hours[rows])
            index.append(np.full(len(rows), len(series), np.int32))
            value.append(block[:, i])
            series.append((respondent, variables[i]))
    return Columns(tuple(series), np.concatenate(hour), np.concatenate(index), np.concatenate(value))


def _hours(column: pa.DictionaryArray) -> Int32s:
    """Return the hour numbers [row] of UTC times at the end of an hour, parsed once per distinct text.

    Raises:
        SourceError: kind "csv": a line has no time.
    """
    numbers = np.array([_hour(text) for text in column.dictionary.to_pylist()] or [0], np.int32)
    if column.null_count:
        raise SourceError("a line has no UTC time", "csv")
    return numbers[column.indices.to_numpy()]


def _hour(text: str) -> int:
    """Return the hour number of a time in any of the formats that EIA has used.

    Raises:
        SourceError: kind "csv".
    """
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
    numbers = np.asarray(pc.cast(plain, pa.float64()).to_numpy(zero_copy_only=False))
    if np.isfinite(numbers).sum() + column.null_count != len(column):
        raise SourceError("a value is not a finite number", "csv")
    return numbers
