"""Transfer files of workers on other file systems: receive chunks, verify size and SHA-256, fsync, rename; read parts to send."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from coordinator.wire.codec import files_in
from coordinator.wire.messages import FileChunk, FileRequest
from ingest.files import file_sha256, fsync_path

IMPOSSIBLE = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.EINVAL, errno.EILSEQ)
FOLDERS = ("raw", "pieces", "series")  # the only ones of the data folder that a worker may write to
PART = 256 << 10  # bytes of a file in one message: a lease must not wait long behind them
NO_ROOTS: Mapping[str, Path] = {}


class RefusedPath(Exception):
    """A worker may not use this path."""


def checked_path(data_dir: Path, relative: str, roots: Mapping[str, Path] = NO_ROOTS) -> Path:
    """Resolve a worker's relative path.

    Args:
        data_dir: The data folder, for paths that begin with one of `FOLDERS`.
        relative: The path that the worker sent.
        roots: Further folders, by the first part of the paths below them.

    Raises:
        RefusedPath: `relative` is not a plain file path below one of these folders.
    """
    parts = PurePosixPath(relative).parts
    plain = "/".join(parts) == relative and "\\" not in relative and relative.isprintable()
    known = (*FOLDERS, *roots)
    if not plain or len(parts) < 2 or parts[0] not in known or ".." in parts or relative.endswith(".part"):
        raise RefusedPath(f"path {relative!r} is not below {', '.join(known)}")
    root = roots.get(parts[0], data_dir)
    path = root.joinpath(*(parts[1:] if parts[0] in roots else parts))
    if not path.parent.resolve().is_relative_to(root.resolve()):
        raise RefusedPath(f"path {relative!r} leads out of the data folder")
    return path


def missing_files(data_dir: Path, output: dict[str, Any], roots: Mapping[str, Path] = NO_ROOTS) -> str:
    """Return what is wrong with the first file that a result names and that is missing or has another size, or ""."""
    for relative, size, _ in files_in(output):
        try:
            found = checked_path(data_dir, relative, roots).stat().st_size
        except RefusedPath as error:
            return str(error)
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


class UploadReceiver:
    """Receive the chunks of workers' files, in order."""

    def __init__(self, data_dir: Path, roots: Mapping[str, Path] = NO_ROOTS) -> None:
        self._data_dir, self._roots = data_dir, roots
        self._verified: dict[str, str] = {}  # path → sha256 verified by this process

    def take(self, chunk: FileChunk, data: bytes) -> int:
        """Store a chunk if it starts at the end of the bytes held; return the bytes held, where the next one starts.

        Raises:
            OSError: The disk is full or broken.
            RefusedPath: The path is not allowed, or no file can have it.
        """
        path = checked_path(self._data_dir, chunk.path, self._roots)
        try:
            return self._take(path, chunk, data)
        except OSError as error:
            if error.errno not in IMPOSSIBLE:
                raise
            raise RefusedPath(f"path {chunk.path!r}: {error.strerror}") from error

    def _take(self, path: Path, chunk: FileChunk, data: bytes) -> int:
        if self._verified.get(chunk.path) == chunk.sha256 or self._is_held(path, chunk):
            return chunk.size
        part = path.with_name(f"{path.name}.{chunk.sha256[:16]}.part")
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
