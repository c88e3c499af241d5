"""Attention over keys and values that stay sharded, for queries that every rank holds alike: decode.

Each rank attends to its own keys. One all_gather a call then carries every rank's output and log-sum-exp, B · Hq · T · (Dv + 1)
floats and a small header, and each rank merges them in the same order, in float32: exact, whatever share of the keys a rank
has. Keys and values never move, so a token costs the links as much at 500,000 tokens of context as at 500.

No gradient flows through it: a model is trained with `ring_attention`.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import mlx.core as mx
import numpy as np

from ringattn import kernels, ring
from ringattn._errors import ArgumentError, DTypeError, MismatchError, RingError, ShapeError, TransformError
from ringattn.transport import Group, Transport, transport_of, wait_limit

FREE = np.iinfo(np.int32).max
"""Position of a row of keys that holds none yet: no query sees it."""
_FOLD_BELOW = 32  # tokens; more fill a kernel's tiles by themselves
_MAGIC = 0x4D474B44  # "DKGM": the gathered message is a decode call's
_DTYPES = (mx.float32, mx.bfloat16, mx.float16)
_SHAPE = ("batch", "query heads", "tokens", "head dimension", "v's dimension", "dtype")  # alike on every rank
# int32: magic, whether the arguments were refused, tag, digest of positions and rules, _SHAPE. It comes first: of a longer message a rank
# receives as much as it expects.
HEADER = 4 + len(_SHAPE)


@dataclass(frozen=True)
class KeyBlock:
    """Keys and values of some positions, on this rank.

    Attributes:
        k: [B, Hkv, T, D].
        v: [B, Hkv, T, Dv], Dv <= D.
        positions: int32 [T]; FREE in rows that hold no key.
    """

    k: mx.array
    v: mx.array
    positions: np.ndarray


@dataclass(frozen=True)
class Rules:
    """What scores a query has, beside the causal rule.

    Attributes:
        scale: factor on the scores.
        window: a query sees the last `window` positions, itself included; None: all up to its own.
        sinks: [Hq], a score a head that takes no value; None: none.
        softcap: c: scores s become c · tanh(s / c) before the mask; None: they stay.
    """

    scale: float
    window: int | None = None
    sinks: mx.array | None = None
    softcap: float | None = None


# More than 10 parameters: the tensors of attention and its independent options, all but three by keyword.
def decode_attention(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    *,
    scale: float,
    positions: Sequence[int] | np.ndarray | mx.array,
    key_positions: Sequence[int] | np.ndarray | mx.array,
    window: int | None = None,
    sinks: mx.array | None = None,
    softcap: float | None = None,
    tag: int = 0,
    group: Group = None,
    kernel: str | kernels.Kernel | None = None,
    timeout: float | None = None,
) -> mx.array:
    """Compute causal attention of queries that every rank holds alike over keys and values of which each rank holds some.

    Every rank of the group must make the same calls in the same order. A rank may hold any keys, also none; no position twice.

    Args:
        q: [B, Hq, T, D], float32, bfloat16 or float16; the same on every rank.
        k: [B, Hkv, T_k, D], this rank's keys; T_k may be 0 and differ between ranks.
        v: [B, Hkv, T_k, Dv], this rank's values, Dv <= D; Dv is the same on every rank.
        scale: factor on the scores, usually D ** -0.5.
        positions: [T], positions of the queries in the whole sequence.
        key_positions: [T_k], positions of this rank's keys, in any order. A query sees keys up to its own position.
        window: a query sees the last `window` positions, itself included; None: all.
        sinks: [Hq], one more score a head that takes no value (gpt-oss); None: none.
        softcap: None, or c: scores s become c * tanh(s / c) before the mask (Gemma 2).
        tag: any integer, e.g. the layer's number; ranks whose tags differ raise MismatchError.
        group: an MLX group (None: the global one), or a Transport.
        kernel: name of the block kernel, or a `kernels.Kernel`; None: environment RINGATTN_KERNEL, else the best one here.
        timeout: seconds that the wait for the other ranks may take; None: environment RINGATTN_TIMEOUT, else 60.

    Returns:
        o [B, Hq, T, Dv] in q's dtype, the same bits on every rank if their kernels and processors are alike. Rows that see no
        key are 0.

    Raises:
        RingError: ArgumentError and its kinds on every rank, if q was usable on each; TransformError inside mx.compile, and
            when a gradient is asked for; PeerLost and PeerStalled within `timeout`, which leave the MLX group unusable.
    """
    transport = transport_of(group)
    limit = wait_limit(timeout)
    check_queries(q)
    try:
        rules = checked_rules(q, Rules(scale, window, sinks, softcap))
        at, block = _positions("positions", positions, q.shape[2]), _key_block(q, k, v, key_positions)
        chosen = kernels.select_for(kernel, q.shape[3])
    except RingError as refusal:
        width = v.shape[-1] if isinstance(v, mx.array) and v.ndim == 4 else q.shape[3]
        _gather(transport, _message(q, width, refusal, tag, 0), limit)
        raise
    return without_gradient(
        q,
        lambda q: attend_replicated(q, [block], at, rules, tag=tag, transport=transport, kernel=chosen, timeout=limit),
    )


def attend_replicated(
    q: mx.array,
    blocks: Sequence[KeyBlock],
    positions: np.ndarray,
    rules: Rules,
    *,
    width: int | None = None,
    tag: int = 0,
    transport: Transport,
    kernel: kernels.Kernel,
    timeout: float,
) -> mx.array:
    """Compute attention of queries that every rank holds over the keys of all ranks; see `decode_attention`.

    Args:
        q: [B, Hq, T, D].
        blocks: this rank's keys and values; may be none, if `width` is given.
        positions: int32 [T] of the queries.
        rules: what scores the queries have.
        width: Dv; None: that of the first block.
        tag: compared between ranks.
        transport: reaches the other ranks.
        kernel: the block kernel.
        timeout: seconds of the wait.

    Returns:
        o [B, Hq, T, Dv] in q's dtype.
    """
    width = blocks[0].v.shape[3] if width is None else width
    o, lse = local_attention(q, blocks, positions, rules, kernel, width=width)
    if transport.size() > 1:
        digest = zlib.crc32(repr((rules.scale, rules.window, rules.softcap)).encode(), zlib.crc32(positions.tobytes()))
        outs, lses = _gather(transport, _message(q, width, (o, lse), tag, digest), timeout)
    else:
        outs, lses = o[None], lse[None]
    merged = merge_all(outs, lses, rules.sinks).astype(q.dtype)
    mx.eval(merged)
    return merged


def local_attention(
    q: mx.array, blocks: Sequence[KeyBlock], positions: np.ndarray, rules: Rules, kernel: kernels.Kernel, *, width: int
) -> tuple[mx.array, mx.array]:
    """Compute attention over this rank's keys alone.

    Of few queries, the heads that share a kv head become rows of it, so that a kernel reads each key once for all of them.

    Args:
        q: [B, Hq, T, D].
        blocks: this rank's keys and values; may be none.
        positions: int32 [T] of the queries.
        rules: what scores the queries have; sinks are added in the merge.
        kernel: the block kernel.
        width: Dv.

    Returns:
        o [B, Hq, T, Dv] normalised over these keys, and lse [B, Hq, T], -inf where a query sees none; both float32.
    """
    batch, heads, length, dim = q.shape
    o, lse = mx.zeros((batch, heads, length, width)), mx.full((batch, heads, length), -mx.inf)
    # A kernel of the user's need not know of a softcap.
    options = {"scale": rules.scale} | ({} if rules.softcap is None else {"softcap": rules.softcap})
    for block in blocks:
        if block.k.shape[2] == 0:
            continue
        kv_heads = block.k.shape[1] if length < _FOLD_BELOW else heads
        group = heads // kv_heads
        rows = q.reshape(batch, kv_heads, group * length, dim)
        mask = kernels.Block(np.tile(positions, group), block.positions, causal=True, window=rules.window)
        part, part_lse = kernel.forward(rows, block.k, block.v, mask, **options)
        part, part_lse = part.reshape(batch, heads, length, width), part_lse.reshape(batch, heads, length)
        o, lse = ring.merge_partials(o, lse, part, part_lse)
        mx.eval(o, lse)
    return o, lse


def merge_all(outs: mx.array, lses: mx.array, sinks: mx.array | None = None) -> mx.array:
    """Merge normalised softmaxes over disjoint keys by their log-sum-exps, all at once; 0 where no key was visible.

    Args:
        outs: [n, B, H, T, Dv], float32.
        lses: [n, B, H, T], float32, -inf where no key was visible.
        sinks: [H], one more score a head, without a value.

    Returns:
        o [B, H, T, Dv], float32.
    """
    top = lses.max(axis=0)
    if sinks is not None:
        sink = sinks.astype(mx.float32)[:, None]
        top = mx.maximum(top, sink)
    safe = mx.where(mx.isinf(top), mx.zeros_like(top), top)
    weights = mx.exp(lses - safe)
    total = weights.sum(axis=0)
    if sinks is not None:
        total = total + mx.exp(sink - safe)
    norm = mx.where(total == 0, mx.ones_like(total), total)
    return (outs * (weights / norm)[..., None]).sum(axis=0)


def without_gradient(q: mx.array, work: Callable[[mx.array], mx.array]) -> mx.array:
    """Return `work(q)`, whose derivatives raise TransformError instead of being 0."""

    @mx.custom_function
    def attend(q: mx.array) -> mx.array:
        try:
            mx.eval(q)
        except (ValueError, RuntimeError) as error:
            if "transformation" not in str(error):
                raise
            raise TransformError(
                "attention over a sharded cache exchanges data with other hosts, so it cannot be inside mx.compile or mx.vmap; "
                "compile the parts of the model around it instead"
            ) from error
        return work(q)

    def refuse(*_: object) -> mx.array:
        raise TransformError(
            "attention over a sharded cache has no derivative; train with ring_attention, without a cache"
        )

    attend.vjp(refuse)
    attend.jvp(refuse)
    return cast(mx.array, attend(q))


def check_queries(q: object) -> None:
    """Check the queries of a call.

    Raises:
        DTypeError: if they are no mlx array of a supported dtype.
        ShapeError: if their shape breaks the rule.
    """
    if not isinstance(q, mx.array) or q.dtype not in _DTYPES:
        what = q.dtype if isinstance(q, mx.array) else type(q).__name__
        raise DTypeError(f"q is {what}; use an mlx array of float32, bfloat16 or float16")
    if q.ndim != 4 or 0 in q.shape:
        raise ShapeError(f"q has shape {q.shape}; the rule is [batch, heads, tokens, head dimension], none empty")


def checked_rules(q: mx.array, rules: Rules) -> Rules:
    """Return the rules of a call after a check.

    Raises:
        ArgumentError: if scale, window or softcap break a rule.
        ShapeError: if sinks do.
    """
    window = rules.window
    if window is not None and (isinstance(window, bool) or not isinstance(window, int | np.integer) or window < 1):
        raise ArgumentError(f"window {window!r} must be a number of tokens from 1 up, or None")
    if not isinstance(rules.scale, int | float | np.number) or not np.isfinite(rules.scale):
        raise ArgumentError(f"scale {rules.scale!r} must be a finite number; the usual one is head_dimension ** -0.5")
    if rules.sinks is not None and tuple(rules.sinks.shape) != (q.shape[1],):
        raise ShapeError(f"sinks {rules.sinks.shape} must have one score a query head: {(q.shape[1],)}")
    softcap = rules.softcap
    if softcap is not None and not (isinstance(softcap, int | float) and 0 < softcap < np.inf):
        raise ArgumentError(f"softcap {softcap!r} must be a finite number above 0, or None")
    return Rules(float(rules.scale), None if window is None else int(window), rules.sinks, softcap)


def _key_block(q: mx.array, k: mx.array, v: mx.array, positions: Sequence[int] | np.ndarray | mx.array) -> KeyBlock:
    for name, x in (("k", k), ("v", v)):
        if not isinstance(x, mx.array) or x.dtype != q.dtype:
            what = x.dtype if isinstance(x, mx.array) else type(x).__name__
            raise DTypeError(f"{name} is {what}; it must be an mlx array of q's dtype, {q.dtype}")
        if x.ndim != 4:
            raise ShapeError(f"{name} has shape {x.shape}; the rule is [batch, kv heads, tokens, head dimension]")
    if k.shape[:3] != v.shape[:3] or not 1 <= v.shape[3] <= k.shape[3]:
        raise ShapeError(f"k {k.shape} and v {v.shape} must agree but for v's dimension, which may be smaller")
    if (q.shape[0], q.shape[3]) != (k.shape[0], k.shape[3]):
        raise ShapeError(f"q {q.shape} and k {k.shape} must agree in batch and head dimension")
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ShapeError(f"{q.shape[1]} query heads are not a multiple of {k.shape[1]} kv heads")
    return KeyBlock(k, v, _positions("key_positions", positions, k.shape[2]))


def _positions(name: str, positions: Sequence[int] | np.ndarray | mx.array, length: int) -> np.ndarray:
    at = np.asarray(positions)
    if at.shape != (length,):
        raise ShapeError(f"{name} {at.shape} must have one position a token: {(length,)}")
    if length and (at.dtype.kind not in "iu" or at.min() < 0 or at.max() > FREE):
        raise DTypeError(f"{name} must be integers from 0 to below 2**31, not {at.dtype}")
    return np.ascontiguousarray(at, dtype=np.int32)


def _message(
    q: mx.array, width: int, result: tuple[mx.array, mx.array] | RingError, tag: int, digest: int
) -> tuple[mx.array, tuple[int, ...]]:
    """Return what a rank sends, float32 [1, …], and the shape of o in it: header, log-sum-exps, outputs."""
    shape = (*q.shape[:3], width)
    if isinstance(result, RingError):
        o, lse = mx.zeros(shape), mx.zeros(shape[:3])
    else:
        o, lse = result
    call = [_MAGIC, isinstance(result, RingError), tag & 0x7FFFFFFF, digest & 0x7FFFFFFF]
    numbers = np.array([*call, *q.shape, width, _DTYPES.index(q.dtype)], np.int32)
    message = mx.concatenate([mx.array(numbers).view(mx.float32), lse.reshape(-1), o.reshape(-1)])[None]
    mx.eval(message)
    return message, shape


def _gather(transport: Transport, sent: tuple[mx.array, tuple[int, ...]], timeout: float) -> tuple[mx.array, mx.array]:
    """Return outputs [n, B, H, T, Dv] and log-sum-exps [n, B, H, T] of all ranks.

    Raises:
        MismatchError: on every rank, if the ranks' calls differ or one refused its arguments.
    """
    message, shape = sent
    size, rank = transport.size(), transport.rank()
    (got,) = transport.all_gather(message, "decode attention").wait(timeout) if size > 1 else (message,)
    headers = np.array(got[:, :HEADER].view(mx.int32)).tolist()
    _check_headers(headers, rank)
    rows = int(np.prod(shape[:3]))
    lses = got[:, HEADER : HEADER + rows].reshape(size, *shape[:3])
    return got[:, HEADER + rows :].reshape(size, *shape), lses


def _check_headers(headers: Sequence[Sequence[int]], rank: int) -> None:
    """Check that all ranks made the same call, first those whose header is one: after a longer message the next is not where it should be.

    Raises:
        MismatchError: they did not, or one refused its arguments.
    """
    own = headers[rank]
    for other, (magic, refused, tag, digest, *shape) in enumerate(headers):
        if magic != _MAGIC:
            continue
        if refused and not own[1]:
            raise MismatchError(f"rank {rank} did not go on: rank {other} refused its arguments; see the error there")
        if refused or own[1]:
            continue
        for name, theirs, mine in zip(_SHAPE, shape, own[4:], strict=True):
            if theirs != mine:
                said = [str(_DTYPES[x] if name == "dtype" else x) for x in (mine, theirs)]
                raise MismatchError(
                    f"{name} must be the same on every rank, but is {said[0]} on rank {rank}, {said[1]} on rank {other}"
                )
        if [tag, digest] != own[2:4]:
            what = f"tag {tag}, rank {rank} of tag {own[2]}" if tag != own[2] else "other positions or rules"
            raise MismatchError(
                f"rank {other} decodes a call of {what}; every rank must make the same calls in the same order"
            )
    for other, (magic, *_) in enumerate(headers):
        if magic != _MAGIC:
            raise MismatchError(
                f"rank {other} is in another exchange than rank {rank}, which decodes: same calls, same order"
            )
