"""What was asked of a source, and when: hours that count as asked, gaps that are its own, respondents with nothing. No I/O.

A fetch says something about an hour only if the hour had ended, by the source's clock, when its pages were served; and that the
source lacks an hour only if the source had had time to publish it.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import combinations

from ingest.columns import EVERYTHING, hour_number, hour_text
from ingest.errors import UsageError
from ingest.hour_spans import HourSpan, clip, merge, overlaps, subtract
from ingest.models import ALL_RESPONDENTS, DAY, RouteGap, Shard, ShardResult, is_daily
from ingest.sources import get_source
from ingest.zones import LATEST_MIDNIGHT_H

# Hours: EIA posts generation a day after the hour (https://www.eia.gov/todayinenergy/detail.php?id=46117).
SETTLE = 48
ALWAYS = 1 << 30  # an hour number after every other: the time of a fetch that states none

RouteKey = tuple[str, str, str]  # source, route, respondent


@dataclass(frozen=True)
class Absence:
    """A respondent and route that has no row in any hour that was asked for."""

    source: str
    route: str
    respondent: str
    start: str
    end: str

    def __str__(self) -> str:
        """Return one line for a summary."""
        return f"{self.respondent}: {self.source} {self.route} has no hour of {self.start} to {self.end}"


def span_of(shard: Shard) -> HourSpan:
    """Return the hours of a shard's period."""
    return hour_number(shard.start), hour_number(shard.end) + 1


def ended_at(route: str, hour: int) -> int:
    """Return the first hour of a route that had not ended when hour number `hour` had: of a daily route the first of a day."""
    return (hour - LATEST_MIDNIGHT_H) // DAY * DAY if is_daily(route) else hour + 1


def by_route(results: Iterable[ShardResult]) -> dict[RouteKey, list[ShardResult]]:
    """Return results by source, route and respondent."""
    routes: dict[RouteKey, list[ShardResult]] = defaultdict(list)
    for result in results:
        routes[result.shard.source, result.shard.route, result.shard.respondent].append(result)
    return routes


