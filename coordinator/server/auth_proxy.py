"""TCP proxy in front of the server: admit ZeroMQ peers with CURVE only, and log refused peers by address.

libzmq does not report the address of a peer whose handshake fails, and cannot close one connection. So the proxy listens on the
public port, reads the greeting and forwards the bytes to the ROUTER on loopback, which checks the keys. The proxy counts and logs
the peers that it or the ROUTER refuses, and can close a connection. The forwarded bytes are encrypted for the ROUTER; the proxy
cannot read them. `docs/decisions/0001-tcp-proxy.md` compares alternatives.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import psutil

from ingest.errors import UsageError

log = logging.getLogger(__name__)

SILENT_S = 0.8  # for a peer's first bytes: libzmq sends them as soon as it has connected
HANDSHAKE_S = 5.0  # for the rest of its greeting, which waits for ours; libzmq gives the remaining handshake 30 s
CLOSE_S = 2.0  # at the end, for the ROUTER's last messages to reach the peers
MAX_PEERS = 2_048  # connections at once
CHUNK = 1 << 18  # bytes forwarded at once
QUIET_S = 10.0  # between two lines of the log about one host


@dataclass
class RejectionLog:
    """Count refused peers, and limit the log: a host's first refusal at once, then one line in `QUIET_S`."""

    count: int = 0
    _hosts: dict[str, tuple[float, int]] = field(default_factory=dict)  # host → (time of its last line, refusals since)

    def record(self, host: str, port: int, reason: str, now: float) -> str:
        """Count a refusal and return the line to log, or ""."""
        self.count += 1
        logged, since = self._hosts.pop(host, (float("-inf"), 0))
        if now - logged < QUIET_S:
            self._hosts[host] = (logged, since + 1)
            return ""
        if len(self._hosts) >= MAX_PEERS:
            self._hosts.pop(next(iter(self._hosts)))
        self._hosts[host] = (now, 0)
        return f"refused {host} (port {port}): {reason}" + (f"; {since} more since its last line" if since else "")


def greeting_problem(greeting: bytes) -> str:
    """Return why a peer with this greeting is refused, or "". `greeting`: its first 10 bytes, or all 64.

    ZMTP 3 (rfc.zeromq.org/spec/37): FF, 8 bytes, 7F, version (2), mechanism (20), as-server, filler.
    """
    if len(greeting) < 10 or greeting[0] != 0xFF or greeting[9] != 0x7F:
        return "it does not speak ZeroMQ"
    mechanism = greeting[12:32].rstrip(b"\0")
    if len(greeting) == 64 and (greeting[10] < 3 or mechanism != b"CURVE"):
        return f"it has no key (mechanism {mechanism.decode('ascii', 'replace')})"
    return ""


@dataclass
class HandshakeSniffer:
    """Find the ROUTER's answer to a peer's key: READY or ERROR, after its greeting (64 bytes), WELCOME (170) and 2 bytes of length."""

    head: bytes = b""

    def refused(self, chunk: bytes) -> bool:
        """Take the next bytes from the ROUTER; return whether its answer is an error."""
        if len(self.head) < 242:
            self.head += chunk[:242]
        return self.head[236:242] == b"\x05ERROR"

    @property
    def problem(self) -> str:
        """Why the peer was refused, as far as is known; "" when it was admitted."""
        if len(self.head) < 242:
            return "it did not finish its handshake"
        return "its key is not on the list" if self.refused(b"") else ""


