"""Bounds of one HTTP exchange: its bytes, its time and its cancellation hold during every read, headers and TLS tunnels included.

A socket is read in slices of `SLICE_S` seconds below urllib3 and `http.client`, because their own time limit is for one read:
a server that sends a byte now and then would hold a request for ever.
"""

from __future__ import annotations

import http.client
import io
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection

from ingest.errors import SourceError

SLICE_S = 0.2  # a cancelled request ends within this time
BUFFER = 1 << 16  # bytes of a socket read at once
PROGRESS = 1 << 10  # bytes: a server that sends less a second is as good as silent


@dataclass
class Transfer:
    """The bounds of one exchange, and what is left of them."""

    host: str
    deadline_s: float  # for the whole exchange
    silence_s: float  # for one read
    wire_limit: int  # bytes received, headers included
    on_check: Callable[[Transfer], None]  # called several times a second; may raise

    def __post_init__(self) -> None:
        """Start the clock."""
        self._progressed = time.monotonic()
        self._until = self._progressed + self.deadline_s
        self._silent_until = self._progressed + self.silence_s
        self._received = self._counted = 0

    @property
    def stalled_s(self) -> float:
        """Seconds since the server last sent `PROGRESS` bytes, or since the start."""
        return time.monotonic() - self._progressed

    @property
    def left_s(self) -> float:
        """Seconds until the exchange is given up, if the server sends nothing more."""
        return max(0.0, min(self._until, self._silent_until) - time.monotonic())

    def check(self) -> None:
        """Check time and cancellation.

        Raises:
            SourceError: kind "timeout": the deadline is over.
        """
        self.on_check(self)
        if time.monotonic() > self._until:
            raise SourceError(f"{self.host} took over {self.deadline_s:.0f} s for one response", "timeout")

    def count(self, received: int) -> None:
        """Count bytes received.

        Raises:
            SourceError: kind "size": they are more than the limit.
        """
        self._received += received
        if self._received - self._counted >= PROGRESS:
            self._counted, self._progressed = self._received, time.monotonic()
        if self._received > self.wire_limit:
            raise SourceError(f"{self.host} sent more than {self.wire_limit >> 20} MiB for one response", "size")

    def read_into(self, sock: socket.socket, buffer: Any) -> int:
        """Read from a socket, in slices of time; returns the number of bytes, 0 at the end.

        Raises:
            TimeoutError: nothing came for `silence_s`.
        """
        self._silent_until = time.monotonic() + self.silence_s
        while True:
            self.check()
            sock.settimeout(SLICE_S)
            try:
                received = sock.recv_into(buffer)
            except TimeoutError:
                if time.monotonic() > self._silent_until:
                    raise
                continue
            self.count(received)
            return received


class _Current(threading.local):
    """The exchange of this thread; urllib3 offers no other way from a request to its socket."""

    transfer: Transfer | None = None


current = _Current()


class _SocketReader(io.RawIOBase):
    """The bytes of a socket, within the bounds of the exchange of the thread that reads."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__()
        self._sock = sock
        self._open = sock.makefile("rb", buffering=0)  # keeps the socket open for as long as the response is

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if current.transfer is None:
            return self._sock.recv_into(buffer)
        return current.transfer.read_into(self._sock, buffer)

    def close(self) -> None:
        self._open.close()
        super().close()


class _BoundedResponse(http.client.HTTPResponse):
    """A response whose status line, headers and body are all read within bounds."""

    def __init__(self, sock: socket.socket, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.fp.close()
        self.fp = io.BufferedReader(_SocketReader(sock), BUFFER)


def _connect_bounded(connection: HTTPConnection, connect: Callable[[], None]) -> None:
    """Connect within the bounds of this thread's exchange: resolving a name, TCP and TLS block, so another thread does them.

    A connection that is given up ends by its own time limits.

    Raises:
        SourceError: kind "timeout": it takes too long.
    """
    transfer = current.transfer
    if transfer is None:
        connect()
        return
    ended, given_up = threading.Event(), threading.Event()
    errors: list[BaseException] = []

    def run() -> None:
        current.transfer = transfer
        try:
            connect()
        except BaseException as error:
            errors.append(error)
        ended.set()
        if given_up.is_set():
            connection.close()

    threading.Thread(target=run, name="connect", daemon=True).start()
    try:
        while not ended.wait(SLICE_S):
            transfer.check()
            if not transfer.left_s:
                raise SourceError(f"{transfer.host}: no connection within {transfer.silence_s:g} s", "timeout")
    except BaseException:
        given_up.set()
        raise
    if errors:
        raise errors[0]


class _BoundedHTTPConnection(HTTPConnection):
    response_class = _BoundedResponse

    def connect(self) -> None:
        _connect_bounded(self, super().connect)


class _BoundedHTTPSConnection(HTTPSConnection):
    response_class = _BoundedResponse

    def connect(self) -> None:
        _connect_bounded(self, super().connect)


class _HTTPPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _BoundedHTTPConnection


class _HTTPSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _BoundedHTTPSConnection


_POOLS = {"http": _HTTPPool, "https": _HTTPSPool}


class BoundedAdapter(HTTPAdapter):
    """An adapter whose connections, direct or by a proxy, read within the bounds of `current.transfer`."""

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        """Make the pools of direct connections."""
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, *args: Any, **options: Any) -> Any:
        """Return the pools of a proxy's connections."""
        manager = super().proxy_manager_for(*args, **options)
        manager.pool_classes_by_scheme = _POOLS
        return manager
