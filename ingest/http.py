"""HTTP for every source: pooled sessions, one answer as its wire bytes, throttles told from faults, pauses."""

from __future__ import annotations

import http.client
import os
import random
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from http.cookiejar import DefaultCookiePolicy
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.utils import get_environ_proxies

from ingest.backoff import backoff_s
from ingest.errors import SourceError, ThrottledError

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 30.0  # silence between two reads, not the whole answer
CHUNK = 1 << 18  # bytes read at a time: most pages are one chunk
PLAIN_LIMIT = 64 << 20  # bytes: a page that unpacks to more is no page of 5,000 rows
USER_AGENT = "ring-attention-energy/0.1 (+https://www.eia.gov/opendata)"


@dataclass(frozen=True)
class HttpResponse:
    """One HTTP answer. `body` is what came over the wire: still gzip where `gzipped`."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    gzipped: bool
    host: str
    seconds: float  # request to last byte
    fetched: str  # UTC, ISO 8601

    @property
    def origin(self) -> str:
        """The emulator's world ("synthetic", "recordings"), else the host name."""
        return self.headers.get("X-Emulator-World") or self.host


def make_session(connections: int) -> requests.Session:
    """A session with `connections` pooled connections a host, no cookies, no netrc, no retries of its own."""
    session = requests.Session()
    session.trust_env = False  # proxies come from `_proxies`, once a host and not once a request
    session.verify = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    adapter = HTTPAdapter(pool_connections=4, pool_maxsize=connections, max_retries=0, pool_block=False)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    return session


@lru_cache(maxsize=16)
def _proxies(origin: str) -> dict[str, str]:
    return dict(get_environ_proxies(origin))


def get(
    session: requests.Session,
    url: str,
    headers: Mapping[str, str],
    *,
    deadline_s: float,
    alive: Callable[[], None],
    pack: bool = False,
    follow: bool = False,
) -> HttpResponse:
    """One GET → its Answer, whatever the status.

    `alive` is called between reads and may raise. `pack` gzips a large plain body while it arrives, so that it is never
    whole in memory. `follow` follows redirects: never with a key in `headers`, which another host would then see.
    SourceError kinds: "timeout", "reset", "encoding", "status" (too many redirects).
    """
    parts = urlsplit(url)
    started = time.monotonic()
    prepared = requests.PreparedRequest()  # step by step: our URLs are encoded already, and doing it again costs most
    prepared.prepare_method("GET")
    prepared.url = url
    prepared.prepare_headers({"User-Agent": USER_AGENT, **headers})
    prepared.prepare_cookies({})
    prepared.prepare_hooks({})
    try:
        response = session.send(
            prepared,
            stream=True,
            timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S),
            proxies=_proxies(f"{parts.scheme}://{parts.netloc}"),
            allow_redirects=follow,
        )
        with response:
            encoding = response.headers.get("Content-Encoding", "identity").lower()
            if encoding not in ("gzip", "x-gzip", "identity"):
                raise SourceError(
                    f"{parts.netloc} answered in an encoding that was not asked for: {encoding}", "encoding"
                )
            gzipped = encoding != "identity"
            packer = (
                zlib.compressobj(1, zlib.DEFLATED, 31) if pack and not gzipped and response.status_code == 200 else None
            )
            chunks = []
            while chunk := response.raw.read(CHUNK, decode_content=False):
                chunks.append(packer.compress(chunk) if packer else chunk)
                alive()
                if time.monotonic() - started > deadline_s:
                    raise SourceError(f"{parts.netloc} took over {deadline_s:.0f} s for one answer", "timeout")
            if packer:
                chunks.append(packer.flush())
    except (requests.Timeout, urllib3.exceptions.TimeoutError) as error:
        raise SourceError(f"{parts.netloc} did not answer in time ({type(error).__name__})", "timeout") from error
    except requests.TooManyRedirects as error:
        raise SourceError(f"{parts.netloc} redirects without end", "status") from error
    except (requests.RequestException, urllib3.exceptions.HTTPError, http.client.HTTPException, OSError) as error:
        raise SourceError(f"{parts.netloc}: connection lost or refused ({type(error).__name__})", "reset") from error
    return HttpResponse(
        response.status_code,
        response.headers,
        b"".join(chunks),
        gzipped or packer is not None,
        urlsplit(response.url).hostname or parts.netloc,
        time.monotonic() - started,
        datetime.now(UTC).isoformat(timespec="milliseconds"),
    )


