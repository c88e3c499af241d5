"""Read hostfiles in mlx's format: the hosts, how ssh reaches each, and the address that its neighbours in the ring use."""

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingest.errors import UsageError, quoted
from ringattn.macos import JACCL_REFUSAL, local_name_problem

HERE = ("127.0.0.1", "localhost")  # mlx starts these entries on this host, without ssh
NEXT = "hostfiles/README.md explains the format"


CARRIED = ("OPENBLAS_CORETYPE",)  # OpenBLAS's code for a kind of CPU: another one rounds differently


@dataclass(frozen=True)
class Host:
    """A host that ssh reaches."""

    name: str  # as passed to ssh
    address: str  # where its neighbours in the ring reach it
    python: str  # path of its Python
    data: str  # its data folder; relative paths and ~ start at the login's home


@dataclass(frozen=True)
class Hosts:
    """A hostfile: remote hosts in the ring's order, the number of entries for this host, and every worker's environment."""

    remote: tuple[Host, ...]
    here: int
    environment: tuple[tuple[str, str], ...] = ()

    @property
    def size(self) -> int:
        """Return the number of ranks of the ring: one per entry."""
        return len(self.remote) + self.here

    def worker_environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Return the variables that workers on remote hosts get: the hostfile's, and of `environ` what decides bits.

        A variable of the hostfile comes before the same one of `environ`.
        """
        return {name: environ[name] for name in CARRIED if name in environ} | dict(self.environment)


def read_hosts(path: Path, python: Mapping[str, str], data: Mapping[str, str]) -> Hosts:
    """Read a hostfile and combine it with the settings of each host.

    Args:
        path: The hostfile.
        python: Host's name → path of its Python; the key "" holds the default.
        data: Host's name → its data folder; the key "" holds the default.

    Raises:
        UsageError: An entry is not valid (mlx would refuse it too), a host is listed twice, or a setting names an unlisted host.
    """
    found = _parsed(path)
    _check_backend(path, found)
    entries = found.get("hosts") if isinstance(found, dict) else found
    if not isinstance(entries, list) or not entries:
        raise UsageError(f'hostfile {path}: expected a list of {{"ssh": …, "ips": […]}} under "hosts"; {NEXT}.')
    remote, here = [], 0
    for number, entry in enumerate(entries):
        name, addresses = _entry(path, number, entry)
        if name in HERE:
            here += 1
        else:
            chosen = {what: values.get(name, values.get("", "")) for what, values in (("p", python), ("d", data))}
            remote.append(Host(name, addresses[0] if addresses else "", chosen["p"], chosen["d"]))
    names = [host.name for host in remote]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UsageError(f"hostfile {path}: {min(twice)} is listed twice; a host holds one rank, list it once.")
    if unknown := (set(python) | set(data)) - set(names) - {""}:
        raise UsageError(
            f"--host-python or --host-data names {min(unknown)!r}, but {path} lists only {names}: correct the name."
        )
    return Hosts(tuple(remote), here, _environment(path, found))


def _parsed(path: Path) -> Any:
    """Return the document in a hostfile.

    Raises:
        UsageError: it can't be read, or is no JSON.
    """
    try:
        text = path.read_bytes().decode()
        return json.loads(text)
    except OSError as error:
        raise UsageError(f"hostfile {path}: {error.strerror}; {NEXT}.") from None
    except json.JSONDecodeError as error:
        ends = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")
        place = f"line {error.lineno}, column {error.colno}"
        problem = f"it is no JSON from {place} on"
        if ends:
            problem = f"it ends too early: what begins at {place} is not complete" if text.strip() else "it is empty"
    except (ValueError, RecursionError):
        problem = "it is no text in UTF-8, or nested too deeply"
    raise UsageError(
        f"hostfile {path}: {problem}. Correct it, then `coordinator doctor --hostfile {quoted(path)}` checks it; {NEXT}."
    )


def _check_backend(path: Path, found: Any) -> None:
    """Refuse another backend than the ring, which would otherwise run as TCP without a word."""
    backend = found.get("backend", "") if isinstance(found, dict) else ""
    if backend in ("", "any", "ring"):
        return
    reason = JACCL_REFUSAL if str(backend).startswith("jaccl") else "the coordinator starts mlx's TCP ring only"
    raise UsageError(
        f'hostfile {path}: "backend": {json.dumps(backend)} is not supported: {reason}. Write "ring"; {NEXT}.'
    )


def _entry(path: Path, number: int, entry: Any) -> tuple[str, list[str]]:
    name = entry.get("ssh") if isinstance(entry, dict) else None
    addresses = entry.get("ips", []) if isinstance(entry, dict) else None
    # ssh reads a name that begins with a dash as an option.
    if not isinstance(name, str) or not re.fullmatch(r"[^\s-]\S{0,127}", name):
        raise UsageError(f'hostfile {path}: host {number} needs "ssh": a name that `ssh NAME` reaches; {NEXT}.')
    if not isinstance(addresses, list) or not all(isinstance(address, str) for address in addresses):
        raise UsageError(f'hostfile {path}: {name} needs "ips": a list of addresses; {NEXT}.')
    if problem := next(filter(None, map(local_name_problem, addresses)), ""):
        raise UsageError(f'hostfile {path}: {name}: in "ips", {problem}; names are for "ssh" only; {NEXT}.')
    return name, addresses


def _environment(path: Path, found: Any) -> tuple[tuple[str, str], ...]:
    lines = found.get("envs", []) if isinstance(found, dict) else []
    if not isinstance(lines, list) or not all(isinstance(line, str) and "=" in line for line in lines):
        raise UsageError(f'hostfile {path}: "envs" is a list of "NAME=value"; {NEXT}.')
    return tuple((name, value) for name, _, value in (line.partition("=") for line in lines))


def per_host(value: Any) -> dict[str, str]:
    """Parse a per-host setting: `PATH`, `PATH,host2=PATH`, or a TOML table.

    Returns:
        Host's name → value; the key "" holds the default.

    Raises:
        ValueError: A host is listed twice.
    """
    if isinstance(value, dict):
        return {str(name): str(text) for name, text in value.items()}
    items = [item.strip() for item in str(value).split(",") if item.strip()]
    pairs = [item.rpartition("=") for item in items]
    if len({name for name, _, _ in pairs}) < len(pairs):
        raise ValueError("a host is listed twice; give each host one value")
    return {name: text for name, _, text in pairs}


def hosts_from(settings: Mapping[str, Any]) -> Hosts | None:
    """Return the hosts of resolved settings, or None without a hostfile. A host's default Python and data folder are this host's."""
    if settings["hostfile"] is None:
        return None
    here = {"": sys.executable}, {"": str(settings["data"].absolute())}
    return read_hosts(settings["hostfile"], here[0] | settings["host-python"], here[1] | settings["host-data"])
