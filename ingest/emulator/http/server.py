"""The HTTP/1.1 server under the emulator: one asyncio process on httptools.

Not an ASGI server, because half of the faults happen below ASGI: a connection reset, a body that ends early, a body that
dribbles. A page that was asked before costs well under 0.1 ms here.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import httptools

from ingest.emulator.http.responses import REASONS, Answer

_MAX_REQUEST = 1 << 20  # bytes of URL, headers and body together
_STEPS = 20  # pieces of a dribbled body


@dataclass
class Request:
    """A request as it was read."""

    method: str = ""
    target: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)  # names in lower case
    body: bytes = b""
    keep_alive: bool = True


Handler = Callable[[Request], Answer]


class Connection(asyncio.Protocol):
    """One client. Requests are answered one after the other, in order."""

    def __init__(self, handler: Handler, head: Callable[[Answer], bytes], latency: float) -> None:
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
        """Asyncio's call."""
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Asyncio's call: nobody waits for answers any more."""
        self._waiting.clear()
        if self._timer:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Asyncio's call: bytes for the parser; what is no HTTP, or too large, is answered 400 and closed."""
        self._size += len(data)
        try:
            if self._size > _MAX_REQUEST:
                raise httptools.HttpParserError("request too large")
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._transport.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            self._transport.close()

    def on_message_begin(self) -> None:
        """The parser's call: a new request."""
        self._request = Request()

    def on_url(self, url: bytes) -> None:
        """The parser's call: part of the target."""
        self._request.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """The parser's call: one header."""
        self._request.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        """The parser's call: part of the body."""
        self._request.body += body

    def on_message_complete(self) -> None:
        """The parser's call: the request is whole, and is answered after those before it."""
        self._request.method = self._parser.get_method().decode()
        self._request.keep_alive = self._parser.should_keep_alive()
        self._size = 0
        self._waiting.append(self._request)
        if not self._busy:
            self._next()

    def _next(self) -> None:
        while self._waiting and not self._busy and not self._transport.is_closing():
            request = self._waiting.popleft()
            answer = self._handler(request)
            delay = answer.delivery.delay + self._latency
            self._busy = True
            if delay:
                self._later(delay, self._send, request, answer)
            else:
                self._send(request, answer)

    def _later(self, delay: float, call: Callable[..., None], *args: object) -> None:
        self._timer = asyncio.get_running_loop().call_later(delay, call, *args)

    def _send(self, request: Request, answer: Answer) -> None:
        delivery = answer.delivery
        body = b"" if request.method == "HEAD" else answer.body
        kept = body[: int(len(body) * delivery.keep)]
        if delivery.reset and not kept:
            self._abort()
        elif delivery.over:
            self._transport.write(self._head(answer))
            self._dribble(request, answer, kept, max(len(kept) // _STEPS, 1))
        else:
            self._transport.write(self._head(answer) + kept)
            self._finish(request, answer)

    def _dribble(self, request: Request, answer: Answer, rest: bytes, step: int) -> None:
        if not rest:
            self._finish(request, answer)
            return
        self._transport.write(rest[:step])
        self._later(answer.delivery.over / _STEPS, self._dribble, request, answer, rest[step:], step)

    def _finish(self, request: Request, answer: Answer) -> None:
        if answer.delivery.reset:
            self._later(0.02, self._abort)  # what was sent first should arrive before the RST
        elif answer.delivery.keep < 1 or not request.keep_alive:
            self._transport.close()
        else:
            self._busy = False
            self._next()

    def _abort(self) -> None:
        sock = self._transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()


def head_of(answer: Answer, fixed: bytes) -> bytes:
    """Status line and headers of an answer; `fixed` are header lines that every answer has."""
    lines = [f"HTTP/1.1 {answer.status} {REASONS[answer.status]}", f"Content-Type: {answer.content_type}"]
    if answer.encoding:
        lines.append(f"Content-Encoding: {answer.encoding}")
    lines += [f"{name}: {value}" for name, value in answer.headers]
    lines.append(f"Content-Length: {len(answer.body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n" + fixed + b"\r\n"
