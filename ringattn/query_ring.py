"""Attention of sharded queries over keys and values that stay where they are: prefill in chunks, beside a long cache.

`ring_attention` sends keys and values around. Of a chunk of a prompt against all tokens before it there are far more keys than
queries, so here the queries travel, and behind them the sums of their outputs, merged by log-sum-exps on every rank on the way
(pass-Q of Context Parallelism for Million-Token Inference, Yang et al. 2024). The loop and its schedule are those of the
backward pass of `ring_attention`, with queries in the place of keys, and outputs in that of gradients.
"""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from ringattn import kernels, ring, schedule
from ringattn.decode import KeyBlock, Rules, local_attention, merge_all
from ringattn.transport import Transport


def attend_sharded(
    q: mx.array,
    blocks: Sequence[KeyBlock],
    positions: Sequence[np.ndarray],
    needs: tuple[tuple[bool, ...], ...],
    rules: Rules,
    *,
    width: int,
    transport: Transport,
    kernel: kernels.Kernel,
    timeout: float,
) -> mx.array:
    """Compute causal attention of this rank's queries over the keys of all ranks. Every rank calls it with its own.

    Args:
        q: [B, Hq, T_r, D], evaluated; T_r may differ between ranks.
        blocks: this rank's keys and values.
        positions: int32 [T_r] of the queries of each rank, in rank order.
        needs: needs[r][s]: whether any key of rank r is visible to any query of rank s; the same on every rank.
        rules: what scores the queries have.
        width: Dv.
        transport: reaches the neighbours.
        kernel: the block kernel.
        timeout: seconds of each wait; PeerLost or PeerStalled end it.

    Returns:
        o [B, Hq, T_r, Dv] in q's dtype, evaluated.
    """
    batch, heads, _, dim = q.shape
    rank, cut = transport.rank(), len(blocks) // 2
    parts = {"all": blocks, "head": blocks[cut:], "tail": blocks[:cut]}

    def compute(work: schedule.Work, block: ring.Arrays) -> ring.Arrays:
        keys = parts[work.queries]
        if not keys and work.queries == "tail":
            return ()
        return local_attention(block[0], keys, positions[work.block], rules, kernel, width=width)

    def rows(block: int) -> tuple[int, int, int]:
        return batch, heads, len(positions[block])

    o, lse = ring.run(
        schedule.verified_tables(needs, gradients=True)[rank],
        (q,),
        transport,
        compute,
        kv_specs=lambda block: [((*rows(block), dim), q.dtype)],
        grad_specs=lambda block: [((*rows(block), width), mx.float32), (rows(block), mx.float32)],
        timeout=timeout,
        phase="prefill",
        combine=_merged,
    )
    o = merge_all(o[None], lse[None], rules.sinks).astype(q.dtype)
    mx.eval(o)
    return o


def _merged(one: ring.Arrays, other: ring.Arrays) -> ring.Arrays:
    both = ring.merge_partials(*one, *other)
    mx.eval(both)
    return both
