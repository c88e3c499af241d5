"""Planning: a period, respondents and routes become shards, builds and an expected number of requests. No I/O."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise

from ingest.asked import RouteKey, asked_span, by_route, confirmed, ended_at, next_generation, open_gaps, span_of
from ingest.catalog import RESPONDENTS, Respondent, check_respondents
from ingest.columns import hour_number, hour_text
from ingest.errors import UsageError, did_you_mean
from ingest.hour_spans import HourSpan, clip, merge, overlaps, subtract
from ingest.models import ALL_RESPONDENTS, DAY, BuildJob, Piece, Shard, ShardResult, build_key, is_daily
from ingest.sources import get_source
from ingest.zones import zone_of

DEFAULT_RESPONDENTS = ("PACW", "ERCO", "CISO", "MISO", "PJM")  # none is a part of another
DEFAULT_YEARS = tuple(range(2019, 2026))  # EIA's hourly routes start at 2019-01-01T00
DEFAULT_END = f"{DEFAULT_YEARS[-1]}-12-31T23"
JOIN = 744  # hours: one request for a month between two holes costs no more than two requests

Period = Sequence[int] | tuple[str, str]


@dataclass(frozen=True)
class Build:
    """The series of one respondent and year, and the keys of the planned shards that it depends on."""

    respondent: str
    year: int
    shards: tuple[str, ...]

    @property
    def key(self) -> str:
        """The task id."""
        return build_key(self.respondent, self.year)


def plan_shards(
    source: str = "eia",
    respondents: Sequence[str] = DEFAULT_RESPONDENTS,
    period: Period = DEFAULT_YEARS,
    routes: Sequence[str] | None = None,
    known: Mapping[str, Respondent] = RESPONDENTS,
) -> tuple[Shard, ...]:
    """Return the shards of a plan: the routes of one respondent and year next to each other; 5 × 7 × 2 = 70 by default.

    Args:
        source: a name in `ingest.sources.SOURCES`.
        respondents: EIA codes. Shards of a source with whole files (bulk) name `ALL_RESPONDENTS` instead.
        period: whole years, or `(start, end)` as `YYYY-MM-DDTHH` (inclusive, UTC hour-ending). It is cut at the turns of
            the year; for bulk, it is widened to whole six-month files, and for daily routes to whole days.
        routes: None means the default routes of the source. A route is planned for the respondents that it has.
        known: respondents that may be asked for.

    Raises:
        UsageError: the source does not have the route, respondent or period, or a daily route is asked for a respondent whose
            time zone is unknown.
    """
    reader = get_source(source)
    chosen = choose_routes(source, routes or ())
    codes = tuple(dict.fromkeys(respondents))
    check_respondents(codes, known)
    reader.check_respondents(codes)
    spans = _cut(source, _spans_of(period))
    if any(map(is_daily, chosen)):
        for code in codes:
            zone_of(code)
    return tuple(
        Shard(source, route, code, hour_text(first), hour_text(stop - 1))
        for code in ((ALL_RESPONDENTS,) if reader.whole_files else codes)
        for start, end in spans
        for route in chosen
        for first, stop in [(start // DAY * DAY, -(-end // DAY) * DAY) if is_daily(route) else (start, end)]
        if reader.route_serves(route, code)
        and not (reader.whole_files and hour_text(end - 1) < reader.route_first_hour(route))
    )


def choose_routes(source: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return routes of a source in its order, from their names in any case; none means the default ones.

    `all` means every hourly route, `daily` every daily one.

    Raises:
        UsageError: the source has no such route; near matches are named.
    """
    reader = get_source(source)
    if not names:
        return reader.default_routes or reader.routes
    known = {route.lower(): route for route in reader.routes}
    groups = {"all": [name for name in known if not is_daily(name)]}
    if daily := [name for name in known if is_daily(name)]:
        groups["daily"] = daily
    chosen = [route for name in names for route in groups.get(name.lower(), [name.lower()])]
    for route in chosen:
        if route not in known:
            near = did_you_mean([route], known)
            raise UsageError(
                f"unknown route {route!r} of {source}{near}; known: {', '.join((*groups, *reader.routes))}"
            )
    return tuple(route for name, route in known.items() if name in chosen)


