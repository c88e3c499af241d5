"""Raw store and pieces: files named by content, written to a temporary name, fsynced and renamed.

A page is verified before it gets its final name, so a final name guarantees a verified page. `fsync_folders` makes the
names durable, once per shard, before its result leaves the process.
"""

from __future__ import annotations

import hashlib
import io
import threading
import time
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ingest.columns import Columns, to_table
from ingest.errors import VerificationError
from ingest.files import atomic_write, fsync_path, storage_errors
from ingest.models import FileEntry, Shard

LEFTOVER_S = 3600.0  # an older temporary file has no owner: a write takes seconds
PRUNED = "pruned"  # beside pages that `coordinator clean` has removed
_durable: set[Path] = set()  # folders whose name is known to be on disk; nothing removes them
_durable_lock = threading.Lock()


def fsync_folders(data_dir: Path, *folders: Path) -> None:
    """Make the names in `folders`, and of the folders themselves up to `data_dir`, durable.

    The disk's errors are raised as StorageError.
    """
    pending = list(folders)
    synced = set()
    while pending:
        folder = pending.pop()
        if folder not in synced:
            synced.add(folder)
            with storage_errors(folder):
                fsync_path(folder)
        with _durable_lock:
            if folder != data_dir and folder not in _durable:
                pending.append(folder.parent)
    with _durable_lock:
        _durable.update(synced)


def file_entry(data_dir: Path, path: Path, content: bytes) -> FileEntry:
    """Return the manifest entry of a file with this content."""
    return FileEntry(path.relative_to(data_dir).as_posix(), len(content), hashlib.sha256(content).hexdigest())


def write_file(data_dir: Path, path: Path, content: bytes) -> FileEntry:
    """Return the entry of a file, after writing it atomically; the disk's errors are raised as StorageError."""
    atomic_write(path, content)
    return file_entry(data_dir, path, content)


# -- raw pages ---------------------------------------------------------------------------------------------------------


class StoredPage(NamedTuple):
    """A page on disk, by its first row."""

    offset: int
    path: Path


def page_folder(data_dir: Path, shard: Shard) -> Path:
    """Return the folder of a shard's raw pages."""
    return data_dir / "raw" / shard.key


def is_pruned(data_dir: Path, shard: Shard) -> bool:
    """Return whether `coordinator clean` has removed the pages of a shard; its piece holds their rows."""
    return (page_folder(data_dir, shard) / PRUNED).is_file()


def write_page(data_dir: Path, shard: Shard, offset: int, content: bytes, suffix: str) -> FileEntry:
    """Return the entry of a verified page, after storing it as received; its name is `<offset>-<sha256[:16]><suffix>`."""
    name = f"{offset:08d}-{hashlib.sha256(content).hexdigest()[:16]}{suffix}"
    return write_file(data_dir, page_folder(data_dir, shard) / name, content)


def scan_pages(data_dir: Path, shard: Shard, suffix: str) -> list[StoredPage]:
    """Return the pages with a final name, by offset, and remove temporary files of killed processes."""
    folder = page_folder(data_dir, shard)
    pages = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.name.endswith(".tmp"):
            with storage_errors(path):
                if time.time() - path.stat().st_mtime > LEFTOVER_S:
                    path.unlink(missing_ok=True)
        elif path.name.endswith(suffix) and path.name[:8].isdigit():
            pages.append(StoredPage(int(path.name[:8]), path))
    return pages


def read_page(path: Path) -> bytes:
    """Return the bytes of a stored page, verified against the sha256 in its name.

    Raises:
        VerificationError: the file can't be read, or its bytes do not match its name.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise VerificationError(
            f"can't read {path}: {error.strerror}; run `coordinator verify` to list other damage"
        ) from error
    if hashlib.sha256(content).hexdigest()[:16] != path.name[9:25]:
        raise VerificationError(
            f"{path}: the sha256 differs from its name; run `coordinator start --extract` to fetch it again"
        )
    return content


def set_aside(path: Path) -> None:
    """Rename a page to `<name>.stale`: it is kept on disk but no longer read."""
    with storage_errors(path):
        if path.exists():
            path.replace(path.with_name(f"{path.name}.stale"))


def read_origin(data_dir: Path, shard: Shard) -> str | None:
    """Return the origin of the stored pages of `shard`, or None before the first.

    Raises:
        VerificationError: the file is damaged.
    """
    path = page_folder(data_dir, shard) / "origin"
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise VerificationError(f"can't read {path}: {error.strerror}") from error
    origin, newline, _ = content.partition(b"\n")  # no second line: written by an earlier version
    if not origin or (newline and content != _origin_file(origin)):
        raise VerificationError(
            f"{path} is damaged; remove it and run `coordinator start --extract` to fetch its pages again"
        )
    return origin.decode("utf-8", "replace")


def write_origin(data_dir: Path, shard: Shard, origin: str) -> None:
    """Record next to a shard's pages whether they are real, recorded or synthetic."""
    atomic_write(page_folder(data_dir, shard) / "origin", _origin_file(origin.encode()))


def _origin_file(origin: bytes) -> bytes:
    return origin + b"\n" + hashlib.sha256(origin).hexdigest()[:16].encode() + b"\n"


# -- pieces ------------------------------------------------------------------------------------------------------------


def write_piece(data_dir: Path, shard: Shard, columns: Columns) -> FileEntry:
    """Return the entry of a shard's canonical columns, written as one Parquet file: deterministic bytes, named by content."""
    sink = io.BytesIO()
    pq.write_table(
        to_table(columns), sink, compression="zstd", compression_level=1, use_dictionary=["respondent", "variable"]
    )
    content = sink.getvalue()
    name = f"{shard.key.replace('/', '__')}-{hashlib.sha256(content).hexdigest()[:16]}.parquet"
    return write_file(data_dir, data_dir / "pieces" / name, content)


def read_piece(data_dir: Path, entry: FileEntry) -> pa.Table:
    """Return a piece as a table (hour, respondent, variable, value); see `read_content` for its errors."""
    # `pq.read_table` would import pandas. A thread of Arrow's pool that still runs at exit aborts the process, rarely.
    return pq.ParquetFile(io.BytesIO(read_content(data_dir, entry))).read(use_threads=False)


def read_content(data_dir: Path, entry: FileEntry) -> bytes:
    """Return the bytes of a file, after verification of their sha256.

    Raises:
        VerificationError: the file can't be read, or its bytes differ from its entry.
    """
    path = data_dir / entry.path
    try:
        content = path.read_bytes()
    except OSError as error:
        raise VerificationError(
            f"can't read {path}: {error.strerror}; run `coordinator start --extract` again"
        ) from error
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        raise VerificationError(f"{path}: the sha256 differs from its manifest; run `coordinator verify`")
    return content
