"""Hostfiles as mlx writes them: which hosts there are, how ssh reaches each, and at which addresses its neighbours do."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingest.errors import UsageError

HERE = ("127.0.0.1", "localhost")  # mlx's sign for "start it here, without ssh"
NEXT = "hostfiles/README.md says how to fill one in"


@dataclass(frozen=True)
class Host:
    """One host that ssh reaches. `name` is what ssh is given; `address`, where its neighbours in the ring reach it."""

    name: str
    address: str
    python: str
    data: str  # data folder there; relative ones and ~ are of the login's home


@dataclass(frozen=True)
class Hosts:
    """A hostfile: hosts in the ring's order, entries of this host counted apart, and the environment of every worker."""

    remote: tuple[Host, ...]
    here: int
    environment: tuple[tuple[str, str], ...] = ()

    @property
    def size(self) -> int:
        """Ranks of the ring, one an entry."""
        return len(self.remote) + self.here


def read_hosts(path: Path, python: Mapping[str, str], data: Mapping[str, str]) -> Hosts:
    """A hostfile with the settings of each host; `python`, `data`: host's name → value, "" for all others.

    UsageError, naming the entry, for what mlx would not take either, and for settings of hosts that it does not list.
    """
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"hostfile {path}: {error}; {NEXT}.") from None
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
        raise UsageError(f"hostfile {path}: {min(twice)} stands there twice; a host holds one rank, name it once.")
    if unknown := (set(python) | set(data)) - set(names) - {""}:
        raise UsageError(f"{min(unknown)!r} has a setting of its own, but {path} does not list it: it lists {names}.")
    return Hosts(tuple(remote), here, _environment(path, found))


def _entry(path: Path, number: int, entry: Any) -> tuple[str, list[str]]:
    name = entry.get("ssh") if isinstance(entry, dict) else None
    addresses = entry.get("ips", []) if isinstance(entry, dict) else None
    # ssh takes a name that begins with a dash for an option.
    if not isinstance(name, str) or not re.fullmatch(r"[^\s-]\S{0,127}", name):
        raise UsageError(f'hostfile {path}: host {number} needs "ssh": a name that `ssh NAME` reaches; {NEXT}.')
    if not isinstance(addresses, list) or not all(isinstance(address, str) for address in addresses):
        raise UsageError(f'hostfile {path}: {name} needs "ips": a list of addresses; {NEXT}.')
    return name, addresses


def _environment(path: Path, found: Any) -> tuple[tuple[str, str], ...]:
    lines = found.get("envs", []) if isinstance(found, dict) else []
    if not isinstance(lines, list) or not all(isinstance(line, str) and "=" in line for line in lines):
        raise UsageError(f'hostfile {path}: "envs" is a list of "NAME=value"; {NEXT}.')
    return tuple((name, value) for name, _, value in (line.partition("=") for line in lines))


def per_host(value: Any) -> dict[str, str]:
    """`PATH`, or `PATH,host2=PATH`, or a TOML table → host's name → value, "" for all others.

    ValueError for a host that comes twice.
    """
    if isinstance(value, dict):
        return {str(name): str(text) for name, text in value.items()}
    items = [item.strip() for item in str(value).split(",") if item.strip()]
    pairs = [item.rpartition("=") for item in items]
    if len({name for name, _, _ in pairs}) < len(pairs):
        raise ValueError("a host has two values")
    return {name: text for name, _, text in pairs}


def hosts_from(settings: Mapping[str, Any]) -> Hosts | None:
    """The hosts of resolved settings; None without a hostfile. By default a host has this one's Python and data folder."""
    if settings["hostfile"] is None:
        return None
    here = {"": sys.executable}, {"": str(settings["data"].absolute())}
    return read_hosts(settings["hostfile"], here[0] | settings["host-python"], here[1] | settings["host-data"])
