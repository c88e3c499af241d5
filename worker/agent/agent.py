"""The agent: keeps the worker's word with the coordinator and executes its leases, several at once.

The thread of `run` owns the socket and does nothing but pass messages and send heartbeats, so that work never makes a
worker look dead. Leases run in threads of their own and speak through a queue.
"""

from __future__ import annotations

import logging
import os
import platform
import queue
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import psutil
import zmq

from coordinator.wire import codec, messages
from coordinator.wire.auth import KeyPair
from coordinator.wire.exit_codes import ExitCode
from coordinator.wire.failures import FailureKind
from coordinator.wire.filesystem_id import filesystem_id
from coordinator.wire.messages import (
    AbandonLease,
    Ack,
    Deregister,
    FilePart,
    Heartbeat,
    Lease,
    PermitGrant,
    PermitRequest,
    PermitsRevoked,
    Progress,
    Register,
    RegisterAck,
    ReRegister,
    Result,
    Shutdown,
    TerminateLease,
    ThrottleReport,
)
from coordinator.wire.payloads import FileRef
from ingest.errors import Cancelled
from ingest.http import make_session
from worker.agent.file_transfer import FileTransfer
from worker.agent.handlers import HANDLERS, Handler, failure_of
from worker.agent.lease import Arrays, LeaseContext, RunningLease
from worker.agent.permits import Permits
from worker.agent.policy_cache import PolicyCache
from worker.process.parent_death import exit_with_parent

log = logging.getLogger(__name__)

REGISTER_INTERVAL_S = 1.0  # between tries to register
RESEND_S = 5.0  # a result that was not acknowledged for this long is sent again
NO_COORDINATOR_TIMEOUT_S = 60.0  # without a coordinator for this long, the worker gives up
PAGES = 2  # pages in hand for each connection: one on the wire, one being proved and stored
SWITCH_S = (
    5e-4  # seconds until another thread gets the interpreter: one that waits for an answer must not idle its connection
)
HIGH_WATER = 10_000  # messages


