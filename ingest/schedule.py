"""The schedule of `coordinator follow`: what to ask a source for, and when, from the results on disk and the clock. No I/O.

Each hour, `PUBLISH_S` after it has ended, the hours that are not fetched yet are due, with the ones of the last two days that the
source had not published when it was asked, and the day-ahead values. Each day at `REVISE_HOUR`, every hour is due whose last fetch
was made before it was `revise_days` old: an operator may have revised it since. The hours of a route that are due are one span, so
that an ordinary cycle costs one request a route.

Everything follows from the results on disk. A follower that was killed, or without a connection for a week, asks for what is due
when it runs again, and for nothing twice.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from ingest.asked import ALWAYS, SETTLE, RouteKey, asked_at, asked_span, by_route, span_of
from ingest.hour_spans import HourSpan, clip, merge, subtract
from ingest.models import Shard, ShardResult
from ingest.plan import plan_spans, unfilled_gaps
from ingest.sources import get_source

# After the end of an hour: EIA states no time of publication; hours that are later come with one of the next cycles.
PUBLISH_S = 600
REVISE_HOUR = (
    12  # UTC: the hours of the day before have come, and 10:00, the issue time of forecasts, has not come in any zone
)
RETRY_S = 600  # after a cycle that did not get everything


@dataclass(frozen=True)
class Cycle:
    """The shards that are due, and which of them a later fetch replaces altogether."""

    shards: tuple[Shard, ...] = ()
    provisional: tuple[str, ...] = ()  # keys of the shards of single hours
    daily: bool = False  # revisable hours are among the shards


def hourly_slot(now: datetime) -> int:
    """Return the number of the last hour that is due at `now` (aware)."""
    return (int(now.timestamp()) - PUBLISH_S) // 3600


def daily_slot(now: datetime) -> int:
    """Return the number of the hour at which revisable hours were last due."""
    slot = hourly_slot(now)
    return slot - (slot - REVISE_HOUR) % 24


def next_run(now: datetime, *, failed: bool = False) -> datetime:
    """Return when something is due next; after a cycle that failed, when it is to be tried again."""
    due = (hourly_slot(now) + 1) * 3600 + PUBLISH_S
    return datetime.fromtimestamp(min(due, int(now.timestamp()) + RETRY_S) if failed else due, UTC)


def plan_cycle(results: Iterable[ShardResult], wanted: Iterable[Shard], now: datetime, revise_days: int = 14) -> Cycle:
    """Return what is due at `now`.

    Args:
        results: of the shards on disk.
        wanted: shards from the first hour to follow; their last hours do not count.
        now: aware, by the source's clock.
        revise_days: age in days until which an operator may revise an hour.
    """
    on_disk = by_route(results)
    first: dict[RouteKey, int] = {}
    for shard in wanted:
        key = shard.source, shard.route, shard.respondent
        first[key] = min(span_of(shard)[0], first.get(key, ALWAYS))
    shards: list[Shard] = []
    provisional: list[str] = []
    daily = False
    for key, begin in first.items():
        own = on_disk.get(key, [])
        revises = _revision_is_due(own, begin, now, revise_days)
        spans = _due_spans(key, own, begin, now, revise_days, revises=revises)
        planned = plan_spans(key, own, spans)
        shards += planned
        daily |= revises
        if not revises and own:
            provisional += [shard.key for shard in planned]
    return Cycle(tuple(shards), tuple(provisional), daily)


def superseded(results: Iterable[ShardResult], provisional: Collection[str]) -> tuple[ShardResult, ...]:
    """Return the provisional results that one later and longer fetch of their route covers: no cell needs their pieces."""
    found = []
    for own in by_route(results).values():
        mine = [result for result in own if result.shard.key in provisional]
        for result in mine:
            start, end = asked_span(result)
            near = (other for other in own if other.shard.generation > result.shard.generation)
            wider = (asked_span(other) for other in near if _hours(other) > _hours(result))
            if any(low <= start and end <= high for low, high in wider):
                found.append(result)
    return tuple(found)


def _hours(result: ShardResult) -> int:
    start, end = span_of(result.shard)
    return end - start


def _revision_is_due(own: list[ShardResult], begin: int, now: datetime, revise_days: int) -> bool:
    """Return whether the day's fetch of revisable hours has not been made."""
    slot = daily_slot(now)
    since = merge(span_of(result.shard) for result in own if slot <= asked_at(result) < ALWAYS)
    revisable = clip(_unsettled(own, begin, slot + 1, revise_days), merge(asked_span(result) for result in own))
    return bool(subtract(revisable, since))


def _unsettled(own: list[ShardResult], begin: int, end: int, revise_days: int) -> list[HourSpan]:
    """Return the hours that were younger than `revise_days` at each of their fetches, or have none."""
    settled = (
        (start, min(stop, asked_at(result) - 24 * revise_days + 1))
        for result in own
        for start, stop in [span_of(result.shard)]
    )
    return subtract([(begin, end)], merge(settled))


def _due_spans(
    key: RouteKey, own: list[ShardResult], begin: int, now: datetime, revise_days: int, *, revises: bool
) -> list[HourSpan]:
    """Return the hours of one route that are due, as spans that are asked for together."""
    reader = get_source(key[0])
    horizon = int(now.timestamp()) // 3600 + 1
    asked = merge(asked_span(result) for result in own)
    slot = hourly_slot(now)
    new = subtract([(begin, slot + 1)], asked)
    if not revises and (not new or (reader.whole_files and own)):  # a file of half a year is read once a day
        return []
    end = horizon + reader.ahead_hours(key[1])
    spans = subtract([(begin, end)], asked)
    since = begin if revises else max(begin, horizon - SETTLE)
    late = own if revises else [result for result in own if span_of(result.shard)[1] > since]
    spans += clip(unfilled_gaps(late), [(since, end)])
    if revises:
        spans += _unsettled(own, begin, horizon, revise_days)
    return merge(spans)
