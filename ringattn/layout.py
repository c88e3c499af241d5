"""Layouts: which positions of the sequence each rank holds, and in which order.

With n ranks and T tokens (any T ≥ n):

  contiguous   rank r holds one run; causal work grows with r
  striped      rank r holds r, r + n, r + 2n, …             (Striped Attention, Brandon et al. 2023)
  zigzag       2n chunks; rank r holds chunk r and chunk 2n-1-r  (zhuzilin/ring-flash-attention); of an odd number of
               tokens the first chunk has one more
  weighted     zigzag whose chunk r and mirror 2n-1-r have a width in proportion to weight r: causal and full work are
               then proportional to the weight, because chunk and mirror are symmetric about T/2

A rank's local order is its runs, one after the other, each ascending.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np

from ringattn._errors import LayoutError

KINDS = ("contiguous", "striped", "zigzag")


@dataclass(frozen=True)
class Layout:
    """A way to spread a sequence over ranks.

    Attributes:
        kind: "contiguous", "striped" or "zigzag".
        weights: zigzag only; one positive number a rank, its share of the tokens up to a common factor.
    """

    kind: str
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise LayoutError(
                f"layout {self.kind!r} is unknown; use one of {', '.join(KINDS)}, or weighted_zigzag(speeds)"
            )
        if self.weights is None:
            return
        if self.kind != "zigzag":
            raise LayoutError(f"weights are for the zigzag layout only, not for {self.kind!r}; drop them")
        if not self.weights or not all(math.isfinite(w) and w > 0 for w in self.weights):
            raise LayoutError(f"weights {self.weights} must be finite and above 0, one a rank")


def weighted_zigzag(speeds: Sequence[float]) -> Layout:
    """Return a zigzag with shares in proportion to `speeds`, one number a rank in rank order (any unit, e.g. FLOP/s)."""
    return Layout("zigzag", tuple(float(s) for s in speeds))


def as_layout(layout: str | Layout) -> Layout:
    """Return the Layout of a name; a Layout is returned unchanged."""
    return layout if isinstance(layout, Layout) else Layout(layout)


def runs(layout: str | Layout, total: int, size: int) -> tuple[tuple[range, ...], ...]:
    """Return every rank's runs of positions, in local order; they partition range(total).

    Raises:
        LayoutError: if a rank would hold no token, or if the number of weights is not `size`.
    """
    layout = as_layout(layout)
    if layout.weights is not None and len(layout.weights) != size:
        raise LayoutError(f"{len(layout.weights)} weights for a group of {size}; give one weight a rank")
    table: tuple[tuple[range, ...], ...]
    if layout.kind == "striped":
        table = tuple((range(r, total, size),) for r in range(size))
    elif layout.kind == "contiguous":
        table = tuple((range(r * total // size, (r + 1) * total // size),) for r in range(size))
    else:
        table = _zigzag(layout.weights, total, size)
    if any(not sum(map(len, of_rank)) for of_rank in table):
        raise LayoutError(f"{total} tokens over {size} ranks leave a rank with none; use fewer ranks or more tokens")
    return table


def _zigzag(weights: tuple[float, ...] | None, total: int, size: int) -> tuple[tuple[range, ...], ...]:
    if weights is None:
        # Integer bounds: n equal local lengths are then always a valid zigzag of their sum.
        bounds = [r * total // size for r in range(size + 1)]
    else:
        cumulative = [0.0, *accumulate(weights)]
        bounds = [math.floor(total * c / cumulative[-1] + 0.5) for c in cumulative]
    held = [b - a for a, b in pairwise(bounds)]
    starts = [0, *accumulate(length - length // 2 for length in held)]
    ends = [total, *(total - e for e in accumulate(length // 2 for length in held))]
    chunks = [(range(starts[r], starts[r + 1]), range(ends[r + 1], ends[r])) for r in range(size)]
    return tuple(tuple(chunk for chunk in of_rank if chunk) for of_rank in chunks)


def lengths(layout: str | Layout, total: int, size: int) -> tuple[int, ...]:
    """Return the tokens of each rank, in rank order; they sum to `total`."""
    return tuple(sum(map(len, of_rank)) for of_rank in runs(layout, total, size))


def local_positions(layout: str | Layout, total: int, size: int, rank: int) -> np.ndarray:
    """Return the absolute positions of the tokens of `rank`, int32 [T_local], in local order."""
    return np.concatenate([np.arange(r.start, r.stop, r.step, dtype=np.int32) for r in runs(layout, total, size)[rank]])


def order(layout: str | Layout, total: int, size: int) -> np.ndarray:
    """Return the positions of all ranks, one after the other, int32 [T]: `global[order] == concatenated locals`."""
    return np.concatenate([local_positions(layout, total, size, rank) for rank in range(size)])
