"""CURVE keys: made by `coordinator keys`, kept in files of mode 0600, never printed; the coordinator admits only listed workers.

A key folder holds `coordinator.key`, `workers/<name>.key` (copy it to that worker's host, `worker --key FILE`) and
`allowed.json`, the public keys that may connect. A running coordinator follows the list: who is taken off is out at once.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import zmq
from zmq.auth.thread import ThreadAuthenticator

from coordinator.wire.exit_codes import ExitCode

log = logging.getLogger(__name__)

ALLOWED = "allowed.json"
LOCAL = "local"  # the key of the coordinator's own host: its workers, and `coordinator status`


class CurveError(Exception):
    """Keys that are missing, readable by others, or not keys; a bind that would need them."""

    exit_code = ExitCode.USAGE


@dataclass(frozen=True)
class Curve:
    """One side's keys (z85). A coordinator has `allowed` and `folder`, a worker `server`."""

    public: str
    secret: str = field(repr=False)
    server: str = ""  # worker: the coordinator's public key
    allowed: dict[str, str] = field(default_factory=dict)  # coordinator: worker's name → public key
    folder: Path | None = None  # coordinator: where the list lies

    def serve(self, socket: zmq.Socket, context: zmq.Context, allow_list: AllowList) -> ThreadAuthenticator:
        """Make `socket`, before its bind, admit only keys on the list. Stop what is returned at the end.

        Each message then bears its peer's public key as "User-Id".
        """
        authenticator = ThreadAuthenticator(context)
        authenticator.start()
        authenticator.configure_curve_callback(domain="*", credentials_provider=allow_list)
        socket.curve_publickey, socket.curve_secretkey = self.public.encode(), self.secret.encode()
        socket.curve_server = True
        return authenticator

    def connect(self, socket: zmq.Socket) -> None:
        """Make `socket`, before its connect, speak to this coordinator alone."""
        socket.curve_publickey, socket.curve_secretkey = self.public.encode(), self.secret.encode()
        socket.curve_serverkey = self.server.encode()


class AllowList:
    """Who may connect, as the list on disk says now. `callback` is asked by the authenticator's thread at each handshake."""

    def __init__(self, curve: Curve) -> None:
        assert curve.folder is not None
        self._folder = curve.folder
        self._names = {key: name for name, key in curve.allowed.items()}
        self._seen = self._stamp()

    def callback(self, domain: str, key: bytes) -> bool:
        """As zmq.auth asks: whether the public `key` (Z85) may connect."""
        self.refresh()
        return bool(self.name_of(key.decode()))

    def name_of(self, key: str) -> str:
        """The name that a public key was given; "" for one that is not on the list."""
        return self._names.get(key, "")

    def refresh(self) -> None:
        """Follow the list on disk. One that can't be trusted any more changes nothing, and is told of."""
        if (stamp := self._stamp()) == self._seen:
            return
        self._seen = stamp
        try:
            self._names = {key: name for name, key in read_allowed(self._folder).items()}
        except CurveError as error:
            log.error("%s. The list as it was read before stays in force.", error)

    def _stamp(self) -> tuple[int, int, int, int]:
        try:
            status = (self._folder / ALLOWED).stat()
        except FileNotFoundError:
            return (0, 0, 0, 0)
        return (status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)


def make_coordinator_key(folder: Path) -> Path:
    """The coordinator's key pair, made once; an existing one is kept."""
    path = folder / "coordinator.key"
    if not path.exists():
        public, secret = (key.decode() for key in zmq.curve_keypair())
        _write_private(path, {"public": public, "secret": secret})
    return path


