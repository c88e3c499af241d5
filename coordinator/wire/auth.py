"""CURVE keys of a worker: read a key file, authenticate a socket, and find the local address for an endpoint.

CURVE is ZeroMQ's encryption and authentication (rfc.zeromq.org/spec/26). The coordinator's half is `coordinator.server.key_store`.
"""

from __future__ import annotations

import ipaddress
import json
import os
import shlex
import socket
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import zmq

from coordinator.wire.exit_codes import ExitCode

KEY_LENGTH = 40  # characters of a key in Z85


class CurveError(Exception):
    """Keys are missing, unsafe or malformed, or a bind address needs keys."""

    exit_code = ExitCode.USAGE


@dataclass(frozen=True)
class KeyPair:
    """A worker's key pair and the coordinator's public key, in Z85."""

    public: str
    secret: str = field(repr=False)
    server: str  # the coordinator's public key

    def connect(self, socket: zmq.Socket) -> None:
        """Encrypt `socket`; only the coordinator whose public key is `server` is accepted. Call before the socket's `connect`."""
        socket.curve_publickey, socket.curve_secretkey = self.public.encode(), self.secret.encode()
        socket.curve_serverkey = self.server.encode()


def load_worker(path: Path) -> KeyPair:
    """Load the key file that `coordinator keys add` created. CurveError as `read_key_file`."""
    return parse_worker_key(read_key_file(path), str(path))


def parse_worker_key(keys: Mapping[str, str], source: str = "the key received over ssh") -> KeyPair:
    """Build a worker's key pair from the content of a key file; `source` names it in a CurveError."""
    pair = KeyPair(keys.get("public", ""), keys.get("secret", ""), keys.get("server", ""))
    check_keys(source, (pair.public, pair.secret, pair.server))
    return pair


def check_keys(source: str, keys: Iterable[str]) -> None:
    """Check the length of `keys`.

    Raises:
        CurveError: A key is missing or malformed.
    """
    if any(len(key) != KEY_LENGTH for key in keys):
        raise CurveError(f"{source} is not a key file of this program: create one with `coordinator keys add NAME`")


def read_key_file(path: Path) -> dict[str, str]:
    """Read a key file that only its owner (this user or root) can read.

    Raises:
        CurveError: The file is missing, readable by others, owned by another user or not a key file.
    """
    try:
        with path.open(encoding="utf-8") as file:
            status = os.fstat(file.fileno())
            mode = status.st_mode & 0o777
            if mode & 0o077:
                raise CurveError(
                    f"{path} is readable by others (mode {mode:o}): run `chmod 600 {shlex.quote(str(path))}`, or create new keys"
                )
            if status.st_uid not in (0, os.geteuid()):
                raise CurveError(f"{path} belongs to another user (uid {status.st_uid}): create your own keys")
            keys = json.load(file)
    except FileNotFoundError:
        raise CurveError(f"no key file {path}: create one with `{_command_for(path)}`") from None
    except OSError as error:
        raise CurveError(
            f"cannot read {path}: {error.strerror}. It must belong to the user who runs this, with mode 600."
        ) from None
    except ValueError:
        raise CurveError(f"{path} is not a key file: create one with `{_command_for(path)}`") from None
    if not isinstance(keys, dict) or not all(isinstance(value, str) for value in keys.values()):
        raise CurveError(f"{path} is not a key file: create one with `{_command_for(path)}`")
    return keys


def _command_for(path: Path) -> str:
    """Return the command that makes a key file, on the coordinator's host: the coordinator's own one, or a worker's."""
    if path.name == "coordinator.key":
        return f"coordinator keys init --keys {shlex.quote(str(path.parent))}"
    return "coordinator keys add NAME" + (
        f" --keys {shlex.quote(str(path.parent.parent))}" if path.parent.name == "workers" else ""
    )


def is_loopback(endpoint: str) -> bool:
    """Return whether only this host can reach `tcp://host:port`."""
    host = endpoint.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def loopback_address() -> str:
    """Return this host's address of loopback: 127.0.0.1, or ::1 where only IPv6 is up."""
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with suppress(OSError), socket.socket(family) as probe:
            probe.bind((address, 0))
            return address
    return "127.0.0.1"


def endpoint_of(host: str, port: int | str) -> str:
    """Return `tcp://host:port`, with brackets around an IPv6 address."""
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def local_address_towards(endpoint: str) -> str:
    """Return the local address of the route to `tcp://host:port`, without sending anything.

    OSError is raised when the host name is unknown or there is no route.
    """
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    family, kind, proto, _, address = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, proto) as probe:
        probe.connect(address)
        return str(probe.getsockname()[0])
