"""EIA Open Data API v2, the hourly and daily routes of `electricity/rto` (`ingest.routes`): pages of 5,000 rows in a total order.

https://www.eia.gov/opendata/documentation.php. `period` is UTC and hour-ending, and of a daily route the
local date in the zone that is asked for; `start` and `end` are inclusive. The key
travels in a header. `request.params` of a body echoes the query, so a body that still contains the key is rewritten
before it is stored.
"""

from __future__ import annotations

import gzip
from functools import lru_cache
from typing import Annotated, Any, Generic, TypeVar
from urllib.parse import urlencode

import msgspec
import numpy as np

from ingest.array_types import Floats, Int32s
from ingest.catalog import RESPONDENTS
from ingest.columns import EMPTY, Columns, SeriesName, day_table, drop_repeats, has_duplicates, hour_table
from ingest.console import spellings
from ingest.errors import AuthenticationError, SourceError
from ingest.http import HttpResponse, excerpt, inflate, plain_body, raise_for_response
from ingest.models import MAX_VARIABLES, FetchJob, Shard, is_daily, step_of
from ingest.routes import EIA_ROUTES, EIA_ZONES, Route, variable_of
from ingest.sources.base import EIA_LICENCE, Page, RateLimit, Source
from ingest.sources.eia_rows import scan
from ingest.zones import zone_of

PAGE_ROWS = 5000  # the API's limit for a JSON response
EIA_RATE_LIMIT = RateLimit(9000 / 3600, 5)  # EIA's FAQ: under 9,000 requests an hour sustained, 5 a second in a burst

Row = TypeVar("Row")


class _ResponseBody(msgspec.Struct, Generic[Row]):
    total: Annotated[int, msgspec.Meta(ge=0)]
    data: list[Row]


class _Body(msgspec.Struct, Generic[Row]):
    response: _ResponseBody[Row]
    version: str = msgspec.field(name="apiVersion", default="")


class _Decoders:
    """Decode a route's pages, and its rows alone: with `period`, `respondent`, `code` and `value`, by the route's names of them."""

    def __init__(self, route: Route) -> None:
        fields = [("period", str), ("respondent", str), ("code", str), ("value", float | None)]
        names = {"respondent": route.respondent, "code": route.code}
        if is_daily(route.id):
            fields.append(("timezone", str))
        row = msgspec.defstruct("Row", fields, rename=names, gc=False)
        # Lax: `total` and `value` are strings since 2.1.8 and numbers before.
        self.row = msgspec.json.Decoder(row, strict=False).decode
        self.page = msgspec.json.Decoder(_Body[row], strict=False).decode  # type: ignore[valid-type]


_DECODERS = {name: _Decoders(route) for name, route in EIA_ROUTES.items()}