def add_worker(folder: Path, name: str) -> Path:
    """A key file for the worker's host, and its place on the allow-list. CurveError when the name is taken or odd."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise CurveError(
            f"worker name {name!r}: no blanks, only letters, digits, dot, dash and underscore, 64 at most, e.g. "
            "`coordinator keys add m2-1`"
        )
    server = _read_private(make_coordinator_key(folder))["public"]
    allowed = read_allowed(folder)
    path = folder / "workers" / f"{name}.key"
    if name in allowed or path.exists():
        raise CurveError(f"worker {name!r} has a key: take it back first with `coordinator keys revoke {name}`")
    public, secret = (key.decode() for key in zmq.curve_keypair())
    _write_private(path, {"public": public, "secret": secret, "server": server})
    _write_private(folder / ALLOWED, {**allowed, name: public})
    return path


def revoke_worker(folder: Path, name: str) -> None:
    """Take a worker off the allow-list and delete its key file. A running coordinator cuts it off within a second.

    CurveError where it is not on the list.
    """
    allowed = read_allowed(folder)
    if name not in allowed:
        known = ", ".join(sorted(allowed)) or "none"
        raise CurveError(f"no worker {name!r} on the allow-list (known: {known}): `coordinator keys list` shows it")
    _write_private(folder / ALLOWED, {key: value for key, value in allowed.items() if key != name})
    (folder / "workers" / f"{name}.key").unlink(missing_ok=True)


def read_allowed(folder: Path) -> dict[str, str]:
    """Worker's name → public key."""
    path = folder / ALLOWED
    return _read_private(path) if path.exists() else {}


def load_coordinator(folder: Path) -> Curve:
    """The coordinator's side. CurveError names `coordinator keys` when there is no key."""
    keys = _read_private(folder / "coordinator.key")
    return _curve(folder / "coordinator.key", keys, allowed=read_allowed(folder), folder=folder)


def load_worker(path: Path) -> Curve:
    """A worker's side, from the file that `coordinator keys add` made."""
    return _curve(path, _read_private(path))


def worker_of(keys: Mapping[str, str]) -> Curve:
    """A worker's side, from the content of such a file."""
    return _curve(Path("the key that came over ssh"), dict(keys), allowed={})


def local_worker_key(folder: Path) -> Path:
    """The key file of the coordinator's own workers and of `coordinator status`, made once."""
    path = folder / "workers" / f"{LOCAL}.key"
    return path if path.exists() else add_worker(folder, LOCAL)


def is_loopback(endpoint: str) -> bool:
    """Whether only this host can reach `tcp://host:port`."""
    host = endpoint.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def own_address(endpoint: str) -> str:
    """This host's address on the way to `tcp://host:port`. Nothing is sent. OSError for a name that is not known."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    family, kind, proto, _, address = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, proto) as probe:
        probe.connect(address)
        return str(probe.getsockname()[0])


def check_bind(endpoint: str, curve: Curve | None) -> None:
    """CurveError for a bind that others can reach, without keys."""
    if not is_loopback(endpoint) and curve is None:
        raise CurveError(
            f"bind {endpoint} can be reached from other hosts and there are no CURVE keys. "
            "Make them with `coordinator keys add NAME`, one for each worker's host, or bind tcp://127.0.0.1:PORT."
        )


def _curve(
    path: Path, keys: dict[str, str], allowed: dict[str, str] | None = None, folder: Path | None = None
) -> Curve:
    curve = Curve(keys.get("public", ""), keys.get("secret", ""), keys.get("server", ""), allowed or {}, folder)
    needed = [curve.public, curve.secret, *curve.allowed.values()] + ([curve.server] if folder is None else [])
    if any(len(key) != 40 for key in needed):
        raise CurveError(f"{path} is not a key file of this program: make one with `coordinator keys add NAME`")
    return curve


def _write_private(path: Path, keys: dict[str, str]) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(keys, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _read_private(path: Path) -> dict[str, str]:
    try:
        with path.open() as file:
            status = os.fstat(file.fileno())
            mode = status.st_mode & 0o777
            if mode & 0o077:
                raise CurveError(f"{path} can be read by others (mode {mode:o}): `chmod 600 {path}`, or make new keys")
            if status.st_uid not in (0, os.geteuid()):
                raise CurveError(f"{path} belongs to another user (uid {status.st_uid}): make keys of your own")
            keys = json.load(file)
    except FileNotFoundError:
        raise CurveError(f"no key file {path}: make one with `coordinator keys add NAME`") from None
    except OSError as error:
        raise CurveError(
            f"{path} can't be read: {error.strerror}. It must belong to who runs this, mode 600."
        ) from None
    except ValueError:
        raise CurveError(f"{path} is not a key file: make one with `coordinator keys add NAME`") from None
    if not isinstance(keys, dict) or not all(isinstance(value, str) for value in keys.values()):
        raise CurveError(f"{path} is not a key file: make one with `coordinator keys add NAME`")
    return keys
