"""Files that workers on other file systems send: taken in chunks, proved by size and sha256, fsynced, renamed into place."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from coordinator.wire.codec import files_in
from coordinator.wire.messages import FileChunk
from ingest.files import file_sha256

IMPOSSIBLE = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.EINVAL, errno.EILSEQ)
FOLDERS = ("raw", "pieces", "series")  # the only ones of the data folder that a worker may write to
NO_ROOTS: Mapping[str, Path] = {}


class RefusedPath(Exception):
    """A path that no worker may write."""


def checked_path(data_dir: Path, relative: str, roots: Mapping[str, Path] = NO_ROOTS) -> Path:
    """A worker's relative path → where it lies. RefusedPath for anything but a plain file path below `FOLDERS`.

    `places`: more first parts of a path, each with the folder that it stands for.
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


def missing_files(data_dir: Path, proof: dict[str, Any], roots: Mapping[str, Path] = NO_ROOTS) -> str:
    """Why a proof can't be accepted: the first file that it names and that is not there whole, or ""."""
    for relative, size, _ in files_in(proof):
        try:
            found = checked_path(data_dir, relative, roots).stat().st_size
        except RefusedPath as error:
            return str(error)
        except OSError as error:
            return f"{relative} is not there ({error.strerror})"
        if found != size:
            return f"{relative} has {found} bytes, the proof says {size}"
    return ""


class UploadReceiver:
    """Takes chunks in order. OSError when the disk is full or broken; RefusedPath for a path that can't be a file's."""

    def __init__(self, data_dir: Path, roots: Mapping[str, Path] = NO_ROOTS) -> None:
        self._data_dir, self._roots = data_dir, roots
        self._verified: dict[str, str] = {}  # path → sha256 proved by this process

    def take(self, chunk: FileChunk, data: bytes) -> int:
        """Bytes held after this chunk: where the next one starts. A chunk that does not start there changes nothing.

        RefusedPath for a path that can't be a file's; OSError when the disk is full or broken.
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
        """The file was there before, whole: from an earlier attempt or an earlier coordinator."""
        if not path.is_file() or path.stat().st_size != chunk.size or file_sha256(path) != chunk.sha256:
            return False
        self._verified[chunk.path] = chunk.sha256
        return True

    def _finish(self, path: Path, part: Path, chunk: FileChunk) -> int:
        if file_sha256(part) != chunk.sha256:
            part.unlink()
            return 0
        part.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        self._verified[chunk.path] = chunk.sha256
        return chunk.size
