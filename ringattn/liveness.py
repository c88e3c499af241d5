"""Signs of life between the ranks of a ring, so that a deadline counts a rank's silence and not its slowness.

The ring's TCP connections belong to MLX. Beside them each rank sends all others a UDP datagram four times a second, from a thread, on
the address and the port number that the hostfile gives it for TCP: nothing has to be configured. It says whether the rank waits
for another one, and how many waits it has ended. A stopped process, a lost host and a cut cable are silent; a rank that computes is
not, as kernels and MLX's evaluations release Python's lock. Where no datagram arrives (a firewall, a transport that is no ring)
a wait simply ends after its timeout.
"""

import atexit
import contextlib
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

INTERVAL = 0.25
"""Seconds between signs of life."""
SHORTEST_SILENCE = 1.0
"""Seconds: four signs; a shorter silence may be a busy processor or lost datagrams, whatever the timeout."""
LATE_FACTOR = 10
"""A wait ends after so many timeouts although every rank lives: one may never make the call that others wait for."""
_SUSPENDED = 2.0  # seconds between two looks that are due after INTERVAL: this process was stopped, and judges nobody by that time
_FORMAT = struct.Struct("!4sIHBI")  # magic, ring, rank, state, waits ended
_MAGIC = b"RAlv"
_COMPUTES, _WAITS, _LEAVES = range(3)

Address = tuple[str, int]


@dataclass(frozen=True)
class PeerLife:
    """What a rank knows of another one.

    Attributes:
        heard: time of the last sign of life; None before the first.
        changed: time at which the rest last changed.
        state: computes, waits for another rank, or leaves (its process ends).
        ended: number of waits that it has ended.
    """

    heard: float | None = None
    changed: float = 0.0
    state: int = _COMPUTES
    ended: int = 0

    def hears(self, now: float, state: int, ended: int) -> "PeerLife":
        """Return the same peer after a sign of life."""
        same = self.heard is not None and (state, ended) == (self.state, self.ended)
        return PeerLife(now, self.changed if same else now, state, ended)


def why_stalled(began: float, now: float, timeout: float, peers: Mapping[int, PeerLife]) -> str | None:
    """Judge a wait for other ranks.

    Args:
        began: time at which the wait began.
        now: present time.
        timeout: seconds.
        peers: what is known of the other ranks; none if there is no channel.

    Returns:
        None while it may go on, else the cause of its end.
    """
    if now - began < timeout:
        return None
    known = {rank: peer for rank, peer in peers.items() if peer.state != _LEAVES}
    if not peers or any(peer.heard is None for peer in known.values()):
        return f"no answer from a neighbour within {timeout:g} s"
    silence = {rank: now - max(began, peer.heard or 0.0) for rank, peer in known.items()}
    if silent := [rank for rank, seconds in silence.items() if seconds >= max(timeout, SHORTEST_SILENCE)]:
        return f"{_ranks(silent)} gave no sign of life for {max(silence.values()):.1f} s: stopped, or cut off"
    quiet = now - max(began, *(peer.changed for peer in peers.values()))
    if all(peer.state == _WAITS for peer in known.values()) and quiet >= timeout:
        return (
            f"every rank waits for another one for {timeout:g} s: their calls are out of step, or a transfer takes longer "
            "than that (raise timeout)"
        )
    if now - began >= LATE_FACTOR * timeout:
        late = [rank for rank, peer in known.items() if peer.state == _COMPUTES]
        return (
            f"{_ranks(late)} gave signs of life, but no answer within {LATE_FACTOR} times the timeout of {timeout:g} s: "
            "it computes something else, or left out a call (raise timeout if it is only slow)"
        )
    return None


