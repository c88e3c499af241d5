"""Tile shapes of the Metal kernels by head dimension."""

from dataclasses import dataclass

import numpy as np

LANES = 32
"""Threads of a SIMD group."""
CONSTANT_BELOW = 8
"""mlx passes an input of fewer elements in constant memory, which is another signature and another compilation."""


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


def in_device_memory(rows: np.ndarray) -> np.ndarray:
    """Repeat the last of few rows [sets, rows, n] so that there are at least 8 elements."""
    missing = -(-CONSTANT_BELOW // rows.shape[2]) - rows.shape[1]
    return np.ascontiguousarray(np.pad(rows, [(0, 0), (0, max(0, missing)), (0, 0)], mode="edge"))
