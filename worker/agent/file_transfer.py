"""Files between this host and a coordinator on another file system: bounded pieces, a few ahead of their answer, resumable, proved."""

from __future__ import annotations

import hashlib
import os
import queue
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from coordinator.wire.messages import Ack, FileChunk, FilePart, FileRequest, Message
from coordinator.wire.payloads import FileRef
from ingest.errors import Cancelled, VerificationError

CHUNK = 256 << 10  # bytes; heartbeats share the connection and must not wait long behind chunks
AHEAD = 4  # chunks sent, or asked for, before an answer is awaited
ANSWER_S = 10.0  # without one for this long, ask again
T = TypeVar("T")
REFUSALS = 3  # times that a whole file may be found wrong


class TransferInbox:
    """Answers to one lease, from the network's thread to the lease's."""

    def __init__(self, cancelled: Callable[[], bool]) -> None:
        self._cancelled = cancelled
        self._acks: queue.SimpleQueue[Ack] = queue.SimpleQueue()
        self._parts: queue.SimpleQueue[tuple[FilePart, bytes]] = queue.SimpleQueue()
        self.put = self._acks.put

    def put_part(self, part: FilePart, data: bytes) -> None:
        """From the socket's thread: a piece has come."""
        self._parts.put((part, data))

    def ack(self, seconds: float) -> Ack | None:
        """The next one within a while of at most `seconds`, else None. Cancelled when the lease was taken back."""
        return self._next(self._acks, seconds)

    def part(self, seconds: float) -> tuple[FilePart, bytes] | None:
        """The same, of a file that was asked for."""
        return self._next(self._parts, seconds)

    def _next(self, waiting: queue.SimpleQueue[T], seconds: float) -> T | None:
        try:
            return waiting.get(timeout=min(seconds, 0.25))
        except queue.Empty:
            if self._cancelled():
                raise Cancelled("the lease was taken back") from None
            return None


@dataclass
class FileTransfer:
    """A lease's own way to move files: to the coordinator, and from it."""

    worker: str
    task: str
    attempt: int
    say: Callable[[Message, Iterable[bytes]], None]
    answers: TransferInbox

    def upload(self, folder: Path, file: FileRef) -> None:
        """Send `folder`/file.path until the coordinator holds it whole.

        Cancelled when the lease is not ours any more; VerificationError when the file on disk is not what it is said to be.
        """
        path = folder / file.path
        if path.stat().st_size != file.bytes:
            raise VerificationError(
                f"{file.path} has {path.stat().st_size} bytes, its proof says {file.bytes}: fetch it again"
            )
        refusals = 0
        with path.open("rb") as source:
            held = self._held(file)
            while held < file.bytes:
                end = min(file.bytes, held + AHEAD * CHUNK)
                source.seek(held)
                for offset in range(held, end, CHUNK):
                    self.say(self._chunk(file, offset), [source.read(min(CHUNK, end - offset))])
                for offset in self._acknowledged(file, end):
                    held = offset
                if held < end:
                    held = self._held(file)
                    refusals += held == 0
                    if refusals >= REFUSALS:
                        raise VerificationError(f"{file.path} does not have the sha256 of its proof: fetch it again")

    def _chunk(self, file: FileRef, offset: int) -> FileChunk:
        return FileChunk(self.worker, self.task, self.attempt, file.path, offset, file.bytes, file.sha256)

    def _held(self, file: FileRef) -> int:
        """How much the coordinator holds: asked until it answers, or until the lease is taken back."""
        while True:
            self.say(self._chunk(file, 0), [b""])
            for held in self._acknowledged(file, 0):
                return held

    def _acknowledged(self, file: FileRef, end: int) -> Iterator[int]:
        """Bytes held, as acknowledgements come in; ends at `end`, at a step back (the file was refused), or with silence."""
        deadline, last = time.monotonic() + ANSWER_S, -1
        while (left := deadline - time.monotonic()) > 0:
            ack = self.answers.ack(left)
            if ack is None or ack.path != file.path:
                continue
            if not ack.accepted:
                raise Cancelled(f"the lease on {self.task} ended while {file.path} was sent")
            yield ack.offset
            if ack.offset >= end or ack.offset < last:
                return
            last = ack.offset

    def download(self, folder: Path, file: FileRef, said: Callable[[], None]) -> None:
        """Have `folder`/file.path as the coordinator has it: nothing is moved where it is there, and what came of it before counts.

        `said()` is called with each piece. VerificationError when the coordinator's file is not the one that the lease names (any more).
        """
        path = folder / file.path
        if _is_complete(path, file):
            return
        part = path.with_name(f"{path.name}.{file.sha256[:16]}.part")
        part.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(REFUSALS):
            with part.open("ab") as target:
                if target.tell() > file.bytes:
                    target.truncate(0)
                self._fill(target.write, target.tell(), file, said)
                target.flush()
                os.fsync(target.fileno())
            if sha256_of(part) == file.sha256:
                part.replace(path)
                return
            part.unlink()
        raise VerificationError(f"{file.path} came {REFUSALS} times and was never the file that was asked for")

    def _fill(self, write: Callable[[bytes], int], held: int, file: FileRef, said: Callable[[], None]) -> None:
        asked, heard = held, time.monotonic()
        while held < file.bytes:
            while asked < min(file.bytes, held + AHEAD * CHUNK):
                self.say(FileRequest(self.worker, self.task, self.attempt, file.path, asked), ())
                asked += CHUNK
            answer = self.answers.part(1.0)
            if answer is None:
                if time.monotonic() - heard > ANSWER_S:
                    asked, heard = held, time.monotonic()
                continue
            part, data = answer
            if part.path != file.path or part.offset != held:
                continue  # of a request that was made again
            if not data:
                raise VerificationError(f"the coordinator has {file.path} no more as it was listed")
            held, heard = held + write(data), time.monotonic()
            said()


_known: dict[Path, tuple[int, int, str]] = {}  # size, mtime in ns, sha256: what this process hashed before


def _is_complete(path: Path, file: FileRef) -> bool:
    """Whether the file is there, whole."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return False
    if status.st_size != file.bytes:
        return False
    known = _known.get(path)
    if known is None or known[:2] != (status.st_size, status.st_mtime_ns):
        known = _known[path] = (status.st_size, status.st_mtime_ns, sha256_of(path))
    return known[2] == file.sha256


def sha256_of(path: Path) -> str:
    """Of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_ref(folder: Path, path: str) -> FileRef:
    """A file as it is now."""
    return FileRef(path, (folder / path).stat().st_size, sha256_of(folder / path))
