"""Ring attention: exact softmax attention over a sequence that is sharded over the ranks of an MLX group.

Ring Attention (Liu, Zaharia, Abbeel 2023) with FlashAttention-2's backward (Dao 2023): the forward keeps only the
output and the log-sum-exp, the backward recomputes the probabilities block by block while K, V and their gradients
travel the ring.
"""

from typing import Any, cast

import mlx.core as mx
import numpy as np

from ringattn import kernels, ring
from ringattn._compute_thread import detached_copy, run_untraced
from ringattn._errors import RingError, TransformError
from ringattn._handshake import Options, agree_on_plan, check_arguments
from ringattn._pass import Pass
from ringattn.layout import Layout
from ringattn.transport import Group, default_timeout, transport_of

Integers = mx.array | np.ndarray


# More than 10 parameters: the tensors of attention and its independent options, all but three by keyword.
def ring_attention(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    *,
    scale: float,
    mask: str | None = None,
    window: int | None = None,
    segments: Integers | None = None,
    key_segments: Integers | None = None,
    sinks: mx.array | None = None,
    positions: Integers | None = None,
    key_positions: Integers | None = None,
    layout: str | Layout = "zigzag",
    group: Group = None,
    kernel: str | kernels.Kernel | None = None,
    timeout: float | None = None,
    return_lse: bool = False,
) -> Any:  # an array, or with return_lse a pair: a union would have to be narrowed at every call
    """Compute softmax attention over the whole sequence, of which this rank holds a part. Differentiable in q, k, v and sinks.

    Every rank of the group must make the same calls in the same order.

    Args:
        q: [B, Hq, Tq, D], float32, bfloat16 or float16; Tq this rank's tokens in the order of `layout` (see `ringattn.shard`).
        k: [B, Hkv, Tk, D], of q's dtype; Hq is a multiple of Hkv, query head h reads kv head h // (Hq / Hkv). Where a rank's Tk is
            not its Tq, masks need `positions` and `key_positions`; without a mask (cross attention) any Tq and Tk will do.
        v: [B, Hkv, Tk, Dv], of q's dtype.
        scale: factor on the scores, usually D ** -0.5.
        mask: None or "causal" (a query sees positions up to its own in the whole sequence).
        window: with "causal" a query sees the last `window` positions, itself included; without, those nearer than `window`.
        segments: integers [Tq] or [B, Tq]; queries see only keys with the same id (packed series).
        key_segments: those of the keys [Tk] or [B, Tk]; None: `segments`.
        sinks: [Hq], one logit a head that joins the softmax's denominator (gpt-oss), replicated: each rank's gradient is the part of
            its queries, which `mx.distributed.all_sum` adds up.
        positions: integers [Tq], absolute positions of the queries in place of those of `layout`: for a layout of your own, and for
            queries against a cache of keys.
        key_positions: those of the keys [Tk]; None: `positions`.
        layout: "contiguous", "striped", "zigzag" or `weighted_zigzag(speeds)`, the same on every rank.
        group: an MLX group (None: the global one), or a Transport. On a group of one, exact attention in O(T) memory.
        kernel: name of the block kernel, or a `kernels.Kernel`; None: environment RINGATTN_KERNEL, else the best one here. It
            may differ between ranks.
        timeout: seconds that any wait for a neighbour may take; None: environment RINGATTN_TIMEOUT, else 60.
        return_lse: whether to return the log-sum-exp too, through which gradients flow as well.

    Returns:
        o [B, Hq, Tq, Dv] in q's dtype; sums and merges are in float32. Rows that see no key are 0. With `return_lse`, a pair of o
        and the natural log-sum-exp of the scores [B, Hq, Tq], float32: the sinks are included, and it is -inf in rows that see nothing.

    Raises:
        RingError: ArgumentError and its kinds on every rank, before anything but a small header was sent; TransformError,
            as inputs are evaluated, so that the call cannot be inside mx.compile or mx.vmap; PeerLost and PeerStalled within
            `timeout`, in the forward or the backward pass, which leave the MLX group unusable.
    """
    transport = transport_of(group)
    limit = default_timeout() if timeout is None else timeout
    inputs = (q, k, v) if sinks is None else (q, k, v, sinks)
    try:
        options = Options(
            scale, mask, window, segments, key_segments, positions, key_positions, sinks=sinks, layout=layout
        )
        call = check_arguments(q, k, v, options)
        block_kernel = kernels.select(kernel) if kernel is None or isinstance(kernel, str) else kernel
        _evaluate(*inputs)
    except RingError as refusal:
        agree_on_plan(refusal, transport, limit)
        raise
    pass_ = Pass(agree_on_plan(call, transport, limit), transport, block_kernel, limit)

    @mx.custom_function
    def attend(*inputs: mx.array) -> mx.array | tuple[mx.array, mx.array]:
        tensors = [pass_.prepare(x) for x in inputs[:3]]
        logits = [detached_copy(x) for x in inputs[3:]]
        o, lse = run_untraced(lambda: pass_.forward(*tensors, *logits))
        return (o, lse) if return_lse else o

    @attend.vjp
    def attend_vjp(primals: object, cotangents: mx.array | ring.Arrays, output: object) -> ring.Arrays:
        do, *dlse = cast(ring.Arrays, cotangents if return_lse else (cotangents,))
        gradient, *of_lse = [pass_.prepare(do), *map(detached_copy, dlse)]
        return run_untraced(lambda: pass_.backward(gradient, *of_lse))

    return attend(*inputs)


def _evaluate(*arrays: mx.array) -> None:
    try:
        mx.eval(*arrays)
    except (ValueError, RuntimeError) as error:
        if "transformation" not in str(error):
            raise
        raise TransformError(
            "ring_attention evaluates its inputs and exchanges data with other hosts, so it cannot be inside mx.compile or mx.vmap; "
            "compile the parts of the model around it instead"
        ) from error
