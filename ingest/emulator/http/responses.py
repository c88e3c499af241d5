"""Responses: status, headers, body and delivery, and the fixed error bodies of EIA and OASIS."""

import zlib
from dataclasses import dataclass, field, replace

JSON = "application/json"
HTML = "text/html"
ZIP = "application/x-zip-compressed"
CSV = "text/csv"


@dataclass(frozen=True)
class Delivery:
    """State how the bytes are sent; times are in real seconds."""

    delay: float = 0.0
    over: float = 0.0  # spread the body over this time
    keep: float = 1.0  # share of the body that is sent before the connection ends
    reset: bool = False  # end by RST after `keep`; otherwise keep < 1 closes the connection


@dataclass(frozen=True)
class Response:
    """Hold what the server sends, and what it counts of it."""

    status: int
    body: bytes
    content_type: str = JSON
    encoding: str = ""  # "gzip" when the body is
    headers: tuple[tuple[str, str], ...] = ()
    delivery: Delivery = field(default_factory=Delivery)
    rows: int = 0
    fault: str = ""


REASONS = {
    200: "OK",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    429: "Too Many Requests",
    500: "Internal Server Error",
    502: "Bad Gateway",
}


def umbrella(status: int, code: str, message: str) -> Response:
    """Return an error of the API gateway in front of EIA (API Umbrella), indented as the gateway sends it."""
    body = f'{{\n  "error": {{\n    "code": "{code}",\n    "message": "{message}"\n  }}\n}}'
    return Response(status, body.encode())


KEY_MISSING = umbrella(403, "API_KEY_MISSING", "No api_key was supplied. Get one at https://api.eia.gov:443")
KEY_INVALID = umbrella(403, "API_KEY_INVALID", "An invalid api_key was supplied. Get one at https://api.eia.gov:443")
_OVER = "You have exceeded your rate limit. Try again later or contact us at https://api.eia.gov:443/contact/ for assistance"
OVER_RATE_LIMIT = umbrella(429, "OVER_RATE_LIMIT", _OVER)
SUSPENDED = umbrella(403, "OVER_RATE_LIMIT", "API key over limit: temporarily suspended. " + _OVER)
NOTICE = Response(
    200,
    b"<!DOCTYPE html>\n<html><head><title>Request limit</title></head><body><p>Your requests are over the limit of this "
    b"service and were suspended. Please try again later.</p></body></html>",
    HTML,
)
REFUSALS = {"403": SUSPENDED, "429": OVER_RATE_LIMIT, "html": replace(NOTICE, status=403)}
NOT_FOUND = Response(500, b'{"error":"Not found.","code":404}')  # 404 under 500: EIA's API before 2.1.10
BAD_GATEWAY = Response(
    502, b"<html><head><title>502 Bad Gateway</title></head><body>502 Bad Gateway</body></html>", HTML
)
NO_SUCH_PAGE = Response(404, b"<html><head><title>404 Not Found</title></head><body>404 Not Found</body></html>", HTML)
OASIS_TOO_FAST = Response(
    429,
    b"<html><body><p>CAISO Acceptable Use Policy Violation. Please retry your request after 5 seconds.</p></body></html>",
    HTML,
)


def bad_request(message: str) -> Response:
    """Return a 400 in EIA's wording."""
    text = message.replace("\\", "\\\\").replace('"', '\\"')
    return Response(400, f'{{"error":"{text}","code":400}}'.encode())


def gzipped(body: bytes) -> bytes:
    """Return the body compressed at level 1, without a time in the header: the same body gives the same bytes."""
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    return packer.compress(body) + packer.flush()
