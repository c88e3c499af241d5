"""Settings and where each came from: flag, environment, `cluster.toml`, default, in that order.

`coordinator config show` prints the table. A setting that does not parse is a UsageError naming its origin.
"""

from __future__ import annotations

import calendar
import difflib
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from coordinator.workers.hostfile import per_host
from ingest.errors import UsageError

CONFIG_FILE = "cluster.toml"


def _moment(value: Any, last: bool) -> str:
    """`2024`, `2024-01`, `2024-01-31` or `2024-01-31T05` → its first (or last) hour as `YYYY-MM-DDTHH`."""
    text = str(value).strip()
    day, _, hour = text.partition("T")
    try:
        numbers = [int(part) for part in day.split("-")]
    except ValueError:
        numbers = []
    year, month, date = [*numbers, 0, 0, 0][:3] if len(numbers) <= 3 else (0, 0, 0)
    if not 2000 <= year <= 2100:
        raise ValueError("expected YYYY, YYYY-MM, YYYY-MM-DD or YYYY-MM-DDTHH")
    month = month or (12 if last else 1)
    date = date or (calendar.monthrange(year, month)[1] if last else 1)
    return datetime(year, month, date, int(hour or (23 if last else 0)), tzinfo=UTC).strftime("%Y-%m-%dT%H")


def _codes(value: Any) -> tuple[str, ...]:
    """`PACW,ERCO` or a TOML list → upper-case codes, in order, each once."""
    items = value if isinstance(value, list) else str(value).split(",")
    return tuple(dict.fromkeys(str(item).strip().upper() for item in items if str(item).strip()))


def _positive(value: Any) -> int:
    number = int(value)
    if number < 1:
        raise ValueError("must be 1 or more")
    return number


def _count(value: Any) -> int:
    number = int(value)
    if number < 0:
        raise ValueError("must be 0 or more")
    return number


def _rate(value: Any) -> float | None:
    """Requests per second; `none` = no limit; `policy` = the source's own ceiling."""
    if str(value) == "policy":
        return None
    rate = float("inf") if str(value) == "none" else float(value)
    if rate <= 0:
        raise ValueError("must be above 0, or `none`")
    return rate


@dataclass(frozen=True)
class Setting:
    """One setting: its flag is `--name`, its variable `COORDINATOR_NAME`, its key in cluster.toml `name`."""

    name: str
    default: Any
    parse: Callable[[Any], Any]
    help: str

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return f"COORDINATOR_{self.name.upper().replace('-', '_')}"


SETTINGS = (
    Setting("data", "data", lambda v: Path(str(v)), "data folder: raw pages, manifests, series, journal"),
    Setting(
        "source",
        "synthetic",
        str,
        "synthetic | recordings:PATH[,PATH…] | eia | bulk | oasis | [eia+|bulk+|oasis+]URL",
    ),
    Setting("respondents", "PACW,ERCO,CAL,TEX,MISO", _codes, "EIA-930 codes of balancing authorities and regions"),
    Setting(
        "start", "2019", lambda v: _moment(v, last=False), "first hour, UTC: YYYY, YYYY-MM, YYYY-MM-DD or YYYY-MM-DDTHH"
    ),
    Setting("end", "2025", lambda v: _moment(v, last=True), "last hour, inclusive: YYYY is all of that year"),
    Setting(
        "workers",
        2,
        _positive,
        "workers to start on this host; with a hostfile: its entries of this host, else one, to build series where the data is",
    ),
    Setting(
        "hostfile",
        "",
        lambda v: Path(str(v)).expanduser() if str(v) else None,
        "start a worker on each host of this mlx hostfile, over ssh",
    ),
    Setting("host-python", "", per_host, "Python on the hosts: PATH[,HOST=PATH…]; empty = the same path as here"),
    Setting("host-data", "", per_host, "data folder on the hosts: PATH[,HOST=PATH…]; empty = the same path as here"),
    Setting("connections", 5, _positive, "connections (threads) of each worker to the source"),
    Setting("bind", "tcp://127.0.0.1:0", str, "where workers connect; off loopback only with CURVE keys"),
    Setting("keys", "~/.ring-attention-energy/keys", lambda v: Path(str(v)).expanduser(), "folder of the CURVE keys"),
    Setting(
        "rate", "policy", _rate, "requests per second over all workers; policy = the source's ceiling; none = no limit"
    ),
    Setting(
        "retries",
        5,
        _positive,
        "failures of one task before it is quarantined; of rounds in succession before a training gives up",
    ),
    Setting("run", "", lambda v: Path(str(v)) if str(v) else None, "run folder of the training; empty = DATA/train"),
    Setting(
        "ranks",
        0,
        _count,
        "ranks of the training's ring, one a worker; 0 = as many as workers, or as hosts in the hostfile",
    ),
    Setting(
        "train-config",
        "",
        lambda v: Path(str(v)).expanduser() if str(v) else None,
        "TOML file that worker/train.py reads; empty = its defaults",
    ),
    Setting(
        "control-config",
        "",
        lambda v: Path(str(v)).expanduser() if str(v) else None,
        "TOML file that worker/control/config.py reads; empty = its defaults",
    ),
    Setting("revise-days", 14, _count, "days that --update asks for again, since operators still revise them"),
)


