"""Configuration of a control training, read from a TOML file: `coordinator start --rollouts --control-config FILE`.

Top-level keys are the fields of `ControlConfig`; the tables [clone], [pathwise], [vtrace] and [evolve] have the fields of
the `Settings` of that module of `rl.algorithms`. Each key has a default.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ingest.errors import UsageError
from ingest.publication import Publication
from ingest.settings import from_table, read_toml
from rl.algorithms import clone, evolution, pathwise, vtrace
from rl.distributed.jobs import BASELINES

ALGORITHMS = ("pathwise", "vtrace", "evolve")


@dataclass(frozen=True)
class ControlConfig:
    """Configuration of a whole training: labels, cloning, improvement, evaluation.

    Attributes:
        algorithm: Name of the algorithm.
        horizon: Hours of forecast that the policy sees.
        publication: When actual values and the operators' forecast are known, as in the file of `--train-config`: day-before, deadline,
            or a text such as 1h,-1T10,local; empty: as in the forecaster's training, day-before without one.
        label_jobs: Jobs that label observations for the clone.
        label_plans: Linear programs per job.
        label_hours: Hours of a plan.
        evaluate_every: Iterations between evaluations on the validation year.
        save_every: Iterations between saved states; a learner that was killed repeats those since the last one.
        every: One in so many weeks of the validation and test year is evaluated.
        chunk: Weeks of one evaluation lease.
        plan_chunk: Weeks of one lease of a planning baseline, which plans those of a lease side by side, every hour.
        baselines: Baselines that the test year compares with, separated by commas; empty for none.
        seed: Seed of every random draw.
        clone: Settings of `rl.algorithms.clone`.
        pathwise: Settings of `rl.algorithms.pathwise`.
        vtrace: Settings of `rl.algorithms.vtrace`.
        evolve: Settings of `rl.algorithms.evolution`.
    """

    algorithm: str = "pathwise"
    horizon: int = 36
    publication: str = ""
    label_jobs: int = 24
    label_plans: int = 50
    label_hours: int = 72
    evaluate_every: int = 5
    save_every: int = 1
    every: int = 4
    chunk: int = 33
    plan_chunk: int = 128
    baselines: str = "hour rule,mpc,mpc perfect"
    seed: int = 0
    clone: clone.Settings = field(default_factory=clone.Settings)
    pathwise: pathwise.Settings = field(default_factory=pathwise.Settings)
    vtrace: vtrace.Settings = field(default_factory=vtrace.Settings)
    evolve: evolution.Settings = field(default_factory=evolution.Settings)


# Keys of earlier versions, which a file may still use.
OLD_KEYS = {
    "batch": "batch_size",
    "episodes": "num_envs",
    "hours": "episode_hours",
    "minibatch": "minibatch_size",
    "trace": "gae_lambda",
    "clip": "clip_coef",
}


def read_config(path: Path | None) -> ControlConfig:
    """Return the settings of a file over the defaults; the defaults alone without a file.

    Raises:
        UsageError: The file is not TOML, or has an unknown key, a value of a wrong type or range, or an unknown name.
    """
    if path is None:
        return ControlConfig()
    where = f"control-config {path}"
    table = read_toml(path, "control-config", "Correct the file, or start without --control-config for the defaults.")
    for name, part in table.items():
        if isinstance(part, dict):
            table[name] = {OLD_KEYS.get(key, key): value for key, value in part.items()}
    settings: ControlConfig = from_table(ControlConfig, table, where)
    for part in (table, *(value for value in table.values() if isinstance(value, dict))):
        for name, value in part.items():
            if isinstance(value, int | float) and name not in ("staleness", "seed") and value <= 0:
                raise UsageError(f"{where}: {name} = {value!r}: must be above 0")
    try:
        if settings.publication:
            Publication.parse(settings.publication)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
    if settings.algorithm not in ALGORITHMS:
        raise UsageError(f"{where}: algorithm {settings.algorithm!r}: choose {' or '.join(ALGORITHMS)}")
    if not {one for one in settings.baselines.split(",") if one} <= set(BASELINES):
        raise UsageError(f"{where}: baselines = {settings.baselines!r}: choose from {', '.join(BASELINES)}")
    return settings
