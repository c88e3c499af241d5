"""Transfer files of workers on other file systems: receive chunks, verify size and SHA-256, fsync, rename; read parts to send.

Every file belongs to a lease: `LeaseFiles` says which names it may use and how much disk.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coordinator.server.lease_files import LeaseFiles
from coordinator.wire.codec import files_in
from coordinator.wire.messages import FileChunk, FileRequest
from coordinator.wire.paths import NO_ROOTS, RefusedPath, checked_path
from ingest.files import file_sha256, fsync_path

IMPOSSIBLE = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.EINVAL, errno.EILSEQ)
PART = 256 << 10  # bytes of a file in one message: a lease must not wait long behind them
LeaseKey = tuple[str, str, int]  # worker, task, attempt


def missing_files(
    data_dir: Path, output: dict[str, Any], allowed: LeaseFiles, roots: Mapping[str, Path] = NO_ROOTS
) -> str:
    """Return what is wrong with the first file that a result names and that is missing or has another size, or "".

    Raises:
        RefusedPath: The result names a file that does not belong to its lease.
    """
    for relative, size, sha256 in files_in(output):
        path = checked_path(data_dir, relative, roots)
        if not allowed.owns(relative, sha256):
            raise RefusedPath(f"path {relative!r} does not belong to this lease")
        try:
            found = path.stat().st_size
        except OSError as error:
            return f"{relative} is missing ({error.strerror})"
        if found != size:
            return f"{relative} has {found} bytes, the result states {size}"
    return ""


def read_part(data_dir: Path, roots: Mapping[str, Path], request: FileRequest, size: int) -> bytes:
    """Return the requested part of a file, or b"" when the file is missing or no longer has `size` bytes."""
    with contextlib.suppress(OSError, RefusedPath):
        path = checked_path(data_dir, request.path, roots)
        if path.stat().st_size == size:
            with path.open("rb") as file:
                file.seek(request.offset)
                return file.read(PART)
    return b""


@dataclass
class _LeaseUploads:
    """What a lease has announced: its unfinished name on disk → final name, bytes. A file that is complete keeps its entry."""

    files: dict[Path, tuple[Path, int]] = field(default_factory=dict)
    bytes: int = 0
    refusal: str = ""  # of an earlier chunk, which ends the lease: the rest of what was sent before is refused at once

    def charge(self, part: Path, path: Path, size: int, allowed: LeaseFiles) -> bool:
        """Charge a file to the quota; return whether there was room for it. Files that were removed since are free again."""
        if self.files.get(part) == (path, size):
            return True
        for _ in range(2):
            others = self.bytes - self.files.get(part, (path, 0))[1]
            if len(self.files.keys() | {part}) <= allowed.max_files and others + size <= allowed.max_bytes:
                self.files[part] = path, size
                self.bytes = others + size
                return True
            self.files = {one: entry for one, entry in self.files.items() if one.exists() or entry[0].exists()}
            self.bytes = sum(entry[1] for entry in self.files.values())
        return False


class UploadReceiver:
    """Receive the chunks of workers' files, in order."""

    def __init__(self, data_dir: Path, roots: Mapping[str, Path] = NO_ROOTS) -> None:
        self._data_dir, self._roots = data_dir, roots
        self._verified: dict[str, str] = {}  # path → sha256 verified by this process
        self._leases: dict[LeaseKey, _LeaseUploads] = {}

    def take(self, chunk: FileChunk, data: bytes, allowed: LeaseFiles) -> int:
        """Store a chunk if it starts at the end of the bytes held; return the bytes held, where the next one starts.

        Args:
            chunk: The message of a worker that holds its lease.
            data: The bytes.
            allowed: What the lease may store.

        Raises:
            OSError: The disk is full or broken.
            RefusedPath: The file does not belong to the lease, is beyond its quota, or no file can have this path.
        """
        uploads = self._leases.setdefault((chunk.worker, chunk.task, chunk.attempt), _LeaseUploads())
        if uploads.refusal:
            raise RefusedPath(uploads.refusal)
        try:
            return self._take_checked(chunk, data, allowed, uploads)
        except RefusedPath as error:
            uploads.refusal = str(error)
            raise

    def _take_checked(self, chunk: FileChunk, data: bytes, allowed: LeaseFiles, uploads: _LeaseUploads) -> int:
        path = checked_path(self._data_dir, chunk.path, self._roots)
        if not allowed.owns(chunk.path, chunk.sha256):
            raise RefusedPath(f"path {chunk.path!r} does not belong to this lease")
        part = path.with_name(f"{path.name}.{chunk.sha256[:16]}.part")
        if not uploads.charge(part, path, chunk.size, allowed):
            quota = f"{allowed.max_files} files, {allowed.max_bytes} bytes"
            raise RefusedPath(f"path {chunk.path!r} is beyond the quota of its lease: {quota}")
        try:
            return self._take(path, part, chunk, data)
        except OSError as error:
            if error.errno not in IMPOSSIBLE:
                raise
            raise RefusedPath(f"path {chunk.path!r}: {error.strerror}") from error

    def end_leases(self, held: Collection[LeaseKey]) -> None:
        """Forget every lease that is not `held` any more, and remove its unfinished files."""
        for key in [key for key in self._leases if key not in held]:
            ended = self._leases.pop(key).files.keys()
            for part in ended - {part for uploads in self._leases.values() for part in uploads.files}:
                with contextlib.suppress(OSError):
                    part.unlink(missing_ok=True)

    def _take(self, path: Path, part: Path, chunk: FileChunk, data: bytes) -> int:
        if self._verified.get(chunk.path) == chunk.sha256 or self._is_held(path, chunk):
            return chunk.size
        held = part.stat().st_size if part.exists() else 0
        if held > chunk.size:
            part.unlink()
            held = 0
        if chunk.offset == held and held + len(data) <= chunk.size:
            part.parent.mkdir(parents=True, exist_ok=True)
            with part.open("ab") as file:
                file.write(data)
                file.flush()
                held += len(data)
                if held == chunk.size:
                    os.fsync(file.fileno())
        return self._finish(path, part, chunk) if held == chunk.size and part.exists() else held

    def _is_held(self, path: Path, chunk: FileChunk) -> bool:
        """Return whether an earlier attempt or an earlier coordinator has completed the file."""
        if not path.is_file() or path.stat().st_size != chunk.size or file_sha256(path) != chunk.sha256:
            return False
        self._verified[chunk.path] = chunk.sha256
        return True

    def _finish(self, path: Path, part: Path, chunk: FileChunk) -> int:
        if file_sha256(part) != chunk.sha256:
            part.unlink()
            return 0
        part.replace(path)
        fsync_path(path.parent)
        self._verified[chunk.path] = chunk.sha256
        return chunk.size
