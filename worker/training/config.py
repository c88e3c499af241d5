"""Settings of a training run: a dataclass whose fields are flags of `worker/train.py` and keys of its TOML file."""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from ingest.catalog import distinct
from ingest.errors import UsageError
from ingest.features import Reference
from ingest.publication import DEFAULT, Publication
from ingest.settings import Layer, check_keys, read_toml, resolve, settings_of
from worker.argparse_errors import Parser
from worker.training.segments import Scope
from worker.training.tokens import Period

_PERIOD = "period `YYYY[-MM[-DD]]:YYYY[-MM[-DD]]`, or one year, of the hours that"


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a run.

    Every field is a flag (`--piece-hours 4380`) and a key of `--config FILE.toml` (`piece_hours = 4380`); the flag wins.
    """

    data: Annotated[Path, "data folder with the series"] = Path("data")
    run: Annotated[
        Path, "folder of the run's checkpoints, metrics and result, which resumes a run; empty: DATA/train"
    ] = Path()
    respondents: Annotated[tuple[str, ...], "codes, comma-separated; empty: all that have series on disk"] = ()
    reference: Annotated[
        Reference,
        "forecast that is corrected: DF, the operators' own (own history where DF is not known or broken); linear, that as regressions on the "
        "authorities on disk correct it; "
        "week, demand a week before (a model without DF)",
    ] = "DF"
    publication: Annotated[
        str,
        "when actual values and DF are known: day-before, deadline, or hours until actual values, day and hour of DF, and their zone, "
        "as 1h,-1T10,local",
    ] = str(DEFAULT)
    train: Annotated[str, f"{_PERIOD} train; empty: all hours on disk before those that validate"] = ""
    validate: Annotated[
        str, f"{_PERIOD} validate; empty: the last quarter of the last year but one (the last year is kept for tests)"
    ] = ""
    scope: Annotated[
        Scope, "whose hours a token attends to: its respondent's own, those of its time zone's, of all"
    ] = "own"
    context: Annotated[int, "hours back to which a token attends"] = 26280
    dim: Annotated[int, "width of the model"] = 64
    layers: Annotated[int, "feed-forward layers"] = 2
    heads: Annotated[int, "attention heads"] = 2
    head_dim: Annotated[int, "width of an attention head"] = 32
    hidden: Annotated[int, "width of a feed-forward layer's hidden units"] = 128
    dropout: Annotated[float, "dropout rate"] = 0.3
    steps: Annotated[int, "optimiser steps, if validation does not end the run before"] = 160
    pieces: Annotated[int, "pieces of series in a step; 0: one a respondent, 6 at least"] = 0
    piece_hours: Annotated[int, "hours of a piece"] = 4380
    learning_rate: Annotated[float, "AdamW's peak rate, after linear warm-up and before cosine decay to zero"] = 2e-3
    warmup: Annotated[int, "steps of the warm-up"] = 30
    weight_decay: Annotated[float, "of AdamW"] = 0.1
    clip: Annotated[float, "global norm at which gradients are clipped"] = 1.0
    flip: Annotated[float, "share of pieces whose errors are seen with the other sign"] = 0.25
    average: Annotated[float, "decay a step of the moving average of the weights, which validates and forecasts"] = 0.98
    seed: Annotated[int, "of the weights, the pieces and the dropout masks"] = 0
    validate_every: Annotated[int, "steps between validations"] = 20
    patience: Annotated[int, "validations without a better one that end the run"] = 4
    checkpoint_every: Annotated[int, "steps between checkpoints; a validation also writes one"] = 10
    layout: Annotated[str, "layout of the sequence over the ranks"] = "zigzag"
    timeout: Annotated[float, "seconds without a step after which a rank leaves the ring"] = 120.0
    heartbeat: Annotated[Path, "file to which each rank appends a line a step; empty: none"] = Path()

    @property
    def run_dir(self) -> Path:
        """The folder of the run: `run`, else DATA/train."""
        return self.run if self.run != Path() else self.data / "train"


# Settings that may change when a run resumes.
RESUMABLE = ("steps", "patience", "checkpoint_every", "timeout", "heartbeat", "data", "run", "layout")


def parse(argv: Sequence[str]) -> TrainConfig:
    """Parse the settings: flags override the file, and the file overrides the defaults. `--help` exits.

    An unknown key and a value that does not parse are a UsageError.
    """
    hints = get_type_hints(TrainConfig, include_extras=True)
    parser = Parser(
        _program(),
        "Train the forecaster, alone or as a rank of a ring.",
        "mlx.launch -n 2 worker/train.py --data data",
        {
            "--config": {"type": Path, "help": "TOML file of settings"},
            **{
                f"--{name.replace('_', '-')}": {"metavar": "X", "help": f"{hint.__metadata__[0]}{_default(name)}"}
                for name, hint in hints.items()
            },
        },
    )
    given = vars(parser.parse_args(list(argv)))
    path = given.pop("config")
    settings = settings_of(TrainConfig, text=True)
    fix = "`python -m worker.train --help` lists the settings."
    layers = [Layer("flag", {name: text for name, text in given.items() if text is not None}, fix)]
    if path is not None:
        table = read_toml(path, "--config", "Give a TOML file of settings.")
        check_keys(table, [setting.name for setting in settings], str(path))
        layers.append(Layer(str(path), table, fix))
    return TrainConfig(**{name: entry.value for name, entry in resolve(settings, layers).items()})


def check_file(path: Path) -> None:
    """Check a TOML file of settings, before a training is started with it.

    Raises:
        UsageError: It is not TOML, has an unknown key, or a value that does not parse.
    """
    try:
        config = parse([f"--config={path}"])
        Publication.parse(config.publication)
        for name in ("train", "validate"):
            if text := getattr(config, name):
                Period.parse(text, name)
    except UsageError as error:
        named = str(error).startswith(str(path))
        raise UsageError(str(error) if named else f"{path}: {error}") from error


def _program() -> str:
    """Return the words that started the training: the file of a clone, or the module."""
    spec = sys.modules["__main__"].__spec__
    return "python -m worker.train" if spec is not None and spec.name == "worker.train" else "worker/train.py"


def _default(name: str) -> str:
    """Return a setting's default for the help; nothing where it is empty, as the help says what that means."""
    value = getattr(TrainConfig, name)
    return "" if value in ("", (), Path()) else f" (default: {value})"


