"""Manifests: verified results on disk, one JSON file per shard or build, and the summary of all. They are the ground truth."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from ingest.asked import open_gaps
from ingest.errors import VerificationError
from ingest.files import atomic_write, storage_errors, visible
from ingest.models import (
    MANIFEST_FORMAT,
    BuildResult,
    FileEntry,
    RouteGap,
    ShardResult,
    build_key,
    is_daily,
    parse_hour,
)
from ingest.store import fsync_folders, is_pruned

SAFE_HOUR = re.compile(
    r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|1\d|2[0-8])T([01]\d|2[0-3])"
)  # else `parse_hour` decides, 20 times slower
DAMAGED = ".damaged"  # suffix of a build's manifest that was set aside
R = TypeVar("R", ShardResult, BuildResult)


class Manifest(msgspec.Struct, Generic[R], frozen=True):
    """A committed fetch or build: its result, the attempt and worker that made it, and the time (UTC, ISO 8601)."""

    result: R = msgspec.field(name="proof")
    attempt: int
    worker: str
    committed: str
    format: int = MANIFEST_FORMAT


@dataclass(frozen=True)
class FileTotals:
    """Number and bytes of files, counted from the manifests. `coordinator verify` compares them with the disk."""

    files: int
    bytes: int


@dataclass(frozen=True)
class Summary:
    """The content of `manifest.json`, over all shards and builds."""

    origins: tuple[str, ...]
    shards: int
    rows: int
    total: int
    nulls: int
    duplicates: int
    whole: bool  # rows == total and no duplicate key; gaps are the source's own
    requests: int
    reused: int
    faults: dict[str, int]
    raw: FileTotals
    pieces: FileTotals
    series: FileTotals
    builds: int
    valid: int
    masked: dict[str, int]
    revised: int
    gap_hours: int  # of hourly routes
    gaps: tuple[RouteGap, ...]
    suspect: int = 0  # valid cells that the outlier rule flags
    format: int = MANIFEST_FORMAT


def manifest_path(data_dir: Path, key: str) -> Path:
    """Return the path of the manifest of a shard or build with this key."""
    return data_dir / "manifests" / f"{key}.json"


def write(data_dir: Path, manifest: Manifest[R]) -> Path:
    """Commit a fetch or a build: atomic, durable, the same bytes for the same manifest.

    A build replaces an earlier one of its respondent and year. The disk's errors are raised as StorageError.

    Returns:
        The path of the manifest.
    """
    return _write(data_dir, manifest_path(data_dir, manifest.result.key), manifest)


def shard_manifests(data_dir: Path) -> Iterator[Manifest[ShardResult]]:
    """Yield every committed fetch, by key; an unreadable manifest raises VerificationError."""
    folder = data_dir / "manifests"
    for path in sorted(visible(folder.rglob("*.json"), folder)):
        if path.relative_to(folder).parts[0] != "build":
            yield read(path, Manifest[ShardResult])


def build_manifests(data_dir: Path) -> Iterator[Manifest[BuildResult]]:
    """Yield every committed build, by respondent and year; an unreadable manifest raises VerificationError."""
    for path in _build_paths(data_dir):
        yield read(path, Manifest[BuildResult])


def _build_paths(data_dir: Path) -> list[Path]:
    folder = data_dir / "manifests" / "build"
    return sorted(visible(folder.rglob("*.json"), folder))


def readable_build_results(data_dir: Path) -> Iterator[BuildResult]:
    """Yield the result of every build whose manifest is readable: the series of the others can be built again."""
    for path in _build_paths(data_dir):
        with suppress(VerificationError):
            yield read(path, Manifest[BuildResult]).result


def damaged_builds(data_dir: Path) -> set[tuple[str, int]]:
    """Return respondent and year of each build whose manifest is unreadable, or was set aside and not made again."""
    folder = data_dir / "manifests" / "build"
    aside = [path.with_suffix("") for path in folder.glob(f"*/*.json{DAMAGED}")]
    readable = {result.key for result in readable_build_results(data_dir)}
    named = [(path.parent.name, path.stem) for path in (*_build_paths(data_dir), *aside)]
    return {(name, int(year)) for name, year in named if year.isdigit() and build_key(name, int(year)) not in readable}


def set_damaged_builds_aside(data_dir: Path) -> tuple[str, ...]:
    """Rename unreadable manifests of builds to `<name>.damaged`; return a line for each, for the user."""
    lines = []
    for path in _build_paths(data_dir):
        try:
            read(path, Manifest[BuildResult])
        except VerificationError as error:
            aside = path.with_name(path.name + DAMAGED)
            with storage_errors(path):
                path.replace(aside)
            lines.append(
                f"{path} is not a readable manifest ({error.__cause__ or error}): its series is built again; kept as {aside.name}"
            )
    return tuple(lines)


def in_place(data_dir: Path, result: ShardResult | BuildResult) -> bool:
    """Return whether each file of a result is on disk, with its size; pages that were removed on purpose are not needed.

    `ingest.verify` reads the contents.
    """
    pruned = isinstance(result, ShardResult) and is_pruned(data_dir, result.shard)
    for file in (result.piece,) if isinstance(result, ShardResult) and pruned else result.files:
        try:
            if (data_dir / file.path).stat().st_size != file.bytes:
                return False
        except OSError:
            return False
    return True


def shard_results(data_dir: Path) -> Iterator[ShardResult]:
    """Return the result of every committed fetch, by key."""
    return (manifest.result for manifest in shard_manifests(data_dir))


def build_results(data_dir: Path) -> Iterator[BuildResult]:
    """Return the result of every committed build."""
    return (manifest.result for manifest in build_manifests(data_dir))


def read(path: Path, kind: type[Manifest[R]]) -> Manifest[R]:
    """Return one manifest.

    Raises:
        VerificationError: the file is not a manifest, or not the one that its path names.
    """
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=kind)
        _check_hours(manifest.result)
    except (OSError, ValueError, RecursionError) as error:
        raise VerificationError(
            f"{path} is not a readable manifest: {error}; remove it and run `coordinator start --extract`"
        ) from error
    key = manifest.result.key
    if not path.as_posix().endswith(f"/manifests/{key}.json"):
        raise VerificationError(
            f"{path} is the manifest of {key}; put it back or remove it, then run `coordinator start --extract`"
        )
    return manifest


def _check_hours(result: ShardResult | BuildResult) -> None:
    """Raise ValueError where an hour of the shard or of a gap is none."""
    if isinstance(result, ShardResult):
        spans = [(result.shard.start, result.shard.end), *((gap.start, gap.end) for gap in result.gaps)]
        stated = [hour for hour in (result.asked_at, result.gaps_from) if hour]
        for hour in chain(chain.from_iterable(spans), stated):
            if not SAFE_HOUR.fullmatch(hour):
                parse_hour(hour)


def origins_of(data_dir: Path) -> tuple[str, ...]:
    """Return the origins of the hours in a data folder, sorted: "synthetic", "recordings", or names of servers."""
    return tuple(sorted({shard.origin for shard in shard_results(data_dir)}))


def summarise(shards: Iterable[ShardResult], builds: Iterable[BuildResult]) -> Summary:
    """Return the sums over results. Rows of a revised hour count once per generation, as they were fetched."""
    shards, builds = tuple(shards), tuple(builds)
    faults: Counter[str] = Counter()
    masked: Counter[str] = Counter()
    for shard in shards:
        faults.update(shard.faults)
    for build in builds:
        masked.update(build.masked)
    duplicates = sum(build.duplicates for build in builds)
    gaps = open_gaps(shards)
    return Summary(
        origins=tuple(sorted({shard.origin for shard in shards})),
        shards=len(shards),
        rows=sum(shard.rows for shard in shards),
        total=sum(shard.total for shard in shards),
        nulls=sum(shard.nulls for shard in shards),
        duplicates=duplicates,
        whole=all(shard.rows == shard.total for shard in shards) and not duplicates,
        requests=sum(shard.requests for shard in shards),
        reused=sum(shard.reused for shard in shards),
        faults=dict(sorted(faults.items())),
        raw=_totals(page.file for shard in shards for page in shard.pages),
        pieces=_totals(shard.piece for shard in shards),
        series=_totals(file for build in builds for file in (build.long, build.wide, build.summary)),
        builds=len(builds),
        valid=sum(build.valid for build in builds),
        masked=dict(sorted(masked.items())),
        revised=sum(build.revised for build in builds),
        gap_hours=sum(gap.hours for gap in gaps if not is_daily(gap.route)),
        gaps=gaps,
        suspect=sum(build.suspect for build in builds),
    )


def write_summary(
    data_dir: Path, shards: Iterable[ShardResult] | None = None, builds: Iterable[BuildResult] | None = None
) -> Summary:
    """Write manifest.json, the summary of every manifest; `shards` and `builds` are their results, where they are known.

    A damaged manifest raises VerificationError; the disk's errors are raised as StorageError.

    Returns:
        The summary.
    """
    known = (
        shard_results(data_dir) if shards is None else sorted(shards, key=lambda one: manifest_path(data_dir, one.key))
    )
    made = build_results(data_dir) if builds is None else builds
    summary = summarise(known, made)
    _write(data_dir, data_dir / "manifest.json", summary)
    return summary


def _totals(files: Iterable[FileEntry]) -> FileTotals:
    sizes = [file.bytes for file in files]
    return FileTotals(len(sizes), sum(sizes))


def _write(data_dir: Path, path: Path, content: Manifest[R] | Summary) -> Path:
    atomic_write(path, msgspec.json.format(msgspec.json.encode(content), indent=1))
    fsync_folders(data_dir, path.parent)
    return path
