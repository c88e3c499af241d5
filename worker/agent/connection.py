"""A worker's connection to its coordinator: a ZeroMQ DEALER socket, and an outbox that every thread may fill."""

import logging
import queue
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress

import zmq

from coordinator.wire import codec
from coordinator.wire.auth import KeyPair
from coordinator.wire.messages import MAX_MESSAGE, BadMessage, Message, ToWorker

log = logging.getLogger(__name__)

HIGH_WATER = 10_000  # messages
MAX_WAIT_S = 1.0  # of one `wait`


class Connection:
    """One thread owns the socket and calls every method; other threads call `post` and `wake` only."""

    def __init__(self, endpoint: str, identity: str, curve: KeyPair | None) -> None:
        self._endpoint, self._identity, self._curve = endpoint, identity, curve
        self._outbox: queue.SimpleQueue[tuple[Message, list[bytes]]] = queue.SimpleQueue()
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._awake = threading.Event()  # a byte is on its way to the owner

    def post(self, message: Message, frames: Iterable[bytes] = ()) -> None:
        """Queue a message, with raw frames after it, for the owner to send. From any thread.

        A message over the limit of the protocol raises BadMessage.
        """
        self._outbox.put((message, [codec.encode(message), *frames]))
        self.wake()

    def wake(self) -> None:
        """Make the owner return from `wait`. From any thread, and from signal handlers."""
        if not self._awake.is_set():
            self._awake.set()
            with suppress(OSError):  # closed: the owner has ended
                self._wake_write.send(b"\0")

    def open(self) -> None:
        """Create the socket and start to connect."""
        self._context = zmq.Context()
        self._connect()

    def reopen(self) -> None:
        """Drop the socket and its queued messages, and connect again."""
        self._socket.close(linger=0)
        self._connect()

    def close(self) -> None:
        """Close the socket; queued messages have 500 ms to leave."""
        self._socket.close()
        self._context.term()

    def _connect(self) -> None:
        self._socket = self._context.socket(zmq.DEALER)
        options: dict[int, int | bytes] = {
            zmq.IDENTITY: self._identity.encode(),
            zmq.IMMEDIATE: 1,  # queues nothing while no coordinator is connected
            zmq.SNDHWM: HIGH_WATER,
            zmq.RCVHWM: HIGH_WATER,
            zmq.MAXMSGSIZE: MAX_MESSAGE,
            zmq.RECONNECT_IVL: 100,  # milliseconds, as the next two
            zmq.RECONNECT_IVL_MAX: 2_000,
            zmq.LINGER: 500,
            zmq.IPV6: int("[" in self._endpoint),
        }
        for option, value in options.items():
            self._socket.setsockopt(option, value)
        if self._curve is not None:
            self._curve.connect(self._socket)
        self._socket.connect(self._endpoint)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._wake_read, zmq.POLLIN)

    def wait(self, seconds: float) -> None:
        """Block until a message arrives, `wake` is called, or `seconds` (at most `MAX_WAIT_S`) have passed."""
        self._poller.poll(round(max(0.0, min(MAX_WAIT_S, seconds)) * 1e3))
        with suppress(BlockingIOError):
            self._wake_read.recv(65_536)
        self._awake.clear()  # before the outbox is emptied: a later message wakes the owner again

    def send(self, *frames: bytes) -> bool:
        """Send frames now. Returns False when no coordinator takes them; a sender that needs an answer asks again."""
        try:
            self._socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def received(self) -> Iterator[tuple[Message, list[bytes]]]:
        """Yield the messages that have arrived, each with all its frames. Invalid ones are logged and dropped."""
        with suppress(zmq.Again):
            while True:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
                try:
                    yield codec.decode(frames[0], ToWorker), frames
                except BadMessage as error:
                    log.warning("dropped a message: %s", error)

    def posted(self) -> Iterator[tuple[Message, list[bytes]]]:
        """Yield the messages that other threads have posted, each with all its frames."""
        with suppress(queue.Empty):
            while True:
                yield self._outbox.get_nowait()
