"""Counts of a whole block of attention from one threadgroup of each kernel: all threadgroups of an unmasked block do the same."""

import functools
from collections import Counter

import mlx.core as mx
import numpy as np
import pytest

from ringattn.kernels import Block
from ringattn.kernels.metal.tiling import BACKWARD_KV, BACKWARD_Q, FORWARD, Tiling
from tests.support.metal.cases import emulate, outputs

TILINGS: dict[str, dict[int, Tiling]] = {"forward": FORWARD, "backward_q": BACKWARD_Q, "backward_kv": BACKWARD_KV}


def block_counts(which: str, dim: int, length: int, heads: int, dtype: mx.Dtype = mx.float32) -> Counter[str]:
    """Return the counts of one kernel on an unmasked block [1, heads, length, dim]; threadgroup_bytes is that of a threadgroup.

    Every tile of the other side costs the same, so that two and four tiles tell the counts of any number of them; a long test
    compares that with the run of all.
    """
    tiling = TILINGS[which][dim]
    assert length % tiling.own == length % tiling.streamed == 0
    two, four = (group_counts(which, dim, tiles * tiling.streamed, dtype) for tiles in (2, 4))
    more = length // tiling.streamed - 2
    groups = heads * (length // tiling.own)
    whole = Counter({name: groups * (two[name] + more * (four[name] - two[name]) // 2) for name in two})
    whole["threadgroup_bytes"] = two["threadgroup_bytes"]
    return whole


@functools.cache
def group_counts(which: str, dim: int, length: int, dtype: mx.Dtype) -> Counter[str]:
    """Return the counts of one threadgroup on `length` rows of the other side."""
    own = TILINGS[which][dim].own
    q_len, k_len = (length, own) if which == "backward_kv" else (own, length)
    q, k = (mx.zeros((1, 1, n, dim), dtype=dtype) for n in (q_len, k_len))
    block = Block(np.arange(q_len, dtype=np.int32), np.arange(k_len, dtype=np.int32))
    saved = {name: np.zeros((1, 1, q_len)) for name in ("lse", "delta")}
    with pytest.MonkeyPatch.context() as patch:
        kernel, emulator = emulate(patch)
        outputs(kernel, which, [q, k, k, q], block, saved, scale=1.0)
    assert emulator.findings == []
    (counts,) = emulator.counts.values()
    return counts
