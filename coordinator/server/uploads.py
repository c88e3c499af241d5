"""Transfer files of workers on other file systems: receive chunks, verify size and SHA-256, fsync, rename; read parts to send.

Every file belongs to a lease: `LeaseFiles` says which names it may use and how much disk.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from coordinator.scheduling.events import Event
from coordinator.server.lease_files import LeaseFiles
from coordinator.wire.codec import files_in
from coordinator.wire.messages import FileChunk, FileRequest, Result
from coordinator.wire.paths import NO_ROOTS, RefusedPath, checked_path
from ingest.files import file_sha256, fsync_path

IMPOSSIBLE = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.EINVAL, errno.EILSEQ)
PART = 256 << 10  # bytes of a file in one message: a lease must not wait long behind them
INLINE_BYTES = 4 << 20  # of a file that is hashed and synced at once, in milliseconds; a larger one in the background
LeaseKey = tuple[str, str, int]  # worker, task, attempt
Answer = Callable[[FileChunk, Callable[[], int | None]], Event | None]
Submit = Callable[[Callable[[], int], Callable[[Callable[[], int]], Event | None]], None]


def missing_files(
    data_dir: Path, output: dict[str, Any], allowed: LeaseFiles, roots: Mapping[str, Path] = NO_ROOTS
) -> str:
    """Return what is wrong with the first file that a result names and that is missing or has another size, or "".

    Raises:
        RefusedPath: The result names a file that does not belong to its lease.
    """
    for number, (relative, size, sha256) in enumerate(files_in(output)):
        if number >= allowed.max_files:
            raise RefusedPath(
                f"path {relative!r} does not belong to this lease, which has at most {allowed.max_files} files"
            )
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


def lease_of(message: FileChunk | Result) -> LeaseKey:
    """Return the lease that a message names."""
    return message.worker, message.task, message.attempt


def read_part(
    data_dir: Path, roots: Mapping[str, Path], request: FileRequest, listed: Iterable[Mapping[str, Any]]
) -> bytes:
    """Return the requested part of a file, or b"" when it is not `listed`, is missing or no longer has the listed size."""
    size = next((file["bytes"] for file in listed if file["path"] == request.path), None)
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
    refusal: str = ""  # why an earlier chunk was refused; later chunks of the lease are refused with the same reason

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
    """Receive the chunks of workers' files, in order.

    Args:
        data_dir: The coordinator's data folder.
        roots: Further folders, by the first part of the paths below them.
        submit: As `BackgroundThread.submit`, for the check of a file of more than `INLINE_BYTES`. None: it is made at once.
        answer: Called later with the chunk and a function that returns what `take` would have returned, or raises.
    """

    def __init__(
        self,
        data_dir: Path,
        roots: Mapping[str, Path] = NO_ROOTS,
        submit: Submit | None = None,
        answer: Answer = lambda chunk, take: None,
    ) -> None:
        self._data_dir, self._roots, self._submit, self._answer = data_dir, roots, submit, answer
        self._verified: dict[str, str] = {}  # path → sha256 verified by this process
        self._found: dict[Path, tuple[int, int, str]] = {}  # file of an earlier attempt → size, mtime in ns, sha256
        self._checking: set[Path] = set()  # unfinished names of the files that are checked in the background
        self._leases: dict[LeaseKey, _LeaseUploads] = {}

    def take(self, chunk: FileChunk, data: bytes, allowed: LeaseFiles) -> int | None:
        """Store a chunk if it starts at the end of the bytes held; return the bytes held, where the next one starts.

        None: the file is being checked in the background, and answered later.

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

    def _take_checked(self, chunk: FileChunk, data: bytes, allowed: LeaseFiles, uploads: _LeaseUploads) -> int | None:
        path = checked_path(self._data_dir, chunk.path, self._roots)
        if not allowed.owns(chunk.path, chunk.sha256):
            raise RefusedPath(f"path {chunk.path!r} does not belong to this lease")
        part = path.with_name(f"{path.name}.{chunk.sha256[:16]}.part")
        if not uploads.charge(part, path, chunk.size, allowed):
            quota = f"{allowed.max_files} files, {allowed.max_bytes} bytes"
            raise RefusedPath(f"path {chunk.path!r} is beyond the quota of its lease: {quota}")
        with _impossible_paths_refused(chunk):
            return self._take(path, part, chunk, data)

    def end_leases(self, held: Collection[LeaseKey]) -> None:
        """Forget every lease that is not `held` any more, and remove its unfinished files."""
        for key in [key for key in self._leases if key not in held]:
            ended = self._leases.pop(key).files.keys()
            for part in ended - {part for uploads in self._leases.values() for part in uploads.files}:
                with contextlib.suppress(OSError):
                    part.unlink(missing_ok=True)

    def _take(self, path: Path, part: Path, chunk: FileChunk, data: bytes) -> int | None:
        if self._verified.get(chunk.path) == chunk.sha256:
            return chunk.size
        if part in self._checking:
            return None
        if self._may_be_held(path, chunk):
            held = self._check(part, chunk, lambda: self._held(path, part, chunk))
            if held is None or held == chunk.size:
                return held
        held = _bytes_of(part)
        if held > chunk.size:
            part.unlink()
            held = 0
        if chunk.offset == held and held + len(data) <= chunk.size:
            part.parent.mkdir(parents=True, exist_ok=True)
            with part.open("ab") as file:
                file.write(data)
            held += len(data)
        if held == chunk.size and part.exists():
            return self._check(part, chunk, lambda: self._finish(path, part, chunk))
        return held

    def _check(self, part: Path, chunk: FileChunk, check: Callable[[], int]) -> int | None:
        """Return what `check` returns; None: the file is so large that it is called later."""
        if self._submit is None or chunk.size <= INLINE_BYTES:
            return check()

        def later() -> int:
            try:
                with _impossible_paths_refused(chunk):
                    return check()
            finally:
                self._checking.discard(part)

        self._checking.add(part)
        self._submit(later, partial(self._answer, chunk))
        return None

    def _may_be_held(self, path: Path, chunk: FileChunk) -> bool:
        """Return whether an earlier attempt or an earlier coordinator may have completed the file: it is not known to differ."""
        if not path.is_file() or (status := path.stat()).st_size != chunk.size:
            return False
        known = self._found.get(path)
        return known is None or known[:2] != (status.st_size, status.st_mtime_ns) or known[2] == chunk.sha256

    def _held(self, path: Path, part: Path, chunk: FileChunk) -> int:
        """Return the bytes held of a file that may be complete."""
        status = path.stat()
        digest = file_sha256(path)
        self._found[path] = status.st_size, status.st_mtime_ns, digest
        if digest != chunk.sha256:
            return min(_bytes_of(part), chunk.size - 1)
        self._verified[chunk.path] = chunk.sha256
        return chunk.size

    def _finish(self, path: Path, part: Path, chunk: FileChunk) -> int:
        """Verify, sync and rename a file whose bytes are all there; return the bytes held."""
        try:
            fsync_path(part)
            if file_sha256(part) != chunk.sha256:
                part.unlink()
                return 0
            part.replace(path)
        except FileNotFoundError:  # its lease has ended meanwhile
            return 0
        fsync_path(path.parent)
        self._verified[chunk.path] = chunk.sha256
        return chunk.size


def _bytes_of(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


@contextlib.contextmanager
def _impossible_paths_refused(chunk: FileChunk) -> Iterator[None]:
    """Turn the errors of a path that no file can have into RefusedPath."""
    try:
        yield
    except OSError as error:
        if error.errno not in IMPOSSIBLE:
            raise
        raise RefusedPath(f"path {chunk.path!r}: {error.strerror}") from error
