"""Sources behind one seam: which pages make a shard, what an answer means, how a stored page becomes columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ingest.columns import Columns
from ingest.errors import UsageError
from ingest.http import HttpResponse
from ingest.models import FetchJob


@dataclass(frozen=True)
class Page:
    """One answer, decoded. `rows` counts what the source sent, `total` what it says the whole request has."""

    columns: Columns
    rows: int
    total: int  # the page's own `rows` where the source gives no total
    api_version: str = ""


class Source(Protocol):
    """What `fetch_shard` needs to know of a source. Stateless: one object serves all threads."""

    suffix: str  # of stored pages
    accept_encoding: str
    sends_key: bool  # then redirects are not followed
    packs: bool  # gzip a plain answer while it arrives
    paged: bool  # pages of one request that share a `total`; else every offset is a request of its own
    deadline_s: float  # for one answer
    min_interval_s: float  # least time between two requests to one host; 0 = none

    def offsets(self, job: FetchJob, total: int | None) -> tuple[int, ...]:
        """Offsets to ask for: those known before any answer (`total` None), or all of them."""
        ...

    def request(self, job: FetchJob, offset: int) -> str:
        """Path and query of the page at `offset`, without a key."""
        ...

    def expected_rows(self, offset: int, total: int) -> int | None:
        """Rows that the page at `offset` must have, or None where the source does not say."""
        ...

    def receive(self, job: FetchJob, answer: HttpResponse, key: str | None) -> tuple[bytes, Page]:
        """Answer → bytes to store (as they came, free of `key`) and the page.

        ThrottledError, SourceError; AuthenticationError when the answer says that the key is missing or wrong.
        """
        ...

    def parse(self, job: FetchJob, stored: bytes) -> Page:
        """Stored bytes → the page. SourceError when they are not a whole page of this job."""
        ...

    def spans(self, job: FetchJob, columns: Columns) -> dict[str, tuple[int, int]]:
        """Per respondent the first and last hour (numbers, inclusive) in which every missing hour is a gap."""
        ...


def source(name: str) -> Source:
    """The source called `name`: "eia", "oasis" or "bulk". UsageError for another."""
    from ingest.sources import bulk, eia, oasis

    match name:
        case "eia":
            return eia.Eia()
        case "oasis":
            return oasis.Oasis()
        case "bulk":
            return bulk.Bulk()
    raise UsageError(f"unknown source {name!r}; known: eia, oasis, bulk")
