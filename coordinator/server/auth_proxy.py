"""The gate: where workers on other hosts come in. It knows every peer's address, and lets only ZeroMQ with CURVE through.

libzmq tells no address of a peer whose handshake fails, and gives no way to end one connection. So the public port is the
gate's: it reads the greeting and passes the bytes on to the ROUTER on loopback, which checks the keys. It counts and logs whom
it or the ROUTER refuses, and can cut a connection. What passes is encrypted for the ROUTER; the gate can't read it.
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

SILENT_S = 0.8  # for a peer's first bytes: libzmq sends them as soon as it is connected
HANDSHAKE_S = 5.0  # for the rest of its greeting, which waits for ours; libzmq gives the remaining handshake 30 s
PATIENCE_S = 2.0  # at the end, for the ROUTER's last words to reach the peers
MAX_PEERS = 2_048  # connections at once
PIECE = 1 << 18  # bytes passed on at once
QUIET_S = 10.0  # between two lines of the log about one host


@dataclass
class RejectionLog:
    """How often peers were refused, and which of it is worth a line: a host's first at once, then one line in `QUIET_S`."""

    count: int = 0
    _hosts: dict[str, tuple[float, int]] = field(default_factory=dict)  # host → (when its last line was, refused since)

    def record(self, host: str, port: int, reason: str, now: float) -> str:
        """The line for the log, or ""."""
        self.count += 1
        said, since = self._hosts.pop(host, (float("-inf"), 0))
        if now - said < QUIET_S:
            self._hosts[host] = (said, since + 1)
            return ""
        if len(self._hosts) >= MAX_PEERS:
            self._hosts.pop(next(iter(self._hosts)))
        self._hosts[host] = (now, 0)
        return f"refused {host} (port {port}): {reason}" + (f"; {since} more since its last line" if since else "")


def greeting_problem(greeting: bytes) -> str:
    """Why a peer with this greeting is refused, or "". `greeting`: its first 10 bytes, or all 64.

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
    """The ROUTER's answer to a peer's key: READY or ERROR, after its greeting (64 bytes), WELCOME (170) and 2 bytes of length."""

    head: bytes = b""

    def refused(self, piece: bytes) -> bool:
        """The next bytes from the ROUTER: whether its answer is an error."""
        if len(self.head) < 242:
            self.head += piece[:242]
        return self.head[236:242] == b"\x05ERROR"

    @property
    def problem(self) -> str:
        """Why the peer was refused, as far as is known; "" when it was let in."""
        if len(self.head) < 242:
            return "it did not finish its handshake"
        return "its key is not on the list" if self.refused(b"") else ""


class AuthProxy:
    """Listens at `bind` at once and passes on to `inner`, tcp://127.0.0.1:PORT, in a thread of its own until `close`.

    UsageError when the address can't be listened on.
    """

    def __init__(self, bind: str, inner: str) -> None:
        self.rejections = RejectionLog()
        self._inner = int(inner.rpartition(":")[2])
        self._listening = _listen(bind)
        host, port = self._listening.getsockname()[:2]
        self.endpoint = f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
        self._peers: dict[int, tuple[tuple[str, int], Callable[[], None]]] = {}  # inner port → its peer, what ends it
        self._open: set[asyncio.Task[None]] = set()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="gate", daemon=True)
        self._thread.start()
        self._ready.wait()

    def refuse(self, inner_port: int, reason: str, *, disconnect: bool) -> None:
        """What came over the connection that the ROUTER sees as this port of loopback was refused. `cut`: end it."""
        self._loop.call_soon_threadsafe(self._refuse_inner, inner_port, reason, disconnect)

    def close(self) -> None:
        """Listen no more, and end what is left. After the ROUTER was closed: its last words are still passed on."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    # -- the gate's thread ---------------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._meet, sock=self._listening, limit=PIECE)
        self._ready.set()
        await self._stop.wait()
        server.close()
        if self._open:
            await asyncio.wait(self._open, timeout=PATIENCE_S)

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
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
                await asyncio.wait_for(writer.wait_closed(), PATIENCE_S)

    async def _admit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: tuple[str, int]) -> str:
        """Pass on until either side ends. Why the peer was refused, or ""."""
        try:
            first = await asyncio.wait_for(reader.readexactly(10), SILENT_S)
        except TimeoutError:
            return "it said nothing"
        except (asyncio.IncompleteReadError, OSError):
            return "it does not speak ZeroMQ"
        if problem := greeting_problem(first):
            return problem
        try:
            from_router, to_router = await asyncio.open_connection("127.0.0.1", self._inner, limit=PIECE)
        except OSError:
            return ""  # the run has ended
        port = to_router.get_extra_info("sockname")[1]
        self._peers[port] = (peer, writer.transport.abort)
        sniffer = HandshakeSniffer()
        down = asyncio.create_task(_pass_on(from_router, writer, sniffer))
        try:
            to_router.write(first)
            try:
                rest = await asyncio.wait_for(reader.readexactly(54), HANDSHAKE_S)
            except (TimeoutError, asyncio.IncompleteReadError, OSError):
                return "it did not finish its greeting"
            if problem := greeting_problem(first + rest):
                return problem
            to_router.write(rest)
            up = asyncio.create_task(_pass_on(reader, to_router))
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


async def _pass_on(
    source: asyncio.StreamReader, sink: asyncio.StreamWriter, sniffer: HandshakeSniffer | None = None
) -> None:
    """Until either side ends. `answer`: what the source, the ROUTER, says is looked at; a refusal ends it too."""
    with suppress(OSError):
        while piece := await source.read(PIECE):
            sink.write(piece)
            if sniffer is not None and sniffer.refused(piece):
                return
            await sink.drain()


def _keep_alive(writer: asyncio.StreamWriter) -> None:
    """A host that is gone without a word leaves no connection behind for ever."""
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
            f"bind {bind}: {error}. Name a free port of an address of this host with --bind; `coordinator doctor` tests it."
        ) from error
