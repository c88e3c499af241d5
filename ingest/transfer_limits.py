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


@dataclass
class Transfer:
    """The bounds of one exchange, and what is left of them."""

    host: str
    deadline_s: float  # for the whole exchange
    silence_s: float  # for one read
    wire_limit: int  # bytes received, headers included
    check_cancelled: Callable[[], None]  # may raise

    def __post_init__(self) -> None:
        """Start the clock."""
        self._until = time.monotonic() + self.deadline_s
        self._received = 0

    def check(self) -> None:
        """Check time and cancellation.

        Raises:
            SourceError: kind "timeout": the deadline is over.
        """
        self.check_cancelled()
        if time.monotonic() > self._until:
            raise SourceError(f"{self.host} took over {self.deadline_s:.0f} s for one response", "timeout")

    def count(self, received: int) -> None:
        """Count bytes received.

        Raises:
            SourceError: kind "size": they are more than the limit.
        """
        self._received += received
        if self._received > self.wire_limit:
            raise SourceError(f"{self.host} sent more than {self.wire_limit >> 20} MiB for one response", "size")

    def read_into(self, sock: socket.socket, buffer: Any) -> int:
        """Read from a socket, in slices of time; returns the number of bytes, 0 at the end.

        Raises:
            TimeoutError: nothing came for `silence_s`.
        """
        silent_until = time.monotonic() + self.silence_s
        while True:
            self.check()
            sock.settimeout(SLICE_S)
            try:
                received = sock.recv_into(buffer)
            except TimeoutError:
                if time.monotonic() > silent_until:
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


class _BoundedHTTPConnection(HTTPConnection):
    response_class = _BoundedResponse


class _BoundedHTTPSConnection(HTTPSConnection):
    response_class = _BoundedResponse


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
