"""Start, watch and restart workers on the hosts of a hostfile, over SSH.

Each worker is `python -m worker.process.remote_main` in its own ssh session. The coordinator compares the installed versions
first, and then sends the worker's settings, its key included, through the session's stdin. A worker ends with its session; one
that is cut off exits after `NO_COORDINATOR_TIMEOUT_S` without an answer.
"""

import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coordinator.workers.hostfile import Host, Hosts
from coordinator.workers.ssh import (
    SSH_FAILED,
    SshFailure,
    explain_exit,
    local_versions,
    quote_remote_path,
    ssh_command,
    unexpected_output,
    unreachable,
)
from ingest.console import printable
from ingest.errors import UsageError

HANDSHAKE_S = 60.0  # within which ssh and Python must answer; a busy host takes seconds
NO_COORDINATOR_TIMEOUT_S = 30.0  # a worker without a coordinator exits after this; also the wait for a previous worker
RETRY_S, RETRY_MAX_S = 1.0, 30.0  # back-off between attempts to reach a lost host
KILLED = -9  # return code of a session that this process killed


@dataclass
class Session:
    """One ssh session, from its start to its end."""

    host: Host
    process: subprocess.Popen[bytes]
    log: Path
    log_offset: int  # where this session's output begins in the log
    problem: str = ""  # why the host cannot be used
    ready: threading.Event = field(default_factory=threading.Event)  # set at the handshake's end

    def last_log_line(self) -> str:
        """Return the last line that ssh or the worker wrote to stderr, or ""."""
        with self.log.open("rb") as file:
            file.seek(self.log_offset)
            lines = file.read(65_536).decode(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else ""

    def kill(self) -> None:
        """Kill the session and close its pipes."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


@dataclass
class SshWorkerPool:
    """One worker on each remote host of a hostfile."""

    hosts: Hosts
    connections: int
    unresponsive_timeout_s: float  # a worker whose session lives but which sends no heartbeat for this long is killed
    log_dir: Path
    worker_keys: Mapping[str, Mapping[str, str]]  # host → content of its key file; leaves this host through ssh alone
    restarts: int = 0
    _endpoint: str = ""
    _sessions: dict[str, Session] = field(default_factory=dict)
    _last_heard: dict[str, float] = field(default_factory=dict)  # host → when the coordinator last knew its worker
    _retry: dict[str, tuple[float, float]] = field(default_factory=dict)  # host → (time of the next attempt, back-off)

    def open(self) -> None:
        """Open a session to every host and compare the installed versions.

        Raises:
            UsageError: Hosts cannot be used; the message lists all of them, and no session is left running.
        """
        self.log_dir.mkdir(parents=True, exist_ok=True)
        for host in self.hosts.remote:
            self._sessions[host.name] = self._open_session(host)
        until = time.monotonic() + HANDSHAKE_S
        try:
            for session in self._sessions.values():
                if not session.ready.wait(max(0.0, until - time.monotonic())):
                    failure = unreachable(session.host, f"no answer within {HANDSHAKE_S:g} s")
                    session.problem = _text(session.host, failure)
            if problems := [session.problem for session in self._sessions.values() if session.problem]:
                raise UsageError("hosts can't be used:\n  " + "\n  ".join(map(printable, problems)))
        except BaseException:
            self.stop(0.0)
            raise

    def start(self, endpoint: str) -> None:
        """Send the open sessions their settings, so that their workers register at `endpoint`."""
        self._endpoint = endpoint
        for session in self._sessions.values():
            self._last_heard[session.host.name] = (
                time.monotonic() + HANDSHAKE_S
            )  # grace until it counts as unresponsive
            self._send_config(session)

    def _open_session(self, host: Host, send_config: bool = False) -> Session:
        command = [
            *ssh_command(10, 3),
            host.name,
            f"exec {quote_remote_path(host.python)} -m worker.process.remote_main",
        ]
        path = self.log_dir / f"worker-{re.sub(r'[^A-Za-z0-9._-]', '_', host.name)}.log"
        with path.open("ab") as log:
            offset = log.tell()  # read before the start, because ssh may write an error at once
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches the coordinator alone, which decides what the workers do
            )
            session = Session(host, process, path, offset)
        thread = threading.Thread(
            target=self._handshake, args=(session, send_config), name=f"ssh-{host.name}", daemon=True
        )
        thread.start()
        return session

    def _handshake(self, session: Session, send_config: bool) -> None:
        """Read the host's versions in a thread per session: hosts answer late, or never."""
        assert session.process.stdout is not None
        try:
            line = session.process.stdout.readline()
        except (OSError, ValueError):  # the session was closed meanwhile
            line = b""
        session.problem = check_handshake(session.host, line, local_versions()) if line else _why_dead(session)
        if not session.problem and send_config:
            self._send_config(session)
        session.ready.set()

    def _send_config(self, session: Session) -> None:
        host, stdin = session.host, session.process.stdin
        environment = self.hosts.worker_environment(os.environ)
        if key := os.environ.get("EIA_API_KEY"):
            environment["EIA_API_KEY"] = key
        config = {
            "endpoint": self._endpoint,
            "data": host.data,
            "connections": self.connections,
            "host": host.name,
            "address": host.address,
            "key": self.worker_keys[host.name],
            "patience_s": NO_COORDINATOR_TIMEOUT_S,
            "environment": environment,
        }
        try:
            assert stdin is not None
            stdin.write(json.dumps(config).encode() + b"\n")
            stdin.flush()
        except (OSError, ValueError):
            session.problem = f"{host.name}: its ssh session ended"

    def supervise(self, heard: Collection[str], lost: Callable[[str, str], None]) -> list[str]:
        """Reopen sessions that ended or whose worker is unresponsive. Call it a few times a second.

        Args:
            heard: Names of the hosts whose workers send heartbeats.
            lost: Called with (host, reason) when a worker has ended, so that its leases are released at once.

        Returns:
            One line for each event.
        """
        now, events = time.monotonic(), []
        for host in self.hosts.remote:
            session = self._sessions.get(host.name)
            if host.name in heard:
                self._last_heard[host.name] = now
                if session is not None and session.process.poll() is None:
                    self._retry.pop(host.name, None)
                    continue
            if session is not None and (reason := self._end_reason(session, now)):
                session.kill()
                del self._sessions[host.name]
                if session.process.returncode not in (SSH_FAILED, KILLED):
                    lost(host.name, reason)
                at, wait = self._retry.get(host.name, (0.0, RETRY_S))
                self._retry[host.name] = (now + wait, min(2 * wait, RETRY_MAX_S))
                if not at:
                    events.append(f"{host.name}: {reason}; trying to reach it again")
            elif session is None and host.name not in heard and now >= self._retry[host.name][0]:
                self.restarts += 1
                self._last_heard[host.name] = now + HANDSHAKE_S
                self._sessions[host.name] = self._open_session(host, send_config=True)
        return events

    def _end_reason(self, session: Session, now: float) -> str:
        """Return why a session is of no more use, or "" while it is."""
        if session.process.poll() is not None:
            session.ready.wait(1.0)
            cause = session.last_log_line() or f"exit code {session.process.returncode}"
            return session.problem or f"its worker ended ({cause})"
        if session.problem:
            return session.problem
        if now - self._last_heard.get(session.host.name, now) > self.unresponsive_timeout_s:
            return "its worker sent no heartbeat"
        return ""

    def stop(self, timeout_s: float = 5.0) -> None:
        """End all workers by closing their stdin; kill the sessions that remain after `timeout_s` in total."""
        sessions, self._sessions = list(self._sessions.values()), {}
        for session in sessions:
            if session.process.stdin is not None:
                with suppress(OSError):
                    session.process.stdin.close()
        deadline = time.monotonic() + timeout_s
        for session in sessions:
            with suppress(subprocess.TimeoutExpired):
                session.process.wait(max(0.0, deadline - time.monotonic()))
            session.kill()


def check_handshake(host: Host, line: bytes, required: Mapping[str, str]) -> str:
    """Return why a host cannot be used, or "" when its versions are the required ones.

    Args:
        host: The host.
        line: First line of its output: a JSON object of versions.
        required: Name → version, as `local_versions` returns.
    """
    try:
        found: dict[str, Any] = json.loads(line)
        different = [name for name, value in required.items() if found.get(name) != value]
    except (ValueError, AttributeError):
        return _text(host, unexpected_output(host, line))
    if not different:
        return ""
    name = different[0]
    there = found.get(name) or "none"
    if name == "python":
        fix = "name one of the same version with --host-python"
    else:
        fix = f"`{quote_remote_path(host.python)} -m pip install {name}=={required[name]}` there, or `uv sync` in the project's folder"
    return f"{host.name}: {name} {there} there, {required[name]} here: {fix}"


def _why_dead(session: Session) -> str:
    """Explain a session that ended without a handshake."""
    return _text(session.host, explain_exit(session.host, session.process.wait(), session.last_log_line()))


def _text(host: Host, failure: SshFailure) -> str:
    return f"{host.name}: {failure.cause}: {failure.fix}"