def plain(config: TrainConfig) -> dict[str, Any]:
    """Return the settings as plain data, for JSON."""
    return {
        name: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        for name, value in dataclasses.asdict(config).items()
    }


def averaged(config: TrainConfig, respondents: Sequence[str]) -> tuple[str, ...]:
    """Return the respondents whose mean skill chooses the checkpoint.

    They are those that the user names; of all on disk, those that hold no other one: TEX beside ERCO would count its demand twice.

    Args:
        config: may name respondents.
        respondents: that are trained on.
    """
    return tuple(config.respondents) or distinct(respondents)


def periods(config: TrainConfig, years: Sequence[int]) -> tuple[Period, Period]:
    """Return the hours that train and the hours that validate.

    A checkpoint that never sees the year before the test forecasts worse by 0.007 of skill, so only a quarter of it is kept for validation.

    Args:
        config: names the periods, or leaves them to the years on disk.
        years: years on disk, in order.

    Raises:
        UsageError: if there are too few years, or if training does not end before validation begins.
    """
    if not config.validate and len(years) < 2:
        raise UsageError(
            f"the series cover {len(years)} year(s); training and validation need one, the test another: extract more years, "
            "or name --train and --validate"
        )
    validate = Period.parse(config.validate or f"{years[-2]}-10:{years[-2]}-12", "validate")
    first = Period.parse(str(years[0]), "train").first
    train = Period.parse(config.train, "train") if config.train else Period(first, validate.first - 1)
    if train.last < train.first and config.train:
        raise UsageError(f"--train {config.train} ends before it begins: name the earlier period first")
    if train.last < train.first:
        raise UsageError(f"no hour on disk comes before {validate}, which validates: name a later --validate")
    if train.last >= validate.first:
        raise UsageError(
            f"training ends {train} after validation begins {validate}: hours that validate must lie later"
        )
    return train, validate
