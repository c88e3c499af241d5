"""Transport: exchanges with neighbours on a separate thread and separate streams, with a deadline on every wait.

MLX's collectives have no timeout and `mx.eval` cannot be interrupted, so a thread evaluates them, one at a time in the
order posted, while the caller computes and then waits with a deadline. Send and receive of one exchange run on two CPU
streams: on one stream both sides would send first and block for ever. After an error the sockets of the MLX ring are
shut down: that frees the thread, and the other ranks see the failure at once instead of at their own deadlines.
"""

import atexit
import contextlib
import functools
import math
import os
import queue
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn, Protocol

import mlx.core as mx

from ringattn._errors import ArgumentError, PeerError, PeerLost, PeerStalled
from ringattn.liveness import Waits
from ringattn.process_group import DEFAULT_TIMEOUT, bound_exit_wait, joined_group, refuse_jaccl, ring_ports, waits_of

Spec = tuple[tuple[int, ...], mx.Dtype]


@dataclass(frozen=True)
class Shift:
    """One exchange with the neighbours: arrays to send to rank `to`, shapes and dtypes to receive from rank `source`."""

    sends: Sequence[mx.array]
    to: int
    recvs: Sequence[Spec]
    source: int


class Ticket(Protocol):
    """A posted exchange."""

    def wait(self, timeout: float) -> list[mx.array]:
        """Return the received arrays, or raise PeerLost or PeerStalled after at most `timeout` seconds."""


class Transport(Protocol):
    """The interface between the ring's loop and the network; arrays passed to it must be evaluated."""

    def rank(self) -> int:
        """Return this process's rank in the ring, from 0."""

    def size(self) -> int:
        """Return the number of ranks of the ring."""

    def shift(self, shift: Shift, doing: str) -> Ticket:
        """Post an exchange; `doing` describes it in errors."""

    def all_gather(self, x: mx.array, doing: str) -> Ticket:
        """Post a gather of `x`, which has one shape on every rank: the parts of all ranks, joined along axis 0 in rank order."""

    def all_sum(self, x: mx.array, doing: str) -> Ticket:
        """Post a sum over ranks of `x`, which has one shape on every rank; the result has the same bits on all."""


Group = mx.distributed.Group | Transport | None
_CLOSE_S = 2.0  # seconds for a thread that is idle, to end


class Task:
    """A posted exchange of `MlxTransport`."""

    def __init__(
        self, waits: Waits, fail: Callable[..., NoReturn], run: Callable[[], list[mx.array]], doing: str
    ) -> None:
        self.waits, self.fail, self.doing = waits, fail, doing
        self.run: Callable[[], list[mx.array]] | None = run
        self.done = threading.Event()
        self.result: list[mx.array] = []
        self.error: Exception | None = None

    def wait(self, timeout: float) -> list[mx.array]:
        """See `Ticket.wait`."""
        if (cause := self.waits.wait(self.done, timeout)) is not None:
            self.fail(PeerStalled, self.doing, cause, self)
        if self.error is not None:
            self.fail(PeerLost, self.doing, f"a neighbour closed the connection ({self.error})", self)
        return self.result


