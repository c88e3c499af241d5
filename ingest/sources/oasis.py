"""CAISO OASIS `SingleZip`: load, its forecast, renewable forecast, schedules and day-ahead prices of CISO, in windows of at most 31 days.

https://oasis.caiso.com (Interface Specification for OASIS). A response is a zip of CSV or, also under 200, a zip of
`INVALID_REQUEST.xml`. Rows name their interval in GMT columns and are unordered. Variables are
`<query>.<XML_DATA_ITEM>.<area>[.<renewable type>]`, e.g. `ENE_SLRS.ISO_TOT_GEN_MW.Caiso_Totals`; values are MW averaged
over an hour, which equals MWh; those of `PRC_LMP` are prices in USD/MWh of a trading hub, also in the column `MW`. An hour with a missing
interval is omitted, so that it becomes a gap.
"""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Sequence
from datetime import datetime
from types import MappingProxyType
from typing import NamedTuple
from urllib.parse import urlencode

import numpy as np
import pyarrow as pa
from pyarrow import csv

from ingest.array_types import Floats, Int64s
from ingest.columns import EMPTY, EPOCH, Columns, hour_number
from ingest.errors import SourceError, ThrottledError, UsageError
from ingest.http import HttpResponse, excerpt, plain_body, raise_for_response
from ingest.models import HOUR, MAX_VARIABLES, FetchJob, Shard
from ingest.sources.base import Page, RateLimit, Source

WINDOW_HOURS = 31 * 24  # OASIS refuses longer periods
HEADER_LIMIT = 1 << 16  # bytes of a header line; OASIS's has 300
MAX_MEMBERS = 100  # files of one zip; OASIS sends one
PLAIN_LIMIT = 256 << 20  # bytes: 31 days of five-minute schedules are about 70 MB of CSV
ROUNDING_MW = 0.01  # OASIS rounds to 0.01 MW
HUBS = "TH_NP15_GEN-APND,TH_SP15_GEN-APND,TH_ZP26_GEN-APND"  # the trading hubs; OASIS has prices of thousands of nodes besides
NAMING = ("XML_DATA_ITEM", "TAC_AREA_NAME", "TAC_ZONE_NAME", "TRADING_HUB", "RENEWABLE_TYPE", "NODE")
_START, _END, _VALUE = "INTERVALSTARTTIME_GMT", "INTERVALENDTIME_GMT", "MW"
_NO_DATA = "1000"  # "No data returned for the specified selection"


class Query(NamedTuple):
    """The report of a route."""

    name: str
    market: str  # DAM: day-ahead; RTM: real-time; ACTUAL: metered
    version: str = "1"
    nodes: str = ""


QUERIES = {
    "SLD_FCST": Query("SLD_FCST", "DAM"),
    "SLD_FCST_ACTUAL": Query("SLD_FCST", "ACTUAL"),
    "SLD_REN_FCST": Query("SLD_REN_FCST", "DAM"),
    "ENE_SLRS": Query("ENE_SLRS", "RTM"),
    "PRC_LMP": Query("PRC_LMP", "DAM", "12", HUBS),
}


