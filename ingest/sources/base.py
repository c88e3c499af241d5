"""Interface of a source: its address and rate limit, the pages of a shard, and how responses and stored pages decode."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import MappingProxyType

from ingest.columns import Columns, hour_number
from ingest.http import WIRE_LIMIT, HttpResponse
from ingest.models import FetchJob, Shard

EIA_LICENCE = "public domain: a work of the U.S. government; EIA asks to be named as the source"


@dataclass(frozen=True)
class RateLimit:
    """A source's stated limit on requests."""

    rate: float  # requests per second, sustained
    burst: int  # requests at once


@dataclass(frozen=True)
class Page:
    """One decoded response. `rows` counts the rows sent, duplicates included, `total` is the source's count for the whole request."""

    columns: Columns
    rows: int
    total: int  # the page's own `rows` where the source gives no total
    api_version: str = ""
    duplicates: int = 0  # rows that equal another and are not in `columns`


class Source(ABC):
    """A source as the plan and `fetch_shard` use it. Stateless: one object serves all threads."""

    # -- the API
    url: str  # base URL of the public API
    routes: tuple[str, ...]  # in the order of a plan
    default_routes: tuple[str, ...] = ()  # of a plan that names none; () = all
    aliases: Mapping[str, str] = MappingProxyType({})  # variable → EIA's name that a series has it under as well
    first_hour = ""  # of all of its data, YYYY-MM-DDTHH; "": unknown
    licence = "not stated by the source"  # of its data
    citation = "not stated by the source"  # how to name the data's origin
    rate_limit: RateLimit | None = None  # None: the source states no limit
    min_interval_s = 0.0  # minimum time between two requests to one host; 0 = none
    deadline_s: float  # seconds for one response
    wire_limit = WIRE_LIMIT  # bytes of one response
    uses_key = False  # the key travels in a header, and redirects are not followed
    accept_encoding = "gzip"

    # -- pages
    suffix: str  # of stored pages
    compress = False  # gzip a plain response while it arrives
    paged = False  # the pages of a request share a `total`; otherwise every offset is a request by itself

    # -- shards
    shard_months = 12  # a plan is cut at these boundaries
    exclusive: AbstractContextManager[object] = (
        nullcontext()
    )  # held while a response is parsed and while its piece is written
    whole_files = False  # a shard is one file of fixed period that holds every respondent
    spill_hours = 0  # rows of a shard can end this many hours after it

    def serves(self, respondent: str) -> bool:
        """Return whether this source has hours of a known respondent, on any route."""
        return True

    def route_first_hour(self, route: str) -> str:
        """Return the first hour of a route, `YYYY-MM-DDTHH`; "": unknown."""
        return self.first_hour

    def route_serves(self, route: str, respondent: str) -> bool:
        """Return whether a route has hours of a respondent that the source serves."""
        return True

    def check_respondents(self, codes: Sequence[str]) -> None:  # noqa: B027 - an optional hook
        """Raise UsageError for known respondents that this source does not serve."""

    def ahead_hours(self, route: str) -> int:
        """Return how many hours after the present one a route can have values: 0, or more for day-ahead values."""
        return 0

    def planned_rows(self, shard: Shard) -> int:
        """Return about how many rows a shard has; only their proportion between shards matters, for the time left."""
        return shard.hours

    def expected_requests(self, shard: Shard) -> int:
        """Return the requests that a fetch without faults spends, as planned."""
        return 1

    def offsets(self, job: FetchJob, total: int | None) -> tuple[int, ...]:
        """Return the offsets to request: those known before any response (`total` None), or all of them."""
        return (0,)

    @abstractmethod
    def request(self, job: FetchJob, offset: int) -> str:
        """Return path and query of the page at `offset`, without a key."""

    def expected_rows(self, offset: int, total: int) -> int | None:
        """Return the rows that the page at `offset` must have, or None where the source does not say."""
        return None

    @abstractmethod
    def receive(self, job: FetchJob, response: HttpResponse, key: str | None) -> tuple[bytes, Page]:
        """Decode a response.

        ThrottledError asks for a pause, SourceError for a retry; AuthenticationError means that the response calls the key
        missing or wrong.

        Returns:
            The bytes to store (as received, without `key`) and the page.
        """

    @abstractmethod
    def parse(self, job: FetchJob, stored: bytes) -> Page:
        """Decode stored bytes; SourceError means that they are not a complete page of this job."""

    def spans(self, job: FetchJob, columns: Columns) -> dict[str, tuple[int, int]]:
        """Return per respondent the first and last hour number (inclusive) in which every missing hour is a gap."""
        return {job.shard.respondent: (hour_number(job.shard.start), hour_number(job.shard.end))}
