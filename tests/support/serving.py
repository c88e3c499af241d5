"""A server in a thread, over real sockets, and peers that connect to it."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import zmq

from coordinator.scheduling.events import Outcome
from coordinator.scheduling.rate_limit import RequestBudget
from coordinator.scheduling.records import TaskSpec
from coordinator.scheduling.scheduler import Scheduler
from coordinator.scheduling.worker_state import LeaseTimings
from coordinator.server.hooks import StageHooks
from coordinator.server.journal import Journal
from coordinator.server.key_store import CoordinatorKeys
from coordinator.server.server import Server
from coordinator.wire import codec, messages
from coordinator.wire.auth import KeyPair
from coordinator.wire.filesystem_id import filesystem_id
from coordinator.wire.messages import Ack, Deregister, Lease, Register, RegisterAck, Result

WAIT_MS = 20_000  # bound of every wait: reached only when something is broken
FAILED = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
M = TypeVar("M", bound=messages.Message)


class Peer:
    """A worker, or an attacker, made of one socket."""

    def __init__(self, endpoint: str, name: str = "w1", key: KeyPair | None = None) -> None:
        self.name = name
        self.kept: list[messages.Message] = []
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.IDENTITY, name.encode())
        self.socket.setsockopt(zmq.LINGER, 0)
        if key is not None:
            key.connect(self.socket)
        self.monitor = self.socket.get_monitor_socket(FAILED | zmq.EVENT_DISCONNECTED)
        self.socket.connect(endpoint)

    def send(self, message: messages.Message, *more: bytes) -> None:
        self.socket.send_multipart([codec.encode(message), *more])

    def receive(self, kind: type[M]) -> M:
        """Return the next message of a kind; keep others for later."""
        for index, message in enumerate(self.kept):
            if isinstance(message, kind):
                del self.kept[index]
                return message
        while self.socket.poll(WAIT_MS):
            message = self.read()
            if isinstance(message, kind):
                return message
            self.kept.append(message)
        raise AssertionError(f"{self.name} waited in vain for {kind.__name__}")

    def read(self) -> messages.Message:
        """Return the next message, which has arrived."""
        self.frames = self.socket.recv_multipart()
        message: messages.Message = codec.decode(self.frames[0], messages.ToWorker)
        return message

    def register(self, filesystem_id: str = "elsewhere", **more: Any) -> RegisterAck:
        kinds = more.get("kinds", ("noop",))
        self.send(Register(self.name, "h", more.get("pid", 1), kinds, more.get("capacity", 4), filesystem_id, "0", "3"))
        return self.receive(RegisterAck)

    def send_result(self, lease: Lease, output: dict[str, Any] | None = None) -> None:
        self.send(Result(self.name, lease.task, lease.attempt, output or {}, 0.1))

    def finish(self, lease: Lease, output: dict[str, Any] | None = None) -> Ack:
        self.send_result(lease, output)
        return self.receive(Ack)

    def close(self) -> None:
        self.socket.disable_monitor()
        self.monitor.close(0)
        self.socket.close(0)
        self.context.term()


@dataclass
class Running:
    """A server in a thread, and its peers."""

    data_dir: Path
    tasks: tuple[str, ...] = ("a",)
    key: CoordinatorKeys | None = None
    budgets: dict[str, RequestBudget] = field(default_factory=dict)
    hooks: StageHooks = field(default_factory=StageHooks)
    job: dict[str, Any] = field(default_factory=dict)  # of every task
    specs: tuple[TaskSpec, ...] = ()  # further tasks
    timings: LeaseTimings = field(default_factory=lambda: LeaseTimings(heartbeat_s=0.2))
    peers: list[Peer] = field(default_factory=list)
    outcome: Outcome | None = None

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(filesystem_id(self.data_dir), self.timings)
        self.journal = Journal(self.data_dir / "journal.sqlite")
        for record in self.journal.load():
            self.scheduler.apply(record)
        self.server = Server(
            self.scheduler,
            self.journal,
            self.budgets,
            data_dir=self.data_dir,
            keys=self.key,
            hooks=self.hooks,
        )
        self.server.add_tasks([*(TaskSpec(name, "noop", self.job) for name in self.tasks), *self.specs])
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        self.outcome = self.server.run()

    def peer(self, name: str = "w1", key: KeyPair | None = None) -> Peer:
        self.peers.append(Peer(self.server.endpoint, name, key))
        return self.peers[-1]

    def end(self) -> Outcome:
        for peer in self.peers:
            if peer.name in self.scheduler.workers:
                peer.send(Deregister(peer.name))
        self.thread.join(WAIT_MS / 1e3)
        assert self.outcome is not None
        return self.outcome

    def close(self) -> None:
        self.server.stop_now()
        self.end()
        for peer in self.peers:
            peer.close()
        self.journal.close()
