"""Ask EIA's API which respondents each route has, and for their first and last hours: about 45 requests.

Two pages of region-data, sorted by time from either end, hold the first and last hours of nearly all; the others are asked for by name.
"""

import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode, urlsplit

import msgspec
import requests

from ingest.catalog_listing import CatalogListing, from_facets
from ingest.errors import AuthenticationError, SourceError, ThrottledError
from ingest.http import get, jittered_backoff_s, make_session, plain_body, raise_for_response, served_hour
from ingest.routes import EIA_ROUTES
from ingest.sources.eia import PAGE_ROWS, key_refusal, scrub
from ingest.transfer_limits import Transfer

ATTEMPTS = 5  # answers to one request that may be unusable
BACKOFF_S = (0.5, 20.0)  # first and longest pause after one
DEADLINE_S = 60.0  # for one answer
_HOURS_OF = "region-data"  # every respondent has its net generation


class FacetClient:
    """Requests to one server.

    Args:
        base_url: its address.
        key: the API key; "" for none.
        pause_s: time between two requests.
        progress: called with the number of answers so far.
    """

    def __init__(self, base_url: str, key: str, pause_s: float, progress: Callable[[int], None]) -> None:
        self._base, self._key, self._pause, self._progress = base_url.rstrip("/"), key, pause_s, progress
        self._session: requests.Session = make_session(1)
        self._answers = 0
        self.as_of = ""  # hour of the last answer, by the server's clock

    def listing(self, table: CatalogListing) -> CatalogListing:
        """Return the respondents that the server names.

        Args:
            table: the built-in list, for what the API does not say.

        Raises:
            AuthenticationError: the server rejects the key.
            SourceError: it gives no usable answer.
        """
        facets = {
            name: self._facet(f"/v2/electricity/rto/{name}/facet/{route.respondent}/")
            for name, route in EIA_ROUTES.items()
        }
        codes = sorted({code for one in facets.values() for code in one})
        return from_facets(table, facets, self._hours(codes), urlsplit(self._base).netloc, self.as_of)

    def _facet(self, path: str) -> dict[str, str]:
        found = self._ask(path)
        try:
            return {str(one["id"]).upper(): str(one.get("name") or "") for one in found["facets"]}
        except (KeyError, TypeError) as error:
            raise SourceError(f"{path} has no list of facets: {error!r}", "json") from error

    def _hours(self, codes: list[str]) -> dict[str, tuple[str, str]]:
        """Return the first and last hour of each code that has one."""
        ends = []
        for direction in ("asc", "desc"):
            rows = self._rows(direction, PAGE_ROWS)
            found: dict[str, str] = {}
            for code, period in rows:
                found.setdefault(code, period)
            for code in codes:
                if code not in found and (own := self._rows(direction, 1, code)):
                    found[code] = own[0][1]
            ends.append(found)
        return {code: (ends[0][code], ends[1][code]) for code in codes if code in ends[0] and code in ends[1]}

    def _rows(self, direction: str, length: int, code: str = "") -> list[tuple[str, str]]:
        """Return respondent and period of the first rows by time."""
        query = [
            ("frequency", "hourly"),
            ("data[0]", "value"),
            ("facets[type][]", "NG"),
        ]  # a forecast is of hours to come
        query += [("facets[respondent][]", code)] if code else []
        for i, column in enumerate(("period", "respondent", "type")):
            query += [(f"sort[{i}][column]", column), (f"sort[{i}][direction]", direction)]
        found = self._ask(
            f"/v2/electricity/rto/{_HOURS_OF}/data/?{urlencode([*query, ('offset', 0), ('length', length)])}"
        )
        try:
            return [(str(row["respondent"]).upper(), str(row["period"])) for row in found["data"]]
        except (KeyError, TypeError) as error:
            raise SourceError(f"{_HOURS_OF} has no rows: {error!r}", "json") from error

    def _ask(self, target: str) -> Any:
        """Return `response` of the answer to one request, after retries."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._answer(target)
            except (SourceError, ThrottledError) as error:
                if attempt == ATTEMPTS or getattr(error, "kind", "") == "refused":
                    raise SourceError(f"{error} (attempts: {attempt}); try again later", "facets") from error
                time.sleep(getattr(error, "retry_after", None) or jittered_backoff_s(attempt, *BACKOFF_S))
        raise AssertionError  # pragma: no cover - the loop returns or raises

    def _answer(self, target: str) -> Any:
        if self._answers:
            time.sleep(self._pause)
        headers = {"Accept-Encoding": "gzip", **({"X-Api-Key": self._key} if self._key else {})}
        response = get(self._session, self._base + target, headers, deadline_s=DEADLINE_S, check=_go_on)
        clean = scrub(plain_body(response), self._key)
        if response.status in (401, 403) and (refusal := key_refusal(clean)):
            raise AuthenticationError(f"{response.host} rejects the API key: {refusal}. Set EIA_API_KEY to a valid key")
        raise_for_response(response, clean, self._key)
        try:
            found = msgspec.json.decode(clean)["response"]
        except (msgspec.DecodeError, KeyError, TypeError) as error:
            raise SourceError(f"{response.host} sent no answer of EIA's API: {error!r}", "json") from error
        self._answers += 1
        self._progress(self._answers)
        self.as_of = served_hour(response)
        return found


def _go_on(transfer: Transfer) -> None:
    """Never end an exchange early."""
