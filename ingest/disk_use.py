"""Disk use of a data folder by kind, what newer generations replace, and its removal."""

import os
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ingest import manifest, snapshot
from ingest.asked import asked_span, by_route, span_of
from ingest.files import atomic_write, storage_errors
from ingest.hour_spans import merge, subtract
from ingest.models import ShardResult
from ingest.store import LEFTOVER_S, PRUNED

# Folder or file at the top → kind. Files with several names count for the first kind; what is not listed is "other".
KINDS = {
    "raw": "raw pages",
    "pieces": "pieces",
    "series": "series",
    "daily": "daily values",
    "imputed": "imputed",
    "snapshots": "earlier series",
    "manifests": "manifests",
    "train": "trainings",
    "control": "trainings",
    "tokens": "trainings",
    "logs": "logs",
}
OTHER = "other"
PAGES, SNAPSHOTS, LEFTOVERS = "raw pages that a later fetch replaces", "earlier series", "leftovers of killed processes"
PRUNED_TEXT = (
    b"The pages were removed by `coordinator clean`: later fetches cover their hours. The piece holds their rows.\n"
)


@dataclass(frozen=True)
class Replaced:
    """Files that nothing needs any more: of one kind, with the bytes that their removal frees."""

    kind: str
    paths: tuple[Path, ...]  # files, or folders of a snapshot
    bytes: int


def by_kind(data_dir: Path) -> dict[str, int]:
    """Return bytes by kind, the kinds in a fixed order. Files that vanish meanwhile are left out."""
    sizes = dict.fromkeys([*KINDS.values(), OTHER], 0)
    seen: set[tuple[int, int]] = set()
    tops = sorted(
        data_dir.iterdir(), key=lambda path: list(KINDS).index(path.name) if path.name in KINDS else len(KINDS)
    )
    for top in tops:
        for status in _files(top):
            inode = status.st_dev, status.st_ino
            if inode not in seen:
                seen.add(inode)
                sizes[KINDS.get(top.name, OTHER)] += status.st_size
    return {kind: size for kind, size in sizes.items() if size}


def _files(path: Path) -> Iterator[os.stat_result]:
    """Yield the status of every file at or below a path; links are not followed."""
    try:
        if path.is_dir() and not path.is_symlink():
            with os.scandir(path) as entries:
                below = [Path(entry.path) for entry in entries]
            for one in below:
                yield from _files(one)
        else:
            yield path.lstat()
    except FileNotFoundError:  # removed by a run meanwhile
        return


def replaced(data_dir: Path) -> list[Replaced]:
    """Return what newer generations replace, by kind.

    Raw pages count where later fetches of the same respondents cover each of their hours: their rows stay in the piece, so that
    series, vintages and revisions stay as they are.
    """
    found = []
    results = list(manifest.shard_results(data_dir))
    pages = [data_dir / page.file.path for one in _covered(results) for page in one.pages]
    found.append(_replaced(PAGES, [path for path in pages if path.is_file()]))
    found.append(_replaced(SNAPSHOTS, snapshot.before(data_dir)))
    old = time.time() - LEFTOVER_S
    names = ("*.tmp", "*.stale")
    tops = [data_dir / top for top in ("raw", "pieces", "series", "daily", "manifests")]
    left = [path for top in tops for name in names for path in top.rglob(name) if path.lstat().st_mtime < old]
    found.append(_replaced(LEFTOVERS, left))
    return [one for one in found if one.paths]


def _replaced(kind: str, paths: Iterable[Path]) -> Replaced:
    """Return paths with the bytes that only they hold: a file with other names stays on disk."""
    names: dict[tuple[int, int], list[os.stat_result]] = {}
    listed = tuple(paths)
    for path in listed:
        for status in _files(path):
            names.setdefault((status.st_dev, status.st_ino), []).append(status)
    return Replaced(kind, listed, sum(own[0].st_size for own in names.values() if own[0].st_nlink <= len(own)))


def _covered(results: Iterable[ShardResult]) -> Iterator[ShardResult]:
    """Yield the fetches whose every hour later fetches of their route and respondents have asked for again."""
    for own in by_route(results).values():
        for one in own:
            later = [
                asked_span(other)
                for other in own
                if other.shard.generation > one.shard.generation and set(one.kept) <= set(other.kept)
            ]
            if not subtract([span_of(one.shard)], merge(later)):
                yield one


def remove(data_dir: Path, found: Iterable[Replaced]) -> None:
    """Remove what `replaced` returned. The caller holds the folder's lock; the disk's errors are raised as StorageError."""
    for one in found:
        if one.kind == PAGES:  # first, so that a killed process leaves no page missing without a reason
            for folder in sorted({path.parent for path in one.paths}):
                atomic_write(folder / PRUNED, PRUNED_TEXT)
        for path in one.paths:
            with storage_errors(path):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
