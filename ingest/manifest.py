"""Manifests: the proofs on disk, one JSON file a shard or build, and the summary over all of them. They are the truth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from ingest.errors import VerificationError
from ingest.files import atomic_write
from ingest.models import BuildResult, FileEntry, Gap, ShardResult
from ingest.plan import open_gaps
from ingest.store import fsync_folders

FORMAT = 1


class ShardManifest(msgspec.Struct, frozen=True):
    """A committed fetch: which attempt of which worker, and when (UTC, ISO 8601)."""

    result: ShardResult = msgspec.field(name="proof")
    attempt: int
    worker: str
    committed: str
    format: int = FORMAT


class BuildManifest(msgspec.Struct, frozen=True):
    """A committed build."""

    result: BuildResult = msgspec.field(name="proof")
    attempt: int
    worker: str
    committed: str
    format: int = FORMAT


M = TypeVar("M", ShardManifest, BuildManifest)


@dataclass(frozen=True)
class FileTotals:
    """Counted from the proofs, not from the disk: `coordinator verify` compares the two."""

    files: int
    bytes: int


@dataclass(frozen=True)
class Summary:
    """What `manifest.json` says over all shards. `whole`: rows == total and no key twice; gaps are the source's own."""

    origins: tuple[str, ...]
    shards: int
    rows: int
    total: int
    nulls: int
    duplicates: int
    whole: bool
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
    gap_hours: int
    gaps: tuple[Gap, ...]
    format: int = FORMAT


def shard_path(data_dir: Path, key: str) -> Path:
    """Where the manifest of a shard or build with this key lies."""
    return data_dir / "manifests" / f"{key}.json"


def write_shard(data_dir: Path, manifest: ShardManifest) -> Path:
    """Commit a fetch: atomic, durable, the same bytes for the same manifest. StorageError."""
    return _write(data_dir, shard_path(data_dir, manifest.result.shard.key), manifest)


def write_build(data_dir: Path, manifest: BuildManifest) -> Path:
    """Commit a build, in place of an earlier one of the same respondent and year. StorageError."""
    return _write(data_dir, shard_path(data_dir, manifest.result.key), manifest)


def shard_manifests(data_dir: Path) -> Iterator[ShardManifest]:
    """Every committed fetch, by key. VerificationError for a manifest that can't be read."""
    folder = data_dir / "manifests"
    for path in sorted(folder.rglob("*.json")):
        if path.relative_to(folder).parts[0] != "build":
            yield read(path, ShardManifest)


def build_manifests(data_dir: Path) -> Iterator[BuildManifest]:
    """Every committed build, by respondent and year. VerificationError for a manifest that can't be read."""
    for path in sorted((data_dir / "manifests" / "build").rglob("*.json")):
        yield read(path, BuildManifest)


def shard_results(data_dir: Path) -> Iterator[ShardResult]:
    """The proofs of every committed fetch, by key."""
    return (manifest.result for manifest in shard_manifests(data_dir))


def build_results(data_dir: Path) -> Iterator[BuildResult]:
    """The proofs of every committed build."""
    return (manifest.result for manifest in build_manifests(data_dir))


def read(path: Path, kind: type[M]) -> M:
    """One manifest. VerificationError when it isn't one, or not the one that its path names."""
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, ValueError) as error:
        raise VerificationError(
            f"{path} is no readable manifest: {error}; remove it and run `coordinator start --extract`"
        ) from error
    key = manifest.result.shard.key if isinstance(manifest, ShardManifest) else manifest.result.key
    if not path.as_posix().endswith(f"/manifests/{key}.json"):
        raise VerificationError(
            f"{path} is the manifest of {key}; put it back or remove it, then run `coordinator start --extract`"
        )
    return manifest


def summarise(shards: Iterable[ShardResult], builds: Iterable[BuildResult]) -> Summary:
    """Sums over proofs. Rows of a revised hour count once a generation, as they were fetched."""
    shards, builds = tuple(shards), tuple(builds)
    faults: Counter[str] = Counter()
    masked: Counter[str] = Counter()
    for shard in shards:
        faults.update(shard.faults)
    for build in builds:
        masked.update(build.masked)
    rows, total = sum(shard.rows for shard in shards), sum(shard.total for shard in shards)
    duplicates = sum(build.duplicates for build in builds)
    gaps = open_gaps(shards)
    return Summary(
        origins=tuple(sorted({shard.origin for shard in shards})),
        shards=len(shards),
        rows=rows,
        total=total,
        nulls=sum(shard.nulls for shard in shards),
        duplicates=duplicates,
        whole=all(shard.rows == shard.total for shard in shards) and not duplicates,
        requests=sum(shard.requests for shard in shards),
        reused=sum(shard.reused for shard in shards),
        faults=dict(sorted(faults.items())),
        raw=_files(page.file for shard in shards for page in shard.pages),
        pieces=_files(shard.piece for shard in shards),
        series=_files(file for build in builds for file in (build.long, build.wide, build.summary)),
        builds=len(builds),
        valid=sum(build.valid for build in builds),
        masked=dict(sorted(masked.items())),
        revised=sum(build.revised for build in builds),
        gap_hours=sum(gap.hours for gap in gaps),
        gaps=gaps,
    )


def write_summary(data_dir: Path) -> Summary:
    """Sum up every manifest into manifest.json. VerificationError for a damaged one; StorageError."""
    summary = summarise(shard_results(data_dir), build_results(data_dir))
    _write(data_dir, data_dir / "manifest.json", summary)
    return summary


def _files(proofs: Iterable[FileEntry]) -> FileTotals:
    sizes = [proof.bytes for proof in proofs]
    return FileTotals(len(sizes), sum(sizes))


def _write(data_dir: Path, path: Path, content: ShardManifest | BuildManifest | Summary) -> Path:
    atomic_write(path, msgspec.json.format(msgspec.json.encode(content), indent=1))
    fsync_folders(data_dir, path.parent)
    return path
