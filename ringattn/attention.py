"""Ring attention: exact softmax attention over a sequence that is sharded over the ranks of an MLX group.

Ring Attention (Liu, Zaharia, Abbeel 2023) with FlashAttention-2's backward (Dao 2023): the forward keeps only the
output and the log-sum-exp, the backward recomputes the probabilities block by block while K, V and their gradients
travel the ring.
"""

from typing import Any

import mlx.core as mx
import numpy as np

from ringattn import kernels, ring
from ringattn._call_header import Kind, refuse
from ringattn._compute_thread import detached_copy, run_untraced
from ringattn._first_order import evaluate, first_order
from ringattn._handshake import Options, agree_on_plan, check_arguments
from ringattn._pass import Pass
from ringattn.layout import Layout
from ringattn.process_group import DEFAULT_TIMEOUT
from ringattn.transport import Group, transport_of, wait_limit

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
    softcap: float | None = None,
    positions: Integers | None = None,
    key_positions: Integers | None = None,
    layout: str | Layout = "zigzag",
    group: Group = None,
    kernel: str | kernels.Kernel | None = None,
    timeout: float | None = None,
    return_lse: bool = False,
    tag: int | None = None,
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
        softcap: None, or c: scores s become c * tanh(s / c) before the mask (Gemma 2), the same on every rank.
        positions: integers [Tq], absolute positions of the queries in place of those of `layout`: for a layout of your own, and for
            queries against a cache of keys.
        key_positions: those of the keys [Tk]; None: `positions`.
        layout: "contiguous", "striped", "zigzag" or `weighted_zigzag(speeds)`, the same on every rank.
        group: an MLX group (None: the global one), or a Transport. On a group of one, exact attention in O(T) memory.
        kernel: name of the block kernel, or a `kernels.Kernel`; None: environment RINGATTN_KERNEL, else the best one here that
            takes these head dimensions (over 256: mlx). It may differ between ranks; `ringattn.trace` says which one ran.
        timeout: seconds that any wait for a neighbour may take; None: environment RINGATTN_TIMEOUT, else 60.
        return_lse: whether to return the log-sum-exp too, through which gradients flow as well.
        tag: a number from 0 up that says which call this is, e.g. the layer's. Ranks whose tags differ raise MismatchError: a rank
            left out a call, or swapped two of one shape, which nothing else tells apart.

    Returns:
        o [B, Hq, Tq, Dv] in q's dtype; sums and merges are in float32. Rows that see no key are 0. With `return_lse`, a pair of o
        and the natural log-sum-exp of the scores [B, Hq, Tq], float32: the sinks are included, and it is -inf in rows that see nothing.

    Raises:
        RingError: ArgumentError and its kinds on every rank, before anything but a small header was sent; TransformError,
            as inputs are evaluated, so that the call cannot be inside mx.compile or mx.vmap, and for second derivatives and
            mx.jvp; PeerLost and PeerStalled within `timeout`, in the forward or the backward pass, which leave the MLX group
            unusable.
    """
    transport = transport_of(group)
    limit = DEFAULT_TIMEOUT  # of the header, if this rank's own is refused
    inputs = (q, k, v) if sinks is None else (q, k, v, sinks)
    try:
        limit = wait_limit(timeout)
        options = Options(
            scale, mask, window, segments, key_segments, positions, key_positions, sinks, softcap, layout, tag
        )
        call = check_arguments(q, k, v, options)
        block_kernel = kernels.select_for(kernel, max(q.shape[3], v.shape[3]))
        evaluate("ring_attention", *inputs)
    except Exception as error:
        refuse(Kind.ATTENTION, error, transport, limit)
    pass_ = Pass(agree_on_plan(call, transport, limit), transport, block_kernel, limit)

    def forward(*inputs: mx.array) -> mx.array | tuple[mx.array, mx.array]:
        tensors = [pass_.prepare(x) for x in inputs[:3]]
        logits = [detached_copy(x) for x in inputs[3:]]
        o, lse = run_untraced(lambda: pass_.forward(*tensors, *logits))
        return (o, lse) if return_lse else o

    def backward(inputs: ring.Arrays, outputs: ring.Arrays, gradients: ring.Arrays) -> ring.Arrays:
        do, *dlse = [pass_.prepare(gradients[0]), *map(detached_copy, gradients[1:])]
        if pass_.released:  # an outer gradient that meets the value of an inner one
            pass_.restore(*(pass_.prepare(x) for x in (*inputs[:3], outputs[0])))
        return run_untraced(lambda: pass_.backward(do, *dlse))

    return first_order("ring_attention", forward, backward)(*inputs)
