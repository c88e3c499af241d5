"""Plan an extraction once: which shards to fetch and which series to build, from the options and the manifests on disk."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from math import isinf
from pathlib import Path
from typing import Any, Self

from coordinator.scheduling.rate_limit import RequestBudget
from coordinator.stages.extract.source import SourceChoice, parse_source
from coordinator.stages.fleet import StageOptions
from ingest import manifest
from ingest.asked import clip_period, latest_hour, reuse_verified
from ingest.catalog import RESPONDENTS, check_respondents, expand_groups
from ingest.catalog_listing import respondents_of
from ingest.errors import UsageError
from ingest.models import BuildResult, FetchJob, Shard, ShardResult
from ingest.plan import (
    DEFAULT_END,
    Build,
    choose_routes,
    plan_builds,
    plan_shards,
    plan_update,
    served_defaults,
    years_of,
)
from ingest.sources import get_source

UNDER = 0.985  # of a ceiling: requests that a busy machine or the network bunches together must not cross it
BURST = 2  # requests at once; EIA allows 5, and the rest of them absorbs a delay of three requests' time
MAX_NAMED = 8  # codes that a note lists
BUCKET = "source"  # the one request budget: one key, one source a run


@dataclass(frozen=True, kw_only=True)
class ExtractOptions(StageOptions):
    """Options of an extraction."""

    source: SourceChoice
    respondents: tuple[str, ...]
    routes: tuple[str, ...]
    start: str  # first hour, YYYY-MM-DDTHH
    end: str  # last hour, inclusive
    shards: tuple[Shard, ...]  # of the period, whether they are on disk or not
    notes: tuple[str, ...]  # one line for each part of what was asked for that the plan leaves out
    rate: float | None  # requests per second; None = the source's policy
    revise_days: int
    update: bool
    rebuild: bool
    open_end: bool = False  # no --end: an update goes to the present hour of the source's clock

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], **own: Any) -> Self:
        """Return the options of resolved settings.

        Raises:
            UsageError: an unknown source or respondent (near matches are named), or a period that the source does not have.
        """
        source = parse_source(settings["source"])
        now = datetime.now(UTC)
        open_end = settings["update"] and not settings["end"]
        start, end = settings["start"], settings["end"] or (latest_hour(source.kind, now) if open_end else DEFAULT_END)
        if open_end and start > end:
            raise UsageError(
                f"--start {start} lies after the present hour of the source, {now:%Y-%m-%dT%H} UTC; give an earlier --start"
            )
        respondents, notes = served_defaults(source.kind, settings["respondents"])
        if source.public and start <= end:
            start, end, cuts = clip_period(source.kind, start, end, now)
            notes = (*notes, *cuts)
        known = respondents_of(settings["data"])
        routes = choose_routes(source.kind, settings["routes"])
        serves: Callable[[str], bool] = get_source(source.kind).serves
        if source.recordings:  # a group, and routes that are not named, mean those of them that the files have
            held, skipped = _recorded(source.recordings)
            notes = (*notes, *skipped)
            serves = {code for _, code in held}.__contains__
            wanted = {name.lower() for name in settings["routes"]} | {route for route, _ in held}
            routes = tuple(route for route in routes if {route, route.removeprefix("daily-")} & wanted) or routes
        respondents, idle = expand_groups(respondents, start, end, serves, known)
        check_respondents(respondents, known)
        notes = (*notes, *_left_out(source.kind, routes, settings["routes"], respondents, idle))
        routes = published(source.kind, routes, respondents)
        period = {"start": start, "end": end, "notes": notes, "open_end": open_end}
        shards = plan_shards(source.kind, respondents, (start, end), routes, known)
        asked = {"respondents": respondents, "routes": routes, "shards": shards}
        same = {name: settings[name] for name in ("rate", "update", "rebuild")}
        return super().from_settings(
            settings, source=source, revise_days=settings["revise-days"], **asked, **period, **same, **own
        )

    def at(self, now: datetime) -> Self:
        """Return the options whose open end is the last hour that the source can have at `now`, by the source's clock."""
        if not self.open_end:
            return self
        end = max(latest_hour(self.source.kind, now), self.start)
        known = respondents_of(self.data_dir)
        shards = plan_shards(self.source.kind, self.respondents, (self.start, end), self.routes, known)
        return replace(self, end=end, shards=shards)

    @property
    def like(self) -> str:
        """The source, the number of workers and the rate, on which the time of a row depends."""
        hosts = 0 if self.hosts is None else len(self.hosts.remote)
        return f"{self.source.name}, {self.workers + hosts} workers, {self.rate or 'policy'}"

    @property
    def budget(self) -> RequestBudget | None:
        """The request budget: just under `--rate`, else just under the source's policy; None: no limit."""
        if self.rate is not None:
            return None if isinf(self.rate) else RequestBudget(self.rate * UNDER, burst=BURST)
        ceiling = self.source.rate_limit
        return None if ceiling is None else RequestBudget(ceiling.rate * UNDER, burst=min(BURST, ceiling.burst))


