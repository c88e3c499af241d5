"""Estimate the time that a stage still takes, from the work of its parts. Deterministic, no clock and no I/O (sans-I/O).

A stage is a sequence of parts, each with its own unit of work: start, fetch (rows), build (series), finish. A part that moves is
estimated by its own recent rate; one that has not begun by what a unit is expected to take: in the last run, or as planned, by the
speed that this run has shown. While there are only plans, no time left is stated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import msgspec

MAX_POINTS = 64  # of a part; when there are more, every second one is dropped
LEAST_WINDOW_S = 10.0  # of a rate: shorter ones follow every gust
TRUST_S = 4.0  # after so long, a rate weighs as much as what was planned
MEASURED_TRUST_S = 15.0  # and as much as what the last run measured, over gusts that a rate of seconds follows
SPEED_RANGE = 0.25, 4.0  # of the machine, against what was expected of it
LATE_SHARE = 0.1  # of the time that a unit takes is left, however long that is


class Part(msgspec.Struct, frozen=True):
    """One part of a stage's work, as far as it is known at one moment."""

    name: str
    unit: str
    done: float
    total: float
    expected_s: float | None = None  # a unit, before any was seen; None: unknown
    least_s: float = 0.0  # for what is left, whatever the rate: a request budget
    measured: bool = False  # `expected_s` is what a unit took in the last run
    turn: bool | None = None  # of parts that take turns: whether it is this one's; None: it takes none
    like: str = (
        ""  # another part, of which a unit of this one is expected to take `like_units`, while nothing else is known
    )
    like_units: float = 0.0

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

    points: tuple[Point, ...] = ()  # by its own clock
    began_s: float | None = None  # likewise
    spent_s: float = 0.0  # while it was the current part, or it was its turn
    before: float = 0.0  # units that were done when it was first seen
    paused_s: float = 0.0  # by which its own clock is behind: it stands still while it is not the part's turn


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
        now: seconds of the caller's clock.
    """
    known = _Knowledge(parts, seen, now)
    current = next((part.name for part in parts if part.left > 0), "")
    return StageProgress(known.seconds_left() if known.is_measured else None, known.share(), current, tuple(parts))


def planned_seconds(parts: Sequence[Part]) -> float | None:
    """Return the seconds that parts take of which none has begun; None: unknown."""
    return _Knowledge(parts, {}, 0.0).seconds_left()


Rate = tuple[float, float]  # seconds per unit, and the seconds over which they were observed


class _Knowledge:
    """Holds each part's rate at one moment, and the speed of the machine relative to the expected one."""

    def __init__(self, parts: Sequence[Part], seen: Mapping[str, PartSeen], now: float) -> None:
        self._parts, self._seen, self._now = parts, seen, now
        found = {part.name: _rate(part, seen[part.name], now) for part in parts if part.name in seen}
        self._rates = {name: rate for name, rate in found.items() if rate is not None}
        self._speed = _speed(parts, seen, self._rates, now)

    @property
    def is_measured(self) -> bool:
        """Whether anything but a plan tells the time that is left.

        That is work of this run, or the last run for every part, or this run's start, which says how fast a plan for every part is here.
        """
        left = [part for part in self._parts if part.left > 0]
        started = any(
            not part.counted and part.left == 0 and part.name in self._seen and self._seen[part.name].spent_s > 0
            for part in self._parts
        )
        return (
            any(part.name in self._rates for part in self._parts if part.counted)
            or all(part.measured for part in left)
            or (started and all(part.expected_s is not None for part in left))
        )

    def seconds_left(self) -> float | None:
        """Return the seconds that all parts still take; None: that of one is unknown."""
        each = [self._left(part) for part in self._parts if part.left]
        known = [seconds for seconds in each if seconds is not None]
        return sum(known) if len(known) == len(each) else None

    def share(self) -> float:
        """Return the share of the work that is done, by time; each counted part counts alike where the time of one is unknown.

        What has only an end, as a finish, counts until then, as its share is not known; a start that is over is no work.
        """
        costs = {part.name: self._cost(part) for part in self._parts}
        counted = [part for part in self._parts if part.counted] or [part for part in self._parts if part.total]
        even = any(costs[part.name] is None for part in counted) or not any(costs[part.name] for part in counted)
        weights = {part.name: 1.0 if even else (costs[part.name] or 0.0) * part.total for part in counted}
        if not even:
            weights |= {part.name: costs[part.name] or 0.0 for part in self._parts if not part.counted and part.left}
        done = sum(weights[part.name] * min(part.done / part.total, 1.0) for part in counted)
        whole = sum(weights.values())
        return min(max(done / whole, 0.0), 1.0) if whole > 0 else 1.0

    def _cost(self, part: Part) -> float | None:
        """Return the seconds of a unit: as observed, and as expected as far as little was observed; None: unknown."""
        expected = None if part.expected_s is None else part.expected_s * self._speed
        if (rate := self._rates.get(part.name)) is not None:
            cost, over_s = rate
            return cost if expected is None else (cost * over_s + expected * _trust(part)) / (over_s + _trust(part))
        if expected is None and part.like:
            other = next((self._cost(other) for other in self._parts if other.name == part.like), None)
            return None if other is None else other * part.like_units
        return expected

    def _left(self, part: Part) -> float | None:
        """Return the seconds that a part still takes; None: unknown."""
        cost = self._cost(part)
        if cost is None:
            return part.least_s or None
        own = self._seen.get(part.name, PartSeen())
        began = own.points[-1].at_s if own.points and part.name in self._rates else own.began_s  # the unit on its way
        waited = max(self._now - own.paused_s - began, 0.0) if began is not None else 0.0
        return max((part.left - 1) * cost + _rest_of_unit(cost, waited), part.least_s, 0.0)


