"""Estimate the time that a stage still takes, from the work of its parts. Deterministic, no clock and no I/O (sans-I/O).

A stage is a sequence of parts, each with its own unit of work: start, fetch (rows), build (series), finish. A part that moves is
estimated by its own recent rate; one that has not begun by what a unit is expected to take: in the last run, or as planned. While
there are only plans, no time left is stated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import msgspec

MAX_POINTS = 64  # of a part; when there are more, every second one is dropped
LEAST_WINDOW_S = 10.0  # of a rate: shorter ones follow every gust
TRUST_S = 4.0  # after so long, a rate weighs as much as what was expected
LATE_SHARE = 0.1  # of a unit is left however long it takes


class Part(msgspec.Struct, frozen=True):
    """One part of a stage's work, as far as it is known at one moment."""

    name: str
    unit: str
    done: float
    total: float
    expected_s: float | None = None  # a unit, before any was seen; None: unknown
    least_s: float = 0.0  # for what is left, whatever the rate: a request budget
    measured: bool = False  # `expected_s` is what a unit took in the last run

    @property
    def counted(self) -> bool:
        """Whether its units tell how far it is; a start of one unit only has an end."""
        return self.total > 0 and (self.total > 1 or bool(self.unit))

    @property
    def left(self) -> float:
        """Units that are left."""
        return max(self.total - self.done, 0.0)


class StageProgress(msgspec.Struct, frozen=True):
    """How far a stage is. `eta_s` None: not known yet, as neither this run nor the last one has measured a rate."""

    eta_s: float | None
    share: float  # of the stage's work, 0 to 1: units that are done, each by the time that one takes
    part: str  # the first one that is not finished; "" after the last one
    parts: tuple[Part, ...]


class Point(msgspec.Struct, frozen=True):
    """A part's work at one moment."""

    at_s: float
    done: float


class PartSeen(msgspec.Struct, frozen=True):
    """What was observed of a part: `points` where its work grew, the first one after its start-up, and when it became the current one."""

    points: tuple[Point, ...] = ()
    began_s: float | None = None
    spent_s: float = 0.0  # while it was the current part
    before: float = 0.0  # units that were done when it was first seen


def add_point(points: tuple[Point, ...], new: Point) -> tuple[Point, ...]:
    """Return the points with one more, if the work grew; only it, if work was lost. At most `MAX_POINTS`, evenly thinned out."""
    if not points or new.done < points[-1].done:
        return (new,)
    if new.done == points[-1].done:
        return points
    points = (*points, new)
    return points if len(points) <= MAX_POINTS else (*points[:-1:2], points[-1])


def seconds_per_unit(points: Sequence[Point], now: float) -> tuple[float, float] | None:
    """Return the recent seconds per unit and the seconds over which they were observed; None: too few points.

    The window is the last half of the time in which the part moved, `LEAST_WINDOW_S` at least. It ends at the newest point, whose
    successor is still on its way, unless that is late: a part that stands still becomes slower.
    """
    if len(points) < 2:
        return None
    first, last = points[0], points[-1]
    from_s = min(last.at_s - (last.at_s - first.at_s) / 2, last.at_s - LEAST_WINDOW_S)
    start = next((before for before, after in pairwise(points) if after.at_s > from_s), first)
    start = max(first, start, key=lambda point: point.at_s)
    span = last.at_s - start.at_s
    gap = max(after.at_s - before.at_s for before, after in pairwise(points[-8:]))
    late = max(0.0, now - last.at_s - 2 * gap)
    units = last.done - start.done
    return ((span + late) / units, span + late) if units > 0 and span > 0 else None


def estimate(parts: Sequence[Part], seen: Mapping[str, PartSeen], now: float) -> StageProgress:
    """Return how far a stage is, and the seconds that are left.

    Args:
        parts: in the order in which they end.
        seen: part → what was observed of it.
        now: seconds of the clock of the points.
    """
    rates = _rates(parts, seen, now)
    left = _seconds_left(parts, seen, rates, now) if _is_measured(parts, rates) else None
    speed = _speed(parts, rates)
    current = next((part.name for part in parts if part.left > 0), "")
    return StageProgress(left, _share(parts, rates, speed), current, tuple(parts))


def planned_seconds(parts: Sequence[Part]) -> float | None:
    """Return the seconds that parts take of which none has begun; None: unknown."""
    return _seconds_left(parts, {}, {}, 0.0)


Rate = tuple[float, float]  # seconds per unit, and the seconds over which they were observed


