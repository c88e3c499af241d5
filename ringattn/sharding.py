"""Shard arrays by a layout, join the shards, and compute the positions of local tokens."""

import mlx.core as mx
import numpy as np

from ringattn._errors import LayoutError
from ringattn.layout import Layout, lengths, local_positions, order
from ringattn.transport import Group, default_timeout, transport_of


def positions(total: int, *, layout: str | Layout = "zigzag", group: Group = None) -> mx.array:
    """Return the absolute positions of this rank's tokens, int32 [T_local], in local order: for RoPE and for custom masks.

    Args:
        total: tokens of the whole sequence.
        layout: layout of the sequence over the ranks.
        group: an MLX group (None: the global one), or a Transport.
    """
    transport = transport_of(group)
    return mx.array(local_positions(layout, total, transport.size(), transport.rank()))


def shard(x: mx.array, axis: int, *, layout: str | Layout = "zigzag", group: Group = None) -> mx.array:
    """Return this rank's part of an array that every rank holds whole: `x` at `positions(x.shape[axis])` along `axis`."""
    return mx.take(x, positions(x.shape[axis], layout=layout, group=group), axis=axis)


def unshard(
    x: mx.array, axis: int, *, layout: str | Layout = "zigzag", group: Group = None, timeout: float | None = None
) -> mx.array:
    """Return the whole array on every rank, from the local parts; the inverse of `shard`. No gradient flows through it.

    Args:
        x: this rank's part [.., T_r, ..]; lengths may differ between ranks.
        axis: the sharded axis.
        layout: layout of the sequence over the ranks.
        group: an MLX group (None: the global one), or a Transport.
        timeout: seconds of each wait; None: environment RINGATTN_TIMEOUT, else 60. PeerLost or PeerStalled end a wait.

    Raises:
        LayoutError: if the lengths do not follow the layout.
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
    # all_gather takes equal shapes only; the padding is cut off below.
    padded = mx.concatenate([local, mx.zeros((longest - held[transport.rank()], *local.shape[1:]), local.dtype)])
    mx.eval(padded)
    (wire,) = transport.all_gather(padded, "unshard").wait(limit)
    parts = [wire[r * longest : r * longest + length] for r, length in enumerate(held)]
    inverse = np.argsort(order(layout, total, size)).astype(np.int32)
    whole = mx.moveaxis(mx.take(mx.concatenate(parts), mx.array(inverse), axis=0), 0, axis)
    mx.eval(whole)
    return whole
