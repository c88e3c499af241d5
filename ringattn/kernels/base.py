"""The interface of block-attention kernels, the description of their masks, and their input checks."""

from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx
import numpy as np

from ringattn._errors import DTypeError, ShapeError

FLOAT_DTYPES = (mx.float32, mx.bfloat16, mx.float16)


@dataclass(frozen=True)
class Block:
    """Which keys of a block each query sees: absolute positions, and segment ids of packed series. All int32.

    A query sees a key iff every active rule holds: `causal`: k_pos <= q_pos; `window`: q_pos - k_pos < window with causal,
    |q_pos - k_pos| < window without; segments: equal ids.
    """

    q_pos: np.ndarray
    """[Tq] positions of the queries in the whole sequence"""
    k_pos: np.ndarray
    """[Tk] positions of the keys in the whole sequence"""
    causal: bool = False
    window: int | None = None
    q_seg: np.ndarray | None = None
    """[Tq] or [B, Tq]"""
    k_seg: np.ndarray | None = None
    """[Tk] or [B, Tk]"""

    @property
    def masked(self) -> bool:
        """Whether any rule is active."""
        return self.causal or self.window is not None or self.q_seg is not None


class Kernel(Protocol):
    """Attention of a block of queries over a block of keys, and its gradient.

    q is [B, Hq, Tq, D], k [B, Hkv, Tk, D] and v [B, Hkv, Tk, Dv], fp32, bf16 or fp16; query head h reads kv head h // (Hq / Hkv).
    """

    name: str

    def forward(
        self, q: mx.array, k: mx.array, v: mx.array, block: Block, *, scale: float, softcap: float | None = None
    ) -> tuple[mx.array, mx.array]:
        """Compute the attention of the block.

        Args:
            q: see the class.
            k: see the class.
            v: see the class.
            block: the mask.
            scale: factor on the scores.
            softcap: None, or c: the scaled scores s become c * tanh(s / c), before the mask (Gemma 2).

        Returns:
            o [B, Hq, Tq, Dv] fp32, normalised within this block, and lse [B, Hq, Tq] fp32, the natural log-sum-exp of the
            scores; lse = -inf and o = 0 in rows that see no key.
        """

    def backward(
        self,
        q: mx.array,
        k: mx.array,
        v: mx.array,
        do: mx.array,
        lse: mx.array,
        delta: mx.array,
        block: Block,
        *,
        scale: float,
        softcap: float | None = None,
    ) -> tuple[mx.array, mx.array, mx.array]:
        """Compute this block's part of the gradients (more than 10 parameters: the tensors of FlashAttention-2's backward).

        Args:
            q: see the class.
            k: see the class.
            v: see the class.
            do: gradient of o [B, Hq, Tq, Dv].
            lse: log-sum-exp over *all* blocks [B, Hq, Tq], fp32.
            delta: rowsum(dO * O) [B, Hq, Tq], fp32.
            block: the mask.
            scale: factor on the scores.
            softcap: see `forward`.

        Returns:
            dq, dk, dv, fp32, in the shapes of q, k, v.
        """


def check(q: mx.array, k: mx.array, v: mx.array, block: Block) -> None:
    """Check that shapes, dtypes, positions and segments fit together.

    Raises:
        ShapeError: if a shape does not fit.
        DTypeError: if a dtype is not supported.
    """
    if q.ndim != 4 or k.ndim != 4 or v.ndim != 4 or k.shape[:3] != v.shape[:3]:
        raise ShapeError(
            f"q is [B, Hq, Tq, D], k [B, Hkv, Tk, D] and v [B, Hkv, Tk, Dv]: got {q.shape}, {k.shape}, {v.shape}"
        )
    batch, q_heads, q_len, dim = q.shape
    kv_heads, k_len = k.shape[1:3]
    if k.shape[0] != batch or k.shape[3] != dim:
        raise ShapeError(f"q and k must have equal B and D: got {q.shape}, {k.shape}")
    if kv_heads == 0 or q_heads % kv_heads:
        raise ShapeError(
            f"the number of query heads must be a multiple of the number of kv heads: got {q_heads} and {kv_heads}"
        )
    for x in (q, k, v):
        if x.dtype not in FLOAT_DTYPES:
            raise DTypeError(f"q, k and v must be float32, bfloat16 or float16: got {x.dtype}")
    if block.window is not None and block.window < 1:
        raise ShapeError(f"window must be at least 1: got {block.window}")
    if (block.q_seg is None) != (block.k_seg is None):
        raise ShapeError("q_seg and k_seg must be given together: only one was given")
    for what, ids, length, may_batch in (
        ("q_pos", block.q_pos, q_len, False),
        ("k_pos", block.k_pos, k_len, False),
        ("q_seg", block.q_seg, q_len, True),
        ("k_seg", block.k_seg, k_len, True),
    ):
        if ids is None:
            continue
        shapes = [(length,), (batch, length)] if may_batch else [(length,)]
        if ids.dtype != np.int32 or ids.shape not in shapes:
            raise ShapeError(f"{what} must be int32 of shape {shapes}: got {ids.dtype} {ids.shape}")


def visible(block: Block, q_at: slice = slice(None), k_at: slice = slice(None)) -> np.ndarray:
    """Return which keys each query sees: bool [Tq, Tk], or [B, Tq, Tk] if segments differ between batches."""
    gap = block.q_pos[q_at].astype(np.int64)[:, None] - block.k_pos[k_at].astype(np.int64)[None, :]
    seen = np.ones(gap.shape, dtype=bool)
    if block.causal:
        seen &= gap >= 0
    if block.window is not None:
        seen &= (gap if block.causal else np.abs(gap)) < block.window
    if block.q_seg is not None and block.k_seg is not None:
        seen = seen & (block.q_seg[..., q_at, None] == block.k_seg[..., None, k_at])
    return seen
