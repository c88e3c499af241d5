"""Masks as the tiled kernels take them: O(T) numbers prepared on the host, from which the device compares each tile."""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from ringattn.kernels.base import Block

_INT32 = np.iinfo(np.int32)


class TileClass(IntEnum):
    """Effect of a mask on a whole tile."""

    SKIP = 0
    """no key visible"""
    MIXED = 1
    """some keys visible, or the ranges do not decide"""
    FULL = 2
    """all keys visible"""


@dataclass(frozen=True)
class Masks:
    """A block's rules: a query sees a key iff first <= position <= last and the segments are equal."""

    queries: np.ndarray
    """int32 [1 or B, Tq, 3]: first and last visible position, segment"""
    keys: np.ndarray
    """int32 [1 or B, Tk, 2]: position, segment"""

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
            np.stack([*sees, q_seg], axis=-1),
            np.stack([np.broadcast_to(block.k_pos, k_seg.shape), k_seg], axis=-1),
        )

    def query_ranges(self, rows: int) -> np.ndarray:
        """Return minimum and maximum of each rule in each tile of queries: int32 [1 or B, tiles, 6]."""
        return _ranges(self.queries, rows)

    def key_ranges(self, rows: int) -> np.ndarray:
        """Return minimum and maximum of position and segment in each tile of keys: int32 [1 or B, tiles, 4]."""
        return _ranges(self.keys, rows)

    def classify(self, q_rows: int, k_rows: int) -> np.ndarray:
        """Return the TileClass of each tile of q_rows queries and k_rows keys, over all batches: int8 [q tiles, k tiles]."""
        q = np.moveaxis(self.query_ranges(q_rows)[:, :, None], -1, 0)
        k = np.moveaxis(self.key_ranges(k_rows)[:, None], -1, 0)
        first_min, first_max, last_min, last_max, q_seg_min, q_seg_max = q
        position_min, position_max, k_seg_min, k_seg_max = k
        hidden = (position_max < first_min) | (position_min > last_max)
        hidden = hidden | (k_seg_max < q_seg_min) | (k_seg_min > q_seg_max)
        full = (position_min >= first_max) & (position_max <= last_min)
        full = full & (q_seg_min == q_seg_max) & (k_seg_min == q_seg_min) & (k_seg_max == q_seg_min)
        classes = np.where(full.all(axis=0), TileClass.FULL, TileClass.MIXED)
        return np.where(hidden.all(axis=0), TileClass.SKIP, classes).astype(np.int8)


def _ranges(rules: np.ndarray, rows: int) -> np.ndarray:
    starts = np.arange(0, rules.shape[1], rows)
    low, high = (f.reduceat(rules, starts, axis=1) for f in (np.minimum, np.maximum))
    return np.stack([low, high], axis=-1).reshape(*low.shape[:2], -1)
