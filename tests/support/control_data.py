"""A data folder small enough to train a control policy on in seconds: one respondent, three whole years."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tests.support.data_folder import build_all, commit, shard

SMALL = {
    "algorithm": "vtrace",
    "horizon": 6,
    "label_jobs": 2,
    "label_plans": 8,
    "label_hours": 30,
    "evaluate_every": 20,
    "every": 13,
    "baselines": "",
}
CLONE = {"width": 16, "steps": 60, "batch_size": 128}
PATHWISE = {"members": 3, "steps": 3, "num_envs": 8, "episode_hours": 48, "width": 16}
VTRACE = {"jobs": 3, "num_envs": 4, "episode_hours": 48, "width": 16, "minibatch_size": 192, "epochs": 2}


def make(data_dir: Path) -> Path:
    """Write series of PACW, 2021 to 2023: demand with a daily and a yearly cycle, and a forecast of it."""
    draw = np.random.default_rng(0)
    for year in (2021, 2022, 2023):
        one = shard("PACW", f"{year}-01-01T00", f"{year}-12-31T23")
        t = np.arange(one.hours)
        demand = 3000 + 600 * np.sin(2 * np.pi * t / 24) + 300 * np.cos(2 * np.pi * t / 8766)
        demand += np.convolve(draw.normal(0, 60, one.hours), np.ones(8) / 3, "same")
        commit(data_dir, one, {"D": np.round(demand), "DF": np.round(demand + draw.normal(0, 60, one.hours))})
    build_all(data_dir)
    return data_dir


def config(
    path: Path, iterations: int, algorithm: str = "vtrace", pathwise: Mapping[str, object] = PATHWISE, **more: object
) -> Path:
    """Write a configuration as TOML. Returns its path."""
    tables: dict[str, dict[str, object]] = {
        "": {**SMALL, "algorithm": algorithm, **more},
        "clone": {**CLONE},
        "vtrace": {**VTRACE, "iterations": iterations},
        "pathwise": {**PATHWISE, **pathwise, "iterations": iterations},
    }
    lines = []
    for name, table in tables.items():
        lines += [f"[{name}]"] if name else []
        lines += [f"{key} = {json.dumps(value)}" for key, value in table.items()]
    path.write_text("\n".join(lines) + "\n")
    return path
