"""Health checks of every host in a hostfile, over SSH and in parallel, and of the links between neighbours in the ring.

A host that is down is a finding, not an error. The remote program is `host_script.py`, sent through the session unchanged.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from coordinator.doctor import host_script
from coordinator.doctor.checks import (
    Expected,
    Finding,
    HostFacts,
    LinkFacts,
    duplicate_addresses,
    environment,
    host_findings,
    link_finding,
    same_arithmetic,
)
from coordinator.doctor.local import RING_PORTS
from coordinator.workers.hostfile import Host, Hosts
from coordinator.workers.ssh import (
    PACKAGES,
    explain_exit,
    local_versions,
    quote_remote_path,
    ssh_command,
    unexpected_output,
)
from ingest.models import MANIFEST_FORMAT

SSH = ssh_command(connect_timeout_s=5, alive_count=2)
CLOCK_SAMPLES = 5  # the sample with the shortest round trip bounds the clock's offset best


class HostProbe:
    """One SSH session that runs the host script on a host. `facts` holds the result."""

    def __init__(self, host: Host, ssh: Sequence[str] = SSH) -> None:
        """Start the session and send the script."""
        self.facts = HostFacts(host.name, host.address)
        self._host = host
        program = Path(host_script.__file__).read_bytes()
        loader = f"import sys; exec(compile(sys.stdin.buffer.read({len(program)}), 'host_script', 'exec'), {{'__name__': '__main__'}})"
        command = f"exec {quote_remote_path(host.python)} -c {shlex.quote(loader)}"
        self._process = subprocess.Popen(
            [*ssh, host.name, command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert self._process.stdin is not None
        with suppress(OSError):  # the session has ended: `ask` reports it
            self._process.stdin.write(program)

    def ask(self, do: str, **order: Any) -> dict[str, Any] | None:
        """Send one order and return the answer, or None when there is none; `facts.failure` then says why."""
        if self.facts.failure is not None:
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
            self._fail(line)
            return None

    def collect(
        self, packages: Sequence[str], addresses: Sequence[str], keys: str, environment: Mapping[str, str] | None
    ) -> None:
        """Measure the clock's offset, then collect all other facts.

        Args:
            packages: Names of the packages whose versions must be equal.
            addresses: The hosts' addresses in the hostfile.
            keys: Key folder.
            environment: What the host's worker gets, to measure speeds with; None measures none.
        """
        offsets = []
        for _ in range(CLOCK_SAMPLES):
            asked = time.time()
            if (answer := self.ask("clock")) is None:
                return
            answered = time.time()
            offsets.append(((answered - asked) / 2, answer["time"] - (asked + answered) / 2))
        collected = self.ask(
            "facts",
            data=self._host.data,
            keys=keys,
            ports=list(RING_PORTS),
            packages=list(packages),
            addresses=list(addresses),
            probe=environment is not None,
            environment=environment or {},
        )
        if collected is not None:
            error, offset = min(offsets)
            self.facts = replace(self.facts, collected=collected, clock_offset_s=offset, clock_error_s=error)

    def _fail(self, line: bytes) -> None:
        if line:
            self._process.kill()
            failure = unexpected_output(self._host, line)
            self._process.communicate(timeout=10.0)
        else:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(10.0)
            code = self._process.poll() or 0
            _, stderr = self._process.communicate(timeout=10.0)
            lines = stderr.decode(errors="replace").strip().splitlines()
            failure = explain_exit(self._host, code, lines[-1].strip() if lines else "")
        self.facts = replace(self.facts, failure=failure)

    def kill(self) -> None:
        """Kill the session; a pending `ask` returns None."""
        self._process.kill()

    def close(self) -> None:
        """End the session by closing its stdin; kill it after 5 s."""
        with suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def examine_hosts(hosts: Hosts, keys: Path, *, probe: bool = True, ssh: Sequence[str] = SSH) -> list[Finding]:
    """Check every remote host and every link between neighbours in the ring.

    Args:
        hosts: The hostfile.
        keys: This host's key folder; the same path is checked on each host.
        probe: Whether to measure kernels and BLAS there, which takes seconds.
        ssh: The `ssh` command line up to the host's name.

    Raises:
        KeyboardInterrupt: Ctrl-C; every session is killed first.
    """
    versions = local_versions()
    expected = Expected(versions.pop("python"), versions, MANIFEST_FORMAT)
    addresses = [host.address for host in hosts.remote if host.address]
    probes: list[HostProbe] = []
    with ThreadPoolExecutor(max(1, len(hosts.remote))) as pool:
        try:
            probes.extend(HostProbe(host, ssh) for host in hosts.remote)
            variables = hosts.worker_environment(os.environ) if probe else None
            list(pool.map(lambda one: one.collect(PACKAGES, addresses, _relative_to_home(keys), variables), probes))
            found = [finding for one in probes for finding in host_findings(one.facts, expected)]
            found += same_arithmetic([one.facts for one in probes])
            links = [link_finding(link) for link in [*_ring_links(probes), *_coordinator_links(probes)]]
        except KeyboardInterrupt:
            for one in probes:
                one.kill()
            raise
        finally:
            list(pool.map(lambda one: one.close(), probes))
    listed = [replace(one, name="hostfile") for one in environment(dict(hosts.environment))]
    return [*listed, *duplicate_addresses((host.name, host.address) for host in hosts.remote), *found, *links]


def _ring_links(probes: Sequence[HostProbe]) -> list[LinkFacts]:
    """Measure both directions between ring neighbours, one after another, because concurrent measurements share the link."""
    reached = [one for one in probes if one.facts.collected and one.facts.address in one.facts.collected["addresses"]]
    pairs = list(zip(reached, reached[1:] + reached[:1], strict=True)) if len(reached) > 1 else []
    if len(reached) == 2:
        pairs = pairs[:1]
    return [_measure_link(*pair) for one, other in pairs for pair in ((one, other), (other, one))]


def _coordinator_links(probes: Sequence[HostProbe]) -> list[LinkFacts]:
    """Measure from each host to this one, at the address from which it was reached: workers connect to the coordinator."""
    links = []
    for one in probes:
        if address := one.facts.collected.get("asked_from"):
            port = host_script.listen({"address": "::" if ":" in address else ""})["port"]
            measured = one.ask("dial", address=address, port=port) or {"error": f"{one.facts.host} is gone"}
            system = one.facts.collected["system"]
            links.append(replace(LinkFacts(one.facts.host, "here", address, system=system), **measured))
    return links


def _measure_link(source: HostProbe, target: HostProbe) -> LinkFacts:
    address = target.facts.address
    link = LinkFacts(source.facts.host, target.facts.host, address, system=source.facts.collected.get("system", ""))
    listening = target.ask("listen", address=address) or {"error": f"{target.facts.host} is gone"}
    if "error" in listening:
        return replace(link, error=listening["error"])
    measured = source.ask("dial", address=address, port=listening["port"]) or {"error": f"{source.facts.host} is gone"}
    return replace(link, **measured)


def _relative_to_home(path: Path) -> str:
    """Return `~/…` for a path below this user's home, so that it names the same folder in another login's home."""
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)