@dataclass(frozen=True)
class ExtractionPlan:
    """The shards and series that an extraction must produce, and those that were on disk before."""

    data_dir: Path
    shards: tuple[Shard, ...]
    builds: tuple[Build, ...]
    respondents: frozenset[str]
    world: str  # "synthetic", "recordings", "real", or "" while nothing is known
    results: Mapping[str, ShardResult]  # of the shards on disk, by key
    built: Mapping[str, tuple[str, ...]]  # the series on disk: key of the build → sha256 of its pieces
    origin: str = ""  # of all hours that the source gives; "" where only its responses tell
    start: str = ""  # first hour that was asked for; "": that of the first shard

    @property
    def missing(self) -> tuple[Shard, ...]:
        """Shards without a manifest."""
        return tuple(shard for shard in self.shards if shard.key not in self.results)

    def fetch_job(self, shard: Shard, base_url: str, bucket: str) -> FetchJob:
        """Return the payload of a shard's fetch."""
        kept = tuple(sorted(self.kept_of(shard)))
        return FetchJob(shard, base_url, respondents=kept, bucket=bucket, gaps_from=_gaps_from(shard, self.start))

    def kept_of(self, shard: Shard) -> frozenset[str]:
        """Return the respondents to keep of a bulk file, which holds all of them; empty for any other shard."""
        return _kept_of(shard, self.respondents)


def make_plan(options: ExtractOptions, now: datetime) -> ExtractionPlan:
    """Read the manifests and decide what is left to do; `now` decides which hours may still be revised.

    Raises:
        UsageError: the folder holds hours of another world.
        VerificationError: a manifest is damaged.
    """
    found = tuple(manifest.shard_results(options.data_dir))
    world = options.source.world or ""
    for result in found:
        world = check_world(options.data_dir, world, result)
    results = {result.shard.key: result for result in found if manifest.in_place(options.data_dir, result)}
    shards = options.shards
    if options.update:
        shards = plan_update(results.values(), now, options.revise_days, shards)
    else:
        shards = reuse_verified(shards, results.values())
    respondents = frozenset(options.respondents)
    shards = tuple(widened(shard, results, respondents, options.start) for shard in shards)
    shards += _lost_generations(found, results, shards)
    readable = list(manifest.readable_build_results(options.data_dir))
    built = pieces_built(result for result in readable if manifest.in_place(options.data_dir, result))
    outdated = {(result.respondent, result.year) for result in readable if not result.current}
    years = range(int(options.start[:4]), int(options.end[:4]) + 1)
    builds = plan_builds(shards, options.respondents, years, built)
    return ExtractionPlan(
        data_dir=options.data_dir,
        shards=shards,
        builds=(*builds, *_repeated(options.data_dir, results.values(), builds, outdated)),
        respondents=respondents,
        world=world,
        results=results,
        built=built,
        origin=options.source.origin,
        start=options.start,
    )


def pieces_built(builds: Iterable[BuildResult]) -> dict[str, tuple[str, ...]]:
    """Return the pieces of builds by key: none for one of another layout, so that it is made again."""
    return {build.key: build.pieces if build.current else () for build in builds}


def _repeated(
    data_dir: Path, results: Collection[ShardResult], planned: Iterable[Build], outdated: set[tuple[str, int]]
) -> list[Build]:
    """Return the builds that the request does not cover and whose manifests are damaged, or their files `outdated`."""
    found = []
    again = manifest.damaged_builds(data_dir) | outdated
    for respondent, year in sorted(again - {(one.respondent, one.year) for one in planned}):
        own = [r.shard for r in results if r.shard.respondent == respondent or respondent in r.kept]
        keys = tuple(shard.key for shard in own if year in years_of(shard) and not shard.daily)
        found += [Build(respondent, year, keys)] if keys else []
    return found


