"""Who may read the page: everybody on this host over loopback, elsewhere only with the token. Pure.

A page on loopback answers only requests for a loopback name, so that a foreign site whose name is made to point here (DNS
rebinding) reads nothing. RFC 6750 for the token in a header.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from ingest.errors import UsageError

DEFAULT = "127.0.0.1:8787"
COOKIE, PARAMETER = "watch_token", "token"
NAMES = ("localhost", "127.0.0.1", "::1")
# Nothing from another host, no inline script or style, in no frame.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Address:
    """Where the page listens."""

    host: str
    port: int

    @property
    def loopback(self) -> bool:
        """Whether only this host reaches it."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def every(self) -> bool:
        """Whether it is every address of this host, which is no address to open."""
        try:
            return ip_address(self.host).is_unspecified
        except ValueError:
            return False

    @property
    def url(self) -> str:
        """The page's URL."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}/"


def parse_address(text: str) -> Address:
    """Return the address of `HOST:PORT`, `[IPv6]:PORT` or `:PORT` (loopback).

    Raises:
        UsageError: it has another form.
    """
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname or "127.0.0.1", parts.port
    except ValueError:
        host, port = "", None
    if not host or port is None or parts.path or parts.query or parts.username:
        raise UsageError(f"http {text!r}: expected HOST:PORT, e.g. --http {DEFAULT}; port 0 takes a free one.")
    return Address(host, port)


def allowed(address: Address, token: str, headers: Mapping[str, str], cookie: str, parameter: str) -> bool:
    """Return whether a request may be answered.

    Args:
        address: where the page listens.
        token: that is asked for; "": none.
        headers: of the request, with lower-case names.
        cookie: value of `COOKIE`.
        parameter: value of `PARAMETER` in the query.
    """
    if not token:
        try:
            name = urlsplit(f"//{headers.get('host', '')}").hostname or ""
        except ValueError:
            return False
        return name in NAMES or name == address.host
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    given = [cookie, parameter, *([bearer.strip()] if scheme.lower() == "bearer" else [])]
    return any(hmac.compare_digest(one.encode(), token.encode()) for one in given if one)
