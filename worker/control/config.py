"""What a control training can be told, from a TOML file: `coordinator start --rollouts --control-config FILE`.

Top-level keys are `Settings`' own; the tables [clone], [pathwise], [vtrace] and [evolve] have those of the `Settings` of
that module of `rl`. Each has a default.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ingest.errors import UsageError
from ingest.settings import from_table, read_toml
from rl.algorithms import clone, evolution, pathwise, vtrace
from rl.distributed.jobs import BASELINES

ALGORITHMS = ("pathwise", "vtrace", "evolve")


@dataclass(frozen=True)
class ControlConfig:
    """A whole training: labels, cloning, improvement, judgement."""

    algorithm: str = "pathwise"
    horizon: int = 36  # hours of forecast that the policy sees
    label_jobs: int = 24
    label_plans: int = 50  # linear programs a job
    label_hours: int = 72  # of a plan
    evaluate_every: int = 5  # iterations between looks at the validation year
    save_every: int = 1  # iterations between states: what a learner that was killed does once more
    every: int = 4  # of the weeks of validation and test year, one in so many
    chunk: int = 33  # weeks of an evaluation's lease
    plan_chunk: int = 4  # weeks of a planning baseline's lease: a plan an hour is slow
    baselines: str = "hour rule,mpc,mpc perfect"  # that the test year compares with; empty: none
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
    """The file's settings over the defaults. UsageError for what is no TOML, an unknown key, a wrong type or algorithm."""
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
    if settings.algorithm not in ALGORITHMS:
        raise UsageError(f"{where}: algorithm {settings.algorithm!r}: choose {' or '.join(ALGORITHMS)}")
    if not {one for one in settings.baselines.split(",") if one} <= set(BASELINES):
        raise UsageError(f"{where}: baselines = {settings.baselines!r}: choose from {', '.join(BASELINES)}")
    return settings
