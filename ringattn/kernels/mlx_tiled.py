"""The mlx kernel: tiled attention in MLX operations, portable to GPUs and CPUs, memory O(T * tile).

Online softmax forward, FlashAttention-2 backward (Dao 2023). Tiles whose mask is all false are skipped and tiles whose
mask is all true are not masked; both are decided on the host from positions and segments.
"""

import math
from enum import Enum

import mlx.core as mx
import numpy as np

from ringattn.kernels.base import Block, check, visible

CPU_TILE = 256
"""Queries and keys of a tile: a head's scores stay in the L2 cache (measured: about twice as fast as tiles of 512)."""
GPU_TILE = 1024
"""Fewer, larger launches; not measured on an Apple GPU."""
_LOG2E = math.log2(math.e)
_LN2 = math.log(2.0)


class TileClass(Enum):
    """Effect of a mask on a whole tile."""

    SKIP = "no key visible"
    MIXED = "some keys visible"
    FULL = "all keys visible"


def classify(block: Block, q_at: slice, k_at: slice) -> TileClass:
    """Classify a tile by the ranges of its positions and segments; MIXED where the ranges do not decide."""
    q_pos, k_pos = block.q_pos[q_at], block.k_pos[k_at]
    gap_min, gap_max = int(q_pos.min()) - int(k_pos.max()), int(q_pos.max()) - int(k_pos.min())
    full = True
    if block.causal:
        if gap_max < 0:
            return TileClass.SKIP
        full &= gap_min >= 0
    if block.window is not None:
        if gap_min >= block.window or (not block.causal and gap_max <= -block.window):
            return TileClass.SKIP
        full &= gap_max < block.window and (block.causal or gap_min > -block.window)
    if block.q_seg is not None and block.k_seg is not None:
        q_seg, k_seg = block.q_seg[..., q_at], block.k_seg[..., k_at]
        q_min, q_max, k_min, k_max = q_seg.min(-1), q_seg.max(-1), k_seg.min(-1), k_seg.max(-1)
        if np.all((q_min > k_max) | (q_max < k_min)):
            return TileClass.SKIP
        full &= bool(np.all((q_min == q_max) & (k_min == k_max) & (q_min == k_min)))
    return TileClass.FULL if full else TileClass.MIXED


