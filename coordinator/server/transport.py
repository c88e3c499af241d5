"""The server's ROUTER socket: bind it and authenticate peers, anonymous on loopback and by CURVE key elsewhere."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Container
from dataclasses import dataclass

import zmq

from coordinator.server.auth_proxy import AuthProxy
from coordinator.server.key_store import LOCAL, AllowList, CoordinatorKeys, split_endpoint
from coordinator.wire import codec
from coordinator.wire.auth import endpoint_of, loopback_address
from coordinator.wire.messages import MAX_MESSAGE, BadMessage, Message, Register, StatusRequest
from ingest.errors import UsageError

HIGH_WATER = 10_000  # messages queued for one worker, either way
LINGER_MS = 500


@dataclass(frozen=True)
class PeerIdentity:
    """The sender of a message. Both fields are empty on loopback without keys."""

    key: str = ""  # public key, as the authenticator received it
    port: int = 0  # on loopback, of the proxy's connection that carried the message


ANONYMOUS = PeerIdentity()


class AuthenticatedRouter:
    """A ROUTER socket, in clear on loopback or with CURVE keys behind a proxy.

    UsageError is raised when the address cannot be bound.
    """

    def __init__(self, bind: str, keys: CoordinatorKeys | None) -> None:
        self._context = zmq.Context()
        self.socket: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        for option, value in {
            zmq.ROUTER_MANDATORY: 1,
            zmq.ROUTER_HANDOVER: 1,
            zmq.SNDHWM: HIGH_WATER,
            zmq.RCVHWM: HIGH_WATER,
            zmq.MAXMSGSIZE: MAX_MESSAGE,
            zmq.LINGER: LINGER_MS,
            zmq.IPV6: int("[" in bind),
        }.items():
            self.socket.setsockopt(option, value)
        self._keyed = keys is not None
        self._peers: dict[str, PeerIdentity] = {}  # worker → who registered it
        if keys is None:
            host, port = split_endpoint(bind)
            try:
                self.socket.bind(endpoint_of(host, port))
            except zmq.ZMQError as error:
                raise UsageError(
                    f"bind {bind}: {error}. Choose a free port of this host with --bind; `coordinator doctor` tests it."
                ) from error
            self.endpoint: str = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)
            return
        self._allow_list = AllowList(keys)
        self._authenticator = keys.authenticate(self.socket, self._context, self._allow_list)
        inner = loopback_address()
        self.socket.setsockopt(zmq.IPV6, int(":" in inner))
        self.socket.bind(endpoint_of(inner, 0))
        try:
            self._proxy = AuthProxy(bind, self.socket.getsockopt_string(zmq.LAST_ENDPOINT))
        except UsageError:
            self._authenticator.stop()
            raise
        self.endpoint = self._proxy.endpoint

    @property
    def refused(self) -> int:
        """Number of refused connections, and of messages that claimed another sender than their key's."""
        return self._proxy.rejections.count if self._keyed else 0

    def receive(self) -> tuple[bytes, PeerIdentity, list[bytes]]:
        """Return the next message: ROUTER identity, sender, frames. zmq.Again is raised when none waits."""
        if not self._keyed:
            identity, *frames = self.socket.recv_multipart(zmq.NOBLOCK)
            return identity, ANONYMOUS, frames
        first = self.socket.recv(zmq.NOBLOCK, copy=False)
        frames = self.socket.recv_multipart(zmq.NOBLOCK) if first.more else []
        return first.bytes, PeerIdentity(str(first.get("User-Id")), _port_of(first)), frames

    def send(self, identity: bytes, message: Message, *data: bytes) -> bool:
        """Send a message; return False when the peer is gone or its queue is full.

        Raises:
            ZMQError: The socket failed otherwise.
        """
        try:
            self.socket.send_multipart([identity, codec.encode(message), *data], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                raise
            return False
        return True

    def check(self, message: Message, sender: PeerIdentity) -> None:
        """Check that a sender may send a message: a listed key speaks for its own workers only.

        Raises:
            BadMessage: It may not. Its connection is closed.
        """
        if not self._keyed:
            return
        name = self._allow_list.name_of(sender.key)
        owner = self._peers.get(getattr(message, "worker", ""))  # every message but StatusRequest has a worker
        if not name:
            problem = "its key was revoked"
        elif isinstance(message, StatusRequest) and name != LOCAL:
            problem = f"key {name!r} may not ask for the status: it names all workers"
        elif owner is not None and owner.key != sender.key:
            problem = f"key {name!r} speaks for a worker of another key"
        else:
            if isinstance(message, Register):
                self._peers[message.worker] = sender
            return
        self._proxy.refuse(sender.port, problem, disconnect=True)
        raise BadMessage(problem)

    def owner_of(self, worker: str) -> str:
        """Return the name of a worker's key; "" without keys, and for a worker that has not registered."""
        peer = self._peers.get(worker)
        return self._allow_list.name_of(peer.key) if self._keyed and peer is not None else ""

    def workers_with_revoked_keys(self, workers: Container[str]) -> list[str]:
        """Return those of the connected `workers` whose key is no longer listed. Shut them down, then `disconnect` them."""
        if not self._keyed:
            return []
        self._allow_list.refresh()
        self._peers = {worker: owner for worker, owner in self._peers.items() if worker in workers}
        return [worker for worker, owner in self._peers.items() if not self._allow_list.name_of(owner.key)]

    def disconnect(self, worker: str) -> None:
        """Close a worker's connection."""
        if owner := self._peers.pop(worker, None):
            self._proxy.refuse(owner.port, "its key was revoked", disconnect=True)

    def close(self, wait_s: float) -> None:
        """Close the socket, then the proxy, which still forwards the last messages for `wait_s` seconds."""
        self.socket.close(min(LINGER_MS, round(wait_s * 1e3)))
        if self._keyed:
            self._authenticator.stop()
            self._proxy.close(wait_s)
        self._context.term()


def _port_of(frame: zmq.Frame) -> int:
    """Return the port on loopback from which a frame's connection comes; 0 when the connection is gone."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(frame.get(zmq.SRCFD)))) as connection:
        return int(connection.getpeername()[1])
    return 0
