"""Run a command in another environment of this machine: as another user, with IPv6 alone, with a read-only folder.

Each function returns the command line that does so, in namespaces of its own. Needs Linux, root, util-linux and iproute2.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.support.program import ROOT

USER = 61_234  # a user and a group that no system has
Command = Sequence[str | Path]


def missing() -> str:
    """Return the reason why no namespace can be made here; "" if one can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "namespaces need root on Linux"
    if lacking := [tool for tool in ("unshare", "setpriv", "ip") if shutil.which(tool) is None]:
        return f"needs {', '.join(lacking)}: apt-get install util-linux iproute2"
    tried = subprocess.run(["unshare", "--mount", "--net", "true"], capture_output=True, text=True)
    return f"namespaces are refused here: {tried.stderr.strip()}" if tried.returncode else ""


def as_other_user(command: Command) -> list[str]:
    """Run as `USER`, who has no entry in /etc/passwd and may only read this checkout and its interpreter."""
    needed = {Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve(), ROOT.resolve()}
    steps = []
    for number, path in enumerate(sorted(needed)):
        closed = [folder for folder in reversed(path.parents) if not folder.stat().st_mode & 0o001]
        if closed:  # e.g. /root, with the interpreter of pyenv below it: hide it, and mount the folder at its path
            kept = f"/run/ringattn-kept/{number}"
            steps += [
                "mkdir -p /run/ringattn-kept && { mountpoint -q /run/ringattn-kept || mount -t tmpfs tmpfs /run/ringattn-kept; }",
                f"mkdir {kept}; mount --bind {shlex.quote(str(path))} {kept}",
                f"mount -t tmpfs -o mode=755 tmpfs {shlex.quote(str(closed[0]))}",
                f"mkdir -p {shlex.quote(str(path))}; mount --bind {kept} {shlex.quote(str(path))}",
            ]
    user = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--no-new-privs", "--", *command]
    return _in_namespace("--mount", steps, user)


def with_ipv6_alone(command: Command) -> list[str]:
    """Run on a network that has loopback alone, and of it ::1 alone."""
    return _in_namespace("--net", ["ip link set lo up", "ip -4 addr flush dev lo"], command)


def without_route_to(network: str, command: Command) -> list[str]:
    """Run on a network that has loopback alone, where connections to `network` end in EHOSTUNREACH at once."""
    return _in_namespace("--net", ["ip link set lo up", f"ip route add unreachable {network}"], command)


def with_read_only(folder: Path, command: Command) -> list[str]:
    """Run with `folder` mounted read-only, which binds root too."""
    path = shlex.quote(str(folder))
    return _in_namespace("--mount", [f"mount --bind {path} {path}", f"mount -o remount,bind,ro {path}"], command)


def _in_namespace(kind: str, steps: Sequence[str], command: Command) -> list[str]:
    script = "; ".join(["set -e", *steps, 'exec "$@"'])
    return ["unshare", kind, "sh", "-c", script, "sh", *map(str, command)]
