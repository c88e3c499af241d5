"""The emulator's HTTP/1.1 server: one asyncio process on httptools.

It is not an ASGI server, because half of the faults happen below ASGI: a connection reset, a body that ends early, a body
that dribbles. A page that was requested before costs well under 0.1 ms here.
"""

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import httptools

from ingest.emulator.http.responses import REASONS, Response

_MAX_REQUEST = 1 << 20  # bytes of URL, headers and body together
_PIECES = 20  # pieces of a dribbled body


@dataclass
class Request:
    """Hold a request as it was read."""

    method: str = ""
    target: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)  # names in lower case
    body: bytes = b""
    keep_alive: bool = True


Handler = Callable[[Request], Response]


class Connection(asyncio.Protocol):
    """Serve one client. Pipelined requests get their responses one after the other, in order."""

    def __init__(self, handler: Handler, head: Callable[[Response], bytes], latency: float) -> None:
        """Prepare for a client.

        Args:
            handler: Returns the response of a request.
            head: Returns the status line and the headers of a response.
            latency: Real seconds added to every response.
        """
        self._handler = handler
        self._head = head
        self._latency = latency
        self._parser = httptools.HttpRequestParser(self)
        self._request = Request()
        self._size = 0
        self._waiting: deque[Request] = deque()
        self._busy = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport (called by asyncio)."""
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Drop the waiting requests (called by asyncio): no client waits for them any more."""
        self._waiting.clear()
        if self._timer:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Parse bytes (called by asyncio); respond 400 and close when they are not HTTP, or too many."""
        self._size += len(data)
        try:
            if self._size > _MAX_REQUEST:
                raise httptools.HttpParserError("request too large")
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._transport.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            self._transport.close()

    def on_url(self, url: bytes) -> None:
        """Append to the target (called by the parser)."""
        self._request.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add one header (called by the parser)."""
        self._request.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        """Append to the body (called by the parser)."""
        self._request.body += body

    def on_message_complete(self) -> None:
        """Queue the complete request behind earlier ones (called by the parser)."""
        self._request.method = self._parser.get_method().decode()
        self._request.keep_alive = self._parser.should_keep_alive()
        self._size = 0
        self._waiting.append(self._request)
        self._request = Request()
        if not self._busy:
            self._next()

    def _next(self) -> None:
        while self._waiting and not self._busy and not self._transport.is_closing():
            request = self._waiting.popleft()
            response = self._handler(request)
            self._busy = True
            if delay := response.delivery.delay + self._latency:
                self._later(delay, self._send, request, response)
            else:
                self._send(request, response)

    def _later(self, delay: float, call: Callable[..., None], *args: object) -> None:
        self._timer = asyncio.get_running_loop().call_later(delay, call, *args)

    def _send(self, request: Request, response: Response) -> None:
        delivery = response.delivery
        body = b"" if request.method == "HEAD" else response.body
        kept = body[: int(len(body) * delivery.keep)]
        if delivery.reset and not kept:
            self._abort()
        elif delivery.over:
            self._transport.write(self._head(response))
            self._dribble(request, response, kept, max(len(kept) // _PIECES, 1))
        else:
            self._transport.write(self._head(response) + kept)
            self._finish(request, response)

    def _dribble(self, request: Request, response: Response, rest: bytes, step: int) -> None:
        if not rest:
            self._finish(request, response)
            return
        self._transport.write(rest[:step])
        self._later(response.delivery.over / _PIECES, self._dribble, request, response, rest[step:], step)

    def _finish(self, request: Request, response: Response) -> None:
        if response.delivery.reset:
            self._later(0.02, self._abort)  # so that the bytes sent before arrive ahead of the RST
        elif response.delivery.keep < 1 or not request.keep_alive:
            self._transport.close()
        else:
            self._busy = False
            self._next()

    def _abort(self) -> None:
        sock = self._transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()


def head_of(response: Response, fixed: bytes) -> bytes:
    """Return the status line and headers of a response; `fixed` are the header lines that every response has."""
    lines = [f"HTTP/1.1 {response.status} {REASONS[response.status]}", f"Content-Type: {response.content_type}"]
    if response.encoding:
        lines.append(f"Content-Encoding: {response.encoding}")
    lines += [f"{name}: {value}" for name, value in response.headers]
    lines.append(f"Content-Length: {len(response.body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n" + fixed + b"\r\n"
