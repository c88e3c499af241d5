"""Worker process: registers with the coordinator, sends heartbeats, and runs leases concurrently.

The thread of `Agent.run` owns the socket and only passes messages on, so that no work delays a heartbeat and makes the
worker look dead. Leases run in threads of their own (`worker.agent.executor`) and post their messages to an outbox.
"""

import logging
import os
import platform
import secrets
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import psutil

from coordinator.wire import codec
from coordinator.wire.auth import KeyPair
from coordinator.wire.exit_codes import ExitCode
from coordinator.wire.filesystem_id import filesystem_id
from coordinator.wire.messages import (
    MAX_NAME,
    AbandonLease,
    Ack,
    Deregister,
    Failure,
    FilePart,
    Heartbeat,
    Lease,
    Message,
    PermitGrant,
    PermitsRevoked,
    Register,
    RegisterAck,
    ReRegister,
    Result,
    Shutdown,
    TerminateLease,
    Weights,
)
from ringattn.blas.library import numpy_blas
from worker.agent.connection import Connection
from worker.agent.executor import LeaseExecutor
from worker.agent.handlers import Handler, default_handlers
from worker.agent.lease import RunningLease
from worker.agent.reachability import explain_silence, key_advice, warn_of_silence
from worker.process.parent_death import exit_with_parent

log = logging.getLogger(__name__)

REGISTER_INTERVAL_S = 1.0  # between attempts to register
UNSENT_INTERVAL_S = 0.05  # the same, while no coordinator is connected
RESEND_S = 5.0  # a result without an acknowledgement for this long is sent again
SILENCE_WARNING_S = 10.0  # without a coordinator for this long, the log says why
NO_COORDINATOR_TIMEOUT_S = 60.0  # without a coordinator for this long, the worker exits


@dataclass(frozen=True)
class WorkerConfig:
    """Configuration of one worker.

    Attributes:
        endpoint: Of the coordinator, `tcp://host:port`.
        data_dir: Data folder of this host; created where it is missing.
        connections: Page requests at once, over all leases.
        capacity: Leases at once.
        curve: CURVE keys; None on loopback.
        make_handlers: Makes the handlers by kind of lease; two agents of one process must not share their state.
        no_coordinator_timeout_s: Seconds without a coordinator until the worker exits.
        host: Name of this host; None for the system's.
        address: Where the neighbours of a ring reach this host; None for the one that the coordinator's network reaches.
    """

    endpoint: str
    data_dir: Path
    connections: int = 5
    capacity: int = 4
    curve: KeyPair | None = None
    make_handlers: Callable[[], Mapping[str, Handler]] = default_handlers
    no_coordinator_timeout_s: float = NO_COORDINATOR_TIMEOUT_S
    host: str | None = None
    address: str | None = None


