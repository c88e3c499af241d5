"""The door: how the server's socket listens, and who is behind a message: nobody in particular on loopback, else a key's owner."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Container
from dataclasses import dataclass

import zmq

from coordinator.server.auth_proxy import AuthProxy
from coordinator.server.key_store import LOCAL, AllowList, CoordinatorKeys
from coordinator.wire.messages import BadMessage, Message, Register, StatusRequest
from ingest.errors import UsageError


@dataclass(frozen=True)
class PeerIdentity:
    """Who sent a message. Both fields are empty on loopback without keys."""

    key: str = ""  # public key, as the authenticator saw it
    port: int = 0  # of loopback: which of the gate's connections it came over


ANONYMOUS = PeerIdentity()


class AuthenticatedRouter:
    """Binds `router`: in clear, or with `keys` behind a gate. UsageError when the address can't be listened on."""

    def __init__(
        self,
        router: zmq.Socket[bytes],
        context: zmq.Context[zmq.Socket[bytes]],
        bind: str,
        keys: CoordinatorKeys | None,
    ) -> None:
        self._router = router
        self._keyed = keys is not None
        self._peers: dict[str, PeerIdentity] = {}  # worker → who said its Hello
        if keys is None:
            try:
                router.bind(bind)
            except zmq.ZMQError as error:
                raise UsageError(
                    f"bind {bind}: {error}. Name a free port of this host with --bind; `coordinator doctor` tests it."
                ) from error
            self.endpoint: str = router.getsockopt_string(zmq.LAST_ENDPOINT)
            return
        self._allow_list = AllowList(keys)
        self._authenticator = keys.authenticate(router, context, self._allow_list)
        router.bind("tcp://127.0.0.1:0")
        try:
            self._proxy = AuthProxy(bind, router.getsockopt_string(zmq.LAST_ENDPOINT))
        except UsageError:
            self._authenticator.stop()
            raise
        self.endpoint = self._proxy.endpoint

    @property
    def refused(self) -> int:
        """Connections that were not let in, and messages whose sender was somebody else than they said."""
        return self._proxy.rejections.count if self._keyed else 0

    def receive(self) -> tuple[bytes, PeerIdentity, list[bytes]]:
        """The next message that waits: identity, sender, frames. zmq.Again when there is none."""
        if not self._keyed:
            identity, *frames = self._router.recv_multipart(zmq.NOBLOCK)
            return identity, ANONYMOUS, frames
        first = self._router.recv(zmq.NOBLOCK, copy=False)
        frames = self._router.recv_multipart(zmq.NOBLOCK) if first.more else []
        return first.bytes, PeerIdentity(str(first.get("User-Id")), _port_of(first)), frames

    def check(self, message: Message, sender: PeerIdentity) -> None:
        """BadMessage when this sender may not say this: a key speaks for its own workers only, and only while it is listed."""
        if not self._keyed:
            return
        name = self._allow_list.name_of(sender.key)
        if not name:
            self._refuse(sender, "its key was revoked")
        if isinstance(message, StatusRequest):
            if name != LOCAL:
                self._refuse(sender, f"key {name!r} may not ask for the status: it names all workers")
            return
        worker: str = message.worker  # type: ignore[attr-defined]  # every other message bears one
        owner = self._peers.get(worker)
        if owner is not None and owner.key != sender.key:
            self._refuse(sender, f"key {name!r} speaks as a worker of another key")
        if isinstance(message, Register):
            self._peers[worker] = sender

    def workers_with_revoked_keys(self, workers: Container[str]) -> list[str]:
        """Those of the connected `workers` whose key is no longer on the list. Cut them off once they were told."""
        if not self._keyed:
            return []
        self._allow_list.refresh()
        self._peers = {worker: owner for worker, owner in self._peers.items() if worker in workers}
        return [worker for worker, owner in self._peers.items() if not self._allow_list.name_of(owner.key)]

    def disconnect(self, worker: str) -> None:
        """End a worker's connection."""
        if owner := self._peers.pop(worker, None):
            self._proxy.refuse(owner.port, "its key was revoked", disconnect=True)

    def close(self) -> None:
        """After the router was closed."""
        if self._keyed:
            self._authenticator.stop()
            self._proxy.close()

    def _refuse(self, sender: PeerIdentity, reason: str) -> None:
        self._proxy.refuse(sender.port, reason, disconnect=True)
        raise BadMessage(reason)


def _port_of(frame: zmq.Frame) -> int:
    """The port of loopback that a frame's connection comes from; 0 when it is gone."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(frame.get(zmq.SRCFD)))) as connection:
        return int(connection.getpeername()[1])
    return 0