def asked_at(result: ShardResult) -> int:
    """Return the number of the hour in which the oldest page was served, by the source's clock; else by the worker's."""
    try:
        if result.asked_at:
            return hour_number(result.asked_at)
        moments = [datetime.fromisoformat(page.fetched) for page in result.pages]
    except ValueError:  # a worker's text, which only has to be printable
        return ALWAYS
    utc = [moment if moment.tzinfo else moment.replace(tzinfo=UTC) for moment in moments]
    return min((int(moment.timestamp()) // 3600 for moment in utc), default=ALWAYS)


def asked_span(result: ShardResult) -> HourSpan:
    """Return the hours of a result's period that had ended when it was fetched; empty (start ≥ end) where none had."""
    start, end = span_of(result.shard)
    return start, min(end, ended_at(result.shard.route, asked_at(result)))


def open_gaps(results: Iterable[ShardResult]) -> tuple[RouteGap, ...]:
    """Return named gaps with their routes, or what is left of them.

    Hours that a later generation of their route has fetched do not count, nor those that had not ended at the time of the fetch.
    """
    found: list[RouteGap] = []
    for (_, route, _), own in by_route(results).items():
        later = _fetched_later(own)
        for result in own:
            asked = [asked_span(result)]
            for gap in result.gaps:
                named = clip([(hour_number(gap.start), hour_number(gap.end) + 1)], asked)
                for start, end in subtract(named, later[result.shard.generation]):
                    period = hour_text(start), hour_text(end - 1)
                    found.append(RouteGap(gap.respondent, gap.variable, *period, end - start, route))
    return tuple(found)


def _fetched_later(own: Iterable[ShardResult]) -> dict[int, list[HourSpan]]:
    """Return generation → the hours that later generations of one route have fetched."""
    spans: dict[int, list[HourSpan]] = defaultdict(list)
    for result in own:
        spans[result.shard.generation].append(span_of(result.shard))
    later: dict[int, list[HourSpan]] = {}
    fetched: list[HourSpan] = []
    for generation in sorted(spans, reverse=True):
        later[generation] = fetched
        fetched = merge([*fetched, *spans[generation]])
    return later


def confirmed(own: Iterable[ShardResult]) -> list[HourSpan]:
    """Return the hours of one route that two fetches have asked for, both when the source could have had them."""
    settled = [
        (start, min(end, ended_at(result.shard.route, asked_at(result) - SETTLE)))
        for result in own
        for start, end in [span_of(result.shard)]
    ]
    return merge(span for one, other in combinations(settled, 2) for span in clip([one], [other]))


def reuse_verified(shards: Iterable[Shard], results: Iterable[ShardResult]) -> tuple[Shard, ...]:
    """Return a plan in which hours that verified results cover are not fetched again.

    A shard that is on disk, and a file that holds every respondent, stay as they are. Any other becomes the results that cover a
    part of it, and shards of the hours that none covers.
    """
    routes = by_route(results)
    planned: list[Shard] = []
    for shard in shards:
        own = routes.get((shard.source, shard.route, shard.respondent), [])
        whole = span_of(shard)
        near = [result for result in own if overlaps(span_of(result.shard), whole)]
        if get_source(shard.source).whole_files or not near or any(result.shard.key == shard.key for result in near):
            planned.append(shard)
            continue
        covered = merge(asked_span(result) for result in near)
        planned += [result.shard for result in near]
        for start, end in subtract([whole], covered):
            part = replace(shard, start=hour_text(start), end=hour_text(end - 1))
            planned.append(replace(part, generation=next_generation(near, (start, end))))
    return tuple(dict.fromkeys(planned))


def next_generation(own: Iterable[ShardResult], span: HourSpan) -> int:
    """Return the generation of a fetch of `span`: after every result of the route that shares an hour with it."""
    return max((r.shard.generation + 1 for r in own if overlaps(span_of(r.shard), span)), default=0)


def absences(
    shards: Iterable[Shard], results: Iterable[ShardResult], respondents: Sequence[str]
) -> tuple[Absence, ...]:
    """Return each respondent and route of a plan whose shards are all verified and have no row of it.

    Args:
        shards: of the plan.
        results: that are on disk.
        respondents: of the plan; shards of whole files name `ALL_RESPONDENTS`.
    """
    known = {result.shard.key: result for result in results}
    periods: dict[RouteKey, list[Shard]] = defaultdict(list)
    for shard in shards:
        for code in respondents if shard.respondent == ALL_RESPONDENTS else (shard.respondent,):
            if get_source(shard.source).route_serves(shard.route, code):
                periods[shard.source, shard.route, code].append(shard)
    found = []
    for (source, route, code), planned in periods.items():
        # The file before the first hour says nothing about a respondent: few of its hours were asked for.
        own = [shard for shard in planned if shard.key not in known or not known[shard.key].gaps_from]
        if own and all(shard.key in known and not _has_rows(known[shard.key], code) for shard in own):
            start, end = min(shard.start for shard in own), max(shard.end for shard in own)
            found.append(Absence(source, route, code, start, end))
    return tuple(found)


def _has_rows(result: ShardResult, respondent: str) -> bool:
    if result.shard.respondent != ALL_RESPONDENTS:
        return result.rows > 0
    return all((gap.respondent, gap.variable) != (respondent, EVERYTHING) for gap in result.gaps)


def latest_hour(source: str, now: datetime) -> str:
    """Return the last hour that a source can have at `now` (aware), day-ahead values included, as `YYYY-MM-DDTHH`."""
    reader = get_source(source)
    ahead = max((reader.ahead_hours(route) for route in reader.routes), default=0)
    return hour_text(int(now.timestamp()) // 3600 + ahead)


def clip_period(source: str, start: str, end: str, now: datetime) -> tuple[str, str, tuple[str, ...]]:
    """Cut a period at the first hour that a public source has, and at the end of the year in which its last ones can be.

    The year, not the hour: the same command a day later plans the same shards.

    Args:
        source: a name in `ingest.sources.SOURCES`.
        start: first hour, `YYYY-MM-DDTHH`.
        end: last hour, inclusive.
        now: aware.

    Returns:
        The first hour, the last hour, and a line for each cut.

    Raises:
        UsageError: no hour of the period is within the source's.
    """
    reader = get_source(source)
    latest = latest_hour(source, now)
    last = f"{latest[:4]}-12-31T23"
    notes = []
    if end < reader.first_hour:
        raise UsageError(
            f"{source} has no hour before {reader.first_hour}, and {start} to {end} was asked for; give a later --start and --end"
        )
    if start > latest:
        raise UsageError(f"{start} to {end} has not happened: it is {hour_text(int(now.timestamp()) // 3600)} UTC")
    if start < reader.first_hour:
        notes.append(
            f"{source} has no hour before {reader.first_hour}: {start} was asked for, and the period begins there"
        )
        start = reader.first_hour
    if end > last:
        notes.append(
            f"{end} was asked for: the period ends with {last}, the end of the present year; its hours after {latest} have not "
            "happened, and `--update` fetches them when they have"
        )
        end = last
    return start, end, tuple(notes)
