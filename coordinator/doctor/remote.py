"""`coordinator doctor --hostfile`: visits every host over ssh, all at once, and asks neighbours in the ring to reach each other.

A host that is down is a finding. ssh runs in batch mode with a time-out; what runs there is `visit.py`, sent as it stands.
"""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from coordinator.doctor import host_script
from coordinator.doctor.checks import Expected, Finding, HostFacts, LinkFacts, doubled, host_findings, link_finding
from coordinator.doctor.local import RING_PORTS
from coordinator.workers.hostfile import Host, Hosts
from ingest.models import MANIFEST_FORMAT

SSH = (
    *("ssh", "-T", "-S", "none"),  # no terminal, and no connection shared with sessions of the user's
    *("-o", "BatchMode=yes", "-o", "ConnectTimeout=5", "-o", "LogLevel=ERROR"),
    *("-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=2"),
)
PACKAGES = ("ring-attention-energy", "mlx")  # whose versions have to be the same on all hosts
CLOCKS = 5  # times that a clock is asked; the shortest round trip tells most


class Visit:
    """One session on a host. `facts` is what became of it."""

    def __init__(self, host: Host, ssh: Sequence[str] = SSH) -> None:
        self.facts = HostFacts(host.name, host.address, host.python)
        self._host = host
        program = Path(host_script.__file__).read_bytes()
        loader = f"import sys; exec(compile(sys.stdin.buffer.read({len(program)}), 'visit', 'exec'), {{'__name__': '__main__'}})"
        command = f"exec {_quoted(host.python)} -c {shlex.quote(loader)}"
        self._process = subprocess.Popen(
            [*ssh, host.name, command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert self._process.stdin is not None
        with suppress(OSError):  # it has ended: `ask` tells of it
            self._process.stdin.write(program)

    def ask(self, do: str, **order: Any) -> dict[str, Any] | None:
        """What the host answers; None when it does not, which `facts` then tells."""
        if self.facts.problem or self.facts.exit_code:
            return None
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **order}).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = b""
        try:
            return dict(json.loads(line))
        except ValueError:
            self._gone(line)
            return None

    def look(self, packages: Sequence[str], addresses: Sequence[str], keys: str, probe: bool) -> None:
        """The clock, then everything else."""
        offsets = []
        for _ in range(CLOCKS):
            asked = time.time()
            if (answer := self.ask("clock")) is None:
                return
            answered = time.time()
            offsets.append(((answered - asked) / 2, answer["time"] - (asked + answered) / 2))
        said = self.ask(
            "facts",
            data=self._host.data,
            keys=keys,
            ports=list(RING_PORTS),
            packages=list(packages),
            addresses=list(addresses),
            probe=probe,
        )
        if said is not None:
            error, off = min(offsets)
            self.facts = replace(self.facts, said=said, clock_off_s=off, clock_error_s=error)

    def _gone(self, line: bytes) -> None:
        if line:  # a login that speaks before anything runs
            words, code = (
                f"its shell says {line.decode(errors='replace').strip()[:200]!r} at a login without a terminal",
                1,
            )
            self._process.kill()
        else:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(10.0)
            words, code = "", self._process.poll() or 0
        _, err = self._process.communicate(timeout=10.0)
        lines = err.decode(errors="replace").strip().splitlines()
        self.facts = replace(self.facts, problem=words or (lines[-1].strip() if lines else "it ended"), exit_code=code)

    def end(self) -> None:
        """At once: whoever waits for its answer gets none."""
        self._process.kill()

    def close(self) -> None:
        """End the visit: its stdin first, by force after 5 s."""
        with suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def examine_hosts(hosts: Hosts, keys: Path, *, probe: bool = True, ssh: Sequence[str] = SSH) -> list[Finding]:
    """Findings of every host that ssh reaches, and of every link between neighbours of the ring."""
    expected = Expected(
        ".".join(platform.python_version_tuple()[:2]), {name: version(name) for name in PACKAGES}, MANIFEST_FORMAT
    )
    addresses = [host.address for host in hosts.remote if host.address]
    visits: list[Visit] = []
    with ThreadPoolExecutor(max(1, len(hosts.remote))) as pool:
        try:
            visits.extend(Visit(host, ssh) for host in hosts.remote)
            list(pool.map(lambda one: one.look(PACKAGES, addresses, _unexpanded(keys), probe), visits))
            found = [finding for one in visits for finding in host_findings(one.facts, expected)]
            links = [link_finding(link) for link in [*_links(visits), *_links_home(visits)]]
        except KeyboardInterrupt:
            for one in visits:
                one.end()
            raise
        finally:
            list(pool.map(lambda one: one.close(), visits))
    return [*doubled((host.name, host.address) for host in hosts.remote), *found, *links]


def _links(visits: Sequence[Visit]) -> list[LinkFacts]:
    """Both directions between neighbours in the ring's order, one after the other: they would slow each other down."""
    reached = [one for one in visits if one.facts.said and one.facts.address in one.facts.said["addresses"]]
    pairs = list(zip(reached, reached[1:] + reached[:1], strict=True)) if len(reached) > 1 else []
    if len(reached) == 2:
        pairs = pairs[:1]
    return [_link(*pair) for one, other in pairs for pair in ((one, other), (other, one))]


def _links_home(visits: Sequence[Visit]) -> list[LinkFacts]:
    """From each host to this one, at the address that it knows this one by: workers dial the coordinator."""
    links = []
    for one in visits:
        if address := one.facts.said.get("asked_from"):
            port = host_script.listen({"address": "::" if ":" in address else ""})["port"]
            measured = one.ask("dial", address=address, port=port) or {"error": f"{one.facts.host} is gone"}
            links.append(replace(LinkFacts(one.facts.host, "here", address), **measured))
    return links


def _link(source: Visit, target: Visit) -> LinkFacts:
    address = target.facts.address
    link = LinkFacts(source.facts.host, target.facts.host, address)
    listening = target.ask("listen", address=address) or {"error": f"{target.facts.host} is gone"}
    if "error" in listening:
        return replace(link, error=listening["error"])
    measured = source.ask("dial", address=address, port=listening["port"]) or {"error": f"{source.facts.host} is gone"}
    return replace(link, **measured)


def _quoted(path: str) -> str:
    """For the login's shell, which expands a leading ~/."""
    return f"~/{shlex.quote(path[2:])}" if path.startswith("~/") else shlex.quote(path)


def _unexpanded(keys: Path) -> str:
    """The same folder in the login's home, where it lies in this user's."""
    home = Path.home()
    return f"~/{keys.relative_to(home)}" if keys.is_relative_to(home) else str(keys)
