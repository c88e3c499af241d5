"""Snapshots: the series of a finished run, under names that no later run replaces. A reader sees one of them, never a mix.

    snapshots/000002/series/PACW/2024/wide.parquet       as under series/
    snapshots/000002/dataset/year=2024/PACW.parquet      each long.parquet again, as one dataset
    snapshots/000002/files.json                          what it is made of
    snapshots/000002/daily/PACW.parquet                  as under daily/
    dataset -> snapshots/000002/dataset                  the newest; replaced in one step

Its files are hard links to those under `series`, so a snapshot takes no space until a later run replaces them there. Where a file
system has no hard links, they are copies; where it has no symbolic links, there is no snapshot, and readers read `series`.
"""

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from ingest.errors import UsageError, VerificationError
from ingest.files import atomic_write, file_sha256, fsync_path, storage_errors, visible
from ingest.models import BuildResult, FileEntry

SNAPSHOTS, DATASET, DAILY, LIST = "snapshots", "dataset", "daily", "files.json"
SNAPSHOT_FORMAT = 1  # raised when a reader of the earlier ones would be wrong
KEPT = 2  # the newest, and the one before, which a reader may have begun with
ATTEMPTS = 5  # of a reader whose snapshot was replaced twice meanwhile
TARGET = re.compile(rf"{SNAPSHOTS}/\d{{6,}}/{DATASET}")
PLACE = re.compile(  # of a file of the series, or of daily values
    r"series/(?P<respondent>[^/]+)/(?P<year>\d{4})/(?P<name>[^/]+)|daily/[^/]+\.parquet"
)
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)
Found = TypeVar("Found")


class FileList(msgspec.Struct, frozen=True):
    """The content of `files.json`: the files of the series, by path."""

    files: tuple[FileEntry, ...]
    format: int = SNAPSHOT_FORMAT


def current(data_dir: Path) -> Path | None:
    """Return the folder of the newest snapshot; None before the first one, and in a copy that has no links."""
    try:
        target = (data_dir / DATASET).readlink().as_posix()
    except OSError:
        return None
    return (data_dir / target).parent if TARGET.fullmatch(target) else None


def series_folder(data_dir: Path) -> Path:
    """Return the folder from which readers read series: that of the newest snapshot, else `series`."""
    newest = current(data_dir)
    return (newest or data_dir) / "series"


def read_whole(data_dir: Path, read: Callable[[Path], Found]) -> Found:
    """Return `read(folder of series)`, repeated where the folder was replaced meanwhile: all of it is of one snapshot.

    Args:
        data_dir: data folder.
        read: reads from the folder that it is given.

    Raises:
        UsageError: `read` did, from a folder that was not replaced.
        VerificationError: likewise.
    """
    for _ in range(ATTEMPTS):
        folder = series_folder(data_dir)
        try:
            found = read(folder)
        except (UsageError, VerificationError):
            if series_folder(data_dir) == folder:
                raise
            continue
        if folder != data_dir / "series" or series_folder(data_dir) == folder:
            return found
    return read(series_folder(data_dir))


