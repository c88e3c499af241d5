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


@functools.cache
def block_counts(which: str, dim: int, length: int, heads: int, dtype: mx.Dtype = mx.float32) -> Counter[str]:
    """Return the counts of one kernel on an unmasked block [1, heads, length, dim]; threadgroup_bytes is that of a threadgroup.

    The kernel runs on one threadgroup, with all rows of the other side.
    """
    own = TILINGS[which][dim].own
    q_len, k_len = (length, own) if which == "backward_kv" else (own, length)
    q, k = (mx.zeros((1, 1, n, dim), dtype=dtype) for n in (q_len, k_len))
    block = Block(np.arange(q_len, dtype=np.int32), np.arange(k_len, dtype=np.int32))
    saved = {name: np.zeros((1, 1, q_len)) for name in ("lse", "delta")}
    with pytest.MonkeyPatch.context() as patch:
        kernel, emulator = emulate(patch)
        outputs(kernel, which, [q, k, k, q], block, 1.0, saved)
    assert emulator.findings == []
    (one,) = emulator.counts.values()
    assert length % own == 0
    whole = Counter({name: n * heads * (length // own) for name, n in one.items()})
    whole["threadgroup_bytes"] = one["threadgroup_bytes"]
    return whole
