"""Which rank computes and keeps which positions of a model's next pass: decisions without arrays of a model.

A chunk of a prompt is cut into 2n runs for n ranks; rank r computes run r and run 2n-1-r, one that sees little of the chunk and one that sees
much of it (the zigzag layout), so that causal work is even. Odd tokens go to the ranks that hold fewest. A
pass of few tokens (decode) is computed by every rank, and each token is kept by the rank that holds fewest. So the ranks'
numbers of kept tokens never differ by more than one, whatever the sizes of the chunks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Runs = tuple[range, ...]


@dataclass(frozen=True)
class Step:
    """One pass of a model over new tokens.

    Attributes:
        start: position of its first token.
        count: its tokens.
        runs: positions that each rank computes, in local order, in rank order.
        owner: uint8 [count], the rank that keeps each position's keys and values.
        replicated: whether every rank computes all tokens.
    """

    start: int
    count: int
    runs: tuple[Runs, ...]
    owner: np.ndarray
    replicated: bool

    def positions(self, rank: int) -> np.ndarray:
        """Return the positions that a rank computes, int32, in local order."""
        return np.concatenate([np.arange(run.start, run.stop, dtype=np.int32) for run in self.runs[rank]])

    def kept(self, rank: int) -> np.ndarray:
        """Return which of the rows that a rank computes it keeps, as indices."""
        if not self.replicated:
            return np.arange(sum(map(len, self.runs[rank])))
        return np.flatnonzero(self.owner == rank)


def plan_step(start: int, count: int, held: Sequence[int]) -> Step:
    """Return the next step.

    Args:
        start: position of its first token.
        count: its tokens, at least 1.
        held: tokens that each rank keeps by now.
    """
    size = len(held)
    # The zigzag has two runs a rank.
    return _replicated(start, count, held) if count < 2 * size or size == 1 else _cut(start, count, held)


def _replicated(start: int, count: int, held: Sequence[int]) -> Step:
    counts, owner = list(held), np.empty(count, np.uint8)
    for i in range(count):
        owner[i] = shortest = counts.index(min(counts))
        counts[shortest] += 1
    return Step(start, count, ((range(start, start + count),),) * len(held), owner, replicated=True)


def _cut(start: int, count: int, held: Sequence[int]) -> Step:
    size = len(held)
    shares = [count // size] * size
    for rank in sorted(range(size), key=lambda r: held[r])[: count % size]:
        shares[rank] += 1
    heads = [share - share // 2 for share in shares]
    first, last = start, start + count
    runs: list[Runs] = []
    for share, head in zip(shares, heads, strict=True):
        runs.append((range(first, first + head), range(last - (share - head), last)))
        first, last = first + head, last - (share - head)
    owner = np.empty(count, np.uint8)
    for rank, pair in enumerate(runs):
        for run in pair:
            owner[run.start - start : run.stop - start] = rank
    return Step(start, count, tuple(runs), owner, replicated=False)


def needs_of(step: Step, owner: np.ndarray, window: int | None) -> tuple[tuple[bool, ...], ...]:
    """Return needs[r][s]: whether a query of rank s may see a key of rank r.

    Args:
        step: the pass.
        owner: uint8, the rank that keeps each position up to the step's last one.
        window: number of positions that a query sees, itself included; None: all.
    """
    size = len(step.runs)
    needs = np.zeros((size, size), bool)
    for s, runs in enumerate(step.runs):
        first, last = min(run.start for run in runs if run), max(run[-1] for run in runs if run)
        seen = owner[0 if window is None else max(0, first - window + 1) : last + 1]
        needs[np.unique(seen), s] = True
    return tuple(tuple(map(bool, row)) for row in needs)
