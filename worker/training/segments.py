"""Segments: which respondents' hours share a context, and the order of their days in the sequence.

A sequence packs segments one after the other. A segment holds the same span of one respondent (scope `own`), of the respondents of a time
zone (`zone`) or of all (`all`), as rows: a row is the 24 hours of a respondent's day in its standard time. Rows are in the order of days, and
of one day in the order of the respondents, so that a causal mask over rows is one over time. A row remembers the day `memory_days` before
it: whatever the zones of a segment are, and however late actual values are published, that day had ended and was known everywhere
at the first issue time of the row's hours.

The segments of a step are a function of (seed, step): a run that resumes needs no other state, and ranks draw the same ones without
a message.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ingest.calendar import ISSUE_HOUR
from ingest.features import DAY, MEMORY_LAG
from ingest.publication import MAX_ACTUAL_HOURS
from ingest.zones import standard_offset, zone_of
from worker.training.tokens import Period, Piece, TokenStore

Scope = Literal["own", "zone", "all"]
SPARE_HOURS = (
    ISSUE_HOUR - 1 - MAX_ACTUAL_HOURS
)  # from the end of a day in standard time to the last actual known at the next day's issue time, at least (daylight saving)


@dataclass(frozen=True)
class Segment:
    """Respondents that attend to each other's past days."""

    pieces: tuple[Piece, ...]  # one a respondent; their hours are scored, the rest of their first and last days is not
    offsets: tuple[int, ...]  # hours from UTC to each one's standard time
    first_day: int  # days since 1970-01-01 in standard time
    days: int
    memory_days: int

    @property
    def rows(self) -> int:
        """The number of rows."""
        return self.days * len(self.pieces)


def first_hour(day: int, offset: int) -> int:
    """Return the number of the hour that ends first in a day of standard time."""
    return day * DAY - offset + 1


def segment_of(store: TokenStore, pieces: Sequence[Piece]) -> Segment:
    """Return the segment of pieces, one a respondent, that share a context."""
    offsets = [standard_offset(store.respondents[piece.region]) for piece in pieces]
    days = [
        ((piece.first - 1 + offset) // DAY, (piece.first + piece.hours - 2 + offset) // DAY)
        for piece, offset in zip(pieces, offsets, strict=True)
    ]
    first = min(first for first, _ in days)
    # Where zones differ by more than what is spare, the last day in the west is not known at the first issue time in the east.
    memory = MEMORY_LAG // DAY + (max(offsets) - min(offsets) > SPARE_HOURS)
    return Segment(tuple(pieces), tuple(offsets), first, max(last for _, last in days) - first + 1, memory)


def groups_of(respondents: Sequence[str], scope: str) -> list[tuple[int, ...]]:
    """Return the groups of respondents that share a context, by index; `scope` is a `Scope`."""
    groups: dict[str, list[int]] = {}
    for region, name in enumerate(respondents):
        group = {"own": name, "zone": zone_of(name), "all": ""}[scope]
        groups.setdefault(group, []).append(region)
    return [tuple(members) for members in groups.values()]


def draw_segments(
    store: TokenStore,
    groups: Sequence[tuple[int, ...]],
    period: Period,
    hours: int,
    count: int,
    seed: int,
    step: int,
) -> list[Segment]:
    """Draw the segments of a step; the same for the same (seed, step).

    Args:
        store: the tokens.
        groups: those of `groups_of` that have a target in `period`; they are drawn equally often.
        period: hours to draw from.
        hours: length of a piece at most.
        count: number of pieces at least: a group's are drawn together.
        seed: the run's seed.
        step: number of the step in the run.

    Returns:
        Segments inside `period`, each with at least one hour that has a target.

    Raises:
        ValueError: if a group has no such hour.
    """
    draw = np.random.default_rng((seed, step))
    segments: list[Segment] = []
    pieces = 0
    while pieces < count:
        for index in draw.permutation(len(groups)):
            if pieces >= count:
                break
            members = groups[index]
            span = _draw_span(store, members, period, hours, draw)
            segments.append(segment_of(store, [Piece(region, span.first, span.hours) for region in members]))
            pieces += len(members)
    return segments


def _draw_span(
    store: TokenStore, members: Sequence[int], period: Period, hours: int, draw: np.random.Generator
) -> Piece:
    """Draw a span of hours in which at least one member has a target."""
    order = members if len(members) == 1 else draw.permutation(members).tolist()
    for region in order:
        targets = store.targets(region, period)
        if not len(targets):
            continue
        available = store.period(region)
        first, last = max(available.first, period.first), min(available.last, period.last)
        length = min(hours, last - first + 1)
        start = int(draw.choice(targets)) - int(draw.integers(length))
        return Piece(region, min(max(start, first), last - length + 1), length)
    raise ValueError(f"a group without a target in {period} was to be drawn")


def draw_sign_flips(count: int, rate: float, seed: int, step: int) -> list[float]:
    """Draw a sign for each of `count` segments: -1 with probability `rate`, else 1.

    A segment with the sign of its errors flipped is as good an example (data augmentation).
    """
    draw = np.random.default_rng((seed, step, 1))
    return [-1.0 if x < rate else 1.0 for x in draw.random(count)]
