"""What to fetch and what to build from it: a period, respondents and routes → shards, builds, expected requests. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import combinations

from ingest.catalog import ROUTES, check_respondents, check_routes
from ingest.columns import hour_number, hour_text
from ingest.errors import UsageError
from ingest.models import BuildJob, Gap, Piece, Shard, ShardResult

DEFAULT_RESPONDENTS = ("PACW", "ERCO", "CAL", "TEX", "MISO")
DEFAULT_YEARS = (2019, 2020, 2021, 2022, 2023, 2024, 2025)

PAGE_ROWS = 5000  # EIA's limit for one JSON answer
# D DF NG TI; about 35 fuel series over the five default respondents.
SERIES_EXPECTED = {"region-data": 4, "fuel-type-data": 7}
OASIS_WINDOW = timedelta(days=31)  # the longest period that OASIS answers at once
BULK_SPILL = 12  # hours: a six-month file is cut in local time, so its rows reach this far past its UTC name
JOIN = 744  # hours: asking for a month between two holes costs no request more than two requests would

Period = Sequence[int] | tuple[str, str]
RouteKey = tuple[str, str, str]  # source, route, respondent
HourSpan = tuple[int, int]  # hours since 1970-01-01T00 UTC, half open


@dataclass(frozen=True)
class Build:
    """The series of one respondent and year, and the keys of the shards of this plan that it waits for."""

    respondent: str
    year: int
    shards: tuple[str, ...]

    @property
    def key(self) -> str:
        """Its task's id."""
        return f"build/{self.respondent}/{self.year}"


def plan_shards(
    source: str = "eia",
    respondents: Sequence[str] = DEFAULT_RESPONDENTS,
    period: Period = DEFAULT_YEARS,
    routes: Sequence[str] | None = None,
) -> tuple[Shard, ...]:
    """Shards of a plan, a respondent's routes of one year side by side; 5 × 7 × 2 = 70 by default.

    `period` is a sequence of whole years or `(start, end)` as `YYYY-MM-DDTHH` (inclusive, UTC hour-ending), cut at the turns of
    the year. OASIS plans a query and year of CISO; bulk plans whole six-month files, respondent "ALL".
    UsageError for a source, route, respondent or period that the source does not have.
    """
    chosen = tuple(dict.fromkeys(routes or ROUTES.get(source, ())))
    check_routes(chosen, source)
    codes = tuple(dict.fromkeys(respondents))
    check_respondents(codes, source)
    years = _years(period)
    if source == "bulk":
        halves = [half for start, end in years for half in _halves(start, end)]
        return tuple(Shard(source, route, "ALL", *half) for half in dict.fromkeys(halves) for route in chosen)
    return tuple(Shard(source, route, code, start, end) for code in codes for start, end in years for route in chosen)


def plan_builds(shards: Iterable[Shard], respondents: Sequence[str] = ()) -> tuple[Build, ...]:
    """(respondent, year) builds in the order of the plan. `respondents` names those kept from bulk files, whose shards say "ALL"."""
    shards = tuple(shards)
    years = {year for shard in shards for year in range(int(shard.start[:4]), int(shard.end[:4]) + 1)}
    needs: dict[tuple[str, int], list[str]] = defaultdict(list)
    for shard in shards:
        for code in respondents if shard.respondent == "ALL" else (shard.respondent,):
            for year in sorted(years.intersection(_years_of(shard))):
                needs[code, year].append(shard.key)
    return tuple(Build(code, year, tuple(keys)) for (code, year), keys in needs.items())


def build_job(respondent: str, year: int, origin: str, proofs: Iterable[ShardResult]) -> BuildJob:
    """A build's payload: every generation's piece that can hold hours of this respondent and year, oldest generation first."""
    own = [
        proof
        for proof in proofs
        if proof.shard.respondent in (respondent, "ALL") and year in _years_of(proof.shard) and proof.rows
    ]
    own.sort(key=lambda proof: piece_order(proof.shard))
    return BuildJob(respondent, year, origin, tuple(Piece(proof.piece, proof.shard) for proof in own))


def piece_order(shard: Shard) -> tuple[int, str]:
    """Order in which pieces are laid over one another: by generation; the key settles two that overlap in one generation."""
    return shard.generation, shard.key


def expected_requests(shards: Iterable[Shard]) -> int:
    """Requests that a faultless run of the plan spends.

    The plan's expectation, not a promise: hours × series / 5,000 a page, with 7 fuels a respondent (735 for the default plan).
    Probes beyond the end of incomplete shards and retries come on top.
    """
    return sum(_requests(shard) for shard in shards)


def plan_update(
    proofs: Iterable[ShardResult],
    now: datetime,
    revise_days: int = 14,
    wanted: Iterable[Shard] | None = None,
) -> tuple[Shard, ...]:
    """Shards that bring what is on disk up to `now` (aware): what is missing, and what operators may still revise.

    Missing: hours of `wanted` that no proof covers (default: each respondent's route from its first proved hour to `now`), and
    named gaps. A gap is asked for once more: one that two fetches have met is the source's own.
    May be revised: the last `revise_days` days of what is wanted. A shard over hours that a proof covers is the next generation
    of theirs, so its value replaces the earlier one in the series and the earlier one stays in its own piece.
    """
    horizon = int(now.timestamp()) // 3600 + 1
    lines = _by_route(proofs)
    wishes: dict[RouteKey, list[HourSpan]] = defaultdict(list)
    if wanted is None:
        for line, own in lines.items():
            wishes[line] = [(min(_span(proof.shard)[0] for proof in own), horizon)]
    else:
        for shard in wanted:
            wishes[shard.source, shard.route, shard.respondent].append(_span(shard))
    fresh: list[Shard] = []
    for (source, route, respondent), spans in wishes.items():
        asked = _clip(_merge(spans), [(0, horizon)])
        own = lines.get((source, route, respondent), [])
        missing = _subtract(asked, _merge(_span(proof.shard) for proof in own))
        revisable = [(horizon - revise_days * 24, horizon)]
        gaps = _merge((hour_number(gap.start), hour_number(gap.end) + 1) for gap in open_gaps(own))
        twice = _merge(
            span for one, other in combinations(own, 2) for span in _clip([_span(one.shard)], [_span(other.shard)])
        )
        fillable = _clip(_subtract(gaps, twice), asked)
        needed = _merge([*missing, *_clip(asked, revisable), *fillable], JOIN)
        for start, end in _cut(source, needed):
            period = hour_text(start), hour_text(end - 1)
            generation = max(
                (p.shard.generation + 1 for p in own if _overlaps(_span(p.shard), (start, end))), default=0
            )
            fresh.append(Shard(source, route, respondent, *period, generation))
    return tuple(dict.fromkeys(fresh))