class Eia(Source):
    """EIA's API v2: pages of 5,000 rows, with a key."""

    url = "https://api.eia.gov"
    licence = EIA_LICENCE
    citation = "U.S. Energy Information Administration, Form EIA-930, Open Data API v2, https://www.eia.gov/opendata/"
    routes = tuple(EIA_ROUTES)
    default_routes = ("region-data", "fuel-type-data")
    first_hour = "2019-01-01T00"
    rate_limit = EIA_RATE_LIMIT
    deadline_s = 120.0
    uses_key = True
    suffix = ".json.gz"
    paged = True

    def serves(self, respondent: str) -> bool:
        """Return whether it reports after the first hour."""
        one = RESPONDENTS.get(respondent)  # None: newer than the table
        return one is None or one.reports_in(self.first_hour, "9999")

    def route_serves(self, route: str, respondent: str) -> bool:
        """Return whether EIA publishes the route for a respondent: sub-areas are those of a few authorities."""
        served = EIA_ROUTES[route].respondents
        return served is None or respondent in served

    def ahead_hours(self, route: str) -> int:
        """Return 48 for a route with day-ahead forecasts, else 0."""
        return EIA_ROUTES[route].ahead_hours

    def planned_rows(self, shard: Shard) -> int:
        """Return hours (days) × expected series."""
        return -(-shard.hours // step_of(shard.route)) * EIA_ROUTES[shard.route].series_of(shard.respondent)

    def expected_requests(self, shard: Shard) -> int:
        """Return the planned rows / 5,000, rounded up."""
        return -(-self.planned_rows(shard) // PAGE_ROWS)

    def offsets(self, job: FetchJob, total: int | None) -> tuple[int, ...]:
        """Return the first row of each page; before the first response, only 0."""
        return tuple(range(0, max(total or 0, 1), PAGE_ROWS))

    def request(self, job: FetchJob, offset: int) -> str:
        """Return path and query of the page at `offset`, without a key."""
        return f"{_query(job.shard)}&offset={offset}&length={PAGE_ROWS}"

    def expected_rows(self, offset: int, total: int) -> int | None:
        """Return 5,000, or what is left of `total` on the last page."""
        return max(0, min(PAGE_ROWS, total - offset))

    def receive(self, job: FetchJob, response: HttpResponse, key: str | None) -> tuple[bytes, Page]:
        """Return the bytes to store and the page; see `Source.receive`.

        Raises:
            AuthenticationError: 401 or 403 whose body names the key as missing or invalid.
        """
        plain = plain_body(response)
        clean = scrub(plain, key)  # before a message quotes the start of it: half a key is a leak too
        if response.status in (401, 403) and (refusal := key_refusal(clean)):
            raise AuthenticationError(f"{response.host} rejects the API key: {refusal}. Set EIA_API_KEY to a valid key")
        raise_for_response(response, clean, key)
        stored = response.body if response.gzipped and clean is plain else gzip.compress(clean, 1, mtime=0)
        return stored, _page(job, clean)

    def parse(self, job: FetchJob, stored: bytes) -> Page:
        """Return the page of stored bytes."""
        return _page(job, inflate(stored))


@lru_cache(maxsize=64)
def _query(shard: Shard) -> str:
    """Return path and query of a shard without the page; rows are sorted by every column that identifies a row."""
    route = EIA_ROUTES[shard.route]
    query = [
        ("frequency", "daily" if shard.daily else "hourly"),
        ("data[0]", "value"),
        (f"facets[{route.respondent}][]", shard.respondent),
        ("start", shard.start[:10] if shard.daily else shard.start),
        ("end", shard.end[:10] if shard.daily else shard.end),
    ]
    columns = ["period", route.respondent, route.code]
    if shard.daily:
        query.append(("facets[timezone][]", EIA_ZONES[zone_of(shard.respondent)]))
        columns.append("timezone")
    for i, column in enumerate(columns):
        query += [(f"sort[{i}][column]", column), (f"sort[{i}][direction]", "asc")]
    return f"/v2/electricity/rto/{shard.route}/data/?{urlencode(query)}"


def key_refusal(plain: bytes) -> str | None:
    """Return "API_KEY_INVALID" or "API_KEY_MISSING" where the body contains it."""
    return next((code for code in ("API_KEY_INVALID", "API_KEY_MISSING") if code.encode() in plain), None)


def scrub(plain: bytes, key: str | None) -> bytes:
    """Return `plain` itself where `key` is not in it, otherwise a copy with every spelling of the key replaced."""
    if not key:
        return plain
    for spelling in spellings(key):
        if spelling.encode() in plain:
            plain = plain.replace(spelling.encode(), b"REDACTED")
    return plain


def _page(job: FetchJob, plain: bytes) -> Page:
    """Return the page of a body.

    Raises:
        SourceError: kind "json", "foreign" (a row that was not requested), "total" (more rows than hours can have) or "repeated".
    """
    shard = job.shard
    decoders = _DECODERS[shard.route]
    scanned = None if shard.daily else scan(plain, shard.start, shard.end, decoders.row)
    try:
        body = decoders.page(plain if scanned is None else scanned.envelope)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SourceError(f"not a page of {shard.route} ({error}): {excerpt(plain)}", "json") from error
    total = body.response.total
    if total > shard.hours * MAX_VARIABLES:
        raise SourceError(f"total {total} is more than {shard.hours} hours of {MAX_VARIABLES} variables", "total")
    if scanned is None:
        rows = body.response.data
        if not rows:
            return Page(EMPTY, 0, total, body.version)
        series, hour, index, value = _from_rows(shard, rows)
    else:
        series, places = _variables(shard, scanned.samples, [sample.code for sample in scanned.samples])
        hour, index, value = scanned.hour, np.array(places, np.int32)[scanned.kind], scanned.value
    columns, repeats = drop_repeats(Columns(series, hour, index, value))
    if has_duplicates(columns):
        raise SourceError("an hour of one variable occurs twice in one page, with two values or apart", "repeated")
    return Page(columns, len(hour), total, body.version, repeats)


def _from_rows(shard: Shard, rows: list[Any]) -> tuple[tuple[SeriesName, ...], Int32s, Int32s, Floats]:
    """Return the series of decoded rows, and hour, index of the series and value of each.

    Raises:
        SourceError: kind "foreign" or "json"; see `_page`.
    """
    raw_codes = [row.code for row in rows]
    codes = list(dict.fromkeys(raw_codes))
    if shard.daily and (zones := {row.timezone.capitalize() for row in rows} - {EIA_ZONES[zone_of(shard.respondent)]}):
        raise SourceError(
            f"the response has days of {', '.join(sorted(zones)[:3])}, which were not requested", "foreign"
        )
    series, places = _variables(shard, rows, codes)
    hours = day_table(shard.start, shard.end) if shard.daily else hour_table(shard.start, shard.end)
    try:
        hour = np.fromiter(map(hours.__getitem__, [row.period for row in rows]), np.int32, len(rows))
    except KeyError as error:
        raise SourceError(f"period {str(error)[:40]} is outside {shard.start}…{shard.end}", "foreign") from error
    values = [row.value for row in rows]
    value = np.array(values, np.float64)
    finite = int(np.isfinite(value).sum())
    if finite < len(rows) and finite + values.count(None) != len(rows):
        raise SourceError("a value is not a finite number", "json")
    position = dict(zip(codes, places, strict=True))
    return series, hour, np.fromiter(map(position.__getitem__, raw_codes), np.int32, len(rows)), value


def _variables(shard: Shard, rows: list[Any], codes: list[str]) -> tuple[tuple[SeriesName, ...], list[int]]:
    """Return the series of a page, sorted, and the place of each code among them.

    Raises:
        SourceError: kind "foreign": rows of another respondent, or too many codes.
    """
    # Names that differ only in case are equal: EIA has sent both.
    if strangers := sorted({name for name in {row.respondent for row in rows} if name.upper() != shard.respondent}):
        raise SourceError(f"the response has rows of {', '.join(strangers[:3])}, which were not requested", "foreign")
    if len(codes) > MAX_VARIABLES:
        raise SourceError(f"the response has more than {MAX_VARIABLES} variables", "foreign")
    spelt = [variable_of(shard.route, code.upper()) for code in codes]
    variables = sorted(set(spelt))
    return tuple((shard.respondent, variable) for variable in variables), [variables.index(one) for one in spelt]
