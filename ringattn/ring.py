"""The loop over the schedule, shared by forward and backward, and the merge of partial softmaxes.

Each hop posts the exchange of keys and values, computes on the block at hand while they travel, then sends the gradient
sums on (backward only). Every result is evaluated before the next exchange, so memory stays O(T) per rank.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass

import mlx.core as mx

from ringattn.schedule import Exchange, Table, Work
from ringattn.transport import Shift, Spec, Ticket, Transport

Arrays = tuple[mx.array, ...]


@dataclass(frozen=True)
class HopTime:
    """Times of one hop: seconds of computation, seconds of waiting for neighbours, bytes sent.

    Attributes:
        phase: "forward", "backward", or "agree", the handshake before a call, in which ranks wait for later ones.
        hop: number of the hop in its phase.
        compute: seconds of computation.
        wait: seconds of waiting for neighbours.
        sent: bytes sent.
        kernel: name of the block kernel that computes; "" in a handshake.
    """

    phase: str
    hop: int
    compute: float
    wait: float
    sent: int
    kernel: str = ""


_trace: ContextVar[list[HopTime] | None] = ContextVar("ringattn_trace", default=None)


@contextlib.contextmanager
def trace() -> Iterator[list[HopTime]]:
    """Collect a HopTime for every handshake and hop that runs in this context."""
    hops: list[HopTime] = []
    token = _trace.set(hops)
    try:
        yield hops
    finally:
        _trace.reset(token)


def run(
    table: Table,
    own: Arrays,
    transport: Transport,
    compute: Callable[[Work, Arrays], Arrays],
    *,
    outgoing: Callable[[], Arrays] | None = None,
    kv_specs: Callable[[int], Sequence[Spec]],
    grad_specs: Callable[[int], Sequence[Spec]],
    timeout: float,
    phase: str,
    kernel: str = "",
    combine: Callable[[Arrays, Arrays], Arrays] | None = None,
) -> Arrays:
    """Run one rank's table.

    Args:
        table: the rank's hops.
        own: this rank's K, V (and key segments), evaluated.
        transport: exchanges blocks with the neighbours.
        compute: does one Work with the arrays of its block; returns the gradients of that block, evaluated, or nothing.
        outgoing: makes the arrays to send in place of `own`; None sends `own`.
        kv_specs: shapes and dtypes of a block's K, V (and key segments) on the wire.
        grad_specs: shapes and dtypes of a block's gradients on the wire.
        timeout: seconds of each wait; PeerLost or PeerStalled end it.
        phase: "forward" or "backward", or another name for the trace.
        kernel: name of the kernel, for the trace.
        combine: joins two results of one block, evaluated; None adds them.

    Returns:
        The summed gradients of this rank's own block; empty in the forward pass.
    """
    rank = transport.rank()
    held, sums = {rank: own}, dict[int, Arrays]()
    pending: _Posted | None = None
    # The own block is sent in the first hop or never.
    first = table[0].kv
    wire = {rank: outgoing()} if outgoing is not None and first is not None and first.send == rank else held
    for index, hop in enumerate(table):
        clock = _Clock()
        doing = f"{phase} hop {index} of {len(table) - 1}"
        kv = _post(transport, hop.kv, wire, kv_specs, f"{doing}, keys and values")
        part = compute(hop.work, held[hop.work.block]) if hop.work is not None else ()
        clock.lap("compute")
        _finish(pending, sums, timeout, combine)
        pending = None
        clock.lap("wait")
        if part and hop.work is not None:
            _add(sums, hop.work.block, part, combine)
        del part
        clock.lap("compute")
        pending = _post(transport, hop.grad, sums, grad_specs, f"{doing}, gradients")
        if hop.grad is not None and hop.grad.send is not None:
            del sums[hop.grad.send]
        # A block stays for one hop: it is released before the next one arrives.
        held = wire = {rank: own}
        _finish(kv, held, timeout)
        clock.lap("wait")
        sent = (kv.nbytes if kv else 0) + (pending.nbytes if pending else 0)
        record(HopTime(phase, index, clock.seconds["compute"], clock.seconds["wait"], sent, kernel))
    _finish(pending, sums, timeout, combine)
    return sums.get(rank, ())


@dataclass(frozen=True)
class _Posted:
    exchange: Exchange
    ticket: Ticket
    nbytes: int


def _post(
    transport: Transport,
    exchange: Exchange | None,
    blocks: dict[int, Arrays],
    specs: Callable[[int], Sequence[Spec]],
    doing: str,
) -> _Posted | None:
    if exchange is None:
        return None
    sends = () if exchange.send is None else blocks[exchange.send]
    recvs = () if exchange.recv is None else specs(exchange.recv)
    ticket = transport.shift(Shift(sends, exchange.to, recvs, exchange.source), doing)
    return _Posted(exchange, ticket, sum(x.nbytes for x in sends))


def _finish(
    posted: _Posted | None,
    blocks: dict[int, Arrays],
    timeout: float,
    combine: Callable[[Arrays, Arrays], Arrays] | None = None,
) -> None:
    if posted is None:
        return
    got = posted.ticket.wait(timeout)
    if posted.exchange.recv is not None:
        _add(blocks, posted.exchange.recv, tuple(got), combine)


def _add(
    blocks: dict[int, Arrays], block: int, part: Arrays, combine: Callable[[Arrays, Arrays], Arrays] | None
) -> None:
    """Add `part` to the arrays of `block`, with one wait and into their own memory: a block's sum is half of the peak memory."""
    if block in blocks and combine is not None:
        part = combine(blocks.pop(block), part)
    elif block in blocks:
        totals = list(blocks.pop(block))
        for i, more in enumerate(part):
            totals[i] = totals[i] + more  # no other name holds the old sum, so that MLX writes over it
        mx.eval(totals)
        part = tuple(totals)
    blocks[block] = part