def _lost_generations(
    found: Iterable[ShardResult], results: Mapping[str, ShardResult], shards: Iterable[Shard]
) -> tuple[Shard, ...]:
    """Return the shards of revised hours whose files are gone; `shards` already holds those of the first generation."""
    asked = {(shard.source, shard.route, shard.respondent) for shard in shards}
    lost = (result.shard for result in found if result.shard.key not in results and result.shard.generation > 0)
    planned = {shard.key for shard in shards}
    return tuple(
        shard for shard in lost if shard.key not in planned and (shard.source, shard.route, shard.respondent) in asked
    )


def _recorded(names: Iterable[str]) -> tuple[frozenset[tuple[str, str]], tuple[str, ...]]:
    """Return each route and respondent of recordings, and a line for each file that is left out.

    Raises:
        UsageError: a file can't be read.
    """
    # here: pandas takes a second
    from ingest.emulator.worlds.recording_files import RecordingsError, headers_in, recorded_series

    paths = [Path(name) for name in names]
    try:
        skipped = tuple(f"{path} is left out: it has no row below its header" for path in headers_in(paths))
        return recorded_series(paths), skipped
    except RecordingsError as error:
        raise UsageError(f"--source recordings: {error}") from None


def published(source: str, routes: Iterable[str], respondents: Iterable[str]) -> tuple[str, ...]:
    """Return the routes that a source publishes for one of the respondents or more."""
    serves = get_source(source).route_serves
    return tuple(route for route in routes if any(serves(route, code) for code in respondents))


def _left_out(
    source: str, routes: Iterable[str], named: Iterable[str], respondents: tuple[str, ...], idle: tuple[str, ...]
) -> tuple[str, ...]:
    """Return a line for each part of a request that no shard is planned for.

    Args:
        source: a name in `ingest.sources.SOURCES`.
        routes: to extract.
        named: as the user gave them; `all` leaves out what is not published for the respondents.
        respondents: to extract.
        idle: those that report at another time.

    Raises:
        UsageError: a route that was named has none of the respondents.
    """
    reader = get_source(source)
    notes = []
    if idle:
        spans = (f"{code} {RESPONDENTS[code].since or '…'} to {RESPONDENTS[code].until or '…'}" for code in idle)
        notes.append(f"not reporting in this period, and not asked for: {', '.join(spans)}")
    for route in routes:
        unserved = [code for code in respondents if not reader.route_serves(route, code)]
        if len(unserved) == len(respondents) and route.lower() in {name.lower() for name in named}:
            having = [code for code in RESPONDENTS if reader.route_serves(route, code)]
            raise UsageError(
                f"{source} {route} is published for {', '.join(having)} only; name one of them with --respondents"
            )
        if unserved:
            named = ", ".join(unserved) if len(unserved) <= MAX_NAMED else f"{len(unserved)} of the respondents"
            notes.append(f"{source} {route} is not published for {named}")
    return tuple(notes)


def world_of(origin: str) -> str:
    """Return "synthetic", "recordings", or "real" for every server that does not report to be an emulator."""
    return origin if origin in ("synthetic", "recordings") else "real"


def check_world(data_dir: Path, world: str, result: ShardResult) -> str:
    """Return the world of a data folder with one more result: synthetic, recorded and real hours are never mixed.

    Args:
        data_dir: the folder, for the message.
        world: World of the hours so far; "" if there are none.
        result: A shard's verified result.

    Raises:
        UsageError: the result is of another world.
    """
    found = world_of(result.origin)
    if world and found != world:
        raise UsageError(
            f"{data_dir} cannot hold both {world} hours and {found} hours ({result.shard.key} from {result.origin}). "
            "Name another folder with --data."
        )
    return found


def _kept_of(shard: Shard, respondents: frozenset[str]) -> frozenset[str]:
    return respondents if shard.respondent == "ALL" else frozenset()


def _gaps_from(shard: Shard, start: str) -> str:
    """Return the first hour whose absence from a whole file is a gap, where the file begins before what was asked for; else ""."""
    return start if get_source(shard.source).whole_files and shard.start < start else ""


def widened(shard: Shard, results: Mapping[str, ShardResult], respondents: frozenset[str], start: str) -> Shard:
    """Return the shard to fetch: if the bulk file was fetched for other respondents, or for later hours only, refetch it as the next generation."""
    while (result := results.get(shard.key)) is not None and (
        not _kept_of(shard, respondents) <= set(result.kept) or _gaps_from(shard, start) < result.gaps_from
    ):
        shard = replace(shard, generation=shard.generation + 1)
    return shard
