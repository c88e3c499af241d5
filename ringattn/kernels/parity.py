"""Small blocks on which two kernels must agree: a check of a compiler and a chip that this project could not try."""

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import numpy as np

from ringattn.kernels.base import Block, Kernel

ALLOWED = {mx.float32: 1e-4, mx.bfloat16: 5e-2, mx.float16: 1e-4}
"""Difference for outputs of about 1. All kernels compute in fp32, but for bf16 where a CPU multiplies pairs of bf16."""
_Q_AT, _K_AT = np.arange(67, dtype=np.int32) + 72, np.arange(203, dtype=np.int32)
BLOCKS = {
    "sliding": Block(_Q_AT, _K_AT, causal=True, window=100),
    "full": Block(_Q_AT, _K_AT),
    "causal": Block(_Q_AT, _K_AT, causal=True),
    "packed": Block(_Q_AT, _K_AT, causal=True, q_seg=_Q_AT // 50, k_seg=_K_AT // 50),
}
"""Odd lengths; the first has hidden, full and mixed tiles."""
CASES: dict[str, tuple[Block, float | None]] = {
    **{name: (block, None) for name, block in BLOCKS.items()},
    "softcap": (BLOCKS["sliding"], 2.0),
}
"""Blocks and softcaps."""


def results(
    kernel: Kernel, dim: int, dtype: mx.Dtype, block: Block = BLOCKS["sliding"], softcap: float | None = None
) -> dict[str, np.ndarray]:
    """Return outputs and gradients of a block, with two query heads a kv head."""
    rng = np.random.default_rng(0)
    q, do = (mx.array(rng.standard_normal((1, 2, len(block.q_pos), dim)), dtype=dtype) for _ in range(2))
    k, v = (mx.array(rng.standard_normal((1, 1, len(block.k_pos), dim)), dtype=dtype) for _ in range(2))
    scores: dict[str, Any] = {"scale": dim**-0.5, "softcap": softcap}
    o, lse = kernel.forward(q, k, v, block, **scores)
    grads = kernel.backward(q, k, v, do, lse, (do * o).sum(axis=-1), block, **scores)
    return {name: np.array(x) for name, x in zip(("o", "lse", "dq", "dk", "dv"), (o, lse, *grads), strict=True)}


def worst(got: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> tuple[str, float]:
    """Return the output that differs most, and by how much; NaN counts as infinity."""
    errors = {name: float(np.abs(got[name] - wanted[name]).max()) for name in wanted}
    finite = {name: error if np.isfinite(error) else np.inf for name, error in errors.items()}
    name = max(finite, key=lambda name: finite[name])
    return name, finite[name]
