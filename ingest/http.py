"""HTTP client for all sources: pooled sessions, responses as wire bytes, throttle detection, back-off and rate limit."""

from __future__ import annotations

import http.client
import math
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
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from requests.utils import get_environ_proxies

from ingest import gunzip, tls
from ingest.backoff import backoff_s
from ingest.console import printable, redact
from ingest.errors import SourceError, ThrottledError
from ingest.transfer_limits import BoundedAdapter, Transfer, current

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 30.0  # silence between two reads, not the whole response
CHUNK = 1 << 18  # bytes read at a time: most pages are one chunk
WIRE_LIMIT = 16 << 20  # bytes of one response: a page of 5,000 rows has 2 MB
BODY_LIMIT = 64 << 20  # bytes of one response in memory, where it is compressed while it arrives
PLAIN_LIMIT = 32 << 20  # bytes: a page that unpacks to more is no page of 5,000 rows
MEMBERS_LIMIT = 1_000  # gzip members of one response: a server sends one
MAX_RETRY_AFTER_S = 3600.0  # a server that asks for more is asked again then
ORIGIN_LIMIT = 100  # characters of a world's name
USER_AGENT = "ring-attention-energy/0.1 (+https://www.eia.gov/opendata)"


@dataclass(frozen=True)
class HttpResponse:
    """One HTTP response. `body` holds the wire bytes: still gzip where `gzipped`."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    gzipped: bool
    host: str
    seconds: float  # request to last byte
    fetched: str  # UTC, ISO 8601

    def origin(self, key: str | None) -> str:
        """Return the emulator's world ("synthetic", "recordings"), otherwise the host name; never `key`, which a server may echo."""
        return printable(redact(self.headers.get("X-Emulator-World", ""), [key]))[:ORIGIN_LIMIT] or self.host


def served_hour(response: HttpResponse) -> str:
    """Return the hour in which a response was served, `YYYY-MM-DDTHH` UTC: by its `Date`, else by this host's clock."""
    try:
        served = parsedate_to_datetime(response.headers["Date"]).astimezone(UTC)
    except (KeyError, ValueError):
        return response.fetched[:13]
    return f"{served:%Y-%m-%dT%H}"


def make_session(connections: int) -> requests.Session:
    """Return a session with `connections` pooled connections per host, and no cookies, netrc or retries of requests."""
    session = requests.Session()
    session.trust_env = False  # `_proxies` reads the environment once per host, not once per request
    session.verify = tls.ca_bundle() or True
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    adapter = BoundedAdapter(pool_connections=4, pool_maxsize=connections, max_retries=0, pool_block=False)
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
    check: Callable[[Transfer], None],
    compress: bool = False,
    follow: bool = False,
    wire_limit: int = WIRE_LIMIT,
) -> HttpResponse:
    """Send one GET request.

    Args:
        session: from `make_session`.
        url: already percent-encoded.
        headers: request headers.
        deadline_s: seconds for the whole response, its headers included.
        check: called several times a second with the state of the exchange; it may raise.
        compress: gzip a large plain body while it arrives, so that it is never in memory as a whole.
        follow: follow redirects. Never with a key in `headers`, which another host would then receive.
        wire_limit: bytes that the server may send.

    Returns:
        The response, whatever its status.

    Raises:
        SourceError: kind "timeout", "reset", "certificate", "encoding", "size" (too many bytes) or "status" (too many redirects).
    """
    parts = urlsplit(url)
    started = time.monotonic()
    current.transfer = Transfer(parts.netloc, deadline_s, READ_TIMEOUT_S, wire_limit, check)
    try:
        response = session.send(
            _prepare(url, headers),
            stream=True,
            timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S),
            proxies=_proxies(f"{parts.scheme}://{parts.netloc}"),
            allow_redirects=follow,
        )
        with response:
            encoding = response.headers.get("Content-Encoding", "identity").lower()
            if encoding not in ("gzip", "x-gzip", "identity"):
                raise SourceError(f"{parts.netloc} sent an encoding that was not requested: {encoding}", "encoding")
            gzipped = encoding != "identity"
            packer = (
                zlib.compressobj(1, zlib.DEFLATED, 31)
                if compress and not gzipped and response.status_code == 200
                else None
            )
            body = _read_body(response, packer)
    except (requests.Timeout, urllib3.exceptions.TimeoutError) as error:
        raise SourceError(f"{parts.netloc} did not respond in time ({type(error).__name__})", "timeout") from error
    except requests.TooManyRedirects as error:
        raise SourceError(f"{parts.netloc} redirects without end", "status") from error
    except (requests.RequestException, urllib3.exceptions.HTTPError, http.client.HTTPException, OSError) as error:
        untrusted = tls.certificate_error(parts.hostname or parts.netloc, error)
        raise untrusted or SourceError(f"{parts.netloc}: {_cause(error)}", "reset") from error
    finally:
        current.transfer = None
    return HttpResponse(
        response.status_code,
        response.headers,
        body,
        gzipped or packer is not None,
        urlsplit(response.url).hostname or parts.netloc,
        time.monotonic() - started,
        datetime.now(UTC).isoformat(timespec="milliseconds"),
    )


