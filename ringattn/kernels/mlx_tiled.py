"""The mlx kernel: tiled attention in MLX operations, portable to GPUs and CPUs, memory O(T * tile).

Online softmax forward, FlashAttention-2 backward (Dao 2023). Tiles that no query sees are skipped and tiles that all see are not
masked; both are decided on the host from ranges of positions and segments, in O(T). The masks of the other tiles are compared on the
device.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ringattn.kernels.base import Block, check
from ringattn.kernels.masks import Masks, TileClass
from ringattn.kernels.tile_arithmetic import Arithmetic, CpuArithmetic, GpuArithmetic, Rules, masked

CPU_TILE = 256
"""Queries and keys of a tile: a head's scores stay in the L2 cache (measured: about twice as fast as tiles of 512)."""
GPU_TILE = 1024
"""Fewer, larger launches; not measured on an Apple GPU."""


class MlxKernel:
    """Tiled kernel with square tiles; query heads of a group are stacked as rows, so K and V are never repeated."""

    name = "mlx"

    def forward(
        self, q: mx.array, k: mx.array, v: mx.array, block: Block, *, scale: float, softcap: float | None = None
    ) -> tuple[mx.array, mx.array]:
        """See `Kernel.forward`."""
        check(q, k, v, block)
        batch, heads = q.shape[:2]
        k, v = k.astype(mx.float32), v.astype(mx.float32)
        arithmetic, tiles = _arithmetic(softcap), _Tiles.of(block)
        outs, lses = [], []
        for i, q_at in enumerate(tiles.queries):
            rows = _stack(q, k, q_at) * (scale * arithmetic.unit)
            state = arithmetic.start(rows, v.shape[3])
            for j in np.flatnonzero(tiles.classes[i]).tolist():
                at, rules = tiles.keys[j], tiles.rules(i, j)
                seen = None if rules is None else arithmetic.visible(rules)
                s = masked(arithmetic.capped(rows @ k[:, :, at].swapaxes(-1, -2)), seen)
                state = arithmetic.attend(state, s, v[:, :, at], mixed=seen is not None)
            o, lse = arithmetic.result(state)
            arithmetic.submit(o, lse)
            outs.append(o.reshape(batch, heads, -1, v.shape[3]))
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
        softcap: float | None = None,
    ) -> tuple[mx.array, mx.array, mx.array]:
        """See `Kernel.backward`."""
        check(q, k, v, block)
        k, v = k.astype(mx.float32), v.astype(mx.float32)
        arithmetic, tiles = _arithmetic(softcap), _Tiles.of(block)
        # A row that saw no key anywhere has lse = -inf; with +inf its probabilities are 0.
        minus_lse = mx.where(lse == -mx.inf, -mx.inf, -lse)[..., None] * arithmetic.unit
        minus_delta = -delta[..., None]
        rows = [_stack(q, k, at) * (scale * arithmetic.unit) for at in tiles.queries]
        d_rows, minus_lses, minus_deltas = (
            [_stack(x, k, at) for at in tiles.queries] for x in (do, minus_lse, minus_delta)
        )
        dqs: list[mx.array | None] = [None] * len(rows)
        dks, dvs = [], []
        for j, at in enumerate(tiles.keys):
            keys, values = k[:, :, at], v[:, :, at]
            dk: mx.array | None = None
            dv: mx.array | None = None
            touched = np.flatnonzero(tiles.classes[:, j]).tolist()
            for i in touched:
                rules = tiles.rules(i, j)
                seen = None if rules is None else arithmetic.visible(rules)
                p, ds = arithmetic.gradients(rows[i], keys, minus_lses[i], d_rows[i], values, minus_deltas[i], seen)
                dv = arithmetic.add_product(dv, p.swapaxes(-1, -2), d_rows[i])
                dk = arithmetic.add_product(dk, ds.swapaxes(-1, -2), rows[i])
                dqs[i] = arithmetic.add_product(dqs[i], ds, keys)
            dk, dv = (mx.zeros(like.shape) if x is None else x for x, like in ((dk, keys), (dv, values)))
            dk = dk if arithmetic.unit == 1 else dk * (1 / arithmetic.unit)  # rows carry the unit
            arithmetic.submit(dk, dv, *(x for i in touched if (x := dqs[i]) is not None))
            dks.append(dk)
            dvs.append(dv)
        dq = mx.concatenate(_unstacked(dqs, q, tiles.queries), axis=2) * scale
        return dq, mx.concatenate(dks, axis=2), mx.concatenate(dvs, axis=2)