def publish(data_dir: Path, builds: Iterable[BuildResult]) -> None:
    """Make a snapshot of the series of `builds` and of the daily values, unless the newest is of them.

    The one before is kept only if it is whole.

    A damaged one before is removed because no run can build its files again: `verify` would name them until two later runs.
    The caller holds the folder's lock. The disk's errors are raised as StorageError.

    Args:
        data_dir: data folder.
        builds: the series on disk; one whose files are gone is left out.
    """
    found = [build for build in builds if all((data_dir / file.path).is_file() for file in build.files)]
    files = [file for build in found for file in build.files] + list(_daily_files(data_dir))
    listed = FileList(tuple(sorted(files, key=lambda file: file.path)))
    newest = current(data_dir)
    if not listed.files:
        return
    if newest is not None and _is_made_of(newest, listed, data_dir):
        _remove_damaged_before(data_dir, listed)
        return
    with storage_errors(data_dir / SNAPSHOTS):
        number = max((int(path.name) for path in _snapshots(data_dir)), default=0) + 1
        folder = data_dir / SNAPSHOTS / f"{number:06d}"
        temporary = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        for file in listed.files:
            for name in names_in_snapshot(file):
                (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                _link(data_dir / file.path, temporary / name)
        (temporary / DATASET).mkdir(exist_ok=True)  # without a series, too: readers find the snapshot by it
        atomic_write(temporary / LIST, encode(listed))
        temporary.rename(folder)
        fsync_path(folder.parent)
        if _point(data_dir, folder):
            remove_older(data_dir, KEPT)
            _remove_damaged_before(data_dir, listed)
        else:
            shutil.rmtree(folder)


def _daily_files(data_dir: Path) -> Iterator[FileEntry]:
    """Yield the files of daily values, as they are on disk."""
    folder = data_dir / DAILY
    for path in sorted(visible(folder.glob("*.parquet"), folder)):
        yield FileEntry(path.relative_to(data_dir).as_posix(), path.stat().st_size, file_sha256(path))


def encode(listed: FileList) -> bytes:
    """Return the bytes of `files.json`."""
    return msgspec.json.format(msgspec.json.encode(listed), indent=1)


def names_in_snapshot(file: FileEntry) -> Iterator[str]:
    """Yield the names of a file of the series in a snapshot: its own, and that in the dataset if it is a long one."""
    yield file.path
    if (place := PLACE.fullmatch(file.path)) and place["name"] == "long.parquet":
        yield f"{DATASET}/year={place['year']}/{place['respondent']}.parquet"


def before(data_dir: Path) -> list[Path]:
    """Return the folders of all snapshots but the newest."""
    newest = current(data_dir)
    return [path for path in _snapshots(data_dir) if path != newest]


def remove_older(data_dir: Path, kept: int) -> int:
    """Remove all but the newest `kept` snapshots, and what a killed run left; the disk's errors are raised as StorageError.

    Returns:
        The number of snapshots removed.
    """
    old = _snapshots(data_dir)[:-kept]
    with storage_errors(data_dir / SNAPSHOTS):
        for path in (*old, *(data_dir / SNAPSHOTS).glob(".*.tmp")):
            shutil.rmtree(path)
    return len(old)


def check(data_dir: Path) -> Iterator[tuple[str, str]]:
    """Yield (name, problem) of each file of a snapshot that is missing or has another content than its list says."""
    digests: dict[tuple[int, int], str] = {}  # of files by device and inode: most have several names
    for folder in _snapshots(data_dir):
        yield from _check_one(data_dir, folder, digests)


def _check_one(data_dir: Path, folder: Path, digests: dict[tuple[int, int], str]) -> Iterator[tuple[str, str]]:
    """Yield (name, problem) as `check` does, of one snapshot; `digests` are those known, by device and inode."""
    path = folder / LIST
    try:
        content = path.read_bytes()
        listed = msgspec.json.decode(content, type=FileList)
    except (OSError, ValueError) as error:
        yield path.relative_to(data_dir).as_posix(), f"can't be read: {error}"
        return
    places = [PLACE.fullmatch(file.path) for file in listed.files]
    if encode(listed) != content or listed.format != SNAPSHOT_FORMAT or not all(places):
        yield path.relative_to(data_dir).as_posix(), "is not as it was written"
    for file in listed.files:
        for name in names_in_snapshot(file):
            if problem := _problem(folder / name, file, digests):
                said = f"{problem}; {path.relative_to(data_dir).as_posix()} lists it"
                yield (folder / name).relative_to(data_dir).as_posix(), said


def _remove_damaged_before(data_dir: Path, listed: FileList) -> None:
    """Remove each snapshot but the newest that is not whole; its files that are those of `listed` are not hashed again."""
    with storage_errors(data_dir / SNAPSHOTS):
        digests: dict[tuple[int, int], str] = {}
        for file in listed.files:
            status = (data_dir / file.path).stat()
            digests[status.st_dev, status.st_ino] = file.sha256
        for folder in before(data_dir):
            if any(_check_one(data_dir, folder, digests)):
                shutil.rmtree(folder)


def _problem(path: Path, file: FileEntry, digests: dict[tuple[int, int], str]) -> str:
    """Return why a file is not the one of this entry; "" if it is."""
    try:
        status = path.stat()
        inode = status.st_dev, status.st_ino
        if inode not in digests:
            digests[inode] = file_sha256(path)
    except OSError as error:
        return error.strerror or str(error)
    same = status.st_size == file.bytes and digests[inode] == file.sha256
    return "" if same else "size or sha256 differ"


def _snapshots(data_dir: Path) -> list[Path]:
    """Return the folders of snapshots, the oldest first."""
    return sorted((path for path in (data_dir / SNAPSHOTS).glob("*") if path.name.isdigit()), key=lambda one: one.name)


def _is_made_of(snapshot: Path, listed: FileList, data_dir: Path) -> bool:
    """Return whether a snapshot has these files, each the one that is under `series`."""
    try:
        return (snapshot / LIST).read_bytes() == encode(listed) and all(
            _same(data_dir / file.path, snapshot / name) for file in listed.files for name in names_in_snapshot(file)
        )
    except OSError:
        return False


def _same(live: Path, linked: Path) -> bool:
    """Return whether these are one file, or a file and its copy."""
    one, other = live.stat(), linked.stat()
    return os.path.samestat(one, other) or (one.st_size, one.st_mtime_ns) == (other.st_size, other.st_mtime_ns)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        shutil.copy2(source, target)  # with its time, by which `_same` knows it


def _point(data_dir: Path, snapshot: Path) -> bool:
    """Let `dataset` be the snapshot's; return False where the file system has no symbolic links."""
    link, temporary = data_dir / DATASET, data_dir / f".{DATASET}.tmp"
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(f"{SNAPSHOTS}/{snapshot.name}/{DATASET}")
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        return False
    if link.is_dir() and not link.is_symlink():  # in a copy that followed the link
        shutil.rmtree(link)
    temporary.replace(link)
    fsync_path(data_dir)
    return True
