"""CURVE keys of the coordinator: create and revoke workers' keys, and admit only listed workers.

A key folder holds `coordinator.key`, `workers/<name>.key` (copy it to that worker's host and pass it with `worker --key FILE`)
and `allowed.json`, the public keys that may connect. Key files have mode 0600 and are never printed. A running coordinator
rereads the list: it disconnects a worker at once when its key is removed.
"""

from __future__ import annotations

import json
import logging
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import zmq
from zmq.auth.thread import ThreadAuthenticator

from coordinator.wire.auth import CurveError, check_keys, is_loopback, read_key_file
from ingest.errors import UsageError, quoted
from ingest.files import sync_drive

log = logging.getLogger(__name__)

ALLOWED = "allowed.json"
LOCAL = "local"  # the key of the coordinator's own host: for its workers and `coordinator status`


@dataclass(frozen=True)
class CoordinatorKeys:
    """The coordinator's key pair and the public keys of its workers, in Z85."""

    folder: Path
    public: str
    secret: str = field(repr=False)
    allowed: dict[str, str] = field(default_factory=dict)  # worker's name → public key

    def authenticate(self, socket: zmq.Socket, context: zmq.Context, allow_list: AllowList) -> ThreadAuthenticator:
        """Admit only listed keys on `socket`. Call before its bind; stop the returned authenticator at the end.

        Each received message then carries its peer's public key as "User-Id".
        """
        authenticator = ThreadAuthenticator(context)
        authenticator.start()
        authenticator.configure_curve_callback(domain="*", credentials_provider=allow_list)
        socket.curve_publickey, socket.curve_secretkey = self.public.encode(), self.secret.encode()
        socket.curve_server = True
        return authenticator


class AllowList:
    """The public keys that may connect, as the file on disk lists them now."""

    def __init__(self, keys: CoordinatorKeys) -> None:
        self._folder = keys.folder
        self._names = {key: name for name, key in keys.allowed.items()}
        self._seen = self._stamp()

    def callback(self, domain: str, key: bytes) -> bool:
        """Return whether the public `key` (Z85) may connect. The authenticator's thread calls it at each handshake."""
        self.refresh()
        return bool(self.name_of(key.decode()))

    def name_of(self, key: str) -> str:
        """Return the name of a listed public key, or ""."""
        return self._names.get(key, "")

    def refresh(self) -> None:
        """Reread the file if it has changed. A file that is no longer trustworthy changes nothing and is logged."""
        if (stamp := self._stamp()) == self._seen:
            return
        self._seen = stamp
        try:
            self._names = {key: name for name, key in read_allowed(self._folder).items()}
        except CurveError as error:
            log.error("%s. The previous list stays in force.", error)

    def _stamp(self) -> tuple[int, int, int, int]:
        try:
            status = (self._folder / ALLOWED).stat()
        except FileNotFoundError:
            return (0, 0, 0, 0)
        return (status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)


def make_coordinator_key(folder: Path) -> Path:
    """Return the coordinator's key file; create it when there is none."""
    path = folder / "coordinator.key"
    if not path.exists():
        public, secret = (key.decode() for key in zmq.curve_keypair())
        _write_private(path, {"public": public, "secret": secret})
    return path


def add_worker(folder: Path, name: str) -> Path:
    """Create a key file for a worker's host and put its public key on the allow-list.

    Raises:
        CurveError: The name is taken or malformed.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise CurveError(
            f"worker name {name!r} is malformed: use up to 64 letters, digits, dots, dashes and underscores, e.g. "
            "`coordinator keys add m2-1`"
        )
    server = read_key_file(make_coordinator_key(folder))["public"]
    allowed = read_allowed(folder)
    path = folder / "workers" / f"{name}.key"
    if name in allowed or path.exists():
        raise CurveError(
            f"worker {name!r} has a key already: revoke it first with `coordinator keys revoke {name} --keys {quoted(folder)}`"
        )
    public, secret = (key.decode() for key in zmq.curve_keypair())
    _write_private(path, {"public": public, "secret": secret, "server": server})
    _write_private(folder / ALLOWED, {**allowed, name: public})
    return path


def worker_key(folder: Path, name: str) -> Path:
    """Return a worker's key file; create it when there is none. CurveError as `add_worker`."""
    path = folder / "workers" / f"{name}.key"
    return path if path.exists() else add_worker(folder, name)


def host_keys(folder: Path, host: str) -> dict[str, str]:
    """Return the content of a host's key file; create it when there is none. The key leaves this host only over ssh."""
    content: dict[str, str] = json.loads(worker_key(folder, re.sub(r"[^A-Za-z0-9._-]", "_", host)).read_text("utf-8"))
    return content


def revoke_worker(folder: Path, name: str) -> None:
    """Remove a worker from the allow-list and delete its key file. A running coordinator disconnects it within a second.

    Raises:
        CurveError: The worker is not on the list.
    """
    allowed = read_allowed(folder)
    if name not in allowed:
        known = ", ".join(sorted(allowed)) or "none"
        raise CurveError(
            f"no worker {name!r} on the allow-list (known: {known}): run `coordinator keys list --keys {quoted(folder)}`"
        )
    _write_private(folder / ALLOWED, {key: value for key, value in allowed.items() if key != name})
    (folder / "workers" / f"{name}.key").unlink(missing_ok=True)


def read_allowed(folder: Path) -> dict[str, str]:
    """Return the allow-list: worker's name → public key. CurveError as `read_key_file`."""
    path = folder / ALLOWED
    return read_key_file(path) if path.exists() else {}


def load_coordinator(folder: Path) -> CoordinatorKeys:
    """Load the coordinator's keys and the allow-list. CurveError as `read_key_file`."""
    path = folder / "coordinator.key"
    pair = read_key_file(path)
    keys = CoordinatorKeys(folder, pair.get("public", ""), pair.get("secret", ""), read_allowed(folder))
    check_keys(str(path), (keys.public, keys.secret, *keys.allowed.values()))
    return keys


def split_endpoint(endpoint: str) -> tuple[str, int]:
    """Return the host, without brackets, and the port of `tcp://host:port`, as in `tcp://[::1]:0`.

    Raises:
        UsageError: It is not such an address, or its port is not 0 to 65535.
    """
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise UsageError(
            f"address {endpoint!r}: it is not tcp://HOST:PORT with a port from 0 to 65535. Give e.g. "
            "--bind tcp://127.0.0.1:5555, or tcp://[::1]:5555 for IPv6."
        )
    return host, int(port)


def check_bind(endpoint: str, keys: CoordinatorKeys | None) -> None:
    """Check that an address is well formed, and that one that other hosts can reach is used with keys only.

    UsageError is raised as by `split_endpoint`.

    Raises:
        CurveError: Other hosts can reach `endpoint` and there are no keys.
    """
    split_endpoint(endpoint)
    if not is_loopback(endpoint) and keys is None:
        raise CurveError(
            f"bind {endpoint} is reachable from other hosts, but there are no CURVE keys. "
            "Create them with `coordinator keys add NAME`, one for each worker's host, or bind tcp://127.0.0.1:PORT."
        )


def _write_private(path: Path, keys: dict[str, str]) -> None:
    if path.parts[0].startswith("~"):
        raise CurveError(f"no folder for {path}: this user has no home folder. Set HOME, or name a folder with --keys.")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump(keys, file)
        file.flush()
        sync_drive(file.fileno())  # no other file makes it durable
    part.replace(path)