def _rate(part: Part, own: PartSeen, now: float) -> Rate | None:
    """Return the rate of a part; of one that takes turns, from its first unit on, as it has no start-up of its own."""
    rate = seconds_per_unit(own.points, now - own.paused_s)
    if rate is None and part.turn is not None and own.spent_s > 0 and (units := part.done - own.before) > 0:
        return own.spent_s / units, own.spent_s
    return rate


def _trust(part: Part) -> float:
    """Return the seconds of an own rate that weigh as much as what a unit is expected to take."""
    return MEASURED_TRUST_S if part.measured else TRUST_S


def _rest_of_unit(cost: float, waited: float) -> float:
    """Return the seconds that are left of a unit that began `waited` seconds ago: a tenth at least, of those if it is late."""
    return max(cost - waited, max(cost, waited) * LATE_SHARE)


def _speed(parts: Sequence[Part], seen: Mapping[str, PartSeen], rates: Mapping[str, Rate], now: float) -> float:
    """Return how much slower than expected the parts run: 1 while little was seen. A request budget says nothing about it.

    A part that only has an end tells as soon as it is late.
    """
    took = expected = max(map(_trust, parts), default=TRUST_S)
    for part in parts:
        if not part.expected_s or part.least_s > 0:
            continue
        if (rate := rates.get(part.name)) is not None:
            took += rate[1]
            expected += rate[1] / rate[0] * part.expected_s
        elif not part.counted and part.name in seen:
            spent, whole = seen[part.name].spent_s, part.total * part.expected_s
            if part.left == 0 < spent or spent > whole:
                took += spent
                expected += whole
    return min(max(took / expected, SPEED_RANGE[0]), SPEED_RANGE[1])


class ProgressMeter:
    """Observes the parts of one run of a stage. It keeps the observations of each part and the share that it stated last."""

    def __init__(self, began_s: float) -> None:
        """Start at this time of the caller's clock."""
        self.seen: dict[str, PartSeen] = {}
        self._last_s = began_s
        self._share = 0.0

    def observe(self, now: float, parts: Sequence[Part]) -> StageProgress:
        """Take the parts as they are at `now`, and return the estimate. Its share never falls, unless work was lost."""
        current = next((part.name for part in parts if part.left > 0), "")
        passed, self._last_s = now - self._last_s, now
        for part in parts:
            own = self.seen.get(part.name)
            if own is not None and part.done < (own.points[-1].done if own.points else own.before):
                self._share = 0.0
            mine = part.turn if part.turn is not None else part.name == current
            self.seen[part.name] = observed(own or PartSeen(before=part.done), part, now, passed, mine=mine)
        found = estimate(parts, self.seen, now)
        self._share = max(self._share, found.share)
        return msgspec.structs.replace(found, share=self._share)


def observed(own: PartSeen, part: Part, now: float, passed: float, *, mine: bool) -> PartSeen:
    """Return what is known of a part after `passed` seconds more. `mine`: they were spent on it."""
    paused = own.paused_s + (passed if part.turn is False else 0.0)
    points, before = own.points, own.before
    if part.done > before or points:  # before its first growth is start-up
        points = add_point(points, Point(now - paused, part.done))
    before = min(before, part.done)
    began = own.began_s if own.began_s is not None else now - paused if mine else None
    return PartSeen(points, began, own.spent_s + (passed if mine else 0.0), before, paused)
