"""TCP proxy in front of the server: admit ZeroMQ peers with CURVE only, and log refused peers by address.

libzmq does not report the address of a peer whose handshake fails, and cannot close one connection. So the proxy listens on the
public port, answers the greeting as the ROUTER would, and forwards the bytes that follow to the ROUTER on loopback, which checks the
keys. The proxy counts and logs the peers that it or the ROUTER refuses, and can close a connection. The forwarded bytes are encrypted
for the ROUTER; the proxy cannot read them. `docs/decisions/0001-tcp-proxy.md` compares alternatives.

A peer without a key costs little: one descriptor until it has sent its HELLO, two until `HANDSHAKE_S` after it connected. All
connections together use the places that the limit on descriptors allows; with no place left, further peers wait in the listening
socket's queue.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import psutil

from coordinator.server.descriptors import current_limit, peers_within
from coordinator.server.key_store import split_endpoint
from coordinator.wire.auth import endpoint_of
from ingest.errors import UsageError
from ingest.files import NO_DESCRIPTORS

log = logging.getLogger(__name__)

SILENT_S = 0.8  # for a peer's first bytes: libzmq sends them as soon as it has connected
HANDSHAKE_S = 5.0  # for the whole handshake, from the connection to the ROUTER's READY: three round trips
CROWDED_S = 1.0  # the same, while more than half of the places are taken: new peers wait for them
CLOSE_S = 2.0  # at the end, for the ROUTER's last messages to reach the peers
MAX_PEERS = 4_096  # connections at once, where the limit on descriptors allows them
BACKLOG = 512  # connections that wait for a place
CHUNK = 1 << 18  # bytes forwarded at once
QUIET_S = 10.0  # between two lines of the log about one host
LINES = 20  # of the log in `QUIET_S`, about all hosts
RETRY_S = 0.05  # until the next attempt, when no descriptor is free
LACKING = (*NO_DESCRIPTORS, errno.ENOBUFS, errno.ENOMEM)  # resources that become free when a connection ends
SIGNATURE, GREETING, HELLO = 10, 64, 202  # bytes of what a peer sends first, one after another (ZMTP 3, CURVE)


@dataclass
class RejectionLog:
    """Count refused peers, and limit the log: a host's first refusal at once, then one line in `QUIET_S`; `LINES` of all hosts."""

    count: int = 0
    _window: tuple[float, int] = (float("-inf"), 0)  # start of the current `QUIET_S`, lines since
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
        began, lines = self._window
        if now - began >= QUIET_S:
            began, lines = now, 0
        self._window = began, lines + 1
        if lines >= LINES:
            self._hosts[host] = (logged, since + 1)
            return f"refused more peers: no further line about new hosts for {QUIET_S:g} s" if lines == LINES else ""
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
    admitted: asyncio.Event = field(default_factory=asyncio.Event)

    def refused(self, chunk: bytes) -> bool:
        """Take the next bytes from the ROUTER; return whether its answer is an error."""
        if len(self.head) < 242:
            self.head += chunk[:242]
            if len(self.head) >= 242 and self.head[236:242] == b"\x05READY":
                self.admitted.set()
        return self.head[236:242] == b"\x05ERROR"

    @property
    def problem(self) -> str:
        """Why the peer was refused, as far as is known; "" when it was admitted."""
        if self.admitted.is_set():
            return ""
        return "its key is not on the list" if self.refused(b"") else "it did not finish its handshake"


class _Refused(Exception):
    """The peer is refused, for the reason that the message gives."""


