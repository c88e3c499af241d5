"""What is fetched and what proves it: shards, jobs and proofs, as plain data shared by sources, workers and the coordinator."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

HOUR = timedelta(hours=1)


def parse_hour(text: str) -> datetime:
    """`YYYY-MM-DDTHH` (UTC, hour-ending, as EIA's `period`) → aware datetime. ValueError when it is not of that form."""
    return datetime.strptime(text, "%Y-%m-%dT%H").replace(tzinfo=UTC)


def format_hour(moment: datetime) -> str:
    """Aware datetime → `YYYY-MM-DDTHH` in UTC."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H")


@dataclass(frozen=True, order=True)
class Shard:
    """One unit of lease: the hours `start`…`end` (both inclusive, UTC hour-ending) of one respondent on one route."""

    source: str  # "eia" | "oasis" | "bulk"
    route: str  # EIA: "region-data", "fuel-type-data"; OASIS: a query name; bulk: "BALANCE"
    respondent: str  # EIA code, e.g. "PACW"; "ALL" for a bulk file, which holds every balancing authority
    start: str  # "2019-01-01T00"
    end: str  # "2019-12-31T23"
    generation: int = 0  # 0 = first fetch; a later fetch of the same hours (--update) is the next generation

    @property
    def label(self) -> str:
        """The period in a path or a table: `2019` for a whole year, else `20190101T00-20190630T23`."""
        if self.start.endswith("-01-01T00") and self.end == f"{self.start[:4]}-12-31T23":
            return self.start[:4]
        return f"{self.start.replace('-', '')}-{self.end.replace('-', '')}"

    @property
    def key(self) -> str:
        """Path-like name, e.g. `eia/region-data/PACW/2019/g000`: the task's id, and the folder of its raw pages under raw/."""
        return f"{self.source}/{self.route}/{self.respondent}/{self.label}/g{self.generation:03d}"

    @property
    def hours(self) -> int:
        """Hours in the period, both ends counted."""
        return (parse_hour(self.end) - parse_hour(self.start)) // HOUR + 1


@dataclass(frozen=True)
class FetchJob:
    """A lease's payload for a fetch. The API key is not in it: each worker reads EIA_API_KEY from its own environment."""

    shard: Shard
    base_url: str  # e.g. "https://api.eia.gov", "http://127.0.0.1:8123"
    respondents: tuple[str, ...] = ()  # bulk only: the balancing authorities to keep
    bucket: str = ""  # request budget to draw permits from; "" = no limit


@dataclass(frozen=True)
class FileEntry:
    """One file under the data folder."""

    path: str  # relative to the data folder, with "/" separators
    bytes: int
    sha256: str  # of the bytes on disk


@dataclass(frozen=True)
class PageEntry:
    """One answer as received: which request, what came, where it lies."""

    file: FileEntry
    offset: int  # first row of the page; 0 where the source has no pages
    rows: int
    total: int  # rows that the server says the whole request has
    fetched: str  # UTC, ISO 8601
    seconds: float  # request to last byte
    api_version: str = ""
    request: str = ""  # path and query, without the key


@dataclass(frozen=True)
class Gap:
    """Hours of one variable that the source did not give: first and last (inclusive) and how many."""

    respondent: str
    variable: str
    start: str
    end: str
    hours: int


@dataclass(frozen=True)
class ShardResult:
    """What a fetch proved. `rows == total`, no key twice; each hour that the source does not have is a named gap."""

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
    reused: int  # pages found whole on disk from an earlier attempt
    kept: tuple[str, ...] = ()  # bulk only: the balancing authorities whose rows are in the piece
    faults: dict[str, int] = field(default_factory=dict)  # faults met and mended, by kind


@dataclass(frozen=True)
class Piece:
    """A verified columnar piece as `build` needs it."""

    file: FileEntry
    shard: Shard


@dataclass(frozen=True)
class BuildJob:
    """A lease's payload for building the series of one respondent and year from every generation of its pieces."""

    respondent: str
    year: int
    origin: str
    pieces: tuple[Piece, ...]

    @property
    def key(self) -> str:
        """Its task's id."""
        return f"build/{self.respondent}/{self.year}"


@dataclass(frozen=True)
class BuildResult:
    """What a build wrote, and its checks. Monthly balance rows are in the series' own `series.json`."""

    respondent: str
    year: int
    long: FileEntry
    wide: FileEntry
    summary: FileEntry
    hours: int
    variables: tuple[str, ...]
    valid: int  # hour × variable cells with a value that passed
    masked: dict[str, int]  # reason → cells: missing, null, outlier
    revised: int  # cells whose value changed in a later generation
    pieces: tuple[str, ...] = ()  # sha256 of each piece it was built from, in order: another list is another build
    duplicates: int = 0  # rows of a piece beyond the first of their (hour, variable): counted again from the pieces

    @property
    def key(self) -> str:
        """The id of the task that it proves."""
        return f"build/{self.respondent}/{self.year}"


REGION_TYPES = ("D", "DF", "NG", "TI")  # demand, day-ahead demand forecast, net generation, total interchange


def variable_of(route: str, code: str) -> str:
    """Series variable of an EIA code: region types as they are, fuels as `NG.<fuel>` (EIA's v1 habit: NG is both a type and a fuel)."""
    return f"NG.{code}" if route == "fuel-type-data" else code
