"""Datasets, policies and files of grid control that several tests share."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rl import arrays
from rl.env.dataset import Dataset, build_dataset
from rl.env.dataset_file import path_of, to_bytes
from rl.env.forecasts import oracle
from rl.env.grid import Grid
from rl.env.region import synthetic
from rl.env.vector import VectorGridEnv
from rl.policy import Mlp, init_mlp, normalisation

GRID = Grid()


@cache
def year(horizon: int) -> Dataset:
    """Eleven months of a synthetic region with `horizon` hours of perfect forecast. Shared: do not change it."""
    region, _ = synthetic(8760)
    return build_dataset([region], [oracle(region, horizon)], "2017-01-02T00", "2017-12-01T00")


def write_dataset(folder: Path, dataset: Dataset) -> str:
    """Write a dataset below a control folder; return its sha256."""
    sha256, content = to_bytes(dataset)
    path = path_of(folder, sha256)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return sha256


def untrained(dataset: Dataset, width: int) -> Mlp:
    """Return an untrained policy, normalised on the first observations of 256 drawn episodes."""
    env = VectorGridEnv(GRID, dataset, 256, 24)
    rng = np.random.default_rng(0)
    mean, scale = normalisation(env.reset(rng.choice(dataset.starts(24), 256)))
    return init_mlp(env.observation_names, mean, scale, env.num_actions, width, np.random.default_rng(0))


def through_file(
    folder: Path, meta: Mapping[str, Any], stored: arrays.Arrays
) -> tuple[dict[str, Any], dict[str, NDArray]]:
    """Write an algorithm's state to a file and read it again, as a restart does."""
    path = folder / "state"
    path.write_bytes(arrays.to_bytes(meta, stored))
    return arrays.load(path)