def open_gaps(proofs: Iterable[ShardResult]) -> tuple[Gap, ...]:
    """Named gaps, or what is left of them, over hours that no later generation of the same line has asked for again."""
    found: list[Gap] = []
    for own in _by_route(proofs).values():
        for proof in own:
            later = _merge(_span(p.shard) for p in own if p.shard.generation > proof.shard.generation)
            for gap in proof.gaps:
                for start, end in _subtract([(hour_number(gap.start), hour_number(gap.end) + 1)], later):
                    found.append(Gap(gap.respondent, gap.variable, hour_text(start), hour_text(end - 1), end - start))
    return tuple(found)


def _by_route(proofs: Iterable[ShardResult]) -> dict[RouteKey, list[ShardResult]]:
    lines: dict[RouteKey, list[ShardResult]] = defaultdict(list)
    for proof in proofs:
        lines[proof.shard.source, proof.shard.route, proof.shard.respondent].append(proof)
    return lines


def _span(shard: Shard) -> HourSpan:
    return hour_number(shard.start), hour_number(shard.end) + 1


def _years_of(shard: Shard) -> range:
    """Years that the shard's rows can lie in."""
    if shard.source != "bulk":
        return range(int(shard.start[:4]), int(shard.end[:4]) + 1)
    start, end = _span(shard)
    return range(int(hour_text(start)[:4]), int(hour_text(end - 1 + BULK_SPILL)[:4]) + 1)


def _years(period: Period) -> list[tuple[str, str]]:
    """Whole years, or the pieces of `(start, end)` between the turns of the year."""
    if not period:
        raise UsageError("no year given: name at least one, for example --start 2019 --end 2025")
    if isinstance(period[0], str):
        start, end = str(period[0]), str(period[1])
        try:
            first, last = hour_number(start), hour_number(end)
        except ValueError as error:
            raise UsageError(f"period {start} to {end} is not of the form YYYY-MM-DDTHH: {error}") from error
        if first > last:
            raise UsageError(f"period {start} to {end} ends before it starts: swap the two")
        return [(hour_text(a), hour_text(b - 1)) for a, b in _cut("eia", [(first, last + 1)])]
    return [(f"{year}-01-01T00", f"{year}-12-31T23") for year in sorted({int(year) for year in period})]


def _halves(start: str, end: str) -> list[tuple[str, str]]:
    """The six-month files of one year that hold hours of the period."""
    year = start[:4]
    halves = [(f"{year}-01-01T00", f"{year}-06-30T23"), (f"{year}-07-01T00", f"{year}-12-31T23")]
    return [half for half in halves if half[0] <= end and half[1] >= start]


def _requests(shard: Shard) -> int:
    if shard.source == "bulk":
        return 1
    if shard.source == "oasis":
        return -(-shard.hours // (OASIS_WINDOW // timedelta(hours=1)))
    return -(-shard.hours * SERIES_EXPECTED[shard.route] // PAGE_ROWS)


# -- spans of hours: half open, sorted ---------------------------------------------------------------------------------


def _merge(spans: Iterable[HourSpan], slack: int = 0) -> list[HourSpan]:
    """Union; spans at most `slack` hours apart become one."""
    merged: list[HourSpan] = []
    for start, end in sorted(span for span in spans if span[0] < span[1]):
        if merged and start <= merged[-1][1] + slack:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged


def _subtract(spans: Iterable[HourSpan], holes: Iterable[HourSpan]) -> list[HourSpan]:
    left = list(spans)
    for low, high in holes:
        left = [part for a, b in left for part in ((a, min(b, low)), (max(a, high), b)) if part[0] < part[1]]
    return left


def _clip(spans: Iterable[HourSpan], frames: Iterable[HourSpan]) -> list[HourSpan]:
    frames = list(frames)
    return [(max(a, c), min(b, d)) for a, b in spans for c, d in frames if max(a, c) < min(b, d)]


def _overlaps(a: HourSpan, b: HourSpan) -> bool:
    return a[0] < b[1] and b[0] < a[1]


def _cut(source: str, spans: Iterable[HourSpan]) -> list[HourSpan]:
    """Cut at the turns of the year; for bulk, widen to whole six-month files."""
    parts: list[HourSpan] = []
    for first, last in spans:
        for year in range(int(hour_text(first)[:4]), int(hour_text(last - 1)[:4]) + 1):
            start, middle, end = (
                hour_number(f"{text}T00") for text in (f"{year}-01-01", f"{year}-07-01", f"{year + 1}-01-01")
            )
            whole = [(start, middle), (middle, end)] if source == "bulk" else [(start, end)]
            parts += [
                part if source == "bulk" else (max(part[0], first), min(part[1], last))
                for part in whole
                if _overlaps(part, (first, last))
            ]
    return sorted(set(parts))