class MlxKernel:
    """Tiled kernel with square tiles; query heads of a group are stacked as rows, so K and V are never repeated."""

    name = "mlx"

    def forward(
        self, q: mx.array, k: mx.array, v: mx.array, block: Block, *, scale: float
    ) -> tuple[mx.array, mx.array]:
        """See `Kernel.forward`."""
        check(q, k, v, block)
        batch, heads, q_len, dim = q.shape
        k, v = k.astype(mx.float32), v.astype(mx.float32)
        outs, lses = [], []
        for q_at in _tiles(q_len):
            rows = _stack(q, k, q_at) * (scale * _LOG2E)
            o = mx.zeros(rows.shape)
            total = mx.zeros((*rows.shape[:-1], 1))
            top = mx.full(total.shape, -mx.inf)
            for k_at in _tiles(k.shape[2]):
                kind = classify(block, q_at, k_at)
                if kind is TileClass.SKIP:
                    continue
                s = _scores(rows, k, block, q_at, k_at, kind)
                new_top = mx.maximum(top, s.max(axis=-1, keepdims=True))
                base = _finite(new_top) if kind is TileClass.MIXED else new_top
                p = _exp2(s - base)
                shrink = _exp2(top - base)
                total = total * shrink + p.sum(axis=-1, keepdims=True)
                o = o * shrink + p @ v[:, :, k_at]
                top = new_top
            none = total == 0
            o = o / mx.where(none, 1.0, total)
            lse = mx.where(none, -mx.inf, top * _LN2 + mx.log(total))
            mx.eval(o, lse)
            outs.append(o.reshape(batch, heads, -1, dim))
            lses.append(lse.reshape(batch, heads, -1))
        return mx.concatenate(outs, axis=2), mx.concatenate(lses, axis=2)

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
    ) -> tuple[mx.array, mx.array, mx.array]:
        """See `Kernel.backward`."""
        check(q, k, v, block)
        batch, heads, q_len, dim = q.shape
        k, v = k.astype(mx.float32), v.astype(mx.float32)
        # A row that saw no key anywhere has lse = -inf; +inf makes its probabilities 0.
        lse = mx.where(lse == -mx.inf, mx.inf, lse)[..., None] * _LOG2E
        q_tiles = _tiles(q_len)
        dqs: dict[int, mx.array] = {}
        dks, dvs = [], []
        for k_at in _tiles(k.shape[2]):
            keys, values = k[:, :, k_at], v[:, :, k_at]
            dk, dv = mx.zeros(keys.shape), mx.zeros(values.shape)
            touched = []
            for i, q_at in enumerate(q_tiles):
                kind = classify(block, q_at, k_at)
                if kind is TileClass.SKIP:
                    continue
                rows, d_rows = _stack(q, k, q_at) * (scale * _LOG2E), _stack(do, k, q_at)
                s = _scores(rows, k, block, q_at, k_at, kind)
                p = _exp2(s - _stack(lse, k, q_at))
                ds = p * (d_rows @ values.swapaxes(-1, -2) - _stack(delta[..., None], k, q_at))
                dv = dv + p.swapaxes(-1, -2) @ d_rows
                dk = dk + ds.swapaxes(-1, -2) @ rows
                dq = ds @ keys
                dqs[i] = dqs[i] + dq if i in dqs else dq
                touched.append(i)
            dk = dk * _LN2  # rows carry scale * log2(e)
            mx.eval(dk, dv, [dqs[i] for i in touched])
            dks.append(dk)
            dvs.append(dv)
        dq_tiles = [
            dqs[i].reshape(batch, heads, -1, dim) if i in dqs else mx.zeros((batch, heads, at.stop - at.start, dim))
            for i, at in enumerate(q_tiles)
        ]
        return mx.concatenate(dq_tiles, axis=2) * scale, mx.concatenate(dks, axis=2), mx.concatenate(dvs, axis=2)


def _on_cpu() -> bool:
    return mx.default_device().type == mx.cpu


def _tiles(length: int) -> list[slice]:
    size = CPU_TILE if _on_cpu() else GPU_TILE
    return [slice(i, min(i + size, length)) for i in range(0, length, size)]


def _stack(x: mx.array, k: mx.array, at: slice) -> mx.array:
    """[B, Hq, T, n] -> fp32 [B, Hkv, G * tile, n]: the tile's rows of all query heads that share a kv head."""
    rows = x[:, :, at].astype(mx.float32)
    return rows.reshape(x.shape[0], k.shape[1], -1, x.shape[3])


def _scores(rows: mx.array, k: mx.array, block: Block, q_at: slice, k_at: slice, kind: TileClass) -> mx.array:
    """Return rows @ k^T over one tile, -inf where a mixed tile's mask is false: [B, Hkv, G * tile, keys]."""
    s = rows @ k[:, :, k_at].swapaxes(-1, -2)
    if kind is TileClass.FULL:
        return s
    seen = np.ascontiguousarray(visible(block, q_at, k_at))
    seen = seen[:, None, None] if seen.ndim == 3 else seen
    by_head = s.reshape(*s.shape[:2], -1, q_at.stop - q_at.start, s.shape[-1])
    return mx.where(mx.array(seen), by_head, -mx.inf).reshape(s.shape)


def _finite(top: mx.array) -> mx.array:
    """Return row maxima, with 0 for rows that see no key yet, so that -inf - max stays -inf."""
    return mx.where(top == -mx.inf, 0.0, top)


def _exp2(x: mx.array) -> mx.array:
    """Return 2^x. MLX's exp on CPUs is scalar and slow; its power is four times as fast there (GPUs have a fast exp)."""
    if _on_cpu():
        return mx.power(2.0, x)
    return mx.exp(x * _LN2)
