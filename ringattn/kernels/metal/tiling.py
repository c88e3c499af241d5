"""Tile shapes of the Metal kernels by head dimension, and the masks that they compare on the device."""

from dataclasses import dataclass

import numpy as np

from ringattn.kernels.base import Block

LANES = 32
"""Threads of a SIMD group."""
CONSTANT_BELOW = 8
"""mlx passes an input of fewer elements in constant memory, which is another signature and another compilation."""
_INT32 = np.iinfo(np.int32)


@dataclass(frozen=True)
class Tiling:
    """How a threadgroup divides its work; the names are those of common.metal."""

    dim: int
    streamed: int
    """rows of the other side in a tile of threadgroup memory"""
    blocks: int
    """fragments of 8 rows that a SIMD group holds in registers"""
    groups: int
    """SIMD groups along the rows"""
    parts: int
    """SIMD groups along the head dimension, so that accumulators fit in registers"""

    @property
    def own(self) -> int:
        """Rows of a threadgroup."""
        return 8 * self.blocks * self.groups

    @property
    def threads(self) -> int:
        """Threads of a threadgroup."""
        return LANES * self.groups * self.parts

    def template(self) -> list[tuple[str, int]]:
        """Return the template arguments of a kernel."""
        return [
            ("D", self.dim), ("STREAMED", self.streamed), ("BLOCKS", self.blocks), ("GROUPS", self.groups), ("PARTS", self.parts)
        ]  # fmt: skip


# Streamed rows: two tiles take about 17 KB, so that three threadgroups share a core's 60 KB. A lane has 128 registers of 32 bits:
# forward holds 2 arrays of blocks * D / parts / 4 floats, dQ holds 3 and dK and dV hold 4, beside the scores.
FORWARD = {
    64: Tiling(64, streamed=32, blocks=2, groups=4, parts=1),
    80: Tiling(80, streamed=24, blocks=2, groups=4, parts=1),
    96: Tiling(96, streamed=16, blocks=1, groups=8, parts=1),
    128: Tiling(128, streamed=16, blocks=1, groups=8, parts=1),
    256: Tiling(256, streamed=8, blocks=1, groups=4, parts=2),
}
BACKWARD_Q = {
    64: Tiling(64, streamed=32, blocks=1, groups=8, parts=1),
    80: Tiling(80, streamed=24, blocks=1, groups=8, parts=1),
    96: Tiling(96, streamed=16, blocks=1, groups=8, parts=1),
    128: Tiling(128, streamed=16, blocks=1, groups=4, parts=2),
    256: Tiling(256, streamed=8, blocks=1, groups=2, parts=4),
}
BACKWARD_KV = {**BACKWARD_Q, 96: Tiling(96, streamed=16, blocks=1, groups=4, parts=2)}
DIMS = tuple(FORWARD)


@dataclass(frozen=True)
class Masks:
    """A block's rules as the kernels take them: a query sees a key iff first <= position <= last and the segments are equal."""

    queries: np.ndarray
    """int32 [1 or B, at least Tq, 3]: first and last visible position, segment"""
    keys: np.ndarray
    """int32 [1 or B, at least Tk, 2]: position, segment"""

    @classmethod
    def of(cls, block: Block) -> "Masks":
        """Return the rules of a block: O(Tq + Tk) work on the host."""
        position = block.q_pos.astype(np.int64)
        first, last = np.full_like(position, _INT32.min), np.full_like(position, _INT32.max)
        if block.window is not None:
            first, last = position - (block.window - 1), position + (block.window - 1)
        if block.causal:
            last = position
        q_seg, k_seg = block.q_seg, block.k_seg
        if q_seg is None or k_seg is None:
            q_seg, k_seg = np.zeros_like(block.q_pos), np.zeros_like(block.k_pos)
        q_seg, k_seg = np.atleast_2d(q_seg), np.atleast_2d(k_seg)
        sees = [
            np.broadcast_to(np.clip(x, _INT32.min, _INT32.max).astype(np.int32), q_seg.shape) for x in (first, last)
        ]
        return cls(
            _in_device_memory(np.stack([*sees, q_seg], axis=-1)),
            _in_device_memory(np.stack([np.broadcast_to(block.k_pos, k_seg.shape), k_seg], axis=-1)),
        )

    def query_ranges(self, rows: int) -> np.ndarray:
        """Return minimum and maximum of each rule in each tile of queries: int32 [1 or B, tiles, 6]."""
        return _ranges(self.queries, rows)

    def key_ranges(self, rows: int) -> np.ndarray:
        """Return minimum and maximum of position and segment in each tile of keys: int32 [1 or B, tiles, 4]."""
        return _ranges(self.keys, rows)


def _ranges(rules: np.ndarray, rows: int) -> np.ndarray:
    starts = np.arange(0, rules.shape[1], rows)
    low, high = (f.reduceat(rules, starts, axis=1) for f in (np.minimum, np.maximum))
    return _in_device_memory(np.stack([low, high], axis=-1).reshape(*low.shape[:2], -1))


def _in_device_memory(rows: np.ndarray) -> np.ndarray:
    """Repeat the last of few rows [sets, rows, n] so that there are at least 8 elements."""
    missing = -(-CONSTANT_BELOW // rows.shape[2]) - rows.shape[1]
    return np.ascontiguousarray(np.pad(rows, [(0, 0), (0, max(0, missing)), (0, 0)], mode="edge"))