def served_defaults(source: str, respondents: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the respondents of a plan, and a line where the source does not serve some of the default ones.

    A respondent that was asked for by name is never left out: `plan_shards` refuses it.
    """
    if tuple(respondents) != DEFAULT_RESPONDENTS:
        return tuple(respondents), ()
    served = tuple(code for code in respondents if _serves(source, code))
    if not served or len(served) == len(respondents):
        return tuple(respondents), ()
    others = ", ".join(code for code in respondents if code not in served)
    return served, (f"{source} does not serve {others} of the default respondents: {', '.join(served)} are extracted",)


def _serves(source: str, code: str) -> bool:
    try:
        get_source(source).check_respondents([code])
    except UsageError:
        return False
    return True


def plan_builds(
    shards: Iterable[Shard],
    respondents: Sequence[str] = (),
    years: Iterable[int] | None = None,
    built: Iterable[str] = (),
) -> tuple[Build, ...]:
    """Return the (respondent, year) builds in the order of `shards`.

    Args:
        shards: The plan's shards.
        respondents: Respondents to build from whole files, whose shards name `ALL_RESPONDENTS`.
        years: Years that were asked for. A file that is cut in local time holds hours of other years too. None: the years of
            the shards' periods.
        built: Keys of the series on disk. They are built again where a shard has hours of their year.
    """
    shards, made = tuple(shards), frozenset(built)
    if years is None:
        years = {year for shard in shards for year in range(int(shard.start[:4]), int(shard.end[:4]) + 1)}
    asked = frozenset(years)
    needs: dict[tuple[str, int], list[str]] = defaultdict(list)
    for shard in shards:
        if shard.daily:
            continue  # `ingest.daily` builds them
        for code in respondents if shard.respondent == ALL_RESPONDENTS else (shard.respondent,):
            for year in years_of(shard):
                if year in asked or build_key(code, year) in made:
                    needs[code, year].append(shard.key)
    return tuple(Build(code, year, tuple(keys)) for (code, year), keys in needs.items())


def build_job(respondent: str, year: int, origin: str, results: Iterable[ShardResult]) -> BuildJob:
    """Return a build's payload: every piece that can hold hours of this respondent and year, oldest generation first.

    A piece without a row is one of them where its route has rows in another: its hours were asked for.
    """
    own = [
        result
        for result in results
        if result.shard.respondent in (respondent, ALL_RESPONDENTS)
        and not result.shard.daily
        and year in years_of(result.shard)
    ]
    served = {(result.shard.source, result.shard.route) for result in own if result.rows}
    own = [result for result in own if (result.shard.source, result.shard.route) in served]
    own.sort(key=lambda result: piece_order(result.shard))
    pieces = (Piece(result.piece, result.shard, asked_until(result)) for result in own)
    return BuildJob(respondent, year, origin, tuple(pieces))


def asked_until(result: ShardResult) -> str:
    """Return the last hour that had ended when a result was fetched; "" where its whole period had."""
    start, end = span_of(result.shard)
    asked = asked_span(result)[1]
    return "" if asked >= end else hour_text(max(asked, start) - 1)


def piece_order(shard: Shard) -> tuple[int, str]:
    """Return the sort key in which pieces override one another: generation; then the key, for overlaps in one generation."""
    return shard.generation, shard.key


def expected_requests(shards: Iterable[Shard]) -> int:
    """Return the requests that a run of the plan without faults spends.

    An estimate: hours × series / 5,000 per page, with 7 fuels per respondent (735 for the default plan). Probes beyond the
    end of incomplete shards and retries are extra.
    """
    return sum(get_source(shard.source).expected_requests(shard) for shard in shards)


def plan_update(
    results: Iterable[ShardResult],
    now: datetime,
    revise_days: int = 14,
    wanted: Iterable[Shard] | None = None,
) -> tuple[Shard, ...]:
    """Return the shards that bring the data on disk up to `now`: missing hours, and hours that operators may still revise.

    Missing are the hours of `wanted` that no result covers, and named gaps. A gap counts as the source's own after two fetches
    that were made `asked.SETTLE` hours after it, or later. Revisable are the last `revise_days` days of `wanted`. Routes with
    day-ahead values are asked for the hours ahead of `now` too. A shard over covered hours is their next generation: its values
    replace the earlier ones in the series, which stay in their own piece.

    Args:
        results: of the shards on disk.
        now: aware.
        revise_days: days before `now` that may be revised.
        wanted: None means each respondent's route from its first fetched hour to `now`.
    """
    hour = int(now.timestamp()) // 3600
    on_disk = by_route(results)
    requested: dict[RouteKey, list[HourSpan]] = defaultdict(list)
    if wanted is None:
        for route_key, own in on_disk.items():
            end = ended_at(route_key[1], hour) + get_source(route_key[0]).ahead_hours(route_key[1])
            requested[route_key] = [(min(span_of(result.shard)[0] for result in own), end)]
    else:
        for shard in wanted:
            requested[shard.source, shard.route, shard.respondent].append(span_of(shard))
    fresh: list[Shard] = []
    for key, spans in requested.items():
        horizon = ended_at(key[1], hour)
        asked = clip(merge(spans), [(0, horizon + get_source(key[0]).ahead_hours(key[1]))])
        own = on_disk.get(key, [])
        missing = subtract(asked, merge(asked_span(result) for result in own))
        revisable = [(horizon - revise_days * 24, horizon)]
        fresh += plan_spans(key, own, [*missing, *clip(asked, revisable), *clip(unfilled_gaps(own), asked)])
    return tuple(dict.fromkeys(fresh))


def unfilled_gaps(own: Sequence[ShardResult]) -> list[HourSpan]:
    """Return the gaps of one route that are not the source's own yet."""
    gaps = merge((hour_number(gap.start), hour_number(gap.end) + 1) for gap in open_gaps(own))
    return subtract(gaps, confirmed(own))


def plan_spans(key: RouteKey, own: Sequence[ShardResult], spans: Iterable[HourSpan]) -> list[Shard]:
    """Return the shards that ask for these hours of a route again, each the next generation of the hours that are on disk."""
    source, route, respondent = key
    return [
        Shard(source, route, respondent, hour_text(start), hour_text(end - 1), next_generation(own, (start, end)))
        for start, end in _cut(source, merge(spans, JOIN))
    ]


def years_of(shard: Shard) -> range:
    """Return the years that the shard's rows can be in."""
    end = shard.end
    if spill := get_source(shard.source).spill_hours:
        end = hour_text(hour_number(end) + spill)
    return range(int(shard.start[:4]), int(end[:4]) + 1)


def _spans_of(period: Period) -> list[HourSpan]:
    """Return the span of each whole year, or of `(start, end)`.

    Raises:
        UsageError: the period is empty, malformed or reversed.
    """
    if not period:
        raise UsageError("no year given: name at least one, for example --start 2019 --end 2025")
    if not isinstance(period[0], str):
        return [
            (hour_number(f"{year}-01-01T00"), hour_number(f"{year + 1}-01-01T00"))
            for year in sorted({int(year) for year in period})
        ]
    return [parse_span(str(period[0]), str(period[1]))]


def parse_span(start: str, end: str) -> HourSpan:
    """Return the span of a period of `YYYY-MM-DDTHH` texts, both inclusive.

    Raises:
        UsageError: the period is malformed or reversed.
    """
    try:
        first, last = hour_number(start), hour_number(end)
    except ValueError as error:
        raise UsageError(f"period {start} to {end} is not of the form YYYY-MM-DDTHH: {error}") from error
    if first > last:
        raise UsageError(f"period {start} to {end} ends before it starts: swap the two")
    return first, last + 1


def _cut(source: str, spans: Iterable[HourSpan]) -> list[HourSpan]:
    """Return spans cut at the shard boundaries of a source; where shards are whole files, widened to whole files.

    The first hours of a span can lie in the file before, because a file is cut in local time.
    """
    reader = get_source(source)
    spill = reader.spill_hours if reader.whole_files else 0
    parts: set[HourSpan] = set()
    for first, last in spans:
        for year in range(int(hour_text(first - spill)[:4]), int(hour_text(last - 1)[:4]) + 1):
            months = [f"{year}-{month:02d}" for month in range(1, 13, reader.shard_months)] + [f"{year + 1}-01"]
            turns = [hour_number(f"{month}-01T00") for month in months]
            for start, end in pairwise(turns):
                if reader.whole_files and reader.first_hour and end <= hour_number(reader.first_hour):
                    continue  # there is no file before the first one
                if overlaps((start, end + spill), (first, last)):
                    parts.add((start, end) if reader.whole_files else (max(start, first), min(end, last)))
    return sorted(parts)
