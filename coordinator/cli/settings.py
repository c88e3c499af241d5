"""The settings of `coordinator`. Precedence: flag, environment variable, `cluster.toml`, default.

`coordinator config show` prints each setting with its value and origin.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from coordinator.workers.hostfile import per_host
from ingest.errors import UsageError
from ingest.periods import parse_bound
from ingest.routes import EIA_ROUTES
from ingest.settings import Layer, ResolvedSetting, at_least, check_keys, parse_codes, parse_names, read_toml
from ingest.settings import Setting as BaseSetting
from ingest.settings import resolve as resolve_layers
from ingest.sources import SOURCES

CONFIG_FILE = "cluster.toml"
PREFIX = "COORDINATOR_"  # of the settings' environment variables


def _source(value: Any) -> str:
    """Return a source with its name in lower case, so that `EIA` is `eia`; a path or URL behind the name stays as it is."""
    name, mark, rest = re.fullmatch(r"([^:+]*)([:+]?)(.*)", str(value).strip(), re.DOTALL).groups()  # type: ignore[union-attr]
    return name.lower() + mark + rest


def _trackers(value: Any) -> tuple[str, ...]:
    """Return the names of experiment trackers. Raises ValueError at one that is unknown."""
    from coordinator.stages.trackers import parse_trackers  # here: help needs none of what it loads

    return parse_trackers(parse_names(value))


def _rate(value: Any) -> float | None:
    """Return requests per second; `none`: no limit (inf); `policy`: the source's own ceiling (None).

    Raises:
        ValueError: the value is none of them.
    """
    if str(value) == "policy":
        return None
    try:
        rate = float("inf") if str(value) == "none" else float(value)
    except ValueError:
        rate = 0.0
    if not rate > 0:
        raise ValueError("expected a number above 0, `none` or `policy`")
    return rate


@dataclass(frozen=True)
class Setting(BaseSetting):
    """One setting: its flag is `--name`, its variable `COORDINATOR_NAME`, its key in cluster.toml `name`."""

    help: str
    kind: type = str  # of its flag; list[str]: it may be given several times, and all of its values count
    metavar: str = "TEXT"
    least: int | None = None  # of an integer

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return f"{PREFIX}{self.name.upper().replace('-', '_')}"


def _integer(name: str, default: int, least: int, help_text: str) -> Setting:
    return Setting(name, default, at_least(least), help_text, int, "INTEGER", least)


def _path(name: str, default: str, help_text: str) -> Setting:
    """Return a setting whose value is a path; an empty default means no path."""

    def parse(value: Any) -> Path | None:
        """Return the path. A default below the home folder stays as it is for a user without one, who may not need it."""
        try:
            return Path(str(value)).expanduser() if str(value) else None
        except RuntimeError:
            if value != default:
                raise ValueError(
                    "expected a path below a home folder that exists; none is known for this user"
                ) from None
            return Path(str(value))

    return Setting(name, default, parse, help_text, Path, "PATH")


def _text(name: str, default: str, parse: Callable[[Any], Any], help_text: str, metavar: str = "TEXT") -> Setting:
    return Setting(name, default, parse, help_text, str, metavar)


SETTINGS = (
    _path("data", "data", "Data folder: raw pages, manifests, series, journal."),
    _text(
        "source",
        "synthetic",
        _source,
        f"Where hours come from: synthetic | recordings:PATH[,PATH…] | auto | {' | '.join(SOURCES)} | [{'|'.join(f'{name}+' for name in SOURCES)}]URL.",
    ),
    Setting(
        "respondents",
        "PACW,ERCO,CISO,MISO,PJM",
        parse_codes,
        "EIA-930 codes of balancing authorities and regions, or all | bas | regions.",
        list[str],
    ),
    Setting(
        "routes",
        "",
        parse_names,
        "Routes of the source, or all (hourly) or daily: "
        + ", ".join(EIA_ROUTES)
        + " of eia. Empty: region-data and fuel-type-data of eia, BALANCE of bulk, all of oasis but prices.",
        list[str],
    ),
    _text(
        "start",
        "2019",
        lambda value: parse_bound(str(value), last=False),
        "First hour, UTC: YYYY, YYYY-MM, YYYY-MM-DD or YYYY-MM-DDTHH.",
        "TIME",
    ),
    _text(
        "end",
        "",
        lambda value: parse_bound(str(value), last=True) if str(value) else "",
        "Last hour, inclusive, in the same forms; YYYY includes the whole year. Empty: 2025; with --update, the present hour "
        "and the day-ahead values after it.",
        "TIME",
    ),
    _integer(
        "workers",
        2,
        1,
        "Number of local workers. With --hostfile: the number of its local entries (at least one, because series are "
        "built next to the data).",
    ),
    _text(
        "engine",
        "",
        str,
        "Run leases of extraction and rollouts on an executor instead of local workers: a function that returns a "
        "concurrent.futures.Executor. --workers then sets how many leases run at once, 4 for each, 1024 at most.",
        "MODULE:FACTORY",
    ),
    _path("hostfile", "", "Start a worker on each host of this mlx hostfile, over ssh."),
    _text("host-python", "", per_host, "Python on the hosts: PATH[,HOST=PATH…]. Empty: the same path as on this host."),
    _text(
        "host-data",
        "",
        per_host,
        "Data folder on the hosts: PATH[,HOST=PATH…]. Empty: the same path as on this host.",
    ),
    _integer("connections", 5, 1, "Connections (threads) of each worker to the source."),
    _text("bind", "tcp://127.0.0.1:0", str, "Address where workers connect. Addresses off loopback need CURVE keys."),
    _path("keys", "~/.ring-attention-energy/keys", "Folder of the CURVE keys."),
    _text(
        "rate",
        "policy",
        _rate,
        "Requests per second over all workers. policy: the source's ceiling. none: no limit.",
        "RATE",
    ),
    _integer("retries", 5, 1, "Maximum attempts per task. For training: maximum consecutive rounds without progress."),
    _path("run", "", "Run folder of the training. Empty: DATA/train."),
    _integer(
        "ranks",
        0,
        0,
        "Ranks of the training's ring, one per worker. 0: as many as workers, or as hosts in the hostfile.",
    ),
    _path(
        "train-config",
        "",
        "TOML file of settings of the training: `python -m worker.train --help` lists them. Empty: the defaults.",
    ),
    _path(
        "control-config",
        "",
        "TOML file of settings of the control training, e.g. `every = 1`: `Keys of --control-config` in docs/cli.md. Empty: the defaults.",
    ),
    Setting(
        "report-to",
        "",
        _trackers,
        "Report the figures of trainings to experiment trackers: tensorboard, mlflow, wandb, or several with commas.",
        list[str],
        "NAMES",
    ),
    _integer("revise-days", 14, 0, "Days before now that --update fetches again, because operators still revise them."),
)
BY_NAME = {setting.name: setting for setting in SETTINGS}


def check_variables(environ: Mapping[str, str]) -> None:
    """Refuse a variable that is nearly one of a setting. Others with the prefix may be anyone's: Kubernetes makes COORDINATOR_SERVICE_HOST.

    Raises:
        UsageError: it is named with the setting's variable.
    """
    known = {setting.variable.removeprefix(PREFIX): setting.variable for setting in SETTINGS}
    for name in sorted(environ):
        word = name.removeprefix(PREFIX)
        if name != word and word not in known and (near := get_close_matches(word, known, 1, 0.8)):
            raise UsageError(
                f"{name} is no setting (did you mean {known[near[0]]}?). Correct its name, or `unset {name}`."
            )


def resolve(flags: Mapping[str, Any], environ: Mapping[str, str], folder: Path) -> dict[str, ResolvedSetting]:
    """Return every setting with its origin: "flag", a variable's name, the path of `folder`/cluster.toml, or "default".

    Args:
        flags: setting → value of the command line; None: not given.
        environ: the environment variables.
        folder: the working folder, which may hold cluster.toml.

    Raises:
        UsageError: a value does not parse, cluster.toml has an unknown key or is not TOML, or a variable's name has a slip.
    """
    check_variables(environ)
    given = {name: value for name, value in flags.items() if value is not None}
    fix = "Give --{name} another value; `coordinator config show` prints the values in force."
    layers = [Layer("flag", given, fix)]
    layers += [
        Layer(variable, {setting.name: environ[variable]}, f"Set another value, or `unset {variable}`.")
        for setting in SETTINGS
        if (variable := setting.variable) in environ
    ]
    path = folder / CONFIG_FILE
    if path.exists():
        table = read_toml(path, "", "Correct the file, or remove it to use the defaults.")
        check_keys(table, list(BY_NAME), str(path))
        layers.append(Layer(str(path), table, f"Correct {{name}} in {path}, or remove the line."))
    return resolve_layers(SETTINGS, layers)
