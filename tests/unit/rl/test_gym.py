"""Gymnasium's interfaces: its checker is clean, autoreset works as declared, both interfaces are the same environment."""

from __future__ import annotations

import warnings
from importlib.util import find_spec

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from numpy.testing import assert_allclose, assert_array_equal

from rl.errors import DataError
from rl.gym import GridControl, GridControlVector

NAME = "rl.gym:GridControl-v0"


def test_check_env_passes_without_warnings() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make(NAME).unwrapped, skip_render_check=find_spec("pygame") is None)


def test_vector_env_resets_in_the_same_step() -> None:
    vector = gymnasium.make_vec(NAME, num_envs=3, vectorization_mode="vector_entry_point", hours=5)
    assert isinstance(vector, GridControlVector)
    assert vector.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    observation, info = vector.reset(seed=3)
    assert observation.shape == vector.observation_space.shape and observation in vector.observation_space
    left = vector.env.observation_names.index("hours left")
    for hour in range(10):
        observation, reward, terminated, truncated, info = vector.step(vector.action_space.sample())
        assert observation in vector.observation_space and reward.shape == (3,) and not truncated.any()
        assert terminated.all() == (hour % 5 == 4) == ("final_obs" in info)
    assert (info["final_obs"][:, left] == 0).all() and (observation[:, left] > 0).all()
    assert info["_final_obs"].all() and (info["cut"] >= 0).all()


def test_vector_env_equals_single_environments() -> None:
    vector = GridControlVector(2, hours=30)
    single = [GridControl(hours=30) for _ in range(2)]
    rows = np.array([11, 900])
    first, _ = vector.reset(options={"start": rows})
    assert_array_equal(
        first, np.stack([e.reset(options={"start": row})[0] for e, row in zip(single, rows, strict=True)])
    )
    vector.action_space.seed(0)
    for _ in range(29):
        action = vector.action_space.sample()
        observation, reward, *_ = vector.step(action)
        apart = [e.step(a) for e, a in zip(single, action, strict=True)]
        assert_allclose(observation, np.stack([a[0] for a in apart]), rtol=1e-6)
        assert_allclose(reward, [a[1] for a in apart], rtol=1e-12)


def test_seed_determines_the_starts() -> None:
    vector = GridControlVector(64, hours=24)
    starts = [vector.reset(seed=seed)[1]["start"] for seed in (1, 1, 2)]
    assert_array_equal(starts[0], starts[1])
    assert (starts[0] != starts[2]).any()
    with pytest.raises(DataError, match="one seed"):
        vector.reset(seed=[1, 2])


def test_gymnasiums_wrappers_accept_both() -> None:
    wrapped = RecordEpisodeStatistics(GridControlVector(4, hours=6))
    wrapped.reset(seed=0)
    for _ in range(6):
        *_, info = wrapped.step(wrapped.action_space.sample())
    assert (info["episode"]["l"] == 6).all() and (info["episode"]["r"] < 0).all()
    synchronous = SyncVectorEnv([lambda: GridControl(hours=6)] * 2)
    assert synchronous.reset(seed=0)[0].shape == synchronous.observation_space.shape