class MlxTransport:
    """The transport over an MLX group (ring backend: neighbours only). One per group: see `transport_of`."""

    def __init__(self, group: mx.distributed.Group) -> None:
        self._group = group
        self._rank, self._size = group.rank(), group.size()
        self._waits = waits_of(self._size) if self._size > 1 else Waits()
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._broken: PeerError | None = None
        self._thread: threading.Thread | None = None

    def rank(self) -> int:
        """See `Transport.rank`."""
        return self._rank

    def size(self) -> int:
        """See `Transport.size`."""
        return self._size

    def shift(self, shift: Shift, doing: str) -> Task:
        """See `Transport.shift`."""
        to, source, sends, recvs = shift.to, shift.source, deque(shift.sends), deque(shift.recvs)
        return self._post(lambda: self._exchange(sends, to, recvs, source), doing)

    def _exchange(self, sends: deque[mx.array], to: int, recvs: deque[Spec], source: int) -> list[mx.array]:
        got = []
        # One array at a time: MLX's socket thread ends at the first error, and a second receive would wait for ever.
        # Each is released once it is sent: the next one needs its memory at the step's peak.
        while sends or recvs:
            now = []
            if sends:
                now.append(mx.distributed.send(sends.popleft(), to, group=self._group, stream=self._out))
            if recvs:
                got.append(mx.distributed.recv(*recvs.popleft(), source, group=self._group, stream=self._in))
                now.append(got[-1])
            mx.eval(now)
        return got

    def all_gather(self, x: mx.array, doing: str) -> Task:
        """See `Transport.all_gather`."""

        def run() -> list[mx.array]:
            got = mx.distributed.all_gather(x, group=self._group, stream=self._out)
            mx.eval(got)
            return [got]

        return self._post(run, doing)

    def all_sum(self, x: mx.array, doing: str) -> Task:
        """See `Transport.all_sum`."""

        def run() -> list[mx.array]:
            got = mx.distributed.all_sum(x, group=self._group, stream=self._out)
            mx.eval(got)
            return [got]

        return self._post(run, doing)

    def finish_collectives(self, timeout: float) -> None:
        """Wait for what the program has in flight on MLX's CPU stream: its own collectives use the same connections.

        Args:
            timeout: seconds; in a ring, PeerStalled or PeerLost end the wait.

        Raises:
            RuntimeError: if an operation of the program fails there.
        """
        if self._broken is not None:
            raise self._broken
        doing = "finishing the program's own collectives"

        try:
            with self._waits.watched(timeout, lambda cause: self._break(PeerStalled, doing, cause)):
                mx.synchronize(mx.default_stream(mx.cpu))
        except RuntimeError as error:
            if "[ring]" not in str(error):
                raise
            self._break(PeerLost, doing, f"a neighbour closed the connection ({error})")
        if self._broken is not None:
            raise self._broken

    def _post(self, run: Callable[[], list[mx.array]], doing: str) -> Task:
        if self._broken is not None:
            raise self._broken
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="ringattn-transport", daemon=True)
            self._thread.start()
        task = Task(self._waits, self.fail, run, doing)
        self._tasks.put(task)
        return task

    def close(self) -> None:
        """End the thread and drop the group; nothing may be posted any more."""
        if self._thread is not None:
            self._tasks.put(None)
            self._thread.join(_CLOSE_S)
        del self._group

    def _serve(self) -> None:
        # A stream belongs to the thread that created it.
        self._out, self._in = mx.new_stream(mx.cpu), mx.new_stream(mx.cpu)
        failure: Exception | None = None
        while True:
            if (task := self._tasks.get()) is None:
                return
            try:
                if failure is None and task.run is not None:
                    task.result = task.run()
            except Exception as error:
                failure = error
            task.error, task.run = failure, None
            task.done.set()
            # Sent arrays must not stay in memory until the next exchange.
            del task

    def fail(self, kind: type[PeerError], doing: str, cause: str, task: Task) -> NoReturn:
        """Mark the group as broken, free the thread and the other ranks, and raise the error that broke it."""
        self._break(kind, doing, cause)
        bound_exit_wait(task.done)
        assert self._broken is not None
        raise self._broken

    def abandon(self, doing: str, cause: str) -> None:
        """Mark the group as broken and end the other ranks' waits: what arrives next belongs to no call."""
        self._break(PeerLost, doing, cause)

    def _break(self, kind: type[PeerError], doing: str, cause: str) -> None:
        if self._broken is None:
            self._broken = kind(
                f"rank {self._rank} of {self._size}, {doing}: {cause}. This process's MLX group cannot be used again: "
                "end every rank and start the ring again without the lost host",
                rank=self._rank,
                doing=doing,
            )
            _shut_down_ring_sockets()


_transports: dict[int, tuple[mx.distributed.Group, MlxTransport]] = {}
_global_transport: MlxTransport | None = None
_in_ring = functools.cache(lambda: bool(ring_ports()))


