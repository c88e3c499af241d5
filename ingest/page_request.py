"""Request pages of one shard: within the budget and on a free connection, until the source answers with something usable."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import requests

from ingest.errors import AuthenticationError, SourceError, ThrottledError
from ingest.http import HttpResponse, MinInterval, get
from ingest.models import FetchJob
from ingest.outage import OVER, REPORTED_S, OutageTimer, Wait, is_outage
from ingest.sources.base import Page, Source
from ingest.transfer_limits import Transfer

KEY_ATTEMPTS = 3  # "wrong key" responses to a key that was never accepted, before they count
_LOOPBACK = ("127.0.0.1", "localhost", "::1")  # an emulator enforces its own rate limit, by its own clock
_min_interval = MinInterval()  # shared by all fetches of the process


@dataclass
class FetchContext:
    """Resources of a worker that all its fetches share."""

    data_dir: Path
    api_key: str | None  # from the worker's environment; None is fine for the emulator
    accepted_by: set[str]  # base URLs that have accepted the key; from then on, a refusal of the key is a suspension
    pool: ThreadPoolExecutor  # for all leases of the worker: one page each, from request to stored
    connections: threading.Semaphore  # concurrent requests; other pages are verified and stored during them
    session: requests.Session  # from `ingest.http.make_session`
    # (bucket, check): blocks until one request may be sent; may raise Cancelled. While a throttle holds the bucket back, it calls
    # `check` with the seconds until the next permit, several times a second; what that raises ends it.
    acquire_permit: Callable[[str, Callable[[float], None]], None]
    on_throttle: Callable[[str, str, float | None], None]  # (bucket, kind, retry_after), for the rate limiter
    on_progress: Callable[[int, int], None]  # increments of (rows verified, requests)
    on_wait: Callable[[Wait | None], None]  # what this fetch waits for; None after each usable response
    cancelled: threading.Event
    send: Callable[..., HttpResponse] = get  # sends one request; an engine sends it from another host


@dataclass(frozen=True)
class Received:
    """A usable response."""

    response: HttpResponse
    content: bytes  # to store
    page: Page
    origin: str


class PageRequests:
    """The requests of one fetch. Its methods run on the pool's threads.

    Args:
        job: the shard.
        context: the worker's resources.
        source: the shard's source.
        key: the API key; "" for none.
        check_cancelled: raises Cancelled.
        count: counts a fault of a kind.
    """

    def __init__(
        self,
        job: FetchJob,
        context: FetchContext,
        source: Source,
        key: str,
        *,
        check_cancelled: Callable[[], None],
        count: Callable[[str], None],
    ) -> None:
        self._job, self._context, self._source, self._key = job, context, source, key
        self._check_cancelled, self._count_fault = check_cancelled, count
        self._host = urlsplit(job.base_url).hostname or ""
        self._outage = OutageTimer(_address(job.base_url), context.on_wait)
        self._counting = threading.Lock()
        self.sent = 0

    def receive(self, offset: int, before: Received | None) -> Received:
        """Return the first usable response; wait out throttles and every other form of an outage.

        A key that was accepted once is not wrong when it is refused: it is suspended. A response equal to `before` byte for
        byte is not decoded again.

        Raises:
            AuthenticationError: `KEY_ATTEMPTS` responses reject a key that was never accepted.
            SourceError: kind `OVER`: no usable response in time. Any other kind: the response has a fault.
        """
        accepted_by = self._context.accepted_by
        attempt = refusals = 0
        while True:
            attempt += 1
            try:
                with self._context.connections:
                    self._acquire_permit(attempt)
                    started = time.monotonic()
                    response = self._send(offset, attempt)
                if before is not None and response.status == 200 and response.body == before.response.body:
                    received = before
                else:
                    received = self._decode(response)
            except AuthenticationError:
                refusals += 1
                if self._job.base_url not in accepted_by and refusals >= KEY_ATTEMPTS:
                    raise
                failure: ThrottledError | SourceError = ThrottledError(f"{self._host} refuses the key for now", "403")
            except ThrottledError as error:
                failure = error
            except SourceError as error:
                if not is_outage(error):
                    if error.kind != OVER:
                        self._outage.usable()
                    raise
                failure = error
            else:
                accepted_by.add(self._job.base_url)
                self._outage.usable()
                return received
            self._count_fault(failure.kind)
            if isinstance(failure, ThrottledError):
                self._context.on_throttle(self._job.bucket, failure.kind, failure.retry_after)
            self.pause(self._outage.failed(failure, attempt, started, time.monotonic()))

    def _decode(self, response: HttpResponse) -> Received:
        content, page = self._source.receive(self._job, response, self._key)
        return Received(response, content, page, response.origin(self._key))

    def _acquire_permit(self, attempt: int) -> None:
        """Block until one request may be sent."""
        self._check_cancelled()
        queued = time.monotonic()
        self._context.acquire_permit(
            self._job.bucket, lambda next_s: self._outage.held_back(attempt, queued, time.monotonic(), next_s)
        )
        if self._source.min_interval_s and self._host not in _LOOPBACK:
            self.pause(_min_interval.reserve(self._host, self._source.min_interval_s, time.monotonic()))
        self._check_cancelled()

    def _send(self, offset: int, attempt: int) -> HttpResponse:
        """Return the response to one request."""
        with self._counting:
            self.sent += 1
        self._context.on_progress(0, 1)
        headers = {"Accept-Encoding": self._source.accept_encoding}
        if self._source.uses_key and self._key:
            headers["X-Api-Key"] = self._key

        def check(transfer: Transfer) -> None:
            self._check_cancelled()
            if transfer.stalled_s > REPORTED_S:
                now = time.monotonic()
                self._outage.silent(attempt, now - transfer.stalled_s, now + transfer.left_s)

        return self._context.send(
            self._context.session,
            self._job.base_url.rstrip("/") + self._source.request(self._job, offset),
            headers,
            deadline_s=self._source.deadline_s,
            wire_limit=self._source.wire_limit,
            check=check,
            compress=self._source.compress,
            follow=not self._source.uses_key,
        )

    def pause(self, seconds: float) -> None:
        """Sleep; a withdrawn lease or the failure of another page ends it with Cancelled."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._context.cancelled.wait(min(left, 0.1))
            self._check_cancelled()


def _address(base_url: str) -> str:
    """Return host and port of a URL, without a user and password."""
    return urlsplit(base_url).netloc.rpartition("@")[2] or base_url
