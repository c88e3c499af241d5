"""Cutting arrays by a layout, joining them again, and the positions of the local tokens."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from ringattn._errors import LayoutError
from ringattn.layout import Layout, lengths, local_positions, order
from ringattn.transport import Transport, default_timeout, transport_of

Group = mx.distributed.Group | Transport | None


def positions(total: int, *, layout: str | Layout = "zigzag", group: Group = None) -> mx.array:
    """Absolute positions of this rank's tokens, int32 [T_local], in local order: for RoPE and for masks of one's own.

    total: tokens of the whole sequence.
    """
    transport = transport_of(group)
    return mx.array(local_positions(layout, total, transport.size(), transport.rank()))


def shard(x: mx.array, axis: int, *, layout: str | Layout = "zigzag", group: Group = None) -> mx.array:
    """This rank's part of `x`, which every rank holds whole: `x` at `positions(x.shape[axis])` along `axis`."""
    return mx.take(x, positions(x.shape[axis], layout=layout, group=group), axis=axis)


def unshard(
    x: mx.array, axis: int, *, layout: str | Layout = "zigzag", group: Group = None, timeout: float | None = None
) -> mx.array:
    """The whole array on every rank, from the local parts [.., T_r, ..] along `axis`; the inverse of `shard`.

    Local lengths may differ. No gradient flows through it. `timeout` in seconds, of each wait. Raises LayoutError when
    the lengths do not follow the layout, PeerLost and PeerStalled.
    """
    transport = transport_of(group)
    size, limit = transport.size(), default_timeout() if timeout is None else timeout
    axis %= x.ndim
    local = mx.moveaxis(mx.stop_gradient(x), axis, 0)
    held = [local.shape[0]]
    if size > 1:
        header = mx.array(held, dtype=mx.int32)
        mx.eval(header)
        held = np.array(transport.all_gather(header, "unshard, lengths").wait(limit)[0]).tolist()
    total = sum(held)
    wanted = list(lengths(layout, total, size))
    if held != wanted:
        raise LayoutError(f"the layout gives {total} tokens over {size} ranks as {wanted}, but the ranks hold {held}")
    if size == 1:
        return mx.array(x)
    longest = max(held)
    # all_gather takes equal shapes only; what pads the wire is cut off again below.
    padded = mx.concatenate([local, mx.zeros((longest - held[transport.rank()], *local.shape[1:]), local.dtype)])
    mx.eval(padded)
    (wire,) = transport.all_gather(padded, "unshard").wait(limit)
    parts = [wire[r * longest : r * longest + length] for r, length in enumerate(held)]
    inverse = np.argsort(order(layout, total, size)).astype(np.int32)
    whole = mx.moveaxis(mx.take(mx.concatenate(parts), mx.array(inverse), axis=0), 0, axis)
    mx.eval(whole)
    return whole
