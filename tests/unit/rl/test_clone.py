"""The learned policy: actor and learner agree, its checkpoint is complete, and cloning learns."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from rl.algorithms.clone import Labels, Network, Settings, clone, solve_labels
from rl.env.dataset import Dataset
from rl.env.vector import VectorGridEnv
from rl.errors import DataError
from rl.evaluation.score import reference_costs, rollout
from rl.planning.optimum import program
from rl.policy import Mlp, init_mlp, load, normalisation, to_bytes
from tests.support.grid_control import GRID, year


@pytest.fixture(scope="module")
def train() -> Dataset:
    return year(12)


@pytest.fixture(scope="module")
def labels(train: Dataset) -> Labels:
    return solve_labels(GRID, train, 60, np.random.default_rng(0))


def drawn(features: int, seed: int = 0) -> Mlp:
    rng = np.random.default_rng(seed)
    mean, scale = rng.normal(size=features), rng.uniform(0.5, 20, features)
    return init_mlp([f"f{i}" for i in range(features)], mean.astype(np.float32), scale.astype(np.float32), 4, 64, rng)


def test_actor_in_numpy_agrees_with_learner_in_mlx() -> None:
    policy = drawn(30)
    rng = np.random.default_rng(1)
    layers = tuple((w + rng.normal(0, 0.1, w.shape).astype(np.float32), b + np.float32(0.1)) for w, b in policy.layers)
    policy = Mlp(policy.observation_names, policy.mean, policy.scale, layers)
    seen = rng.normal(size=(200, 30)).astype(np.float32)
    learner = Network(policy)
    ours, theirs = policy.act(seen), np.array(learner(mx.array((seen - policy.mean) * policy.scale)))
    assert_allclose(ours.T, theirs, rtol=1e-4, atol=1e-4)
    for (weight, bias), (w, b) in zip(learner.numbers(), layers, strict=True):
        assert_array_equal(weight, w)
        assert_array_equal(bias, b)


def test_checkpoint_round_trips(tmp_path: Path) -> None:
    policy, path = drawn(7), tmp_path / "policy.npz"
    path.write_bytes(to_bytes(policy))
    again = load(path)
    assert again.observation_names == policy.observation_names
    seen = np.random.default_rng(2).normal(size=(5, 7)).astype(np.float32)
    assert_array_equal(again.act(seen), policy.act(seen))


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04garbage", b"PK\x05\x06" + bytes(18)])
def test_file_that_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "policy.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match="not a policy's checkpoint"):
        load(path)


def test_policy_refuses_other_features(train: Dataset) -> None:
    env = VectorGridEnv(GRID, train, 2, 24)
    env.reset(np.array([0, 1]))
    with pytest.raises(DataError, match="are missing, first `f0`"):
        drawn(len(env.observation_names))(env)
    with pytest.raises(DataError, match="first layer"):
        policy = drawn(4)
        Mlp(policy.observation_names[:3], policy.mean[:3], policy.scale[:3], policy.layers)


def test_normalisation_keeps_constant_features() -> None:
    seen = np.array([[1.0, 5.0], [3.0, 5.0]], np.float32)
    mean, scale = normalisation(seen)
    assert mean.tolist() == [2, 5] and scale.tolist() == [1, 1]


def test_labels_are_the_optimum_of_the_observed_state(labels: Labels, train: Dataset) -> None:
    """Solved again from an observed state in the middle of an episode, the optimum has the cost of the labels' actions."""
    assert labels.observations.shape == (60 * 72, len(labels.observation_names)) and labels.actions.shape == (
        60 * 72,
        4,
    )
    hours = labels.observations[:, labels.observation_names.index("hours left")].reshape(72, 60)
    assert (hours[:24] == 1).all() and (np.diff(hours[24:], axis=0) < 0).all()
    stores = GRID.each("energy")
    seen = labels.observations.reshape(72, 60, -1)[:, 5]
    charge, before = seen[30, :3] * stores, seen[30, 3]
    ahead = seen[30, [labels.observation_names.index(f"forecast +{h}.0") for h in range(12)]]
    assert_allclose(ahead[:1], train.load[np.abs(train.load - ahead[0]).argmin()], atol=1e-6)
    asked = labels.actions.reshape(72, 60, 4)[:, 5]
    rows = np.flatnonzero(np.isclose(train.load, ahead[0], atol=1e-7))
    row = next(r for r in rows if np.allclose(train.load[r : r + 12], ahead, atol=1e-6))
    best = program(GRID, 42).solve(train.load[row : row + 42], float(before), charge.astype(float)).cost
    env = VectorGridEnv(GRID, train, 1, 42)
    env.reset(np.array([row]), charge[:, None].astype(float), np.array([before], float))
    followed = sum(float(env.step(asked[hour][:, None].astype(float))[1][0]) for hour in range(30, 72))
    assert followed == pytest.approx(best, rel=1e-5)  # float32 on the way


def test_clone_earns_part_of_the_optimums_saving(labels: Labels, train: Dataset) -> None:
    losses: list[float] = []
    policy = clone(labels, Settings(width=32, batch_size=256, steps=300), log=lambda step, loss: losses.append(loss))
    assert losses[-1] < losses[0]
    starts = np.array([100, 3000, 6000])
    scale = reference_costs(GRID, train, starts, 168)
    assert scale.pop(rollout(GRID, train, policy, starts, 168).cost.sum(axis=0)) > 0.2


def test_cloning_is_reproducible(labels: Labels) -> None:
    first, second = (clone(labels, Settings(width=32, batch_size=256, steps=40)) for _ in range(2))
    assert to_bytes(first) == to_bytes(second)
