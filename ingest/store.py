"""The raw store and the pieces: files named by content, written to a temporary name, fsynced, renamed into place.

A final name is a promise: the page was proved before it was written. `fsync_folders` makes the names themselves
durable, once a shard, before its proof leaves the process.
"""

from __future__ import annotations

import hashlib
import io
import os
import time
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ingest.columns import Columns, to_table
from ingest.errors import VerificationError
from ingest.files import atomic_write, storage_errors
from ingest.models import FileEntry, Shard

LEFTOVER_S = 3600.0  # a temporary file older than this belongs to nobody: a write takes seconds
_durable: set[Path] = set()  # folders whose own name is known to be on disk; they are never removed


def fsync_folders(data_dir: Path, *folders: Path) -> None:
    """Make the names in `folders`, and those of the folders themselves up to `data_dir`, durable. StorageError."""
    pending = list(folders)
    synced = set()
    while pending:
        folder = pending.pop()
        if folder not in synced:
            synced.add(folder)
            with storage_errors(folder):
                handle = os.open(folder, os.O_RDONLY)
                try:
                    os.fsync(handle)
                finally:
                    os.close(handle)
        if folder != data_dir and folder not in _durable:
            pending.append(folder.parent)
    _durable.update(synced)


def file_entry(data_dir: Path, path: Path, content: bytes) -> FileEntry:
    """What proves a file of this content."""
    return FileEntry(path.relative_to(data_dir).as_posix(), len(content), hashlib.sha256(content).hexdigest())


# -- raw pages ---------------------------------------------------------------------------------------------------------


class StoredPage(NamedTuple):
    """A page on disk, by its first row."""

    offset: int
    path: Path


def page_folder(data_dir: Path, shard: Shard) -> Path:
    """Where a shard's raw pages lie."""
    return data_dir / "raw" / shard.key


def write_page(data_dir: Path, shard: Shard, offset: int, content: bytes, suffix: str) -> FileEntry:
    """Store one proved page as received, under `<offset>-<sha256[:16]><suffix>`. StorageError."""
    name = f"{offset:08d}-{hashlib.sha256(content).hexdigest()[:16]}{suffix}"
    path = page_folder(data_dir, shard) / name
    atomic_write(path, content)
    return file_entry(data_dir, path, content)


def scan_pages(data_dir: Path, shard: Shard, suffix: str) -> list[StoredPage]:
    """Pages under their final names, by offset. Temporary files that a killed process left behind are removed."""
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
    """A stored page's bytes. VerificationError when they are not those that its name was made of."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise VerificationError(
            f"can't read {path}: {error.strerror}; `coordinator verify` lists what else is amiss"
        ) from error
    if hashlib.sha256(content).hexdigest()[:16] != path.name[9:25]:
        raise VerificationError(f"{path} is not what was stored; `coordinator start --extract` fetches it again")
    return content


def set_aside(path: Path) -> None:
    """Take a page out of use but keep it: `<name>.stale`."""
    with storage_errors(path):
        if path.exists():
            path.replace(path.with_name(f"{path.name}.stale"))


def read_origin(data_dir: Path, shard: Shard) -> str | None:
    """Where the stored pages of `shard` came from, or None before the first."""
    path = page_folder(data_dir, shard) / "origin"
    return path.read_text() if path.exists() else None


def write_origin(data_dir: Path, shard: Shard, origin: str) -> None:
    """Say beside a shard's pages whether they are real, recorded or synthetic."""
    atomic_write(page_folder(data_dir, shard) / "origin", origin.encode())


# -- pieces ------------------------------------------------------------------------------------------------------------


def write_piece(data_dir: Path, shard: Shard, columns: Columns) -> FileEntry:
    """Canonical columns of one shard → one Parquet file, deterministic bytes, named by content. StorageError."""
    sink = io.BytesIO()
    pq.write_table(
        to_table(columns), sink, compression="zstd", compression_level=1, use_dictionary=["respondent", "variable"]
    )
    content = sink.getvalue()
    name = f"{shard.key.replace('/', '__')}-{hashlib.sha256(content).hexdigest()[:16]}.parquet"
    path = data_dir / "pieces" / name
    atomic_write(path, content)
    return file_entry(data_dir, path, content)


def read_piece(data_dir: Path, proof: FileEntry) -> pa.Table:
    """A piece as a table (hour, respondent, variable, value). VerificationError when its bytes are not those proved."""
    path = data_dir / proof.path
    try:
        content = path.read_bytes()
    except OSError as error:
        raise VerificationError(
            f"can't read {path}: {error.strerror}; run `coordinator start --extract` again"
        ) from error
    if hashlib.sha256(content).hexdigest() != proof.sha256:
        raise VerificationError(f"{path} is not what its manifest says; run `coordinator verify`")
    return pq.ParquetFile(io.BytesIO(content)).read()  # `pq.read_table` would import pandas
