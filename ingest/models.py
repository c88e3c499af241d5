"""Shards, jobs and verified results: plain data shared by sources, workers and the coordinator."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

HOUR = timedelta(hours=1)
BUILD_LAYOUT = (
    2  # of the files of a build: 2: `vintage` is int32; a build of another layout is made again from its pieces
)
MANIFEST_FORMAT = 1  # raised when a reader of the earlier manifests would be wrong
ALL_RESPONDENTS = "ALL"  # respondent of a shard whose file holds every balancing authority
MAX_VARIABLES = 512  # of one respondent and source: EIA has about 25, OASIS about 100
DAY = 24  # hours: the step of a daily route
REGION_TYPES = ("D", "DF", "NG", "TI")  # demand, day-ahead demand forecast, net generation, total interchange


def parse_hour(text: str) -> datetime:
    """Parse `YYYY-MM-DDTHH` (UTC, hour-ending, as EIA's `period`).

    Any other form raises ValueError.

    Returns:
        An aware datetime.
    """
    return datetime.strptime(text, "%Y-%m-%dT%H").replace(tzinfo=UTC)


def format_hour(moment: datetime) -> str:
    """Return an aware datetime as `YYYY-MM-DDTHH` in UTC."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H")


@dataclass(frozen=True, order=True)
class Shard:
    """The unit of a fetch lease: hours `start` to `end` (both inclusive, UTC hour-ending) of one respondent on one route."""

    source: str  # a name in `ingest.sources.SOURCES`, e.g. "eia"
    route: str  # EIA: a name in `ingest.routes`, e.g. "region-data"; OASIS: a query name; bulk: "BALANCE"
    respondent: str  # EIA code, e.g. "PACW"; ALL_RESPONDENTS for a bulk file
    start: str  # "2019-01-01T00"
    end: str  # "2019-12-31T23"
    generation: int = 0  # 0 = first fetch; a later fetch of the same hours (--update) is the next generation

    @property
    def label(self) -> str:
        """The period in a path or a table: `2019` for a whole year, otherwise `20190101T00-20190630T23`."""
        if self.start.endswith("-01-01T00") and self.end == f"{self.start[:4]}-12-31T23":
            return self.start[:4]
        return f"{self.start.replace('-', '')}-{self.end.replace('-', '')}"

    @property
    def key(self) -> str:
        """The task id and the folder of the raw pages under raw/, e.g. `eia/region-data/PACW/2019/g000`."""
        return f"{self.source}/{self.route}/{self.respondent}/{self.label}/g{self.generation:03d}"

    @property
    def daily(self) -> bool:
        """Whether it is of a daily route: day d is named by its hours `dT00` to `dT23`, and is a local day of the respondent."""
        return is_daily(self.route)

    @property
    def hours(self) -> int:
        """Hours in the period, both ends included."""
        return (parse_hour(self.end) - parse_hour(self.start)) // HOUR + 1


@dataclass(frozen=True)
class FetchJob:
    """The payload of a fetch lease. It holds no API key: each worker reads EIA_API_KEY from its own environment."""

    shard: Shard
    base_url: str  # e.g. "https://api.eia.gov", "http://127.0.0.1:8123"
    respondents: tuple[str, ...] = ()  # bulk only: the balancing authorities to keep
    bucket: str = ""  # request budget to draw permits from; "" = no limit
    gaps_from: str = ""  # whole files only: first hour that was asked for; "" = the shard's first


@dataclass(frozen=True)
class FileEntry:
    """One file below the data folder, with the checksum that verifies it."""

    path: str  # relative to the data folder, with "/" separators
    bytes: int
    sha256: str  # of the bytes on disk


@dataclass(frozen=True)
class PageEntry:
    """One stored response: its request, its row counts and its file."""

    file: FileEntry
    offset: int  # first row of the page; 0 where the source has no pages
    rows: int
    total: int  # rows that the server reports for the whole request
    fetched: str  # UTC, ISO 8601
    seconds: float  # request to last byte
    api_version: str = ""
    request: str = ""  # path and query, without the key


