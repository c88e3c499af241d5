"""Workers on the hosts of a hostfile: started over ssh, watched, started again when one is lost, ended with the run.

Each is `python -m worker.process.remote_main` in an ssh session of its own. What is installed there is compared before anything is asked of it; its
orders, key included, go through the session's stdin. When the session ends, however it ends, so does the worker; one that is
cut off ends by itself when nobody has answered for `PATIENCE_S`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from coordinator.workers.hostfile import Host, Hosts
from ingest.errors import UsageError

SSH = (
    *("ssh", "-T", "-S", "none"),  # no terminal, and no connection shared with sessions of the user's
    *("-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "LogLevel=ERROR"),
    *("-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"),
)
PACKAGES = ("ring-attention-energy", "mlx")  # whose versions have to be the same on both sides
GREET_S = 60.0  # within which ssh and Python have to answer; a busy host takes seconds
PATIENCE_S = 30.0  # of a worker whose coordinator is gone; also for one that was cut off to end
RETRY_S, RETRY_MAX_S = 1.0, 30.0  # between tries to reach a host that was lost
SSH_FAILED = 255  # ssh's own exit code; any other is the remote command's


@dataclass
class Session:
    """One ssh session: from its start to its end."""

    host: Host
    process: subprocess.Popen[bytes]
    log: Path
    began: float
    read_from: int  # where the session's own words begin in the log
    problem: str = ""  # why the host can't be used
    ready: threading.Event = field(default_factory=threading.Event)  # its greeting is in, or its end

    def words(self) -> str:
        """What ssh or the worker said last."""
        with self.log.open("rb") as file:
            file.seek(self.read_from)
            lines = file.read(65_536).decode(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else ""

    def end(self) -> None:
        """By force."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


@dataclass
class HostWorkers:
    """A worker on each host that ssh reaches."""

    hosts: Hosts
    connections: int
    missing_s: float  # a worker that the coordinator does not hear for this long, though its session lives, is ended
    log_dir: Path
    keys: Mapping[str, dict[str, str]]  # host → content of its key file
    restarts: int = 0
    _endpoint: str = ""
    _sessions: dict[str, Session] = field(default_factory=dict)
    _heard: dict[str, float] = field(default_factory=dict)  # host → when the coordinator last knew its worker
    _retry: dict[str, tuple[float, float]] = field(
        default_factory=dict
    )  # host → when to try again, the wait after that

    def open(self) -> None:
        """Reach every host and compare what is installed. UsageError tells of all that can't be used; none is then left running."""
        self.log_dir.mkdir(parents=True, exist_ok=True)
        for host in self.hosts.remote:
            self._sessions[host.name] = self._begin(host)
        until = time.monotonic() + GREET_S
        try:
            for session in self._sessions.values():
                if not session.ready.wait(max(0.0, until - time.monotonic())):
                    session.problem = f"{session.host.name}: no answer within {GREET_S:g} s{_try(session.host)}"
            if problems := [session.problem for session in self._sessions.values() if session.problem]:
                raise UsageError("hosts can't be used:\n  " + "\n  ".join(problems))
        except BaseException:
            self.stop(0.0)
            raise

    def start(self, endpoint: str) -> None:
        """Put the workers of the sessions that `open` began to work for the coordinator at `endpoint`."""
        self._endpoint = endpoint
        for session in self._sessions.values():
            self._heard[session.host.name] = time.monotonic() + GREET_S  # until it counts as missing
            self._order(session)

    def _begin(self, host: Host, order: bool = False) -> Session:
        command = [*SSH, host.name, f"exec {_quoted(host.python)} -m worker.process.remote_main"]
        path = self.log_dir / f"worker-{re.sub(r'[^A-Za-z0-9._-]', '_', host.name)}.log"
        with path.open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches the coordinator alone; it decides what the workers do
            )
            session = Session(host, process, path, time.monotonic(), log.tell())
        threading.Thread(target=self._greet, args=(session, order), name=f"ssh-{host.name}", daemon=True).start()
        return session

    def _greet(self, session: Session, order: bool) -> None:
        """Take the greeting, in a thread of the session's own: hosts answer late, or never."""
        assert session.process.stdout is not None
        try:
            line = session.process.stdout.readline()
        except (OSError, ValueError):  # ended meanwhile
            line = b""
        session.problem = refusal(session.host, line, _own_versions()) if line else _why_none(session)
        if not session.problem and order:
            self._order(session)
        session.ready.set()

    def _order(self, session: Session) -> None:
        host, stdin = session.host, session.process.stdin
        environment = dict(self.hosts.environment)
        if key := os.environ.get("EIA_API_KEY"):
            environment["EIA_API_KEY"] = key
        orders = {
            "endpoint": self._endpoint,
            "data": host.data,
            "connections": self.connections,
            "host": host.name,
            "address": host.address,
            "key": self.keys[host.name],
            "patience_s": PATIENCE_S,
            "environment": environment,
        }
        try:
            assert stdin is not None
            stdin.write(json.dumps(orders).encode() + b"\n")
            stdin.flush()
        except (OSError, ValueError):
            session.problem = f"{host.name}: its ssh session ended"

    def supervise(self, heard: Collection[str], lost: Callable[[str, str], None]) -> list[str]:
        """Begin sessions anew where one ended or its worker is missing; one line for each thing that happened.

        `heard`: names of the hosts whose workers the coordinator knows. `lost(host, reason)` is told when a worker has ended, so
        that its leases go out again without waiting for silence. Call it a few times a second.
        """
        now, said = time.monotonic(), []
        for host in self.hosts.remote:
            session = self._sessions.get(host.name)
            if host.name in heard:
                self._heard[host.name] = now
                if session is not None and session.process.poll() is None:
                    self._retry.pop(host.name, None)
                    continue
            if session is not None and (why := self._over(session, now)):
                session.end()
                del self._sessions[host.name]
                if session.process.returncode not in (SSH_FAILED, -9):
                    lost(host.name, why)
                at, wait = self._retry.get(host.name, (0.0, RETRY_S))
                self._retry[host.name] = (now + wait, min(2 * wait, RETRY_MAX_S))
                if not at:
                    said.append(f"{host.name}: {why}; trying to reach it again")
            elif session is None and host.name not in heard and now >= self._retry[host.name][0]:
                self.restarts += 1
                self._heard[host.name] = now + GREET_S
                self._sessions[host.name] = self._begin(host, order=True)
        return said

    def _over(self, session: Session, now: float) -> str:
        """Why a session is of no more use; "" while it is."""
        if session.process.poll() is not None:
            session.ready.wait(1.0)
            return (
                session.problem or f"its worker ended ({session.words() or f'exit code {session.process.returncode}'})"
            )
        if session.problem:
            return session.problem
        if now - self._heard.get(session.host.name, now) > self.missing_s:
            return "its worker was not heard"
        return ""

    def stop(self, patience: float = 5.0) -> None:
        """End all: they have been told to stop, or are by the end of their stdin; sessions that stay are ended by force.

        `patience`: seconds for all of them.
        """
        sessions, self._sessions = list(self._sessions.values()), {}
        for session in sessions:
            if session.process.stdin is not None:
                with suppress(OSError):
                    session.process.stdin.close()
        deadline = time.monotonic() + patience
        for session in sessions:
            with suppress(subprocess.TimeoutExpired):
                session.process.wait(max(0.0, deadline - time.monotonic()))
            session.end()