@dataclass(frozen=True)
class Resolved:
    """A value and where it came from: "flag", the variable's name, the file's path, or "default"."""

    value: Any
    origin: str


def resolve(flags: Mapping[str, Any], environ: Mapping[str, str], folder: Path) -> dict[str, Resolved]:
    """Every setting with its origin. `flags` holds only what was given on the command line (None = not given).

    Raises UsageError for a value that does not parse and for an unknown key in cluster.toml.
    """
    path = folder / CONFIG_FILE
    table: dict[str, Any] = {}
    if path.exists():
        try:
            table = tomllib.loads(path.read_text())
        except tomllib.TOMLDecodeError as error:
            raise UsageError(f"{path}: not TOML: {error}. Mend the file, or remove it to use the defaults.") from error
        unknown = sorted(set(table) - {s.name for s in SETTINGS})
        if unknown:
            known = [s.name for s in SETTINGS]
            near = difflib.get_close_matches(unknown[0], known, n=1)
            meant = f" (did you mean {near[0]!r}?)" if near else ""
            raise UsageError(
                f"{path}: unknown setting {unknown[0]!r}{meant}. Mend or remove the line; known settings: {', '.join(known)}."
            )
    resolved = {}
    for setting in SETTINGS:
        if flags.get(setting.name) is not None:
            raw, origin = flags[setting.name], "flag"
        elif setting.variable in environ:
            raw, origin = environ[setting.variable], setting.variable
        elif setting.name in table:
            raw, origin = table[setting.name], str(path)
        else:
            raw, origin = setting.default, "default"
        try:
            resolved[setting.name] = Resolved(setting.parse(raw), origin)
        except (ValueError, TypeError) as error:
            raise UsageError(
                f"{setting.name} = {raw!r} (from {origin}): {error}. It means: {setting.help}. {_next(setting, origin)}"
            ) from error
    return resolved


def _next(setting: Setting, origin: str) -> str:
    """What to do about a value that does not parse."""
    if origin == "flag":
        return f"Give --{setting.name} another value; `coordinator config show` prints those in force."
    if origin == setting.variable:
        return f"Set another value, or `unset {origin}`."
    return f"Mend {setting.name} in {origin}, or remove the line."


def check_toml(name: str, path: Path | None) -> None:
    """UsageError when the file that setting `name` names is there and is not TOML."""
    if path is None or not path.is_file():
        return
    try:
        tomllib.loads(path.read_text())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(
            f"{name} {path}: not TOML: {error}. Mend the file, or start without --{name} for the defaults."
        ) from error
