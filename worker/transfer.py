"""Files of a proof to a coordinator on another file system: bounded chunks, a few ahead of their acknowledgement, resumable."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from coordinator.protocol import Ack, FileChunk
from ingest.errors import ProofError
from ingest.fetch import Cancelled

CHUNK = 256 << 10  # bytes; heartbeats share the connection and must not wait long behind chunks
AHEAD = 4  # chunks sent before an acknowledgement is awaited
ANSWER_S = 10.0  # without one for this long, ask what is held
REFUSALS = 3  # times that the coordinator may find the whole file wrong


def send_file(
    data_dir: Path,
    chunk: Callable[[int], FileChunk],
    send: Callable[[FileChunk, bytes], None],
    answer: Callable[[float], Ack | None],
) -> None:
    """Send one file until the coordinator holds it whole.

    `chunk(offset)` makes the message, `send` queues it, `answer(seconds)` gives the next acknowledgement of this lease, or
    None. Cancelled when the lease is not ours any more; ProofError when the file on disk is not what its proof says.
    """
    head = chunk(0)
    path = data_dir / head.path
    if path.stat().st_size != head.size:
        raise ProofError(f"{head.path} has {path.stat().st_size} bytes, its proof says {head.size}: fetch it again")
    refusals = 0
    with path.open("rb") as file:
        held = _held(head, send, answer)
        while held < head.size:
            end = min(head.size, held + AHEAD * CHUNK)
            file.seek(held)
            for offset in range(held, end, CHUNK):
                send(chunk(offset), file.read(min(CHUNK, end - offset)))
            for offset in _acknowledged(head, end, answer):
                held = offset
            if held < end:
                held = _held(head, send, answer)
                refusals += held == 0
                if refusals >= REFUSALS:
                    raise ProofError(f"{head.path} does not have the sha256 of its proof: fetch it again")


def _held(head: FileChunk, send: Callable[[FileChunk, bytes], None], answer: Callable[[float], Ack | None]) -> int:
    """How much the coordinator holds: asked until it answers, or until the lease is taken back."""
    while True:
        send(head, b"")
        for held in _acknowledged(head, 0, answer):
            return held


def _acknowledged(head: FileChunk, end: int, answer: Callable[[float], Ack | None]) -> Iterator[int]:
    """Bytes held, as acknowledgements come in; ends at `end`, at a step back (the file was refused), or with silence."""
    deadline, last = time.monotonic() + ANSWER_S, -1
    while (left := deadline - time.monotonic()) > 0:
        ack = answer(left)
        if ack is None or ack.path != head.path:
            continue
        if not ack.accepted:
            raise Cancelled(f"the lease on {head.task} ended while {head.path} was sent")
        yield ack.offset
        if ack.offset >= end or ack.offset < last:
            return
        last = ack.offset


class Acks:
    """Acknowledgements of one lease, from the network's thread to the lease's."""

    def __init__(self, cancelled: Callable[[], bool]) -> None:
        self._cancelled = cancelled
        self._queue: queue.SimpleQueue[Ack] = queue.SimpleQueue()
        self.put = self._queue.put

    def answer(self, seconds: float) -> Ack | None:
        """The next one within a while of at most `seconds`, else None. Cancelled when the lease was taken back."""
        try:
            return self._queue.get(timeout=min(seconds, 0.25))
        except queue.Empty:
            if self._cancelled():
                raise Cancelled("the lease was taken back") from None
            return None