class Oasis(Source):
    """CAISO's OASIS: reports as zipped CSV, a window of hours each, no key."""

    url = "http://oasis.caiso.com"
    licence = "California ISO's terms of use, https://www.caiso.com"
    citation = "California ISO, Open Access Same-Time Information System (OASIS), http://oasis.caiso.com"
    routes = tuple(QUERIES)
    default_routes = ("SLD_FCST", "SLD_FCST_ACTUAL", "SLD_REN_FCST", "ENE_SLRS")
    aliases = MappingProxyType({"SLD_FCST.SYS_FCST_ACT_MW.CA ISO-TAC": "D", "SLD_FCST.SYS_FCST_DA_MW.CA ISO-TAC": "DF"})
    first_hour = "2009-04-01T08"  # CAISO's nodal market, whose reports these are, began on 2009-04-01
    rate_limit = RateLimit(1 / 5, 1)  # CAISO's 429 notice: one request every 5 seconds
    min_interval_s = 5.0  # the acceptable use policy: one request every 5 seconds
    deadline_s = 600.0
    wire_limit = 64 << 20  # a window of five-minute schedules is a zip of 3 MB
    accept_encoding = "identity"
    suffix = ".zip"

    def check_respondents(self, codes: Sequence[str]) -> None:
        """Refuse every respondent but CISO.

        Raises:
            UsageError: the respondent is not CISO.
        """
        if others := [code for code in codes if code != "CISO"]:
            raise UsageError(f"OASIS serves CISO only, not {', '.join(others)}; use --respondents CISO")

    def ahead_hours(self, route: str) -> int:
        """Return 48 for a day-ahead report, which covers the whole next local day."""
        return 48 if QUERIES[route].market == "DAM" else 0

    def expected_requests(self, shard: Shard) -> int:
        """Return the number of windows."""
        return -(-shard.hours // WINDOW_HOURS)

    def offsets(self, job: FetchJob, total: int | None) -> tuple[int, ...]:
        """Return the hours from the start of the shard to the start of each window."""
        return tuple(range(0, job.shard.hours, WINDOW_HOURS))

    def request(self, job: FetchJob, offset: int) -> str:
        """Return path and query of the window at `offset`."""
        first = hour_number(job.shard.start) - 1 + offset  # an interval starts an hour before the hour that it ends
        last = min(first + WINDOW_HOURS, hour_number(job.shard.end))
        report = QUERIES[job.shard.route]
        query = {
            "queryname": report.name,
            "market_run_id": report.market,
            "resultformat": "6",
            "version": report.version,
            "startdatetime": f"{EPOCH + first * HOUR:%Y%m%dT%H:%M}-0000",
            "enddatetime": f"{EPOCH + last * HOUR:%Y%m%dT%H:%M}-0000",
            **({"node": report.nodes} if report.nodes else {}),
        }
        return f"/oasisapi/SingleZip?{urlencode(query)}"

    def receive(self, job: FetchJob, response: HttpResponse, key: str | None) -> tuple[bytes, Page]:
        """Return the bytes to store and the page; see `Source.receive`.

        Raises:
            ThrottledError: the body is the notice of the acceptable use policy.
        """
        stored = plain_body(response)
        raise_for_response(response, stored)
        if b"Acceptable Use Policy" in stored[:1000]:
            raise ThrottledError(f"{response.host}: {excerpt(stored)}", "html")
        return stored, self.parse(job, stored)

    def parse(self, job: FetchJob, stored: bytes) -> Page:
        """Return the page of a stored zip.

        Raises:
            SourceError: kind "zip", "csv", "foreign", "repeated" or "refused".
        """
        try:
            with zipfile.ZipFile(io.BytesIO(stored)) as archive:
                members = archive.infolist()
                if len(members) > MAX_MEMBERS:
                    raise SourceError(f"the zip has {len(members)} files, at most {MAX_MEMBERS} are accepted", "zip")
                if sum(member.file_size for member in members) > PLAIN_LIMIT:
                    raise SourceError(f"the zip unpacks to more than {PLAIN_LIMIT >> 20} MiB", "zip")
                if errors := [member for member in members if member.filename.upper().startswith("INVALID_REQUEST")]:
                    return _refusal(archive.read(errors[0]).decode("utf-8", "replace"))
                tables = [_read(archive, member) for member in members if member.filename.lower().endswith(".csv")]
        except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError, zlib.error) as error:
            raise SourceError(f"not a complete zip ({error}): {excerpt(stored, 60)}", "zip") from error
        if not tables:
            raise SourceError(f"the zip contains no CSV but {[member.filename for member in members][:3]}", "zip")
        table = pa.concat_tables(tables, promote_options="default")
        columns, duplicates = _hourly(job, table)
        return Page(columns, table.num_rows, table.num_rows, duplicates=duplicates)


def _refusal(xml: str) -> Page:
    """Return an empty page where `INVALID_REQUEST.xml` only means that there is no data.

    Raises:
        SourceError: any other code; kind "refused" for wrong parameters, otherwise "zip".
    """
    code = re.search(r"ERR_CODE>\s*([^<\s]+)", xml)
    text = re.search(r"ERR_DESC>\s*([^<]+)", xml)
    if code and code[1] == _NO_DATA:
        return Page(EMPTY, 0, 0)
    # 1001 parameters, 1002 datetime: "refused" becomes a UsageError after repeated attempts.
    kind = "refused" if code and code[1] in ("1001", "1002") else "zip"
    raise SourceError(f"OASIS error {code[1] if code else '?'}: {text[1].strip() if text else 'no description'}", kind)


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> pa.Table:
    """Return the columns of one CSV that name and date a value, texts as dictionaries.

    Raises:
        SourceError: kind "csv": a column is missing, or the file is truncated.
    """
    with archive.open(member) as file:
        line = file.readline(HEADER_LIMIT + 1)
    if len(line) > HEADER_LIMIT:
        raise SourceError(f"{member.filename}: the header line has more than {HEADER_LIMIT >> 10} KiB", "csv")
    header = line.decode("utf-8-sig", "replace").strip().split(",")
    if missing := {_START, _END, _VALUE, "XML_DATA_ITEM"} - set(header):
        raise SourceError(f"{member.filename} has no column {', '.join(sorted(missing))}", "csv")
    texts = [name for name in (_START, _END, *NAMING) if name in header]
    types = {name: pa.dictionary(pa.int32(), pa.string()) for name in texts} | {_VALUE: pa.float64()}
    options = csv.ConvertOptions(include_columns=[*texts, _VALUE], column_types=types)
    try:
        with archive.open(member) as file:
            return csv.read_csv(file, convert_options=options).unify_dictionaries()
    except pa.ArrowInvalid as error:
        raise SourceError(f"{member.filename} is truncated or damaged: {error}", "csv") from error