def _rates(parts: Sequence[Part], seen: Mapping[str, PartSeen], now: float) -> dict[str, Rate]:
    """Return the rate of each part that has one."""
    found = {part.name: seconds_per_unit(seen[part.name].points, now) for part in parts if part.name in seen}
    return {name: rate for name, rate in found.items() if rate is not None}


def _is_measured(parts: Sequence[Part], rates: Mapping[str, Rate]) -> bool:
    """Return whether anything but a plan tells the time that is left: work of this run, or the last run for every part."""
    return any(part.name in rates for part in parts if part.counted) or all(
        part.measured for part in parts if part.left > 0
    )


def _seconds_left(
    parts: Sequence[Part], seen: Mapping[str, PartSeen], rates: Mapping[str, Rate], now: float
) -> float | None:
    """Return the seconds that all parts still take; None: that of one is unknown."""
    speed = _speed(parts, rates)
    each = [
        _left(part, seen.get(part.name, PartSeen()), rates.get(part.name), speed, now) for part in parts if part.left
    ]
    known = [seconds for seconds in each if seconds is not None]
    return sum(known) if len(known) == len(each) else None


def _share(parts: Sequence[Part], rates: Mapping[str, Rate], speed: float) -> float:
    """Return the share of the work that is done; each part counts alike where the time of a unit is unknown."""
    counted = [part for part in parts if part.counted] or [part for part in parts if part.total]
    costs = [_cost(part, rates.get(part.name), speed) for part in counted]
    known = [cost for cost in costs if cost is not None]
    even = len(known) < len(costs) or not any(known)
    weights = [1.0] * len(counted) if even else [cost * part.total for cost, part in zip(known, counted, strict=True)]
    done = sum(weight * min(part.done / part.total, 1.0) for weight, part in zip(weights, counted, strict=True))
    return min(max(done / sum(weights), 0.0), 1.0) if counted else 1.0


def _cost(part: Part, rate: Rate | None, speed: float) -> float | None:
    """Return the seconds of a unit: as observed, and as expected as far as little was observed; None: unknown."""
    expected = None if part.expected_s is None else part.expected_s * speed
    if rate is None:
        return expected
    cost, over_s = rate
    return cost if expected is None else (cost * over_s + expected * TRUST_S) / (over_s + TRUST_S)


def _left(part: Part, own: PartSeen, rate: Rate | None, speed: float, now: float) -> float | None:
    """Return the seconds that a part still takes; None: unknown."""
    cost = _cost(part, rate, speed)
    if cost is None:
        return part.least_s or None
    began = own.points[-1].at_s if rate is not None else own.began_s  # of the unit that is on its way
    waited = now - began if began is not None else 0.0
    return max((part.left - 1) * cost + _rest_of_unit(cost, waited), part.least_s, 0.0)


def _rest_of_unit(cost: float, waited: float) -> float:
    """Return the seconds that are left of a unit that began `waited` seconds ago: a tenth at least, however late it is."""
    return max(cost - waited, cost * LATE_SHARE)


def _speed(parts: Sequence[Part], rates: Mapping[str, Rate]) -> float:
    """Return how much slower than expected the parts run that were seen long enough; 1 where none was."""
    seen, expected = 0.0, 0.0
    for part in parts:
        rate = rates.get(part.name)
        if rate is not None and part.expected_s and part.least_s == 0 and rate[1] > 2 * TRUST_S:
            seen += part.done * rate[0]
            expected += part.done * part.expected_s
    return min(max(seen / expected, 0.25), 4.0) if expected else 1.0


class ProgressMeter:
    """Observes the parts of one run of a stage. The only state: what was seen of each part."""

    def __init__(self, began_s: float) -> None:
        """Start at this time of the caller's clock."""
        self.seen: dict[str, PartSeen] = {}
        self._last_s = began_s

    def observe(self, now: float, parts: Sequence[Part]) -> StageProgress:
        """Take the parts as they are at `now`, and return the estimate."""
        current = next((part.name for part in parts if part.left > 0), "")
        for part in parts:
            own = self.seen.get(part.name) or PartSeen(before=part.done)
            points = own.points
            if part.done > own.before or points:  # before its first growth is start-up
                points = add_point(points, Point(now, part.done))
            elif part.done < own.before:
                own = PartSeen(before=part.done, spent_s=own.spent_s)
            mine = part.name == current
            self.seen[part.name] = PartSeen(
                points,
                own.began_s if own.began_s is not None else now if mine else None,
                own.spent_s + (now - self._last_s if mine else 0.0),
                own.before,
            )
        self._last_s = now
        return estimate(parts, self.seen, now)
