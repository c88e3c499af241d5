"""`coordinator doctor`: what this host has and lacks for the stages, each finding with its fix. Measures, binds and reads; changes nothing.

Checks are functions of what they look at → findings; `examine` runs them all. Speeds come from `python -m worker.probe`,
once with this environment and once with that of a rank, in processes of their own: a BLAS is chosen when a process starts.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from coordinator.curve import is_loopback

PACKAGE = "ring-attention-energy"
PROBE_S = 120.0  # at most, for one probe
LEAST_FREE = 2 << 30  # bytes: the five default respondents' seven years and a training take about 1 GB
SLOW = 0.25  # mlx's matrix products ÷ numpy's, in a rank: less is a BLAS that does not use this CPU
RING_PORTS = range(32323, 32327)  # mlx.launch's first ones; rings of a coordinator find free ones by themselves


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `fix` is what to do, empty where all is fine."""

    name: str
    state: Literal["fine", "mend"]
    seen: str
    fix: str = ""


def fine(name: str, seen: str) -> Finding:
    return Finding(name, "fine", seen)


def mend(name: str, seen: str, fix: str) -> Finding:
    return Finding(name, "mend", seen, fix)


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
        if version is None or _numbers(version) < _numbers(least):
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


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


def python(facts: Mapping[str, Any]) -> list[Finding]:
    """The interpreter that workers and ranks run on."""
    seen = f"{facts['python']} ({facts['executable']}) on {facts['platform']}"
    if _numbers(facts["python"]) < (3, 11):
        return [mend("python", seen, "use Python 3.11 or later: `uv sync --python 3.12`")]
    return [fine("python", seen)]


def backend(facts: Mapping[str, Any]) -> list[Finding]:
    """MLX's device, and the ring that ranks join."""
    seen = f"device {facts['device']}, ring {'available' if facts['ring'] else 'missing'}"
    if not facts["ring"]:
        return [
            mend(
                "mlx", seen, "this mlx was built without its ring: install the wheel, `uv sync --reinstall-package mlx`"
            )
        ]
    return [fine("mlx", seen)]


def speeds(plain: Mapping[str, Any], rank: Mapping[str, Any]) -> list[Finding]:
    """Matrix products of numpy and of mlx on the CPU, as a process finds it and as a rank gets it."""
    numpy, before, after = plain["numpy_gflops"], plain["mlx_cpu_gflops"], rank["mlx_cpu_gflops"]
    seen = f"numpy {numpy:.0f} GFLOP/s; mlx {before:.0f}, in a rank {after:.0f} ({rank['blas'].removeprefix('BLAS: ')})"
    if plain["device"] == "cpu" and after < SLOW * numpy:
        return [
            mend("BLAS", seen, "install OpenBLAS, e.g. `apt-get install libopenblas0-pthread`: ranks then preload it")
        ]
    return [fine("BLAS", seen)]


def kernels(facts: Mapping[str, Any]) -> list[Finding]:
    """Attention kernels: which one is used, and why each of the others can't be."""
    if facts["kernel_refusal"]:
        return [mend("kernels", "none can be used", facts["kernel_refusal"])]
    missing = {name: why for name, why in facts["kernels"].items() if why is not None}
    usable = ", ".join(name for name in facts["kernels"] if name not in missing)
    isa = f" ({facts['isa']})" if facts["kernel"] == "native" and facts["isa"] else ""
    seen = f"{facts['kernel']}{isa} is used; usable: {usable}"
    if facts["device"] == "cpu" and "native" in missing:
        return [mend("kernels", f"{seen}; native can't be", missing["native"])]
    return [fine("kernels", seen)]


# -- looking -------------------------------------------------------------------------------------------------------------


def examine(data_dir: Path, bind: str, keys: Path) -> list[Finding]:
    """All findings, the machine's first."""
    installed = {name.lower(): dist.version for dist in metadata.distributions() if (name := dist.metadata["Name"])}
    found = packages(metadata.requires(PACKAGE) or [], installed, sys.platform)
    plain, rank = probe(), probe("--as-rank")
    if isinstance(plain, str) or isinstance(rank, str):
        words = plain if isinstance(plain, str) else str(rank)
        found.append(mend("probe", words, "`python -m worker.probe` shows the error; `uv sync` mends a broken install"))
    else:
        found += [*python(plain), *backend(plain), *speeds(plain, rank), *kernels(plain)]
    return [*found, *ports(bind), *disk(data_dir), *key_files(keys, bind)]


def probe(*arguments: str) -> dict[str, Any] | str:
    """What `worker.probe` prints, or why it does not."""
    environment = {name: value for name, value in os.environ.items() if name not in ("MLX_RANK", "MLX_HOSTFILE")}
    command = [sys.executable, "-m", "worker.probe", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_S, check=True, env=environment)
        return dict(json.loads(done.stdout.splitlines()[-1]))
    except subprocess.CalledProcessError as error:
        return (error.stderr.strip().splitlines() or [f"exit code {error.returncode}"])[-1]
    except (subprocess.TimeoutExpired, OSError, ValueError, IndexError) as error:
        return str(error)


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


def disk(data_dir: Path) -> list[Finding]:
    """Room, and the right to write, where the data folder is or will be."""
    there = next(path for path in [data_dir.absolute(), *data_dir.absolute().parents] if path.exists())
    free = shutil.disk_usage(there).free
    seen = f"{free / 1e9:.1f} GB free at {data_dir}"
    if not os.access(there, os.W_OK):
        return [mend("disk", f"{there} can't be written", "name another folder with --data, or change its owner")]
    if free < LEAST_FREE:
        return [mend("disk", seen, f"free {LEAST_FREE / 1e9:.0f} GB, or name a folder on another disk with --data")]
    return [fine("disk", seen)]


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


# -- saying --------------------------------------------------------------------------------------------------------------


def report(findings: list[Finding]) -> dict[str, Any]:
    """As plain data; `fine` is what the exit code goes by."""
    return {"fine": all(finding.state == "fine" for finding in findings), "findings": [asdict(f) for f in findings]}


def describe(findings: list[Finding]) -> str:
    """As text: a line a finding, its fix below it."""
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{'ok  ' if finding.state == 'fine' else 'MEND'}  {finding.name:<{width}}  {finding.seen}")
        if finding.fix:
            lines.append(f"{'':{width + 8}}→ {finding.fix}")
    return "\n".join(lines)
