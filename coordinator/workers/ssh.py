"""SSH to the hosts of a hostfile: the command line, quoting, required versions, and what a failed session means.

`start --hostfile` (remote.py) and `doctor --hostfile` (coordinator/doctor/remote.py) share it. It runs the `ssh` program, so
that the user's configuration, agents and jump hosts apply.
"""

import errno
import os
import shlex
import sys
from dataclasses import dataclass
from importlib.metadata import version

from coordinator.workers.hostfile import Host
from ringattn.macos import local_network_hint

SSH_FAILED = 255  # ssh's own exit code; any other is the remote command's
PACKAGES = ("ring-attention-energy", "mlx")  # every host must have the same versions
OPTIONS = (
    *("-T", "-S", "none"),  # no terminal, and no connection shared with the user's sessions
    *("-o", "BatchMode=yes", "-o", "LogLevel=ERROR", "-o", "ServerAliveInterval=5"),
)
CAUSES = {  # words in ssh's error → fix
    "Permission denied": "`ssh-copy-id {host}`: the host does not accept this user's key",
    "Host key verification failed": "run `ssh {host}` once by hand and compare the key it shows with the host's own",
    "REMOTE HOST IDENTIFICATION": "the host's key has changed: find out why, then `ssh-keygen -R {host}`",
    "Connection refused": "turn on ssh there: System Settings → General → Sharing → Remote Login, or `systemctl start ssh`",
    "resolve": "{host} is an unknown name: correct it in the hostfile, or add it to ~/.ssh/config or /etc/hosts",
}
NO_ROUTE = os.strerror(errno.EHOSTUNREACH)
UNREACHABLE = (
    "check that it is on, awake and on this network, then try `ssh -o BatchMode=yes {host} true`, "
    "or take it out of the hostfile"
)


@dataclass(frozen=True)
class SshFailure:
    """Why a host cannot be used.

    Attributes:
        subject: What failed: "ssh", "python", or the name of a package.
        cause: What was seen.
        fix: What to do, with the next command.
    """

    subject: str
    cause: str
    fix: str


def ssh_command(connect_timeout_s: int, alive_count: int) -> tuple[str, ...]:
    """Return the `ssh` command line up to the host's name.

    Args:
        connect_timeout_s: Seconds for the TCP connection.
        alive_count: Unanswered keep-alives, one every 5 s, after which ssh gives the session up.
    """
    return ("ssh", *OPTIONS, "-o", f"ConnectTimeout={connect_timeout_s}", "-o", f"ServerAliveCountMax={alive_count}")


def quote_remote_path(path: str) -> str:
    """Quote a path for the login shell, which still expands a leading `~/`."""
    return f"~/{shlex.quote(path[2:])}" if path.startswith("~/") else shlex.quote(path)


def local_versions() -> dict[str, str]:
    """Return this host's Python (major.minor) and package versions, which every host must match."""
    return {"python": ".".join(map(str, sys.version_info[:2])), **{name: version(name) for name in PACKAGES}}


def unreachable(host: Host, cause: str) -> SshFailure:
    """Return the failure of a host that ssh does not reach or that does not answer."""
    fix = next((fix for words, fix in CAUSES.items() if words in cause), UNREACHABLE)
    if NO_ROUTE in cause and (hint := local_network_hint("EHOSTUNREACH")):
        fix = f"{hint}; otherwise {fix}"
    return SshFailure("ssh", cause, fix.format(host=shlex.quote(host.name)))


def unexpected_output(host: Host, line: bytes) -> SshFailure:
    """Return the failure of a host whose login shell prints something before the command runs."""
    words = line.decode(errors="replace").strip()[:200]
    fix = (
        "remove output from ~/.bashrc, ~/.profile or ~/.zshenv for non-interactive shells; "
        f"`ssh {shlex.quote(host.name)} true` must print nothing"
    )
    return SshFailure("python", f"unexpected output from the login shell: {words!r}", fix)


def explain_exit(host: Host, exit_code: int, last_line: str) -> SshFailure:
    """Explain a session that ended without an answer.

    Args:
        host: The host.
        exit_code: Exit code of the ssh process.
        last_line: Last line of its standard error; may be empty.
    """
    words = last_line or f"exit code {exit_code}"
    if exit_code == SSH_FAILED:
        return unreachable(host, last_line or "ssh failed")
    if exit_code in (126, 127):
        fix = f"`uv sync` in the project's folder there creates {host.python}, or name its Python with --host-python"
        return SshFailure("python", f"no Python at {host.python}: {words}", fix)
    if "No module named" in words:
        fix = "`uv sync` in the project's folder there, or name another Python with --host-python"
        return SshFailure("python", f"{host.python} lacks the project: {words}", fix)
    fix = f"`ssh {shlex.quote(host.name)} {quote_remote_path(host.python)} -V` shows the error"
    return SshFailure("python", f"{host.python} fails: {words}", fix)