class AuthProxy:
    """Listen at `bind` and forward to `inner`, an endpoint on loopback, in a separate thread until `close`.

    UsageError is raised when the address cannot be bound.
    """

    def __init__(self, bind: str, inner: str) -> None:
        self.rejections = RejectionLog()
        self._inner = split_endpoint(inner)
        self.places = peers_within(current_limit().soft, MAX_PEERS)
        self._listening = _listen(bind)
        host, port = self._listening.getsockname()[:2]
        self.endpoint = endpoint_of(host, port)
        self._peers: dict[
            int, tuple[tuple[str, int], Callable[[], None]]
        ] = {}  # inner port → its peer, function that closes it
        self._open: set[asyncio.Task[None]] = set()
        self._waits: set[str] = set()  # why no peer is accepted, of those causes that were logged
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="auth-proxy", daemon=True)
        self._thread.start()
        self._ready.wait()

    def refuse(self, inner_port: int, reason: str, *, disconnect: bool) -> None:
        """Log a refusal of the peer behind the connection that the ROUTER sees as this port of loopback; close it if asked."""
        self._loop.call_soon_threadsafe(self._refuse_inner, inner_port, reason, disconnect)

    def close(self, wait_s: float = CLOSE_S) -> None:
        """Stop listening and close all connections. Call it after the ROUTER was closed: its last messages are still forwarded."""
        self._close_s = wait_s
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    # -- the proxy's thread --------------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._loop.set_exception_handler(self._on_loop_error)
        self._free = asyncio.Semaphore(self.places)
        self._listening.setblocking(False)
        self._greeting = await self._router_greeting()
        accepting = asyncio.create_task(self._accept())
        self._ready.set()
        await self._stop.wait()
        accepting.cancel()
        self._listening.close()
        forwarded = [task for task in self._open if task.get_name() == "forward"]
        if forwarded:
            await asyncio.wait(forwarded, timeout=self._close_s)

    def _on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log an error outside the tasks as one line: asyncio prints a traceback, as often as a peer causes it."""
        if line := self.rejections.record("the proxy", 0, context["message"], time.monotonic()):
            log.warning(line)

    async def _router_greeting(self) -> bytes:
        """Return the greeting that the ROUTER sends to every peer, for the proxy to send in its place."""
        connection = await self._connect()
        with connection:
            await self._loop.sock_sendall(connection, b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"CURVE".ljust(52, b"\0"))
            return await _receive(connection, b"", GREETING)

    async def _connect(self) -> socket.socket:
        """Return a connection to the ROUTER, as soon as a descriptor is free."""
        while True:
            try:
                connection = socket.socket(socket.AF_INET6 if ":" in self._inner[0] else socket.AF_INET)
                break
            except OSError as error:
                await self._wait_for_descriptor(error)
        connection.setblocking(False)
        try:
            await self._loop.sock_connect(connection, self._inner)
        except BaseException:
            connection.close()
            raise
        return connection

    async def _wait_for_descriptor(self, error: OSError) -> None:
        """Wait a moment when `error` is a lack of resources, else raise it; log the first of each kind."""
        if error.errno not in LACKING:
            raise error
        self._log_wait(f"accept no peer: {error.strerror}. Raise the limit on open files with `ulimit -n 8192`")
        await asyncio.sleep(RETRY_S)

    def _log_wait(self, cause: str) -> None:
        if cause not in self._waits:
            self._waits.add(cause)
            log.warning(cause)

    async def _accept(self) -> None:
        """Accept peers for ever, each when there is a place for it."""
        while True:
            if self._free.locked():
                self._log_wait(f"all {self.places} connections are in use: further peers wait")
            await self._free.acquire()
            try:
                connection, address = await self._loop.sock_accept(self._listening)
            except OSError as error:
                self._free.release()
                if error.errno in LACKING:
                    await self._wait_for_descriptor(error)
                continue  # the peer has gone
            task = asyncio.create_task(self._on_connection(connection, address[:2]))
            self._open.add(task)
            task.add_done_callback(self._on_end)

    def _on_end(self, task: asyncio.Task[None]) -> None:
        self._open.discard(task)
        self._free.release()
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_loop_error(self._loop, {"message": f"{type(error).__name__}: {error}"})

    async def _on_connection(self, connection: socket.socket, peer: tuple[str, int]) -> None:
        crowded = len(self._open) > self.places // 2
        deadline = self._loop.time() + (CROWDED_S if crowded else HANDSHAKE_S)
        with connection:
            try:
                first = await self._greet(connection, deadline)
                reason = await self._forward_peer(connection, first, peer, deadline)
            except _Refused as refusal:
                reason = str(refusal)
            except OSError as error:
                reason = f"its connection failed: {error.strerror}"
        if reason:
            self._refused(peer, reason)

    async def _greet(self, connection: socket.socket, deadline: float) -> bytes:
        """Exchange greetings with the peer; return the bytes of its greeting and its HELLO.

        The peer occupies one descriptor until then: the connection to the ROUTER is opened afterwards.

        Raises:
            _Refused: The peer is too slow, or what it sent is not a greeting with CURVE and a HELLO.
        """
        try:
            async with asyncio.timeout(SILENT_S):
                data = await _receive(connection, b"", SIGNATURE)
        except TimeoutError:
            raise _Refused("it sent nothing") from None
        except (EOFError, OSError):
            raise _Refused("it does not speak ZeroMQ") from None
        if problem := greeting_problem(data[:SIGNATURE]):
            raise _Refused(problem)
        unfinished = "it did not finish its greeting"
        try:
            async with asyncio.timeout_at(deadline):
                # The rest of ours waits for theirs: libzmq closes at a mechanism that is not its own, before it tells its own.
                await self._loop.sock_sendall(connection, self._greeting[: SIGNATURE + 1])
                data = await _receive(connection, data, GREETING)
                if problem := greeting_problem(data[:GREETING]):
                    raise _Refused(problem)
                await self._loop.sock_sendall(connection, self._greeting[SIGNATURE + 1 :])
                unfinished = "it did not finish its handshake"
                return await _receive(connection, data, GREETING + HELLO)
        except (TimeoutError, EOFError, OSError):
            raise _Refused(unfinished) from None

    async def _forward_peer(
        self, connection: socket.socket, first: bytes, peer: tuple[str, int], deadline: float
    ) -> str:
        """Forward until either side ends. Return why the peer was refused, or ""."""
        try:
            async with asyncio.timeout_at(deadline):
                inner = await self._connect()
        except TimeoutError:
            return "no descriptor was free for its connection"
        except OSError:
            return ""  # the run has ended
        _keep_alive(connection)
        from_router, to_router = await asyncio.open_connection(sock=inner, limit=CHUNK)
        reader, writer = await asyncio.open_connection(sock=connection, limit=CHUNK)
        port = to_router.get_extra_info("sockname")[1]
        self._peers[port] = (peer, writer.transport.abort)
        sniffer = HandshakeSniffer()
        to_router.write(first)
        down = asyncio.create_task(_forward(from_router, writer, sniffer))
        up = asyncio.create_task(_forward(reader, to_router))
        ready = asyncio.create_task(sniffer.admitted.wait())
        try:
            async with asyncio.timeout_at(deadline):
                await asyncio.wait((up, down, ready), return_when=asyncio.FIRST_COMPLETED)
            if sniffer.admitted.is_set():
                current = asyncio.current_task()
                assert current is not None
                current.set_name("forward")
                await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            pass
        finally:
            for task in (up, down, ready):
                task.cancel()
            self._peers.pop(port, None)
            to_router.close()
            writer.close()
        with suppress(OSError, TimeoutError):
            await asyncio.wait_for(writer.wait_closed(), CLOSE_S)
        return sniffer.problem

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
    """Forward until either side ends. `sniffer`: inspects a source that is the ROUTER, whose refusal ends it too.

    The ROUTER's greeting is not forwarded: the proxy has sent it.
    """
    skip = GREETING if sniffer is not None else 0
    with suppress(OSError):
        while chunk := await source.read(CHUNK):
            sink.write(chunk[skip:])
            skip = max(0, skip - len(chunk))
            if sniffer is not None and sniffer.refused(chunk):
                return
            await sink.drain()


async def _receive(connection: socket.socket, data: bytes, size: int) -> bytes:
    """Return `data` and what is received after it, until it has `size` bytes or more.

    Raises:
        EOFError: The peer closed its connection before.
    """
    loop = asyncio.get_running_loop()
    while len(data) < size:
        chunk = await loop.sock_recv(connection, 4096)
        if not chunk:
            raise EOFError
        data += chunk
    return data


def _keep_alive(connection: socket.socket) -> None:
    """Detect hosts that vanish, so that their connections do not stay open for ever."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def _listen(bind: str) -> socket.socket:
    host, port = split_endpoint(bind)
    own = {entry.address for entry in psutil.net_if_addrs().get(host, ()) if entry.family == socket.AF_INET}
    host = "" if host == "*" else next(iter(own), host)  # ZeroMQ also takes an interface's name
    six = ":" in host
    try:
        return socket.create_server(
            (host, port),
            family=socket.AF_INET6 if six else socket.AF_INET,
            backlog=BACKLOG,
            dualstack_ipv6=host == "::" and socket.has_dualstack_ipv6(),
        )
    except (OSError, ValueError) as error:
        raise UsageError(
            f"bind {bind}: {error}. Choose a free port of an address of this host with --bind; `coordinator doctor` tests it."
        ) from error
