"""Files that survive a crash: atomic writes, digests, and lines that another process appends."""

import errno
import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from ingest.errors import StorageError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # the disk takes no more; other errors blame the file
MAX_READ = 1 << 16  # bytes read at once by a `LineFollower`
NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)  # all of this process, or of this host, are in use
DESCRIPTORS_S = 20.0  # for one to become free: a stranger's half-open connection holds its two for 5 s
Opened = TypeVar("Opened")
_REMEDIES = {
    errno.EMFILE: "the disk is well: raise the limit on open files with `ulimit -n 8192`",
    errno.ENFILE: "the disk is well: raise the limit on open files of this host (`sysctl fs.file-max`)",
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "raise the quota or free some space",
    errno.EROFS: "make the folder writable or choose another with --data",
    errno.EACCES: "make the folder writable or choose another with --data",
    errno.EPERM: "make the folder writable or choose another with --data",
}


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` of the disk into a message with the path and the next command.

    Raises:
        StorageError: The disk refused an operation inside the context.
    """
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "check the disk, or choose another with --data")
        raise StorageError(
            f"can't write {path}: {error.strerror or error}; {remedy}, then run the same command again to resume"
        ) from error


def when_descriptors_free(action: Callable[[], Opened], wait_s: float = DESCRIPTORS_S) -> Opened:
    """Return `action()`; repeat it for `wait_s` seconds while no file descriptor is free. An OSError is raised as it is."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return action()
        except OSError as error:
            if error.errno not in NO_DESCRIPTORS or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def atomic_write(path: Path, content: bytes | memoryview) -> None:
    """Write all of `content` to `path`, or nothing: a temporary name in the same folder, fsync, rename.

    `storage_errors` turns the disk's errors into StorageError.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    with storage_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(temporary, content)
            try:
                temporary.replace(path)
            except FileNotFoundError:  # removed as a leftover by a process whose clock jumped meanwhile
                _write(temporary, content)
                temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)  # there only after an error


def _write(path: Path, content: bytes | memoryview) -> None:
    with when_descriptors_free(lambda: path.open("wb", buffering=0)) as file:
        view = memoryview(content)
        while view:
            view = view[file.write(view) :]
        os.fsync(file.fileno())


def fsync_path(path: Path) -> None:
    """Make the content of a file, or the names in a folder, durable.

    A folder is synced last, after the files that were renamed into it, so on macOS it alone empties the drive's cache.
    """
    handle = when_descriptors_free(lambda: os.open(path, os.O_RDONLY))
    try:
        if path.is_dir():
            sync_drive(handle)
        else:
            os.fsync(handle)
    finally:
        os.close(handle)


def sync_drive(descriptor: int) -> None:
    """Write a file or folder to the drive, and on macOS all that is in the drive's cache to its medium.

    On Linux `fsync` does both. On macOS it leaves the data in the drive's cache, where a power cut loses them and may reorder them.
    """
    full = getattr(fcntl, "F_FULLFSYNC", None)  # macOS alone has it
    if full is not None:
        with suppress(OSError):  # a file system without it, such as a share
            fcntl.fcntl(descriptor, full)
            return
    os.fsync(descriptor)


def visible(paths: Iterable[Path], folder: Path) -> Iterator[Path]:
    """Yield the paths that are not hidden below `folder`: Finder writes `.DS_Store`, and macOS `._NAME` on foreign file systems, anywhere."""
    return (path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hex."""
    with when_descriptors_free(lambda: path.open("rb")) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class DigestCache:
    """SHA-256 of files, computed again only when a file's size or modification time changed. Thread-safe."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[int, int, str]] = {}  # size in bytes, mtime in ns, digest
        self._lock = threading.Lock()

    def size_and_sha256(self, path: Path) -> tuple[int, str]:
        """Return the bytes of a file and the digest of its content, in hex."""
        status = path.stat()
        with self._lock:
            known = self._known.get(path)
        if known is None or known[:2] != (status.st_size, status.st_mtime_ns):
            known = status.st_size, status.st_mtime_ns, file_sha256(path)
            with self._lock:
                self._known[path] = known
        return known[0], known[2]


class LineFollower:
    """Read the lines that another process appends to a file, as `tail -F` does.

    Args:
        path: The file; it may not exist yet.
        max_line: Bytes. A longer line is returned in pieces, so that a process that writes no newline costs no memory.
    """

    def __init__(self, path: Path, max_line: int = 1 << 20) -> None:
        self._path, self._max_line = path, max_line
        self._inode, self._offset, self._rest = 0, 0, b""
        self.replaced = False  # the last poll found another file under the name and read it from its start

    def poll(self) -> list[bytes]:
        """Return the complete lines appended since the last poll, without their newline."""
        lines: list[bytes] = []
        self.replaced = False
        try:
            with self._path.open("rb") as file:
                found = os.fstat(file.fileno())
                self.replaced = found.st_ino != self._inode or found.st_size < self._offset
                if self.replaced:  # by another file, or cut: one that is cut begins anew
                    self._inode, self._offset, self._rest = found.st_ino, 0, b""
                file.seek(self._offset)
                while chunk := file.read(MAX_READ):
                    self._offset += len(chunk)
                    *whole, self._rest = (self._rest + chunk).split(b"\n")
                    lines += whole
                    if len(self._rest) > self._max_line:
                        lines.append(self._rest)
                        self._rest = b""
        except FileNotFoundError:
            pass
        return lines