class Agent:
    """One worker. `run` returns its exit code."""

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        config.data_dir.mkdir(parents=True, exist_ok=True)
        handlers = config.make_handlers()
        host = config.host or platform.node() or "unknown"
        # The name is a ROUTER identity: a peer that cannot guess it cannot take over the route.
        self.name = f"{host[:64]}-{os.getpid()}-{secrets.token_hex(8)}"
        self._registration = Register(
            self.name,
            host[:128],
            os.getpid(),
            tuple(handlers),
            config.capacity,
            filesystem_id(config.data_dir),
            version("ring-attention-energy"),
            platform.python_version(),
            arithmetic=numpy_blas().describe()[:MAX_NAME],
        )
        self._process = psutil.Process()
        self._connection = Connection(config.endpoint, self.name, config.curve)
        self._executor = LeaseExecutor(
            self.name,
            config.data_dir,
            config.endpoint,
            config.address,
            handlers=handlers,
            connections=config.connections,
            capacity=config.capacity,
            post=self._connection.post,
            seconds_since_contact=lambda: time.monotonic() - self._last_contact,
        )
        self._leases: dict[tuple[str, int], RunningLease] = {}  # by (task, attempt)
        self._unlisted: list[RunningLease] = []  # leased, but in no heartbeat yet
        self._unacked: dict[tuple[str, int], tuple[list[bytes], float]] = {}  # frames of an answer, and when sent
        self._registered: RegisterAck | None = None  # None: not registered
        self._last_contact = time.monotonic()
        self._warned_of: float | None = None  # the last contact before the silence of which the log has said why
        self._next_send = 0.0  # when the next registration or heartbeat is due
        self._shutdown: Shutdown | None = None
        self._exit: int | None = None

    def interrupt(self) -> None:
        """Release all leases and exit. From any thread, and from signal handlers."""
        self._exit = ExitCode.INTERRUPTED
        self._connection.wake()

    def run(self) -> int:
        """Serve the coordinator until it stops this worker, `interrupt` is called, or no coordinator answers in time."""
        self._connection.open()
        try:
            while self._exit is None:
                self._connection.wait(self._next_send - time.monotonic())
                self._receive()
                self._flush_outbox()
                self._check_timers()
                if self._shutdown is not None and self._shutdown.drain and not self._leases and not self._unacked:
                    self._exit = ExitCode.DONE
            if self._registered is not None:
                self._connection.send(codec.encode(Deregister(self.name)))
            return self._exit
        finally:
            self._cancel_all()
            self._connection.close()

    # -- messages of the coordinator ----------------------------------------------------------------------------------

    def _receive(self) -> None:
        for message, frames in self._connection.received():
            self._last_contact = time.monotonic()
            self._handle(message, frames)
        if self._unlisted:
            # A heartbeat lists them before they start, so the coordinator knows which one killed this process.
            self._heartbeat()
            for lease in self._unlisted:
                self._executor.start(lease)
            self._unlisted.clear()

    def _handle(self, message: Message, frames: list[bytes]) -> None:
        match message:
            case Lease():
                self._accept_lease(message)
            case Ack() if message.path:
                if (running := self._running(message)) is not None:
                    running.transfer_inbox.acks.put(message)
            case Ack():
                self._unacked.pop((message.task, message.attempt), None)
            case FilePart():
                if (running := self._running(message)) is not None and len(frames) == 2:
                    running.transfer_inbox.parts.put((message, frames[1]))
            case PermitGrant():
                self._executor.permits.granted(message.bucket, message.delays)
            case PermitsRevoked():
                self._executor.permits.revoke(message.bucket)
            case Weights():
                self._executor.policies.receive(message)
            case RegisterAck():
                self._cancel_all()  # registering releases all leases
                self._registered, self._next_send = message, time.monotonic() + message.heartbeat_s
            case ReRegister() if self._registered is not None:
                self._cancel_all()
                self._registered, self._next_send = None, 0.0
            case AbandonLease():
                self._cancel_lease((message.task, message.attempt))
            case TerminateLease():
                if (running := self._running(message)) is not None:
                    running.grace.start(message.grace_s)
            case Shutdown():
                self._shutdown = message
                if not message.drain:
                    log.info("stopped by the coordinator: %s", message.reason)
                    self._exit = ExitCode.DONE if self._registered is not None else ExitCode.FAILED

    def _running(self, message: Ack | FilePart | TerminateLease) -> RunningLease | None:
        return self._leases.get((message.task, message.attempt))

    def _accept_lease(self, lease: Lease) -> None:
        key = (lease.task, lease.attempt)
        if self._registered is None or key in self._leases or key in self._unacked:
            return
        running = self._leases[key] = RunningLease(lease, self._registered.share_files, self._registered.silence_s)
        self._unlisted.append(running)

    def _cancel_lease(self, key: tuple[str, int]) -> None:
        running = self._leases.pop(key, None)
        if running is not None and running.cancel():
            self._executor.add_thread()

    def _cancel_all(self) -> None:
        for key in list(self._leases):
            self._cancel_lease(key)
        for lease in self._unlisted:
            self._executor.start(lease)  # cancelled: it only frees its thread
        self._unlisted.clear()
        self._unacked.clear()
        self._executor.permits.reset()

    # -- messages to the coordinator ----------------------------------------------------------------------------------

    def _flush_outbox(self) -> None:
        """Send what other threads have posted. The answer to a lease is kept until the coordinator acknowledges it."""
        for message, frames in self._connection.posted():
            if isinstance(message, Result | Failure):
                key = (message.task, message.attempt)
                if self._leases.pop(key, None) is None:
                    continue  # cancelled in the meantime
                self._unacked[key] = (frames, time.monotonic())
            if self._registered is not None:
                self._connection.send(*frames)

    def _check_timers(self) -> None:
        now = time.monotonic()
        if self._registered is None:
            self._register(now)
            return
        if now - self._last_contact > self._registered.silence_s:
            log.warning("no message from the coordinator for %g s: releasing all leases", self._registered.silence_s)
            self._cancel_all()
            self._registered, self._next_send, self._last_contact = None, 0.0, now
            self._connection.reopen()
            return
        if now >= self._next_send:
            self._heartbeat()
        for key, (frames, sent) in self._unacked.items():
            if now - sent > RESEND_S:
                self._unacked[key] = (frames, now)
                self._connection.send(*frames)

    def _register(self, now: float) -> None:
        if now - self._last_contact > self._config.no_coordinator_timeout_s:
            log.error(
                "no coordinator answers at %s (%s): check that `coordinator start` runs there%s",
                self._config.endpoint,
                explain_silence(self._config.endpoint),
                key_advice(self._config.endpoint, keyed=self._config.curve is not None),
            )
            self._exit = ExitCode.INCOMPLETE
            return
        if now - self._last_contact > SILENCE_WARNING_S and self._warned_of != self._last_contact:
            self._warned_of = self._last_contact
            warn_of_silence(self._config.endpoint)
        if now >= self._next_send:
            sent = self._connection.send(codec.encode(self._registration))
            self._next_send = now + (REGISTER_INTERVAL_S if sent else UNSENT_INTERVAL_S)

    def _heartbeat(self) -> None:
        if self._registered is not None:
            self._next_send = time.monotonic() + self._registered.heartbeat_s
            counts = self._executor.rows, self._executor.requests
            rss = self._process.memory_info().rss
            waits = [
                wait
                for wait in self._executor.waits.current(time.monotonic())
                if (wait.task, wait.attempt) in self._leases
            ]
            self._connection.send(codec.encode(Heartbeat(self.name, tuple(self._leases), *counts, rss, tuple(waits))))


def run_agent(config: WorkerConfig, *, stop_with_parent: bool = False) -> int:
    """Run a worker. Call it from the main thread: it handles SIGINT and SIGTERM by releasing all leases.

    Args:
        config: Configuration of the worker.
        stop_with_parent: End with the process that started this one.

    Returns:
        Exit code: 0 stopped by the coordinator, 1 refused, 75 no coordinator answered, 130 interrupted.
    """
    if stop_with_parent:
        exit_with_parent()
    agent = Agent(config)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: agent.interrupt())
    return agent.run()
