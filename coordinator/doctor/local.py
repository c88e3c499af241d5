"""`coordinator doctor`: what this host has and lacks for the stages, each finding with its fix. Measures, binds and reads; changes nothing.

`examine` looks; what is seen means what `coordinator/doctor/checks.py` says. Speeds come from `python -m worker.process.probe`,
once with this environment and once with that of a rank, in processes of their own: a BLAS is chosen when a process starts.
"""

from __future__ import annotations

import shutil
import socket
import sys
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path

from coordinator.doctor import host_script
from coordinator.doctor.checks import Finding, disk, fine, folder, mend, numbers, probes, python, sleep
from coordinator.doctor.host_script import probe
from coordinator.wire.auth import is_loopback
from ingest.models import MANIFEST_FORMAT

PACKAGE = "ring-attention-energy"
RING_PORTS = range(32323, 32327)  # mlx.launch's first ones; rings of a coordinator find free ones by themselves


# -- what each thing means ---------------------------------------------------------------------------------------------


def packages(required: Iterable[str], installed: Mapping[str, str], platform: str) -> list[Finding]:
    """Requirements as package metadata has them, against versions found. What is for extras or another system is left out."""
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
            mend(
                "packages", ", ".join(short), "`uv sync` in the project's folder installs what pyproject.toml asks for"
            )
        ]
    return [fine("packages", ", ".join(found))]


# -- looking -------------------------------------------------------------------------------------------------------------


def examine(data_dir: Path, bind: str, keys: Path) -> list[Finding]:
    """All findings, the machine's first."""
    installed = {name.lower(): dist.version for dist in metadata.distributions() if (name := dist.metadata["Name"])}
    found = packages(metadata.requires(PACKAGE) or [], installed, sys.platform)
    plain, rank = probe(), probe("--as-rank")
    if not isinstance(plain, str):
        found += python(plain)
    found += probes(plain, rank)
    return [*found, *ports(bind), *room(data_dir), *key_files(keys, bind), *sleep(host_script.sleep_settings())]


def ports(bind: str) -> list[Finding]:
    """The coordinator's own port, and those that `mlx.launch` takes first."""
    host, _, port = bind.removeprefix("tcp://").rpartition(":")
    host = host.strip("[]")
    found = []
    if reason := _refused(host, [int(port)]):
        fix = "stop what listens there (`coordinator status` shows a coordinator), or name another port with --bind"
        found.append(mend("bind", f"{bind}: {reason}", fix))
    else:
        found.append(fine("bind", f"{bind} is free"))
    if reason := _refused("127.0.0.1", RING_PORTS):
        fix = "`mlx.launch --starting-port PORT` takes others; a coordinator's rings find free ones by themselves"
        found.append(mend("ring ports", f"mlx.launch's ports {RING_PORTS[0]} to {RING_PORTS[-1]}: {reason}", fix))
    else:
        found.append(fine("ring ports", f"{RING_PORTS[0]} to {RING_PORTS[-1]} are free for mlx.launch"))
    return found


def _refused(host: str, numbers: Iterable[int]) -> str:
    """Why one of these ports can't be listened on; "" when all can."""
    with ExitStack() as stack:
        for number in numbers:
            try:
                family = socket.AF_INET6 if ":" in host else socket.AF_INET
                stack.enter_context(socket.create_server((host.replace("*", ""), number), family=family))
            except OSError as error:
                return f"port {number}: {error.strerror or error}"
    return ""


def room(data_dir: Path) -> list[Finding]:
    """Room, and the right to write, where the data folder is or will be; who holds it, and what was left there."""
    there = next(path for path in [data_dir.absolute(), *data_dir.absolute().parents] if path.exists())
    free, unwritable = shutil.disk_usage(there).free, host_script.unwritable(str(there))
    data = str(data_dir)
    return [
        disk(free, unwritable, data),
        folder(host_script.holder(data), host_script.formats(data), MANIFEST_FORMAT, data),
    ]


def key_files(keys: Path, bind: str) -> list[Finding]:
    """CURVE keys: there where the bind needs them, and nobody else's to read."""
    files = [
        path for path in (keys / "coordinator.key", keys / "allowed.json", *keys.glob("workers/*.key")) if path.exists()
    ]
    open_to_others = [path for path in files if path.stat().st_mode & 0o077]
    if open_to_others:
        names = " ".join(map(str, open_to_others))
        return [
            mend("keys", f"others can read {names}", f"`chmod 600 {names}`; make new keys if others may have read them")
        ]
    if not files and not is_loopback(bind):
        return [
            mend(
                "keys",
                f"none in {keys}, and {bind} is off loopback",
                "`coordinator keys add NAME`, one a worker's host",
            )
        ]
    seen = f"{len(files)} files in {keys}, mode 600" if files else f"none in {keys}; none are needed on loopback"
    return [fine("keys", seen)]