def _hourly(job: FetchJob, table: pa.Table) -> tuple[Columns, int]:
    """Return one value per hour: the average of rows of any interval, for hours whose intervals add up to 60 minutes.

    Returns:
        The hours, and the number of rows that only repeat others: equal rows, and shorter intervals whose average an hour has too.

    Raises:
        SourceError: kind "foreign" (rows outside the shard, too many variables), "repeated" (an interval occurs twice with
            different values) or "csv".
    """
    if not table.num_rows:
        return EMPTY, 0
    start, end = _minutes(table, _START), _minutes(table, _END)
    naming = [name for name in NAMING if name in table.column_names]
    names, series = _labels(table, naming)
    hour = -(-end // 60)
    first, last = hour_number(job.shard.start), hour_number(job.shard.end)
    if hour.min() < first or hour.max() > last:
        raise SourceError(f"rows outside {job.shard.start}…{job.shard.end}", "foreign")
    value = table.column(_VALUE).to_numpy()
    if np.isinf(value).any():
        raise SourceError("a value is not a finite number", "csv")
    keep = _distinct(start, end, series, value)
    start, series, value, minutes = start[keep], series[keep], value[keep], (end - start)[keep]
    cell = (hour[keep] - first) * len(names) + series
    fine = minutes < 60
    for part in (fine, ~fine):
        if len(np.unique(start[part] * len(names) + series[part])) < np.count_nonzero(part):
            raise SourceError("an interval of one variable occurs twice, with different values", "repeated")
    size = (last - first + 1) * len(names)
    covered, energy = (np.bincount(cell[fine], part[fine], size).astype(float) for part in (minutes, minutes * value))
    hourly, whole = cell[~fine], value[~fine]
    twice = covered[hourly] > 0
    average = energy[hourly] / 60.0
    agrees = (covered[hourly] == 60) & (np.abs(average - whole) <= ROUNDING_MW) | (np.isnan(average) & np.isnan(whole))
    if (twice & ~agrees).any():
        raise SourceError("an hour and its shorter intervals have different values", "repeated")
    covered[hourly], energy[hourly] = minutes[~fine], minutes[~fine] * whole
    found = np.flatnonzero(covered == 60)
    columns = Columns(
        tuple((job.shard.respondent, ".".join((QUERIES[job.shard.route].name, *name))) for name in names),
        (first + found // len(names)).astype(np.int32),
        (found % len(names)).astype(np.int32),
        energy[found] / 60.0,
    )
    return columns, table.num_rows - len(keep) + int(np.isin(cell[fine], hourly[twice]).sum())


def _distinct(start: Int64s, end: Int64s, series: Int64s, value: Floats) -> Int64s:
    """Return the rows [kept], in order, without those that equal an earlier one."""
    order = np.lexsort((value, end, series, start))
    one, other = order[:-1], order[1:]
    same = np.logical_and.reduce([part[one] == part[other] for part in (start, end, series)])
    same &= (value[one] == value[other]) | (np.isnan(value[one]) & np.isnan(value[other]))
    return np.sort(np.concatenate((order[:1], other[~same])))


def _minutes(table: pa.Table, column: str) -> Int64s:
    """Return the minutes since 1970-01-01T00:00 UTC [row] of `2023-01-01T00:15:00-00:00`, parsed once per distinct text.

    Raises:
        SourceError: kind "csv".
    """
    texts, codes = _codes(table, column)
    try:
        moments = [datetime.fromisoformat(text) for text in texts]
        return np.array([int((moment - EPOCH).total_seconds()) // 60 for moment in moments], np.int64)[codes]
    except (ValueError, TypeError) as error:
        raise SourceError(f"a time in {column} is not a timestamp: {error}", "csv") from error


def _labels(table: pa.Table, columns: list[str]) -> tuple[list[tuple[str, ...]], Int64s]:
    """Return the distinct combinations of `columns`, sorted, and the index of each row among them: int64 [row].

    Raises:
        SourceError: kind "foreign": more than `MAX_VARIABLES` combinations.
    """
    texts, codes = zip(*(_codes(table, column) for column in columns), strict=True)
    sizes = [len(names) for names in texts]
    if max(sizes) > MAX_VARIABLES:  # checked before their product, which could exceed 64 bits
        raise SourceError(f"the file has more than {MAX_VARIABLES} variables", "foreign")
    distinct, rows = np.unique(np.ravel_multi_index(codes, sizes), return_inverse=True)
    if len(distinct) > MAX_VARIABLES:
        raise SourceError(f"the file has more than {MAX_VARIABLES} variables", "foreign")
    indices = zip(*np.unravel_index(distinct, sizes), strict=True)
    return [tuple(names[i] for names, i in zip(texts, index, strict=True)) for index in indices], rows


def _codes(table: pa.Table, column: str) -> tuple[list[str], Int64s]:
    """Return the distinct texts of a column, sorted, and the index of each row among them: int64 [row].

    Raises:
        SourceError: kind "csv": a cell is empty.
    """
    array = table.column(column).combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0)
    if array.null_count:
        raise SourceError(f"column {column} has empty cells", "csv")
    names = array.dictionary.to_pylist()
    order = sorted(range(len(names)), key=names.__getitem__)
    rank = np.argsort(order)
    return [names[i] for i in order], rank[array.indices.to_numpy(zero_copy_only=False)]
