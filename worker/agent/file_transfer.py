"""File transfer between a worker and a coordinator on another file system: chunked, pipelined, resumable, verified."""

import os
import queue
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from coordinator.wire.messages import Ack, FileChunk, FilePart, FileRequest, Message
from coordinator.wire.paths import RefusedPath, checked_path
from coordinator.wire.payloads import FileRef
from ingest.errors import Cancelled, VerificationError
from ingest.files import DigestCache, file_sha256

CHUNK = 256 << 10  # bytes; heartbeats share the connection and must not wait long behind chunks
AHEAD = 4  # chunks sent, or requested, before an answer is awaited
ANSWER_S = 10.0  # without an answer for this long, the request is sent again
POLL_S = 0.25  # between checks of the cancellation
ATTEMPTS = 3  # transfers of a whole file whose SHA-256 may differ
LISTED = ("series", "run", "tables")  # first parts of the paths that a lease may list
Item = TypeVar("Item")


class TransferInbox:
    """Answers to one lease's transfers, from the thread that owns the socket to the lease's thread.

    Attributes:
        acks: Acknowledgements of chunks.
        parts: Received parts of files, each with its bytes.
    """

    def __init__(self, cancelled: Callable[[], bool]) -> None:
        self._cancelled = cancelled
        self.acks: queue.SimpleQueue[Ack] = queue.SimpleQueue()
        self.parts: queue.SimpleQueue[tuple[FilePart, bytes]] = queue.SimpleQueue()

    def take(self, waiting: queue.SimpleQueue[Item], seconds: float) -> Item | None:
        """Return the next item of `acks` or `parts`; None when none came within `seconds` or `POLL_S`, whichever is shorter.

        Raises:
            Cancelled: The lease was cancelled.
        """
        try:
            return waiting.get(timeout=min(seconds, POLL_S))
        except queue.Empty:
            if self._cancelled():
                raise Cancelled("the lease was cancelled") from None
            return None


@dataclass
class FileTransfer:
    """Transfers of one lease, to the coordinator and from it.

    Attributes:
        worker: Name of the worker.
        task: Task of the lease.
        attempt: Attempt of the lease.
        post: Queues a message, with raw frames after it; must not block.
        inbox: Answers of the coordinator.
        digests: Digests of files that this worker has computed before.
    """

    worker: str
    task: str
    attempt: int
    post: Callable[[Message, Iterable[bytes]], None]
    inbox: TransferInbox
    digests: DigestCache = field(default_factory=DigestCache)

    def upload(self, folder: Path, file: FileRef) -> None:
        """Send `folder`/file.path until the coordinator holds the whole file.

        A lease that has ended, here or for the coordinator, raises Cancelled.

        Raises:
            VerificationError: The file on disk does not match `file`.
        """
        path = folder / file.path
        if path.stat().st_size != file.bytes:
            raise VerificationError(
                f"{file.path} has {path.stat().st_size} bytes, but its result says {file.bytes}: fetch it again"
            )
        refusals = 0
        with path.open("rb") as source:
            held = self._bytes_held(file)
            while held < file.bytes:
                end = min(file.bytes, held + AHEAD * CHUNK)
                source.seek(held)
                for offset in range(held, end, CHUNK):
                    self.post(self._chunk(file, offset), [source.read(min(CHUNK, end - offset))])
                for offset in self._acknowledged(file, end):
                    held = offset
                if held < end:
                    held = self._bytes_held(file)
                    refusals += held == 0
                    if refusals >= ATTEMPTS:
                        raise VerificationError(f"{file.path} does not have the SHA-256 of its result: fetch it again")

    def _chunk(self, file: FileRef, offset: int) -> FileChunk:
        return FileChunk(self.worker, self.task, self.attempt, file.path, offset, file.bytes, file.sha256)

    def _bytes_held(self, file: FileRef) -> int:
        """Ask the coordinator how many bytes of the file it holds, until it answers."""
        while True:
            self.post(self._chunk(file, 0), [b""])
            for held in self._acknowledged(file, 0):
                return held

    def _acknowledged(self, file: FileRef, end: int) -> Iterator[int]:
        """Yield the bytes held after each acknowledgement.

        Ends at `end`, at a step back (the coordinator refused the file), or after `ANSWER_S` in all.

        Raises:
            Cancelled: The lease has ended for the coordinator.
        """
        deadline, last = time.monotonic() + ANSWER_S, -1
        while (left := deadline - time.monotonic()) > 0:
            ack = self.inbox.take(self.inbox.acks, left)
            if ack is None or ack.path != file.path:
                continue
            if not ack.accepted:
                raise Cancelled(f"the lease on {self.task} ended while {file.path} was sent")
            yield ack.offset
            if ack.offset >= end or ack.offset < last:
                return
            last = ack.offset

    def download(self, folder: Path, file: FileRef, on_part: Callable[[], None]) -> None:
        """Make `folder`/file.path equal to the coordinator's file; transfers only what is missing here.

        Args:
            folder: Folder of this host.
            file: The file as the lease lists it.
            on_part: Called after each part that arrives.

        Raises:
            VerificationError: The coordinator's file is not the one that the lease lists, or has changed since, or its path leads
                out of `folder`; then nothing is written.
        """
        path = local_path(folder, file.path, LISTED)
        if self._is_complete(path, file):
            return
        part = path.with_name(f"{path.name}.{file.sha256[:16]}.part")
        part.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(ATTEMPTS):
            with part.open("ab") as target:
                if target.tell() > file.bytes:
                    target.truncate(0)
                self._receive(target.write, target.tell(), file, on_part)
                target.flush()
                os.fsync(target.fileno())
            if file_sha256(part) == file.sha256:
                part.replace(path)
                return
            part.unlink()
        raise VerificationError(f"{file.path} was received {ATTEMPTS} times, each time with a wrong SHA-256")

    def _receive(self, write: Callable[[bytes], int], held: int, file: FileRef, on_part: Callable[[], None]) -> None:
        requested, last_answer = held, time.monotonic()
        while held < file.bytes:
            while requested < min(file.bytes, held + AHEAD * CHUNK):
                self.post(FileRequest(self.worker, self.task, self.attempt, file.path, requested), ())
                requested += CHUNK
            answer = self.inbox.take(self.inbox.parts, 1.0)
            if answer is None:
                if time.monotonic() - last_answer > ANSWER_S:
                    requested, last_answer = held, time.monotonic()
                continue
            part, data = answer
            if part.path != file.path or part.offset != held:
                continue  # the answer to a request that was sent again
            if not data:
                raise VerificationError(f"{file.path} changed on the coordinator after the lease was issued")
            held, last_answer = held + write(data), time.monotonic()
            on_part()

    def _is_complete(self, path: Path, file: FileRef) -> bool:
        try:
            return path.stat().st_size == file.bytes and self.digests.size_and_sha256(path)[1] == file.sha256
        except FileNotFoundError:
            return False


def file_ref(folder: Path, path: str) -> FileRef:
    """Describe `folder`/path as it is now."""
    return FileRef(path, (folder / path).stat().st_size, file_sha256(folder / path))


def local_path(folder: Path, path: str, folders: Iterable[str]) -> Path:
    """Return `folder`/path for a path that a coordinator sent.

    Raises:
        VerificationError: It is not a plain path below one of `folders`.
    """
    try:
        return checked_path(folder, path, folders=folders)
    except RefusedPath as error:
        raise VerificationError(f"the coordinator's lease is refused: {error}") from error