class Agent:
    """One worker process. `run` returns its exit code."""

    def __init__(
        self,
        endpoint: str,
        data_dir: Path,
        *,
        connections: int = 5,
        capacity: int = 4,
        curve: KeyPair | None = None,
        handlers: Mapping[str, Handler] = HANDLERS,
        no_coordinator_timeout_s: float = NO_COORDINATOR_TIMEOUT_S,
        host: str | None = None,
        address: str | None = None,
    ) -> None:
        self._endpoint, self._data_dir, self._curve, self._patience_s = (
            endpoint,
            data_dir,
            curve,
            no_coordinator_timeout_s,
        )
        self._address = address
        self._handlers = handlers
        data_dir.mkdir(parents=True, exist_ok=True)
        host = host or platform.node() or "unknown"
        self.name = f"{host[:64]}-{os.getpid()}-{secrets.token_hex(8)}"  # who can't guess it can't take over its route
        self._hello = Register(
            self.name,
            host[:128],
            os.getpid(),
            tuple(handlers),
            capacity,
            filesystem_id(data_dir),
            version("ring-attention-energy"),
            platform.python_version(),
        )
        self._api_key = os.environ.get("EIA_API_KEY") or None
        self._pool = ThreadPoolExecutor(connections * PAGES, thread_name_prefix="page")
        self._connections = threading.Semaphore(connections)
        self._session = make_session(connections)
        self._accepted_by: set[str] = set()  # base URLs that have accepted the API key
        self._process = psutil.Process()
        self._permits = Permits(lambda bucket, count: self._post(PermitRequest(self.name, bucket, count)))
        self._policies = PolicyCache(lambda sha256: self._post(messages.WeightsRequest(self.name, sha256)))
        self._rows = self._requests = 0
        self._counting = threading.Lock()
        self._outbox: queue.SimpleQueue[tuple[messages.Message, list[bytes]]] = queue.SimpleQueue()
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._awake = False  # the loop has been told to look into the outbox
        self._ready: queue.SimpleQueue[RunningLease] = queue.SimpleQueue()
        self._leases: dict[tuple[str, int], RunningLease] = {}
        self._unacked: dict[tuple[str, int], tuple[list[bytes], float]] = {}
        self._unlisted: list[RunningLease] = []  # leased, but not yet listed in a heartbeat
        self._welcome: RegisterAck | None = None
        self._last_contact = time.monotonic()
        self._next_send = 0.0  # when the next Hello or heartbeat is due
        self._stop: Shutdown | None = None
        self._exit: int | None = None
        for _ in range(capacity):
            self._start_thread()

    def interrupt(self) -> None:
        """Give back what is held and end. From any thread, and from signal handlers."""
        self._exit = ExitCode.INTERRUPTED
        self._wake()

    # -- the network's thread -----------------------------------------------------------------------------------------

    def run(self) -> int:
        """Serve the coordinator until it says Stop, `interrupt`, or nobody answers for the patience's time."""
        self._context = zmq.Context()
        self._connect()
        try:
            while self._exit is None:
                poller = zmq.Poller()
                poller.register(self._socket, zmq.POLLIN)
                poller.register(self._wake_read, zmq.POLLIN)
                poller.poll(max(0, min(1_000, round((self._next_send - time.monotonic()) * 1e3))))
                self._receive()
                self._flush_outbox()
                self._check_timers()
                if self._stop is not None and self._stop.drain and not self._leases and not self._unacked:
                    self._exit = ExitCode.DONE
            if self._welcome is not None:
                self._cancel_all()
                self._send(codec.encode(Deregister(self.name)))
            return self._exit
        finally:
            self._cancel_all()
            self._socket.close()
            self._context.term()

    def _connect(self) -> None:
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, self.name.encode())
        self._socket.setsockopt(zmq.IMMEDIATE, 1)  # nothing is queued for a coordinator that is not there
        self._socket.setsockopt(zmq.SNDHWM, HIGH_WATER)
        self._socket.setsockopt(zmq.RCVHWM, HIGH_WATER)
        self._socket.setsockopt(zmq.MAXMSGSIZE, messages.MAX_MESSAGE)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 100)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 2_000)
        self._socket.setsockopt(zmq.LINGER, 500)
        self._socket.setsockopt(zmq.IPV6, int("[" in self._endpoint))
        if self._curve is not None:
            self._curve.connect(self._socket)
        self._socket.connect(self._endpoint)

    def _send(self, *frames: bytes) -> bool:
        """False when nobody takes it; whoever needs an answer asks again."""
        try:
            self._socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def _receive(self) -> None:
        with suppress(BlockingIOError):
            self._wake_read.recv(65_536)
        self._awake = False  # before the queue is emptied: what is put in later wakes the loop again
        with suppress(zmq.Again):
            while True:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
                try:
                    message = codec.decode(frames[0], messages.ToWorker)
                except messages.BadMessage as error:
                    log.warning("dropped a message: %s", error)
                    continue
                self._last_contact = time.monotonic()
                if isinstance(message, FilePart):
                    self._receive_part(message, frames)
                else:
                    self._handle(message)
        if self._unlisted:  # listed before they start: should one kill this process at once, it is known which it was
            self._heartbeat()
            for job in self._unlisted:
                self._ready.put(job)
            self._unlisted.clear()

    def _handle(self, message: messages.Message) -> None:
        if isinstance(message, Lease):
            self._start_lease(message)
        elif isinstance(message, Ack):
            key = (message.task, message.attempt)
            if message.path:
                if key in self._leases:
                    self._leases[key].answers.put(message)
            else:
                self._unacked.pop(key, None)
        elif isinstance(message, PermitGrant):
            self._permits.granted(message.bucket, message.delays)
        elif isinstance(message, PermitsRevoked):
            self._permits.void(message.bucket)
        elif isinstance(message, messages.Weights):
            self._policies.receive(message)
        elif isinstance(message, RegisterAck):
            self._cancel_all()  # to say Hello is to hold nothing
            self._welcome, self._next_send = message, time.monotonic() + message.heartbeat_s
        elif isinstance(message, ReRegister):
            if self._welcome is not None:
                self._cancel_all()
                self._welcome, self._next_send = None, 0.0
        elif isinstance(message, AbandonLease):
            self._cancel_lease((message.task, message.attempt))
        elif isinstance(message, TerminateLease):
            if (running := self._leases.get((message.task, message.attempt))) is not None:
                running.grace.ask(message.grace_s)
        elif isinstance(message, Shutdown):
            self._stop = message
            if not message.drain:
                log.info("stopped by the coordinator: %s", message.reason)
                self._exit = ExitCode.DONE if self._welcome is not None else ExitCode.FAILED

    def _receive_part(self, part: FilePart, frames: list[bytes]) -> None:
        job = self._leases.get((part.task, part.attempt))
        if job is not None and len(frames) == 2:
            job.answers.put_part(part, frames[1])

    def _start_lease(self, lease: Lease) -> None:
        key = (lease.task, lease.attempt)
        if self._welcome is None or key in self._leases or key in self._unacked:
            return
        job = self._leases[key] = RunningLease(lease, self._welcome.share_files, self._welcome.silence_s)
        self._unlisted.append(job)

    def _flush_outbox(self) -> None:
        """Pass on what the other threads say. An answer to a lease is kept until it is acknowledged."""
        with suppress(queue.Empty):
            while True:
                message, frames = self._outbox.get_nowait()
                if isinstance(message, Result | messages.Failure):
                    key = (message.task, message.attempt)
                    if self._leases.pop(key, None) is None:
                        continue  # taken back meanwhile
                    self._unacked[key] = (frames, time.monotonic())
                if self._welcome is not None:
                    self._send(*frames)

    def _check_timers(self) -> None:
        now = time.monotonic()
        if self._welcome is None:
            if now - self._last_contact > self._patience_s:
                log.error(
                    "no coordinator answers at %s: is `coordinator start` running there, with this worker's key on its list "
                    "(`coordinator keys list`)?",
                    self._endpoint,
                )
                self._exit = ExitCode.INCOMPLETE
            elif now >= self._next_send:
                self._next_send = now + (REGISTER_INTERVAL_S if self._send(codec.encode(self._hello)) else 0.05)
            return
        if now - self._last_contact > self._welcome.silence_s:
            log.warning("the coordinator is silent: dropping what is leased, and looking for it again")
            self._cancel_all()
            self._welcome, self._next_send, self._last_contact = None, 0.0, now
            self._socket.close(linger=0)
            self._connect()
            return
        if now >= self._next_send:
            self._heartbeat()
        for key, (frames, sent) in self._unacked.items():
            if now - sent > RESEND_S:
                self._unacked[key] = (frames, now)
                self._send(*frames)

    def _heartbeat(self) -> None:
        if self._welcome is not None:
            self._next_send = time.monotonic() + self._welcome.heartbeat_s
            rss = self._process.memory_info().rss
            self._send(codec.encode(Heartbeat(self.name, tuple(self._leases), self._rows, self._requests, rss)))

    def _cancel_lease(self, key: tuple[str, int]) -> None:
        job = self._leases.pop(key, None)
        if job is not None and job.abandon():
            self._start_thread()

    def _cancel_all(self) -> None:
        for key in list(self._leases):
            self._cancel_lease(key)
        for job in self._unlisted:
            self._ready.put(job)  # cancelled: it only frees its thread
        self._unlisted.clear()
        self._unacked.clear()
        self._permits.reset()

    # -- the leases' threads ------------------------------------------------------------------------------------------

    def _start_thread(self) -> None:
        threading.Thread(target=self._lease_thread, name="lease", daemon=True).start()

    def _wake(self) -> None:
        if not self._awake:
            self._awake = True
            with suppress(OSError):  # closed: the loop has ended
                self._wake_write.send(b"\0")

    def _post(self, message: messages.Message, frames: Iterable[bytes] = ()) -> None:
        self._outbox.put((message, [codec.encode(message), *frames]))
        self._wake()

    def _count(self, rows: int, requests: int) -> None:
        with self._counting:
            self._rows += rows
            self._requests += requests

    def _lease_thread(self) -> None:
        while True:
            job = self._ready.get()
            answer = self._execute(job)
            if not job.finish():
                return  # its replacement goes on
            if answer is None:
                continue
            try:
                self._post(*answer)
            except Exception as error:  # a proof that is too large, or no plain data
                self._post(failure_of(error, self.name, job.lease, self._api_key))

    def _execute(self, job: RunningLease) -> tuple[messages.Message, list[bytes]] | None:
        """Run a lease to its answer, a message and raw frames; None when it was taken back."""
        lease, began = job.lease, time.monotonic()
        if job.cancelled.is_set():
            return None
        context = LeaseContext(
            data_dir=self._data_dir,
            api_key=self._api_key,
            accepted_by=self._accepted_by,
            pool=self._pool,
            connections=self._connections,
            session=self._session,
            acquire_permit=lambda bucket: self._permits.take(bucket, job.cancelled),
            on_throttle=self._report_throttle,
            on_progress=self._count,
            cancelled=job.cancelled,
            endpoint=self._endpoint,
            address=self._address,
            proof_root=self._data_dir,
            transfer=None
            if job.share_files
            else FileTransfer(self.name, lease.task, lease.attempt, self._post, job.answers),
            silence_s=job.silence_s,
            seconds_since_contact=lambda: time.monotonic() - self._last_contact,
            grace=job.grace,
            report=lambda *word: self._post(Progress(self.name, lease.task, lease.attempt, *word)),
            weights=lambda sha256: self._policies.get(sha256, job.cancelled),
        )
        try:
            answer = self._handlers[lease.kind](lease.job, context)
            if isinstance(answer, Arrays):
                return self._with_arrays(lease, answer, time.monotonic() - began)
            if context.transfer is not None:
                for path, size, sha256 in codec.files_in(answer):
                    context.transfer.upload(context.proof_root, FileRef(path, size, sha256))
        except Cancelled:
            if job.cancelled.is_set():
                return None
            gave_up = messages.Failure(
                self.name, lease.task, lease.attempt, FailureKind.CANCELLED, "gave itself up", blame=False
            )
            return gave_up, []
        except Exception as error:
            return failure_of(error, self.name, lease, self._api_key), []
        return Result(self.name, lease.task, lease.attempt, answer, time.monotonic() - began), []

    def _with_arrays(self, lease: Lease, answer: Arrays, seconds: float) -> tuple[messages.Message, list[bytes]]:
        described = tuple(messages.Array(name, str(x.dtype), x.shape) for name, x in answer.arrays.items())
        frames = [x.tobytes() for x in answer.arrays.values()]
        return Result(self.name, lease.task, lease.attempt, {}, seconds, described), frames

    def _report_throttle(self, bucket: str, kind: str, retry_after: float | None) -> None:
        if bucket:
            pause = None if retry_after is None else min(max(retry_after, 0.0), messages.MAX_PAUSE)
            self._post(ThrottleReport(self.name, bucket, kind, pause))


def run_agent(
    endpoint: str,
    data_dir: Path,
    *,
    connections: int = 5,
    capacity: int = 4,
    curve: KeyPair | None = None,
    stop_with_parent: bool = False,
    handlers: Mapping[str, Handler] = HANDLERS,
    no_coordinator_timeout_s: float = NO_COORDINATOR_TIMEOUT_S,
    host: str | None = None,
    address: str | None = None,
) -> int:
    """Work for the coordinator at `endpoint`; exit code 0 stopped, 1 refused, 75 no coordinator, 130 interrupted.

    `connections`: page requests at once; `capacity`: leases at once. `host`, `address`: this host's name, and where a ring's
    neighbours reach it; None: as the system says. Call it from the main thread: it handles SIGINT and
    SIGTERM by giving back what is leased.
    """
    if stop_with_parent:
        exit_with_parent()
    agent = Agent(
        endpoint,
        data_dir,
        connections=connections,
        capacity=capacity,
        curve=curve,
        handlers=handlers,
        no_coordinator_timeout_s=no_coordinator_timeout_s,
        host=host,
        address=address,
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: agent.interrupt())
    return agent.run()