def inflate(packed: bytes, limit: int = PLAIN_LIMIT) -> bytes:
    """Whole gzip bytes (one member or several) → plain. SourceError "json" when cut short, damaged or over `limit` bytes."""
    plain = b""
    try:
        while True:
            inflator = zlib.decompressobj(31)
            part = inflator.decompress(packed, limit + 1 - len(plain))
            plain = plain + part if plain else part
            if len(plain) > limit:
                raise SourceError(f"an answer unpacks to more than {limit >> 20} MiB", "json")
            if not inflator.eof:
                raise SourceError(f"a gzip answer is cut short after {len(packed)} bytes", "json")
            packed = inflator.unused_data
            if not packed:
                return plain
    except zlib.error as error:
        raise SourceError(f"a gzip answer is damaged: {error}", "json") from error


def plain_body(answer: HttpResponse) -> bytes:
    """The body unpacked. SourceError "json" when it can't be; but of an answer that isn't 200 the status says enough."""
    try:
        return inflate(answer.body) if answer.gzipped else answer.body
    except SourceError:
        if answer.status == 200:
            raise
        return b""


def looks_like_html(plain: bytes) -> bool:
    """Whether a body, uncompressed, is a page for people."""
    return plain[:256].lstrip().lower().startswith((b"<html", b"<!doctype html", b"<head", b"<body"))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """`Retry-After` in seconds (either form), or None. A date counts from the answer's own `Date`: our clock may be wrong."""
    text = headers.get("Retry-After", "").strip()
    if not text:
        return None
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        now = parsedate_to_datetime(headers["Date"]) if "Date" in headers else datetime.now(UTC)
        return max(0.0, (parsedate_to_datetime(text) - now).total_seconds())
    except (ValueError, TypeError):
        return None


def raise_for_response(answer: HttpResponse, plain: bytes) -> None:
    """Raise what any source's answer means when it is not data: ThrottledError or SourceError. Returns for a usable 200.

    429 in any form, 403, and an HTML notice under 200 are throttles; 5xx, with whatever body, is a fault to retry.
    """
    status, pause = answer.status, retry_after(answer.headers)
    if status == 429:
        raise ThrottledError(f"{answer.host} answered 429", "429", pause)
    if status == 403:
        raise ThrottledError(
            f"{answer.host} answered 403: suspended", "html" if looks_like_html(plain) else "403", pause
        )
    if status >= 500:
        raise SourceError(f"{answer.host} answered {status}", "5xx")
    if status == 400:
        raise SourceError(f"{answer.host} refused the parameters (400): {excerpt(plain)}", "refused")
    if status != 200:
        where = answer.headers.get("Location", "")
        raise SourceError(
            f"{answer.host} answered {status}{f', to {urljoin(answer.host, where)}' if where else ''}", "status"
        )
    if looks_like_html(plain):
        raise ThrottledError(f"{answer.host} answered an HTML page instead of data", "html", pause)


def excerpt(plain: bytes, length: int = 160) -> str:
    """The start of a body, fit for an error message."""
    return " ".join(plain[:length].decode("utf-8", "replace").split())


def pause_s(attempt: int, base: float, cap: float) -> float:
    """Exponential back-off with jitter: attempt 1 waits `base`, each further one twice as long up to `cap`, ±50%."""
    return backoff_s(attempt, base, cap) * random.uniform(0.5, 1.5)


class MinInterval:
    """A least time between two requests to one host, for sources whose terms ask for it; shared by the whole process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next: dict[str, float] = {}

    def reserve(self, host: str, min_interval_s: float, now: float) -> float:
        """Seconds to wait from `now` until this request may be sent; the next one is `min_interval_s` later still."""
        with self._lock:
            at = max(now, self._next.get(host, now))
            self._next[host] = at + min_interval_s
            return at - now
