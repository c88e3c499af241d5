"""Health checks of this host for `coordinator doctor`. Measures, binds ports and reads files; changes nothing.

`coordinator/doctor/checks.py` interprets what is found. Speeds come from `python -m worker.process.probe`, once with this
environment and once with that of a rank, each in a new process, because a BLAS is chosen when a process starts.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

from coordinator.doctor import host_script
from coordinator.doctor.checks import (
    Finding,
    disk,
    environment,
    folder,
    key_modes,
    numbers,
    ok,
    probes,
    problem,
    python,
    sleep,
    system,
)
from coordinator.doctor.host_script import probe
from coordinator.stages.fleet import reachable_bind
from coordinator.wire.auth import is_loopback, loopback_address
from ingest.files import visible
from ingest.models import MANIFEST_FORMAT

PACKAGE = "ring-attention-energy"
RING_PORTS = range(32323, 32327)  # the first ports of mlx.launch; the coordinator's rings choose free ports


def packages(required: Iterable[str], installed: Mapping[str, str], platform: str) -> list[Finding]:
    """Compare requirements, as package metadata lists them, with the installed versions.

    Requirements of extras and of other systems are ignored.
    """
    found, short = [], []
    for line in required:
        requirement, _, marker = (part.strip() for part in line.partition(";"))
        if "extra" in marker or ("sys_platform" in marker and f'"{platform}"' not in marker):
            continue
        name, _, least = requirement.partition(">=")
        name = name.partition("[")[0]
        version = installed.get(name)
        if version is None or numbers(version) < numbers(least):
            short.append(f"{name} {version or 'is missing'} (needs {least})")
        else:
            found.append(f"{name} {version}")
    if short:
        return [
            problem(
                "packages", ", ".join(short), "`uv sync` in the project's folder installs what pyproject.toml asks for"
            )
        ]
    return [ok("packages", ", ".join(found))]


def examine(data_dir: Path, bind: str, keys: Path) -> list[Finding]:
    """Run all checks of this host, the machine's first.

    Args:
        data_dir: The data folder; need not exist.
        bind: The coordinator's endpoint, `tcp://host:port`.
        keys: The key folder; need not exist.
    """
    installed = {name.lower(): dist.version for dist in metadata.distributions() if (name := dist.metadata["Name"])}
    found = packages(metadata.requires(PACKAGE) or [], installed, sys.platform)
    plain, rank = probe({}), probe({}, "--as-rank")
    if not isinstance(plain, str):
        found += python(plain)
    found += probes(plain, rank)
    found += [*system(host_script.system() | {"platform": sys.platform}), *environment(os.environ)]
    return [*found, *ports(bind), *room(data_dir), *key_files(keys, bind), *sleep(host_script.sleep_settings())]


def ports(bind: str) -> list[Finding]:
    """Check the coordinator's port and the first ports of `mlx.launch`."""
    bind = reachable_bind(bind, None)
    host, _, port = bind.removeprefix("tcp://").rpartition(":")
    host = host.strip("[]")
    found = []
    if reason := _refused(host, [int(port)]):
        fix = "stop the listener (`coordinator status` shows a coordinator), or name another port with --bind"
        found.append(problem("bind", f"{bind}: {reason}", fix))
    else:
        found.append(ok("bind", f"{bind} is free"))
    if reason := _refused(loopback_address(), RING_PORTS):
        fix = "`mlx.launch --starting-port PORT` uses others; the coordinator's rings choose free ports"
        found.append(problem("ring ports", f"mlx.launch's ports {RING_PORTS[0]} to {RING_PORTS[-1]}: {reason}", fix))
    else:
        found.append(ok("ring ports", f"{RING_PORTS[0]} to {RING_PORTS[-1]} are free for mlx.launch"))
    return found


def _refused(host: str, numbers: Iterable[int]) -> str:
    """Return why one of these ports cannot be bound, or "" when all can."""
    refusals = ((number, host_script.port_refusal(host.replace("*", ""), number)) for number in numbers)
    return next((f"port {number}: {reason}" for number, reason in refusals if reason), "")


def room(data_dir: Path) -> list[Finding]:
    """Check free space, write access, the lock and the format of the data folder."""
    there = next(path for path in [data_dir.absolute(), *data_dir.absolute().parents] if path.exists())
    free, unwritable = shutil.disk_usage(there).free, host_script.unwritable(str(there))
    data = str(data_dir)
    return [
        disk(free, unwritable, data),
        folder(host_script.holder(data), host_script.formats(data), MANIFEST_FORMAT, data),
    ]


def key_files(keys: Path, bind: str) -> list[Finding]:
    """Check that CURVE keys exist where the bind needs them and that no other user can read them."""
    files = [
        path
        for path in (keys / "coordinator.key", keys / "allowed.json", *visible(keys.glob("workers/*.key"), keys))
        if path.exists()
    ]
    open_to_others = [path for path in files if path.stat().st_mode & 0o077]
    if open_to_others:
        return [key_modes(map(str, open_to_others))]
    if not files and not is_loopback(bind):
        return [
            problem(
                "keys",
                f"none in {keys}, and {bind} is off loopback",
                "`coordinator keys add NAME`, once for each worker's host",
            )
        ]
    seen = f"{len(files)} files in {keys}, mode 600" if files else f"none in {keys}; not needed on loopback"
    return [ok("keys", seen)]