class AuthProxy:
    """Listen at `bind` and forward to `inner`, tcp://127.0.0.1:PORT, in a separate thread until `close`.

    UsageError is raised when the address cannot be bound.
    """

    def __init__(self, bind: str, inner: str) -> None:
        self.rejections = RejectionLog()
        self._inner = int(inner.rpartition(":")[2])
        self._listening = _listen(bind)
        host, port = self._listening.getsockname()[:2]
        self.endpoint = f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
        self._peers: dict[
            int, tuple[tuple[str, int], Callable[[], None]]
        ] = {}  # inner port → its peer, function that closes it
        self._open: set[asyncio.Task[None]] = set()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="auth-proxy", daemon=True)
        self._thread.start()
        self._ready.wait()

    def refuse(self, inner_port: int, reason: str, *, disconnect: bool) -> None:
        """Log a refusal of the peer behind the connection that the ROUTER sees as this port of loopback; close it if asked."""
        self._loop.call_soon_threadsafe(self._refuse_inner, inner_port, reason, disconnect)

    def close(self) -> None:
        """Stop listening and close all connections. Call it after the ROUTER was closed: its last messages are still forwarded."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    # -- the proxy's thread --------------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._on_connection, sock=self._listening, limit=CHUNK)
        self._ready.set()
        await self._stop.wait()
        server.close()
        if self._open:
            await asyncio.wait(self._open, timeout=CLOSE_S)

    async def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = (writer.get_extra_info("peername") or ("an unknown address", 0))[:2]
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            _keep_alive(writer)
            reason = "too many connections" if len(self._open) > MAX_PEERS else await self._admit(reader, writer, peer)
            if reason:
                self._refused(peer, reason)
        finally:
            self._open.discard(task)
            writer.close()
            with suppress(OSError, TimeoutError):
                await asyncio.wait_for(writer.wait_closed(), CLOSE_S)

    async def _admit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: tuple[str, int]) -> str:
        """Forward until either side ends. Return why the peer was refused, or ""."""
        try:
            first = await asyncio.wait_for(reader.readexactly(10), SILENT_S)
        except TimeoutError:
            return "it sent nothing"
        except (asyncio.IncompleteReadError, OSError):
            return "it does not speak ZeroMQ"
        if problem := greeting_problem(first):
            return problem
        try:
            from_router, to_router = await asyncio.open_connection("127.0.0.1", self._inner, limit=CHUNK)
        except OSError:
            return ""  # the run has ended
        port = to_router.get_extra_info("sockname")[1]
        self._peers[port] = (peer, writer.transport.abort)
        sniffer = HandshakeSniffer()
        down = asyncio.create_task(_forward(from_router, writer, sniffer))
        try:
            to_router.write(first)
            try:
                rest = await asyncio.wait_for(reader.readexactly(54), HANDSHAKE_S)
            except (TimeoutError, asyncio.IncompleteReadError, OSError):
                return "it did not finish its greeting"
            if problem := greeting_problem(first + rest):
                return problem
            to_router.write(rest)
            up = asyncio.create_task(_forward(reader, to_router))
            await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
            up.cancel()
            return sniffer.problem
        finally:
            down.cancel()
            self._peers.pop(port, None)
            to_router.close()

    def _refuse_inner(self, inner_port: int, reason: str, disconnect: bool) -> None:
        if inner_port in self._peers:
            peer, end = self._peers[inner_port]
            self._refused(peer, reason)
            if disconnect:
                end()

    def _refused(self, peer: tuple[str, int], reason: str) -> None:
        if line := self.rejections.record(*peer, reason, time.monotonic()):
            log.warning(line)


async def _forward(
    source: asyncio.StreamReader, sink: asyncio.StreamWriter, sniffer: HandshakeSniffer | None = None
) -> None:
    """Forward until either side ends. `sniffer`: inspects a source that is the ROUTER, whose refusal ends it too."""
    with suppress(OSError):
        while chunk := await source.read(CHUNK):
            sink.write(chunk)
            if sniffer is not None and sniffer.refused(chunk):
                return
            await sink.drain()


def _keep_alive(writer: asyncio.StreamWriter) -> None:
    """Detect hosts that vanish, so that their connections do not stay open for ever."""
    with suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def _listen(bind: str) -> socket.socket:
    host, _, port = bind.removeprefix("tcp://").rpartition(":")
    host = host.strip("[]")
    own = {entry.address for entry in psutil.net_if_addrs().get(host, ()) if entry.family == socket.AF_INET}
    host = "" if host == "*" else next(iter(own), host)  # ZeroMQ also takes an interface's name
    six = ":" in host
    try:
        return socket.create_server(
            (host, int(port)),
            family=socket.AF_INET6 if six else socket.AF_INET,
            backlog=512,
            dualstack_ipv6=host == "::" and socket.has_dualstack_ipv6(),
        )
    except (OSError, ValueError) as error:
        raise UsageError(
            f"bind {bind}: {error}. Choose a free port of an address of this host with --bind; `coordinator doctor` tests it."
        ) from error
