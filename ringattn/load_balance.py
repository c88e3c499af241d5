"""Shares of a sequence that follow measured speeds: a step lasts as long as its slowest rank, so a slower one gets fewer tokens.

A ring begins with equal parts. Each step every rank says for how many seconds it was busy, that is, did not wait for others. `LoadBalancer` looks
at WINDOW_STEPS steps at a time and takes the median of each rank, which two outliers don't move; `rebalance` decides. All ranks see the
same numbers and decide the same, and whoever has the numbers can decide it again.

Weighted zigzag gives a rank work in proportion to its tokens (`ringattn.layout`), so tokens a busy second are a rank's speed, whatever the
busy seconds went into: attention, the rest of the model, reading. What doesn't shrink with a rank's tokens makes one change fall short; the
next ones make up for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from ringattn.layout import Layout, as_layout, weighted_zigzag

MIN_GAIN = (
    0.10  # of the step that other shares promise: what can't be won by more than this is noise, and changes nothing
)
WARMUP_STEPS, WINDOW_STEPS = 2, 5  # steps after a start or a change that are not looked at, and steps that are
MIN_SHARE = 0.05  # of an equal share: with fewer tokens a rank could not be measured


def rebalance(weights: Sequence[float], busy: Sequence[float]) -> tuple[float, ...]:
    """The next shares, one a rank, 1.0 being an equal one.

    weights: the present shares. busy: seconds a step of each rank under them, above 0. In proportion to the speeds if that promises to
    shorten the step by more than MIN_GAIN; equal shares where those promise as much within MIN_GAIN; else the present ones.
    """
    mean = sum(weights) / len(weights)
    speeds = [weight / mean / seconds for weight, seconds in zip(weights, busy, strict=True)]
    new = tuple(max(MIN_SHARE, round(speed * len(speeds) / sum(speeds), 2)) for speed in speeds)
    promised = len(new) / sum(new) * max(weight / speed for weight, speed in zip(new, speeds, strict=True))
    if max(busy) <= (1 + MIN_GAIN) * promised:
        return tuple(weights)
    if 1 / min(speeds) <= (1 + MIN_GAIN) * promised:
        return (1.0,) * len(new)
    return new


class LoadBalancer:
    """The shares of one ring, from step to step. Other layouts than zigzag stay as they are."""

    def __init__(self, layout: str | Layout, size: int) -> None:
        self.layout = as_layout(layout)
        self.weights = self.layout.weights or (1.0,) * size
        self._follow = self.layout.kind == "zigzag" and size > 1
        self._skip, self._seen = WARMUP_STEPS, list[tuple[float, ...]]()

    def record_step(self, busy: Sequence[float]) -> bool:
        """A step's busy seconds, one a rank. True: from the next step on the shares, and `layout` with them, are others."""
        if not self._follow or self._skip:
            self._skip = max(0, self._skip - 1)
            return False
        self._seen.append(tuple(busy))
        if len(self._seen) < WINDOW_STEPS:
            return False
        new = rebalance(self.weights, [median(of_rank) for of_rank in zip(*self._seen, strict=True)])
        self._seen = []
        if new == self.weights:
            return False
        self.weights, self._skip = new, WARMUP_STEPS
        self.layout = Layout("zigzag") if set(new) == {1.0} else weighted_zigzag(new)
        return True