@dataclass(frozen=True)
class Gap:
    """A run of hours of one variable that the source does not have: first and last hour (inclusive) and their number."""

    respondent: str
    variable: str
    start: str
    end: str
    hours: int


@dataclass(frozen=True)
class RouteGap(Gap):
    """A gap with its route, in a summary over all shards."""

    route: str = ""  # "" in the summary of an earlier version

    @property
    def length(self) -> str:
        """Its length as text: hours, or days of a daily route."""
        return f"{self.hours // DAY} d" if is_daily(self.route) else f"{self.hours} h"


@dataclass(frozen=True)
class ShardResult:
    """The verified result of a fetch: `rows == total`, no duplicate key, and a named gap for every absent hour."""

    shard: Shard
    origin: str  # "synthetic", "recordings", or the server's host name
    total: int
    rows: int
    nulls: int
    gaps: tuple[Gap, ...]
    pages: tuple[PageEntry, ...]
    piece: FileEntry  # Parquet: hour int32 (hours since 1970-01-01T00 UTC, hour-ending), respondent, variable, value float64 | null
    digest: str  # sha256 of the canonical (hour, respondent, variable, value) rows: equal digests = equal data
    requests: int  # HTTP requests spent, retries and confirmations included
    reused: int  # complete pages found on disk from an earlier attempt
    kept: tuple[str, ...] = ()  # bulk only: the balancing authorities whose rows are in the piece
    faults: dict[str, int] = field(default_factory=dict)  # faults recovered from, by kind
    asked_at: str = ""  # hour in which the oldest page was served, by the source's clock; "" in earlier versions
    gaps_from: str = ""  # as in the job
    duplicates: int = 0  # rows that equal an earlier one of their key; they are not in the piece

    @property
    def key(self) -> str:
        """The task id of the fetch."""
        return self.shard.key

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """The files of the fetch: pages, then the piece."""
        return (*(page.file for page in self.pages), self.piece)


@dataclass(frozen=True)
class Piece:
    """A verified columnar piece, as input of a build."""

    file: FileEntry
    shard: Shard
    until: str = ""  # last hour that had ended when it was fetched; "": all of the shard's had


@dataclass(frozen=True)
class BuildJob:
    """The payload of a build lease: the series of one respondent and year, from every generation of its pieces."""

    respondent: str
    year: int
    origin: str
    pieces: tuple[Piece, ...]

    @property
    def key(self) -> str:
        """The task id."""
        return build_key(self.respondent, self.year)


@dataclass(frozen=True)
class BuildResult:
    """The files of a build and their verified counts. Monthly balance rows are in the `series.json` of the series."""

    respondent: str
    year: int
    long: FileEntry
    wide: FileEntry
    summary: FileEntry
    hours: int
    variables: tuple[str, ...]
    valid: int  # hour × variable cells with a value that the outlier rule did not mask
    masked: dict[str, int]  # reason → cells: missing, null, outlier
    revised: int  # cells whose value changed in a later generation
    pieces: tuple[str, ...] = ()  # sha256 of each input piece, in order: another list means another build
    duplicates: int = 0  # rows of a piece beyond the first of their (hour, variable), counted again from the pieces
    suspect: int = 0  # valid cells that the outlier rule keeps and flags
    layout: int = 1  # of the files; versions before `BUILD_LAYOUT` state none

    @property
    def current(self) -> bool:
        """Whether its files are laid out as this version writes them."""
        return self.layout == BUILD_LAYOUT

    @property
    def key(self) -> str:
        """The task id of the build."""
        return build_key(self.respondent, self.year)

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """The files of the build."""
        return (self.long, self.wide, self.summary)


def is_daily(route: str) -> bool:
    """Return whether a route has one value a local day, not one an hour: EIA's `daily-…-data`."""
    return route.startswith("daily-")


def step_of(route: str) -> int:
    """Return the hours from one value of a route to the next: 1 or 24."""
    return DAY if is_daily(route) else 1


def build_key(respondent: str, year: int) -> str:
    """Return the task id of a build."""
    return f"build/{respondent}/{year}"
