"""Shard arrays by a layout, join the shards, and compute the positions of local tokens."""

from collections.abc import Callable

import mlx.core as mx
import numpy as np

from ringattn._call_header import Kind, as_integer, check_agreed, exchange, layout_code, refuse
from ringattn._compute_thread import detached_copy, run_untraced
from ringattn._errors import DTypeError, LayoutError, ShapeError
from ringattn._first_order import evaluate, first_order
from ringattn.layout import Layout, as_layout, lengths, local_positions, order
from ringattn.process_group import DEFAULT_TIMEOUT
from ringattn.transport import Group, Shift, Transport, transport_of, wait_limit


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
    x: mx.array,
    axis: int,
    *,
    layout: str | Layout = "zigzag",
    group: Group = None,
    timeout: float | None = None,
    tag: int | None = None,
) -> mx.array:
    """Return the whole array on every rank, from the local parts; the inverse of `shard`. Differentiable in x.

    The gradient is that of the *sum of the ranks' losses*, as in `ring_attention`: each part receives the sum over ranks of their
    gradients of it, in float32. A loss that every rank computes alike from the whole counts once a rank: divide it by the group's
    size, or multiply it by 0 on all ranks but one. As every rank takes part in the sum, every rank must differentiate.

    Args:
        x: this rank's part [.., T_r, ..]; lengths may differ between ranks.
        axis: the sharded axis.
        layout: layout of the sequence over the ranks.
        group: an MLX group (None: the global one), or a Transport.
        timeout: seconds of each wait; None: environment RINGATTN_TIMEOUT, else 60. PeerLost or PeerStalled end a wait.
        tag: a number from 0 up, the same on every rank; see `ring_attention`.

    Raises:
        LayoutError: if the lengths do not follow the layout; this and other kinds of ArgumentError on every rank, before any data
            was sent. TransformError in mx.compile, mx.vmap, mx.jvp and for second derivatives.
    """
    transport = transport_of(group)
    limit = DEFAULT_TIMEOUT  # of the header, if this rank's own is refused
    try:
        limit = wait_limit(timeout)
        number = None if tag is None else as_integer(tag, "tag", "a number from 0 up, or None")
        at, fields = _checked(x, axis, as_layout(layout))
        evaluate("unshard", x)
    except Exception as error:
        refuse(Kind.UNSHARD, error, transport, limit)
    rows = exchange(Kind.UNSHARD, number, fields, transport, limit)
    check_agreed(rows, _AGREED, {"layout": {}, "dtype": dict(enumerate(map(str, _DTYPES)))})
    held, size = [row[len(_AGREED)] for row in rows], transport.size()
    total = sum(held)
    wanted = list(lengths(layout, total, size))
    if held != wanted:
        raise LayoutError(f"the layout gives {total} tokens over {size} ranks as {wanted}, but the ranks hold {held}")
    return first_order("unshard", *_gather_and_reduce(at, as_layout(layout), held, transport, limit))(x)


_DTYPES = (
    mx.bool_, mx.uint8, mx.uint16, mx.uint32, mx.uint64, mx.int8, mx.int16, mx.int32, mx.int64,
    mx.float16, mx.bfloat16, mx.float32, mx.float64, mx.complex64,
)  # fmt: skip
_MAX_DIMS = 12
_AGREED = ("dimensions", "axis", "dtype", "layout", *(f"size of dimension {i}" for i in range(_MAX_DIMS)))


def _checked(x: object, axis: object, layout: Layout) -> tuple[int, list[int]]:
    """Return the axis from 0 up, and the fields of the header: those of _AGREED, then the local length."""
    if not isinstance(x, mx.array):
        raise DTypeError(f"x is {type(x).__name__}; unshard takes an mlx array: mx.array(x)")
    rule = f"one of the {x.ndim} dimensions of {x.shape}"
    at = as_integer(axis, "axis", rule, lowest=-x.ndim)
    if not 0 < x.ndim <= _MAX_DIMS or at >= x.ndim:
        raise ShapeError(f"axis {at} must be {rule}, of 1 to {_MAX_DIMS}")
    at %= x.ndim
    # The sharded dimension may differ: it counts as 0.
    sizes = [0 if i == at else n for i, n in enumerate(x.shape)] + [0] * (_MAX_DIMS - x.ndim)
    return at, [x.ndim, at, _DTYPES.index(x.dtype), layout_code(layout), *sizes, x.shape[at]]


def _gather_and_reduce(
    axis: int, layout: Layout, held: list[int], transport: Transport, timeout: float
) -> tuple[Callable[[mx.array], mx.array], Callable[..., tuple[mx.array]]]:
    """Return the functions local part → whole array, and gradient of the whole → gradient of the local part."""
    size, rank, longest = transport.size(), transport.rank(), max(held)
    at = order(layout, sum(held), size)
    bounds = np.cumsum([0, *held]).tolist()

    def gather(x: mx.array) -> mx.array:
        local = mx.moveaxis(x, axis, 0)
        # all_gather takes equal shapes only; the padding is cut off below.
        padded = mx.concatenate([local, mx.zeros((longest - held[rank], *local.shape[1:]), local.dtype)])
        mx.eval(padded)
        (wire,) = transport.all_gather(padded, "unshard").wait(timeout)
        parts = [wire[r * longest : r * longest + length] for r, length in enumerate(held)]
        inverse = mx.array(np.argsort(at).astype(np.int32))
        whole = mx.moveaxis(mx.take(mx.concatenate(parts), inverse, axis=0), 0, axis)
        mx.eval(whole)
        return whole

    def reduce(gradient: mx.array) -> mx.array:
        whole = mx.take(mx.moveaxis(gradient, axis, 0), mx.array(at.astype(np.int32)), axis=0)
        parts = [whole[bounds[r] : bounds[r + 1]] for r in range(size)]
        summed = mx.moveaxis(_reduce_scatter(parts, transport, timeout), 0, axis).astype(gradient.dtype)
        mx.eval(summed)
        return summed

    def untraced(work: Callable[[mx.array], mx.array], x: mx.array) -> mx.array:
        if size == 1:
            return mx.contiguous(x)
        local = detached_copy(x)
        return run_untraced(lambda: work(local))

    return (lambda x: untraced(gather, x)), (lambda _, __, gradients: (untraced(reduce, gradients[0]),))


def _reduce_scatter(parts: list[mx.array], transport: Transport, timeout: float) -> mx.array:
    """Return the sum over ranks of this rank's part, float32: each part's sum goes once round the ring and ends at its rank."""
    rank, size = transport.rank(), transport.size()
    total = parts[(rank - 1) % size].astype(mx.float32)
    for hop in range(size - 1):
        own = parts[(rank - 2 - hop) % size].astype(mx.float32)
        mx.eval(total, own)
        shift = Shift([total], (rank + 1) % size, [(own.shape, mx.float32)], (rank - 1) % size)
        (got,) = transport.shift(shift, f"unshard, gradient, hop {hop} of {size - 2}").wait(timeout)
        total = got + own
    return total