def refusal(host: Host, line: bytes, own: Mapping[str, str]) -> str:
    """Why a host that greeted so can't be used; "" when it can. Both sides have to have the same versions."""
    try:
        found: dict[str, Any] = json.loads(line)
        different = [name for name, value in own.items() if found.get(name) != value]
    except (ValueError, AttributeError):
        words = line.decode(errors="replace").strip()[:200]
        return f"{host.name}: its shell says {words!r} before anything runs: silence what its login prints"
    if not different:
        return ""
    name = different[0]
    there = found.get(name) or "none"
    if name == "python":
        mend = "name one of the same version with --host-python"
    else:
        mend = f"`{host.python} -m pip install {name}=={own[name]}` there, or `uv sync` in the project's folder"
    return f"{host.name}: {name} {there} there, {own[name]} here: {mend}"


def _own_versions() -> dict[str, str]:
    return {"python": ".".join(map(str, sys.version_info[:2])), **{name: version(name) for name in PACKAGES}}


def _why_none(session: Session) -> str:
    """A session that ended without a greeting: what is wrong with ssh or with Python there."""
    code, host = session.process.wait(), session.host
    words = session.words()
    if code == SSH_FAILED:
        return f"{host.name}: {words or 'ssh failed'}{_try(host)}"
    if "No module named" in words:
        return f"{host.name}: {host.python} lacks the project ({words}): `uv sync` in its folder there, or name another --host-python"
    if code in (126, 127):
        return (
            f"{host.name}: no Python at {host.python} ({words}): name the one that has the project with --host-python"
        )
    return f"{host.name}: {words or f'exit code {code}'}{_try(host)}"


def _try(host: Host) -> str:
    return f": try `ssh -o BatchMode=yes {shlex.quote(host.name)} true`, or take it out of the hostfile"


def _quoted(path: str) -> str:
    """For the login's shell, which expands a leading ~/."""
    return f"~/{shlex.quote(path[2:])}" if path.startswith("~/") else shlex.quote(path)
