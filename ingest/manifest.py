"""Manifests: the proofs on disk, one JSON file a shard or build, and the summary over all of them. They are the truth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from ingest.errors import ProofError
from ingest.models import BuildProof, FileProof, Gap, ShardProof
from ingest.plan import open_gaps
from ingest.store import atomic_write, sync_names

FORMAT = 1


@dataclass(frozen=True)
class ShardManifest:
    """A committed fetch: which attempt of which worker, and when (UTC, ISO 8601)."""

    proof: ShardProof
    attempt: int
    worker: str
    committed: str
    format: int = FORMAT


@dataclass(frozen=True)
class BuildManifest:
    """A committed build."""

    proof: BuildProof
    attempt: int
    worker: str
    committed: str
    format: int = FORMAT


M = TypeVar("M", ShardManifest, BuildManifest)


@dataclass(frozen=True)
class Files:
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
    raw: Files
    pieces: Files
    series: Files
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
    return _write(data_dir, shard_path(data_dir, manifest.proof.shard.key), manifest)


def write_build(data_dir: Path, manifest: BuildManifest) -> Path:
    """Commit a build, in place of an earlier one of the same respondent and year. StorageError."""
    return _write(data_dir, shard_path(data_dir, manifest.proof.key), manifest)


def shard_manifests(data_dir: Path) -> Iterator[ShardManifest]:
    """Every committed fetch, by key. ProofError for a manifest that can't be read."""
    folder = data_dir / "manifests"
    for path in sorted(folder.rglob("*.json")):
        if path.relative_to(folder).parts[0] != "build":
            yield read(path, ShardManifest)


def build_manifests(data_dir: Path) -> Iterator[BuildManifest]:
    """Every committed build, by respondent and year. ProofError for a manifest that can't be read."""
    for path in sorted((data_dir / "manifests" / "build").rglob("*.json")):
        yield read(path, BuildManifest)


def read_shards(data_dir: Path) -> Iterator[ShardProof]:
    """The proofs of every committed fetch, by key."""
    return (manifest.proof for manifest in shard_manifests(data_dir))


def read_builds(data_dir: Path) -> Iterator[BuildProof]:
    """The proofs of every committed build."""
    return (manifest.proof for manifest in build_manifests(data_dir))


def read(path: Path, kind: type[M]) -> M:
    """One manifest. ProofError when it isn't one, or not the one that its path names."""
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, ValueError) as error:
        raise ProofError(
            f"{path} is no readable manifest: {error}; remove it and run `coordinator start --extract`"
        ) from error
    key = manifest.proof.shard.key if isinstance(manifest, ShardManifest) else manifest.proof.key
    if not path.as_posix().endswith(f"/manifests/{key}.json"):
        raise ProofError(
            f"{path} is the manifest of {key}; put it back or remove it, then run `coordinator start --extract`"
        )
    return manifest


def summarise(shards: Iterable[ShardProof], builds: Iterable[BuildProof]) -> Summary:
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
    """Sum up every manifest into manifest.json. ProofError for a damaged one; StorageError."""
    summary = summarise(read_shards(data_dir), read_builds(data_dir))
    _write(data_dir, data_dir / "manifest.json", summary)
    return summary


def _files(proofs: Iterable[FileProof]) -> Files:
    sizes = [proof.bytes for proof in proofs]
    return Files(len(sizes), sum(sizes))


def _write(data_dir: Path, path: Path, content: ShardManifest | BuildManifest | Summary) -> Path:
    atomic_write(path, msgspec.json.format(msgspec.json.encode(content), indent=1))
    sync_names(data_dir, path.parent)
    return path
