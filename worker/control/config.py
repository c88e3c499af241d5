"""What a control training can be told, from a TOML file: `coordinator start --rollouts --control-config FILE`.

Top-level keys are `Settings`' own; the tables [clone], [pathwise], [vtrace] and [evolve] have those of the `Settings` of
that module of `rl`. Each has a default.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ingest.errors import UsageError
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


TABLES = ("clone", "pathwise", "vtrace", "evolve")
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
    try:
        given = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(
            f"control-config {path}: not TOML: {error}. Mend the file, or start without --control-config for the defaults."
        ) from error
    parts: dict[str, Any] = {}
    for name in TABLES:
        own = given.pop(name, {})
        if not isinstance(own, dict):
            raise UsageError(f"control-config {path}: {name} is a table, [{name}]")
        renamed = {OLD_KEYS.get(str(key), str(key)): value for key, value in own.items()}
        parts[name] = _made(getattr(ControlConfig(), name), renamed, f"control-config {path}: [{name}]")
    settings = _made(ControlConfig(), given | parts, f"control-config {path}:")
    if settings.algorithm not in ALGORITHMS:
        raise UsageError(f"control-config {path}: algorithm {settings.algorithm!r}: choose {' or '.join(ALGORITHMS)}")
    return settings


def _made(defaults: Any, given: Mapping[str, Any], what: str) -> Any:
    known = {f.name: f for f in fields(defaults)}
    if unknown := sorted(set(given) - set(known)):
        raise UsageError(f"{what} unknown key {unknown[0]!r}; there are {', '.join(known)}")
    made = replace(defaults, **given)
    for name, value in given.items():
        default = getattr(defaults, name)
        whole = isinstance(value, int) and not isinstance(value, bool)
        if type(value) is not type(default) and not (isinstance(default, float) and whole):
            raise UsageError(f"{what} {name} = {value!r}: expected {type(default).__name__}")
        if name == "baselines" and not {one for one in value.split(",") if one} <= set(BASELINES):
            raise UsageError(f"{what} baselines = {value!r}: choose from {', '.join(BASELINES)}")
        if isinstance(value, int | float) and name not in ("staleness", "seed") and value <= 0:
            raise UsageError(f"{what} {name} = {value!r}: must be above 0")
    return made