class _Clock:
    def __init__(self) -> None:
        self._last = time.perf_counter()
        self.seconds = {"compute": 0.0, "wait": 0.0}

    def lap(self, what: str) -> None:
        now = time.perf_counter()
        self.seconds[what] += now - self._last
        self._last = now


def record(hop: HopTime) -> None:
    """Append to the trace that is being collected, if there is one."""
    if (hops := _trace.get()) is not None:
        hops.append(hop)


def merge_partials(o: mx.array, lse: mx.array, o_part: mx.array, lse_part: mx.array) -> tuple[mx.array, mx.array]:
    """Merge two normalised softmaxes over disjoint keys. All fp32.

    The weights are sigmoids of the difference of the log-sum-exps, so nothing overflows (ring-flash-attention's form of
    FlashAttention's rescaling).

    Args:
        o: output over the first keys [..., T, D].
        lse: its log-sum-exp [..., T], -inf where no key was visible.
        o_part: output over the other keys [..., T, D].
        lse_part: its log-sum-exp [..., T].

    Returns:
        Output [..., T, D] and log-sum-exp [..., T] over all keys.
    """
    top = mx.maximum(lse, lse_part)
    safe = mx.where(mx.isinf(top), mx.zeros_like(top), top)  # rows that see no key yet: exp(-inf - 0) = 0
    old, new = mx.exp(lse - safe), mx.exp(lse_part - safe)
    total = old + new
    norm = mx.where(total == 0, mx.ones_like(total), total)
    merged = o * (old / norm)[..., None] + o_part * (new / norm)[..., None]
    return merged, safe + mx.log(total)


def merge_sinks(o: mx.array, lse: mx.array, sinks: mx.array) -> tuple[mx.array, mx.array]:
    """Add one logit a head to a softmax's denominator: a key that every query sees, whose value is 0. All fp32.

    Args:
        o: output over the keys [B, Hq, T, Dv].
        lse: its log-sum-exp [B, Hq, T], -inf where no key was visible.
        sinks: logits [Hq]; -inf is no sink.

    Returns:
        Output and log-sum-exp, the sinks included.
    """
    total = mx.logaddexp(lse, sinks[:, None])
    share = mx.where(total == -mx.inf, 0.0, mx.exp(lse - total))
    return o * share[..., None], total