def transport_of(group: Group) -> Transport:
    """Return the transport of an MLX group (None: MLX's global group); a Transport is returned unchanged.

    A ring has one group. Of MPI's groups each object has a transport of its own, which is kept with it: every `init` and
    `Group.split` makes a new object, and MLX does not say which of them are the same group.

    Args:
        group: an MLX group, a Transport, or None.

    Raises:
        ArgumentError: if it is something else; without a group the other ranks cannot be told.
    """
    global _global_transport
    if group is not None and not isinstance(group, mx.distributed.Group):
        if not all(hasattr(group, name) for name in ("rank", "size", "shift", "all_gather")):
            raise ArgumentError(
                f"group is {type(group).__name__}; use an MLX group (ringattn.init()), a Transport, or None"
            )
        return group
    if group is not None and group.size() == 1:
        return MlxTransport(group)
    if group is None or group is joined_group() or _in_ring():
        if _global_transport is None:
            refuse_jaccl()
            _global_transport = MlxTransport(group or joined_group() or mx.distributed.init())
        return _global_transport
    if id(group) not in _transports:
        refuse_jaccl()
        _transports[id(group)] = (group, MlxTransport(group))
    return _transports[id(group)][1]


@atexit.register
def _close_split_groups() -> None:
    # A communicator of MPI that is freed after MPI_Finalize, which MLX calls at the very end, aborts the whole job.
    for _, transport in _transports.values():
        transport.close()
    _transports.clear()


def wait_limit(timeout: object) -> float:
    """Return the seconds that a wait may take: a call's `timeout`; None: environment RINGATTN_TIMEOUT, else 60.

    Raises:
        ArgumentError: if it is not a number above 0.
    """
    name, value = "timeout", timeout
    if timeout is None:
        name, value = "RINGATTN_TIMEOUT", os.environ.get("RINGATTN_TIMEOUT", DEFAULT_TIMEOUT)
    try:
        # A number as text is right in the environment only.
        seconds = math.nan if isinstance(timeout, (str, bytes, bool)) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ArgumentError(
            f"{name} {value!r} must be a number of seconds above 0; None stands for RINGATTN_TIMEOUT, else 60"
        )
    return seconds


def _shut_down_ring_sockets() -> None:
    """Shut down this process's connections to and from the ring's ports; MLX offers no way to end a receive."""
    ports = ring_ports()
    for name in os.listdir("/dev/fd") if ports else []:  # noqa: PTH208  fds, not files
        with contextlib.suppress(OSError):
            copy = socket.socket(fileno=os.dup(int(name)))
            with copy:
                if copy.family in (socket.AF_INET, socket.AF_INET6) and ports & {
                    copy.getsockname()[1],
                    copy.getpeername()[1],
                }:
                    copy.shutdown(socket.SHUT_RDWR)


class ThrottledTransport:
    """A transport slowed to `latency` seconds plus bytes / `bandwidth` (bytes/s) an exchange, one exchange at a time.

    For benchmarks and tests of overlap: the delay passes during computation, as on a slow link.
    """

    def __init__(self, inner: Transport, *, bandwidth: float, latency: float = 0.0) -> None:
        self._inner, self._bandwidth, self._latency = inner, bandwidth, latency
        self._free_at = 0.0

    def rank(self) -> int:
        """See `Transport.rank`."""
        return self._inner.rank()

    def size(self) -> int:
        """See `Transport.size`."""
        return self._inner.size()

    def shift(self, shift: Shift, doing: str) -> Ticket:
        """See `Transport.shift`."""
        nbytes = sum(x.nbytes for x in shift.sends)
        self._free_at = max(self._free_at, time.monotonic()) + self._latency + nbytes / self._bandwidth
        return _DelayedTicket(self._inner.shift(shift, doing), self._free_at)

    def all_gather(self, x: mx.array, doing: str) -> Ticket:
        """See `Transport.all_gather`; not slowed."""
        return self._inner.all_gather(x, doing)

    def all_sum(self, x: mx.array, doing: str) -> Ticket:
        """See `Transport.all_sum`; not slowed."""
        return self._inner.all_sum(x, doing)


@dataclass(frozen=True)
class _DelayedTicket:
    ticket: Ticket
    not_before: float

    def wait(self, timeout: float) -> list[mx.array]:
        got = self.ticket.wait(timeout)
        time.sleep(max(0.0, self.not_before - time.monotonic()))
        return got