def _cause(error: Exception) -> str:
    """Return why an exchange failed below HTTP, without any text of the server."""
    while error.args and isinstance(inner := getattr(error.args[-1], "reason", error.args[-1]), Exception):
        error = inner  # what requests and urllib3 wrap
    if isinstance(error, urllib3.exceptions.NameResolutionError):
        return "the name does not resolve"
    if isinstance(error, urllib3.exceptions.NewConnectionError):
        return f"no connection ({str(error).rpartition('] ')[2]})"
    own = type(error) is http.client.HTTPException  # "got more than 100 headers"
    return f"connection lost ({error if own else type(error).__name__})"


def _read_body(response: requests.Response, packer: Any) -> bytes:
    """Return the wire bytes of a body, or what the compressor `packer` makes of them.

    Raises:
        SourceError: kind "size": they take more than `BODY_LIMIT`.
    """
    body = bytearray()
    while chunk := response.raw.read(CHUNK, decode_content=False):
        body += packer.compress(chunk) if packer else chunk
        if len(body) > BODY_LIMIT:
            host = urlsplit(response.url).netloc
            raise SourceError(f"{host} sent a body of more than {BODY_LIMIT >> 20} MiB, compressed", "size")
    if packer:
        body += packer.flush()
    return bytes(body)


def _prepare(url: str, headers: Mapping[str, str]) -> requests.PreparedRequest:
    """Return a request, built step by step: our URLs are encoded already, and `prepare` spends most on encoding them again."""
    prepared = requests.PreparedRequest()
    prepared.prepare_method("GET")
    prepared.url = url
    prepared.prepare_headers({"User-Agent": USER_AGENT, **headers})
    prepared.prepare_cookies({})
    prepared.prepare_hooks({})
    return prepared


def inflate(packed: bytes, limit: int = PLAIN_LIMIT) -> bytes:
    """Return the content of complete gzip bytes, one member or several.

    Raises:
        SourceError: kind "json": truncated, damaged, or larger than `limit` bytes.
    """
    pieces: list[bytes] = []  # joined at the end: of one piece, as most pages are, without a copy
    size = 0
    inflator = gunzip.inflator(31)
    rest = memoryview(packed)
    members = 1
    try:
        while True:
            piece = rest[:CHUNK]
            rest = rest[len(piece) :]
            pieces.append(inflator.decompress(piece, limit + 1 - size))
            size += len(pieces[-1])
            if size > limit:
                raise SourceError(f"a response unpacks to more than {limit >> 20} MiB", "json")
            if inflator.eof:
                used = len(packed) - len(rest) - len(inflator.unused_data)
                rest = memoryview(packed)[used:]
                if not rest:
                    return b"".join(pieces)
                members += 1
                if members > MEMBERS_LIMIT:
                    raise SourceError(f"a response has more than {MEMBERS_LIMIT} gzip members", "json")
                inflator = gunzip.inflator(31)
            elif not rest:
                raise SourceError(f"a gzip response is truncated after {len(packed)} bytes", "json")
    except gunzip.DAMAGED as error:
        raise SourceError(f"a gzip response is damaged: {error}", "json") from error


