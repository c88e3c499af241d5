"""A server that misbehaves below HTTP: it never ends, trickles, lies about lengths. One thread a connection, real sockets."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
BLOCK = b"0" * (1 << 16)


class Hostility:
    """One connection's means: send bytes, or wait until the test is over."""

    def __init__(self, peer: socket.socket, over: threading.Event, request: bytes) -> None:
        self._peer, self._over, self.request = peer, over, request

    def send(self, content: bytes) -> None:
        self._peer.sendall(content)

    def trickle(self, content: bytes) -> None:
        """Send one byte every 50 ms, again from the start at the end, for ever."""
        while not self._over.is_set():
            for byte in content:
                self._peer.sendall(bytes([byte]))
                if self._over.wait(0.05):
                    return

    def flood(self) -> None:
        """Send without end."""
        while not self._over.is_set():
            self._peer.sendall(BLOCK)

    def silence(self) -> None:
        self._over.wait()


def endless(peer: Hostility) -> None:
    peer.send(OK + b"Connection: close\r\n\r\n")
    peer.flood()


def length_10_gb(peer: Hostility) -> None:
    peer.send(OK + b"Content-Length: 10000000000\r\n\r\n")
    peer.flood()


def endless_chunks(peer: Hostility) -> None:
    peer.send(OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"FFFFFFFFFF\r\n")
    peer.flood()


def endless_status_line(peer: Hostility) -> None:
    peer.flood()


def slow_body(peer: Hostility) -> None:
    peer.send(OK + b"Content-Length: 100000000\r\n\r\n")
    peer.trickle(b" ")


def slow_chunk_sizes(peer: Hostility) -> None:
    peer.send(OK + b"Transfer-Encoding: chunked\r\n\r\n")
    peer.trickle(b"1\r\n \r\n")


def slow_headers(peer: Hostility) -> None:
    peer.send(OK)
    peer.trickle(b"X-A: b\r\n")


def continue_100(peer: Hostility) -> None:
    peer.trickle(b"HTTP/1.1 100 Continue\r\n\r\n")


def silent(peer: Hostility) -> None:
    peer.silence()


def silent_body(peer: Hostility) -> None:
    peer.send(OK + b"Content-Length: 1000\r\n\r\n{")
    peer.silence()


FLOODS = (endless, length_10_gb, endless_chunks)
SLOW = (slow_body, slow_chunk_sizes, slow_headers, continue_100, silent, silent_body)


@contextmanager
def hostile(act: Callable[[Hostility], None]) -> Iterator[str]:
    """Answer every connection to an ephemeral port of loopback with `act`, and yield the base URL."""
    over = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    peers: list[socket.socket] = []

    def answer(peer: socket.socket) -> None:
        with suppress(OSError), peer:
            if request := peer.recv(1 << 16):  # empty: a probe of the address
                act(Hostility(peer, over, request))

    def accept() -> None:
        with suppress(OSError):
            while not over.is_set():
                peer, _ = listener.accept()
                peers.append(peer)
                threading.Thread(target=answer, args=(peer,), daemon=True).start()

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        over.set()
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for peer in peers:
            with suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)
        thread.join(5)
