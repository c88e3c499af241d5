"""Load balancing: give each rank a share of the sequence in proportion to its measured speed.

A step lasts as long as its slowest rank, so a slow rank (a straggler) gets fewer tokens. A ring begins with equal shares. At each step
every rank reports the seconds it was busy, that is, did not wait for other ranks. `LoadBalancer` collects WINDOW_STEPS steps and takes
the median of each rank, which two outliers do not change; `rebalance` decides. All ranks have the same numbers and decide the same, and
so does anyone who repeats the decision from a log.

Weighted zigzag gives a rank work in proportion to its tokens (`ringattn.layout`), so tokens per busy second are a rank's speed, whatever
the time goes into: attention, the rest of the model, reading. Time that does not shrink with a rank's tokens makes one change fall short;
later changes correct it.
"""

from collections.abc import Sequence
from statistics import median

from ringattn.layout import Layout, as_layout, weighted_zigzag

MIN_GAIN = 0.10  # share of the step's time; a smaller predicted gain is noise and changes no shares
WARMUP_STEPS, WINDOW_STEPS = 2, 5  # steps after a start or a change that do not count, and steps that count
MIN_SHARE = 0.05  # minimum, as a part of an equal share: with fewer tokens a rank's speed could not be measured


def rebalance(weights: Sequence[float], busy: Sequence[float]) -> tuple[float, ...]:
    """Return the next shares of the ranks, 1.0 being an equal share.

    Args:
        weights: the present shares, one a rank.
        busy: seconds a step of each rank under the present shares, above 0.

    Returns:
        Shares in proportion to the speeds if that shortens the step by more than MIN_GAIN; equal shares if those are as good within
        MIN_GAIN; otherwise the present shares.
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
    """Adapt the shares of one ring from step to step. Layouts other than zigzag keep their shares.

    Attributes:
        layout: the layout of the next step.
        weights: its shares, one a rank.
    """

    def __init__(self, layout: str | Layout, size: int) -> None:
        self.layout = as_layout(layout)
        self.weights = self.layout.weights or (1.0,) * size
        self._adapts = self.layout.kind == "zigzag" and size > 1
        self._skip, self._window = WARMUP_STEPS, list[tuple[float, ...]]()

    def record_step(self, busy: Sequence[float]) -> bool:
        """Record a step's busy seconds, one a rank.

        Returns:
            True if `weights` and `layout` have changed for the next step.
        """
        if not self._adapts or self._skip:
            self._skip = max(0, self._skip - 1)
            return False
        self._window.append(tuple(busy))
        if len(self._window) < WINDOW_STEPS:
            return False
        new = rebalance(self.weights, [median(of_rank) for of_rank in zip(*self._window, strict=True)])
        self._window = []
        if new == self.weights:
            return False
        self.weights, self._skip = new, WARMUP_STEPS
        self.layout = Layout("zigzag") if set(new) == {1.0} else weighted_zigzag(new)
        return True