def plain_body(response: HttpResponse) -> bytes:
    """Return the decompressed body.

    A damaged body under another status than 200 reads as empty, because the status says enough.

    Raises:
        SourceError: kind "json": the body of status 200 is damaged.
    """
    try:
        return inflate(response.body) if response.gzipped else response.body
    except SourceError:
        if response.status == 200:
            raise
        return b""


def looks_like_html(plain: bytes) -> bool:
    """Return whether a decompressed body is an HTML page."""
    return plain[:256].lstrip().lower().startswith((b"<html", b"<!doctype html", b"<head", b"<body"))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return `Retry-After` (RFC 9110, either form) in seconds, at most `MAX_RETRY_AFTER_S`, or None.

    A date is relative to the response's own `Date`, because the local clock may be wrong.
    """
    text = headers.get("Retry-After", "").strip()
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            now = parsedate_to_datetime(headers["Date"]) if "Date" in headers else datetime.now(UTC)
            seconds = (parsedate_to_datetime(text) - now).total_seconds()
        except (ValueError, TypeError, OverflowError):
            return None
    return None if math.isnan(seconds) else min(max(0.0, seconds), MAX_RETRY_AFTER_S)


def raise_for_response(response: HttpResponse, plain: bytes, key: str | None = None) -> None:
    """Raise for a response that is not data, by the rules that all sources share; return for a usable 200.

    Args:
        response: the response.
        plain: its decompressed body without the key, or the start of it.
        key: the key that was sent; no message repeats it.

    Raises:
        ThrottledError: 429 in any form, 403, an HTML notice under 200, or 5xx with Retry-After.
        SourceError: 5xx with any body (kind "5xx"), 400 ("refused"), any other status ("status").
    """
    status, pause = response.status, retry_after(response.headers)
    if status == 429:
        raise ThrottledError(f"{response.host} sent 429", "429", pause)
    if status == 403:
        kind = "html" if looks_like_html(plain) else "403"
        raise ThrottledError(f"{response.host} sent 403: suspended", kind, pause)
    if status >= 500 and pause is not None:
        raise ThrottledError(f"{response.host} sent {status} with Retry-After", "5xx", pause)
    if status >= 500:
        raise SourceError(f"{response.host} sent {status}", "5xx")
    if status == 400:
        raise SourceError(f"{response.host} rejected the parameters (400): {excerpt(plain)}", "refused")
    if status != 200:
        where = redact(response.headers.get("Location", ""), [key])
        target = f", to {urljoin(response.host, where)}" if where else ""
        raise SourceError(f"{response.host} sent {status}{target}", "status")
    if looks_like_html(plain):
        raise ThrottledError(f"{response.host} sent an HTML page instead of data", "html", pause)


def excerpt(plain: bytes, length: int = 160) -> str:
    """Return the first `length` bytes of a body on one printable line, for an error message. Scrub the key before."""
    return printable(" ".join(plain[:length].decode("utf-8", "replace").split()))


def jittered_backoff_s(attempt: int, base: float, cap: float) -> float:
    """Return the seconds of an exponential back-off with jitter.

    Attempt 1 waits `base`; each further one twice as long, up to `cap`; ±50%.
    """
    return backoff_s(attempt, base, cap) * random.uniform(0.5, 1.5)


class MinInterval:
    """Rate limit: a minimum time between two requests to one host, as the terms of some sources require.

    Thread-safe: all fetches of a process share one instance.
    """

    def __init__(self) -> None:
        """Start without a reservation."""
        self._lock = threading.Lock()
        self._next: dict[str, float] = {}

    def reserve(self, host: str, interval_s: float, now: float) -> float:
        """Reserve the next free moment for a request to `host`.

        Returns:
            Seconds to wait from `now`; the request after this one is `interval_s` later.
        """
        with self._lock:
            at = max(now, self._next.get(host, now))
            self._next[host] = at + interval_s
            return at - now
