"""PPO: advantages by hand, the learner's probabilities, and that training earns more than it started with."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from rl.algorithms.ppo import ActorCritic, Settings, advantages, play, train
from rl.env.dataset import Dataset, build_dataset
from rl.env.forecasts import oracle
from rl.env.grid import Grid
from rl.env.region import synthetic
from rl.env.vector import VectorGridEnv
from rl.evaluation.score import rollout
from rl.policy import Mlp, init_mlp, normalisation

GRID = Grid()


@pytest.fixture(scope="module")
def data() -> Dataset:
    made, _ = synthetic(8760)
    return build_dataset([made], [oracle(made, 12)], "2017-01-02T00", "2017-12-01T00")


@pytest.fixture(scope="module")
def beginner(data: Dataset) -> Mlp:
    env = VectorGridEnv(GRID, data, 256, 24)
    mean, scale = normalisation(env.reset(np.random.default_rng(0).choice(data.starts(24), 256)))
    return init_mlp(env.observation_names, mean, scale, env.num_actions, 32, np.random.default_rng(0))


def test_advantages_by_hand() -> None:
    rewards = np.array([[1.0], [2.0], [4.0]], np.float32)
    values = np.array([[0.5], [1.0], [3.0]], np.float32)
    last = 4 - 3
    middle = 2 + 0.9 * 3 - 1 + 0.9 * 0.8 * last
    first = 1 + 0.9 * 1 - 0.5 + 0.9 * 0.8 * middle
    assert_allclose(advantages(rewards, values, 0.9, 0.8)[:, 0], [first, middle, last], rtol=1e-6)
    assert_allclose(advantages(rewards, 0 * values, 1.0, 1.0)[:, 0], [7, 6, 4])


def test_learner_has_the_density_of_the_noise_that_actors_add(beginner: Mlp) -> None:
    learner = ActorCritic(beginner, beginner, 0.2)
    seen = np.random.default_rng(1).normal(size=(5, len(beginner.observation_names))).astype(np.float32)
    mean = beginner.act(seen / beginner.scale + beginner.mean).T
    tried = mean + 0.1
    expected = 4 * (-0.5 * 0.5**2 - np.log(0.2) - 0.5 * np.log(2 * np.pi))
    assert_allclose(np.array(learner.log_probability(mx.array(seen), mx.array(tried))), expected, rtol=1e-4)


def test_doing_nothing_earns_nothing(data: Dataset, beginner: Mlp) -> None:
    """The reward is the saving; without noise, a policy of zeros saves none."""
    still = Mlp(
        beginner.observation_names, beginner.mean, beginner.scale, tuple((0 * w, 0 * b) for w, b in beginner.layers)
    )
    env = VectorGridEnv(GRID, data, 3, 24)
    batch = play(GRID, env, still, np.zeros(4, np.float32), np.array([5, 600, 7]), np.random.default_rng(0))
    assert_allclose(batch.rewards, 0, atol=1e-5)


def test_training_earns_more_and_the_seed_decides(data: Dataset, beginner: Mlp) -> None:
    settings = Settings(num_envs=32, episode_hours=48, iterations=12, minibatch_size=512, width=32, learning_rate=2e-3)
    returns: list[float] = []
    policy = train(GRID, data, beginner, settings, lambda _, m: returns.append(m["charts/episodic_return"]))
    again = train(GRID, data, beginner, settings)
    for (weight, bias), (w, b) in zip(policy.layers, again.layers, strict=True):
        assert_array_equal(weight, w)
        assert_array_equal(bias, b)
    starts = data.starts(48)[::301]

    def cost(actor: Mlp) -> float:
        return rollout(GRID, data, actor, starts, 48).cost.sum()

    assert cost(policy) < cost(beginner)
    assert np.mean(returns[-3:]) > np.mean(returns[:3])