def _ranks(ranks: list[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"


class Waits:
    """The waits of this process for other ranks, judged by `why_stalled`; without `peers` by the timeout alone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open = 0
        self._watches: list[_Watch] = []
        self.ended = 0

    @property
    def state(self) -> int:
        """What this process tells the others."""
        return _WAITS if self._open else _COMPUTES

    def peers(self) -> Mapping[int, PeerLife]:
        """Return what is known of the other ranks."""
        return {}

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        with self._lock:
            self._open += 1
        try:
            yield
        finally:
            with self._lock:
                self._open -= 1
                self.ended += 1

    def wait(self, done: threading.Event, timeout: float) -> str | None:
        """Wait for an exchange.

        Args:
            done: set at its end.
            timeout: seconds; see `why_stalled`.

        Returns:
            None if it ended, else why it has not.
        """
        with self._counted():
            began = looked = time.monotonic()
            cause = None
            while cause is None and not done.wait(min(INTERVAL, timeout)):
                now = time.monotonic()
                began = now if now - looked > _SUSPENDED else began
                looked = now
                cause = why_stalled(began, now, timeout, self.peers())
            return cause

    @contextlib.contextmanager
    def watched(self, timeout: float, end: Callable[[str], None]) -> Iterator[None]:
        """A context in which this thread waits for other ranks in a call of MLX's, which has no deadline of its own.

        Only a process that sends signs of life has a thread that could end it.

        Args:
            timeout: seconds; see `why_stalled`.
            end: called with the cause from another thread, if the wait has to end.
        """
        watch = _Watch(time.monotonic(), timeout, end)
        self._watches.append(watch)
        try:
            with self._counted():
                yield
        finally:
            with contextlib.suppress(ValueError):  # it was ended
                self._watches.remove(watch)


@dataclass(frozen=True)
class _Watch:
    began: float
    timeout: float
    end: Callable[[str], None]


class Heartbeat(Waits):
    """The signs of life of one rank of a ring, and what it knows of the others.

    Args:
        rank: this process's.
        nodes: addresses of all ranks.
    """

    def __init__(self, rank: int, nodes: list[Address]) -> None:
        super().__init__()
        self._rank, self._nodes = rank, nodes
        self._ring = zlib.crc32(repr(nodes).encode())
        self._peers = {other: PeerLife() for other in range(len(nodes)) if other != rank}
        self._socket: socket.socket | None = socket.socket(
            socket.AF_INET6 if ":" in nodes[rank][0] else socket.AF_INET, socket.SOCK_DGRAM
        )
        try:
            self._socket.bind(nodes[rank])
        except OSError:  # the port is taken
            self._socket.close()
            self._socket = None
        self._thread = threading.Thread(target=self._serve, name="ringattn-liveness", daemon=True)

    def start(self) -> None:
        """Send signs of life from now on, and a farewell when the interpreter exits."""
        self._thread.start()
        atexit.register(self._send, _LEAVES)

    def peers(self) -> Mapping[int, PeerLife]:
        """See `Waits.peers`."""
        return self._peers if self._socket is not None else {}

    def _serve(self) -> None:
        due = time.monotonic()
        while True:
            remaining = due - time.monotonic()
            if remaining <= 0:
                self._send(self.state)
                self._end_watches(time.monotonic())
                due = time.monotonic() + INTERVAL
            elif self._socket is None:
                time.sleep(remaining)
            else:
                # An error of the network is a sign that does not arrive.
                with contextlib.suppress(OSError):
                    self._socket.settimeout(remaining)
                    self._receive(self._socket.recv(_FORMAT.size + 1))

    def _end_watches(self, now: float) -> None:
        for watch in list(self._watches):
            cause = why_stalled(watch.began, now, watch.timeout, self.peers())
            if cause is not None:
                with contextlib.suppress(ValueError):  # it has ended by itself
                    self._watches.remove(watch)
                    watch.end(cause)

    def _send(self, state: int) -> None:
        sign = _FORMAT.pack(_MAGIC, self._ring, self._rank, state, self.ended & 0xFFFF_FFFF)
        if self._socket is None:
            return
        for other in self._peers:
            with contextlib.suppress(OSError):
                self._socket.sendto(sign, self._nodes[other])

    def _receive(self, sign: bytes) -> None:
        if len(sign) != _FORMAT.size:
            return
        magic, ring, rank, state, ended = _FORMAT.unpack(sign)
        if magic == _MAGIC and ring == self._ring and rank in self._peers:
            self._peers[rank] = self._peers[rank].hears(time.monotonic(), state, ended)


_heartbeat: Heartbeat | None = None
_starting = threading.Lock()


def start_heartbeat(rank: int, nodes: list[Address]) -> Waits:
    """Send signs of life to the other ranks of the ring from now on.

    Args:
        rank: this process's.
        nodes: first address of every rank; none, or one, in a process without a ring.

    Returns:
        How this process waits for the other ranks; the same at each call.
    """
    global _heartbeat
    if len(nodes) < 2:
        return Waits()
    with _starting:
        if _heartbeat is None:
            _heartbeat = Heartbeat(rank, nodes)
            _heartbeat.start()
    return _heartbeat