@dataclass(frozen=True)
class _Tiles:
    """The tiles of a block, and what its rules hide of each."""

    queries: list[slice]
    keys: list[slice]
    classes: np.ndarray
    """TileClass [q tiles, k tiles]"""
    first: mx.array | None
    """first position that a query sees [Tq, 1]; None where no rule needs it"""
    last: mx.array | None
    """last position that a query sees [Tq, 1], or None"""
    positions: mx.array
    """[Tk]"""
    q_segments: mx.array | None
    """[1 or B, 1, 1, Tq, 1], or None"""
    k_segments: mx.array | None
    """[1 or B, 1, 1, 1, Tk], or None"""

    @classmethod
    def of(cls, block: Block) -> "_Tiles":
        """Cut a block into tiles: O(T) work on the host."""
        size = CPU_TILE if _on_cpu() else GPU_TILE
        masks = Masks.of(block)
        bounded, packed = block.window is not None, block.q_seg is not None
        return cls(
            queries=_slices(len(block.q_pos), size),
            keys=_slices(len(block.k_pos), size),
            classes=masks.classify(size, size),
            first=mx.array(masks.queries[0, :, :1]) if bounded else None,
            last=mx.array(masks.queries[0, :, 1:2]) if bounded or block.causal else None,
            positions=mx.array(masks.keys[0, :, 0]),
            q_segments=mx.array(masks.queries[:, None, None, :, 2:]) if packed else None,
            k_segments=mx.array(masks.keys[:, None, None, None, :, 1]) if packed else None,
        )

    def rules(self, i: int, j: int) -> Rules | None:
        """Return what a tile's mask is compared from; None where all queries see all keys."""
        if self.classes[i, j] == TileClass.FULL:
            return None
        q_at, k_at = self.queries[i], self.keys[j]
        return Rules(
            None if self.first is None else self.first[q_at],
            None if self.last is None else self.last[q_at],
            None if self.q_segments is None else self.q_segments[..., q_at, :],
            self.positions[k_at],
            None if self.k_segments is None else self.k_segments[..., k_at],
        )


def _on_cpu() -> bool:
    return mx.default_device().type == mx.cpu


def _arithmetic(softcap: float | None) -> Arithmetic:
    return CpuArithmetic(softcap) if _on_cpu() else GpuArithmetic(softcap)


def _slices(length: int, size: int) -> list[slice]:
    return [slice(i, min(i + size, length)) for i in range(0, length, size)]


def _stack(x: mx.array, k: mx.array, at: slice) -> mx.array:
    """[B, Hq, T, n] -> fp32 [B, Hkv, G * tile, n]: the tile's rows of all query heads that share a kv head."""
    rows = x[:, :, at].astype(mx.float32)
    return rows.reshape(x.shape[0], k.shape[1], -1, x.shape[3])


def _unstacked(tiles: Sequence[mx.array | None], q: mx.array, cuts: Sequence[slice]) -> list[mx.array]:
    """Return tiles of stacked rows as [B, Hq, tile, D]; zeros where no key was visible."""
    batch, heads, _, dim = q.shape
    return [
        mx.zeros((batch, heads, at.stop - at.start, dim)) if x is None else x.reshape(batch, heads, -1, dim)
        for x, at in zip(tiles, cuts, strict=True)
    ]
