"""Settings of a training run: a dataclass whose fields are flags of `worker/train.py` and keys of its TOML file."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingest.errors import UsageError
from ingest.features import Reference
from ingest.settings import Layer, check_keys, read_toml, resolve, settings_of
from worker.argparse_errors import Parser
from worker.training.tokens import Period


@dataclass(frozen=True)
class TrainConfig:
    """Every field is a flag (`--piece-hours 4380`) and a key of `--config FILE.toml` (`piece_hours = 4380`); the flag wins.

    data: data folder with the series.
    run: folder of this run's checkpoints, metrics and result; empty: DATA/train. The same folder again goes on where it stopped.
    respondents: codes, comma-separated; empty: all that have series on disk.
    reference: the forecast that is corrected: DF, the operators' own, or week, demand a week before (a model without DF).
    train, validate: periods `YYYY[-MM[-DD]]:YYYY[-MM[-DD]]`, or one year; empty: the last year on disk is kept for tests, the one
        before it validates, those before it train.
    context: hours that a token looks back.
    dim, layers, heads, head_dim, hidden, dropout: shape of the model.
    steps: optimiser steps, if validation does not end the run before.
    pieces, piece_hours: how many stretches of series a step sees, and how long each is.
    learning_rate, warmup (steps), weight_decay, clip (global norm): AdamW with linear warm-up and cosine decay to zero.
    flip: share of pieces whose errors are seen with the other sign.
    average: decay a step of the moving average of the weights, which is what validates and forecasts.
    seed: of the weights, the pieces and the dropout masks.
    validate_every, patience: steps between validations, and how many without a better one end the run.
    checkpoint_every: steps between checkpoints; a validation also makes one.
    layout: of the sequence over the ranks.
    timeout: seconds without a step after which a rank gives the ring up.
    heartbeat: file to which each rank appends a line a step; empty: none.
    """

    data: Path = Path("data")
    run: Path = Path()
    respondents: tuple[str, ...] = ()
    reference: Reference = "DF"
    train: str = ""
    validate: str = ""
    context: int = 26280
    dim: int = 64
    layers: int = 2
    heads: int = 2
    head_dim: int = 32
    hidden: int = 128
    dropout: float = 0.3
    steps: int = 160
    pieces: int = 6
    piece_hours: int = 4380
    learning_rate: float = 2e-3
    warmup: int = 30
    weight_decay: float = 0.1
    clip: float = 1.0
    flip: float = 0.25
    average: float = 0.98
    seed: int = 0
    validate_every: int = 20
    patience: int = 4
    checkpoint_every: int = 10
    layout: str = "zigzag"
    timeout: float = 120.0
    heartbeat: Path = Path()

    @property
    def run_dir(self) -> Path:
        """Where the run lies: `run`, else DATA/train."""
        return self.run if self.run != Path() else self.data / "train"


RESUMABLE = (
    "steps",
    "patience",
    "checkpoint_every",
    "timeout",
    "heartbeat",
    "data",
    "run",
    "layout",
)  # may differ at a resume


def parse(argv: Sequence[str]) -> TrainConfig:
    """Flags over file over defaults. UsageError for unknown keys and values that do not parse; --help exits."""
    parser = Parser(
        "worker/train.py",
        "Train the forecaster, alone or as a rank of a ring.",
        "mlx.launch -n 2 worker/train.py --data data",
    )
    settings = settings_of(TrainConfig, text=True)
    parser.add_argument("--config", type=Path, help="TOML file of settings")
    help_of = _field_help()
    for setting in settings:
        parser.add_argument(f"--{setting.name.replace('_', '-')}", metavar="X", help=help_of.get(setting.name))
    given = vars(parser.parse_args(list(argv)))
    path = given.pop("config")
    fix = "`worker/train.py --help` lists the settings."
    layers = [Layer("flag", {name: text for name, text in given.items() if text is not None}, fix)]
    if path is not None:
        table = read_toml(path, "--config", "Give a TOML file of settings.")
        check_keys(table, [setting.name for setting in settings], str(path))
        layers.append(Layer(str(path), table, fix))
    return TrainConfig(**{name: entry.value for name, entry in resolve(settings, layers).items()})


def _field_help() -> dict[str, str]:
    """Field → its words in the class's docstring."""
    text = re.sub(r"\n {8}", " ", TrainConfig.__doc__ or "")
    found = {}
    for line in text.splitlines():
        names, colon, words = line.strip().partition(": ")
        if colon:
            found.update({name.split(" ")[0]: words.replace("%", "%%") for name in names.split(", ")})
    return found


def plain(config: TrainConfig) -> dict[str, Any]:
    """The settings as plain data."""
    return {
        name: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        for name, value in dataclasses.asdict(config).items()
    }


def periods(config: TrainConfig, years: Sequence[int]) -> tuple[Period, Period]:
    """Hours that train and hours that validate; `years`: those on disk. UsageError where they overlap or leave nothing."""
    named = bool(config.train), bool(config.validate)
    if named != (True, True) and len(years) < 3:
        raise UsageError(
            f"the series cover {len(years)} year(s); training, validation and test want one each: extract more years, "
            "or name --train and --validate"
        )
    train = Period.parse(config.train or f"{years[0]}:{years[-3]}", "train")
    validate = Period.parse(config.validate or str(years[-2]), "validate")
    if train.last >= validate.first:
        raise UsageError(
            f"training ends {train} after validation begins {validate}: hours that validate must lie later"
        )
    return train, validate
