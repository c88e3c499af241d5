"""V-trace: targets by hand, equality with PPO at staleness 0, training that earns more, and bit-identical restarts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

from rl.algorithms.base import PolicyVersions, train
from rl.algorithms.vtrace import ActorCritic, Settings, VTrace, rebuild, targets
from rl.distributed.jobs import Rollout
from rl.distributed.runner import JobRunner
from rl.errors import DataError
from rl.evaluation.score import rollout
from rl.policy import Mlp, flatten, to_bytes, unflatten
from tests.support.grid_control import GRID, through_file, untrained, write_dataset, year

SMALL = Settings(iterations=10, jobs=2, num_envs=16, episode_hours=48, minibatch_size=512, width=32, learning_rate=2e-3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A control folder, and the sha256 of the dataset in it."""
    made = tmp_path_factory.mktemp("control")
    return made, write_dataset(made, year(12))


@pytest.fixture(scope="module")
def policy() -> Mlp:
    return untrained(year(12), 32)


def algorithm_of(folder: tuple[Path, str], policy: Mlp, settings: Settings) -> tuple[VTrace, JobRunner]:
    """An algorithm, and a runner that finds policies among its versions."""
    versions: list[PolicyVersions] = []

    def policy_of(sha256: str) -> Mlp:
        return next(held for number, held in versions[0].held.items() if versions[0].sha256(number) == sha256)

    runner = JobRunner(folder[0], policy_of)
    algorithm = VTrace(runner, folder[1], policy, settings)
    versions.append(algorithm.versions)
    return algorithm, runner


def gae(rewards: NDArray, values: NDArray, gamma: float, gae_lambda: float) -> NDArray:
    """GAE(λ) of whole episodes as Schulman et al. 2016 define it, [hour, N]; the value after the last hour is 0."""
    following = np.vstack([values[1:], np.zeros_like(values[:1])])
    deltas = rewards + gamma * following - values
    weights = [(gamma * gae_lambda) ** np.arange(len(rewards) - hour) for hour in range(len(rewards))]
    return np.stack([weight @ deltas[hour:] for hour, weight in enumerate(weights)])


def test_targets_equal_numbers_by_hand() -> None:
    rewards = np.array([[1.0], [2.0], [4.0]])
    values = np.array([[0.5], [1.0], [3.0]])
    ratios = np.array([[0.5], [2.0], [1.5]])
    last = 3 + 1.2 * (4 - 3)
    middle = 1 + 1.2 * (2 + 0.9 * 3 - 1) + 0.9 * 0.8 * 1 * (last - 3)
    first = 0.5 + 0.5 * (1 + 0.9 * 1 - 0.5) + 0.9 * 0.8 * 0.5 * (middle - 1)
    found = targets(rewards, values, ratios, 0.9, 0.8, 1.2)
    assert_allclose(found[:, 0], [first, middle, last], rtol=1e-6)
    # Espeholt et al. 2018: on policy, with λ = 1, the target is the return itself.
    assert_allclose(targets(rewards, values, np.ones((3, 1)), 1.0)[:, 0], [7, 6, 4])


def test_on_policy_advantages_equal_those_of_ppo() -> None:
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=(2, 30, 5))
    advantages = targets(rewards, values, np.ones((30, 5)), 0.99, 0.9) - values
    assert_allclose(advantages, gae(rewards, values, 0.99, 0.9), atol=1e-12)


def test_learner_has_the_density_of_the_actors_noise(policy: Mlp) -> None:
    learner = ActorCritic(policy, policy, 0.2)
    seen = np.random.default_rng(1).normal(size=(5, len(policy.observation_names))).astype(np.float32)
    mean = policy.act(seen / policy.scale + policy.mean).T
    expected = 4 * (-0.5 * 0.5**2 - np.log(0.2) - 0.5 * np.log(2 * np.pi))
    found = learner.log_probability(mx.array(seen), mx.array(mean + 0.1))
    assert_allclose(np.array(found), expected, rtol=1e-4)


def test_doing_nothing_has_reward_zero(folder: tuple[Path, str], policy: Mlp) -> None:
    """The reward is the saving; without noise, a policy of zeros saves none."""
    still = unflatten(policy, np.zeros_like(flatten(policy)))
    runner = JobRunner(folder[0], lambda sha256: still)
    job = Rollout(folder[1], "a" * 64, 3, 4, 24, (0.0,) * 4)
    assert_allclose(rebuild(runner, still, job, runner.run(job)).rewards, 0, atol=1e-5)


@pytest.mark.parametrize("staleness", [0, 1])
def test_training_earns_more_than_the_start(folder: tuple[Path, str], policy: Mlp, staleness: int) -> None:
    algorithm, runner = algorithm_of(folder, policy, replace(SMALL, staleness=staleness))
    ratios: list[float] = []
    returns: list[float] = []

    def log(_: int, metrics: object) -> None:
        assert isinstance(metrics, dict)
        ratios.append(metrics["charts/mean_ratio"])
        returns.append(metrics["charts/episodic_return"])

    trained = train(algorithm, runner.run, log)
    starts = year(12).starts(48)[::301]
    costs = [rollout(GRID, year(12), actor, starts, 48).cost.sum() for actor in (policy, trained)]
    assert costs[1] < costs[0] and np.mean(returns[-3:]) > np.mean(returns[:3])
    assert ratios[0] == pytest.approx(1, abs=1e-5)
    late = [abs(ratio - 1) > 1e-5 for ratio in ratios[2:]]
    assert all(late) if staleness else not any(late)


def test_restart_is_bit_identical(folder: tuple[Path, str], policy: Mlp, tmp_path: Path) -> None:
    settings = replace(SMALL, iterations=4, staleness=1)
    algorithm, runner = algorithm_of(folder, policy, settings)
    whole = train(algorithm, runner.run)
    first, runner = algorithm_of(folder, policy, settings)
    ahead = {0: first.jobs(0), 1: first.jobs(1)}
    for iteration in range(2):
        first.learn(iteration, ahead[iteration], [runner.run(job) for job in ahead[iteration]])
        ahead[iteration + 2] = first.jobs(iteration + 2) if iteration == 0 else []
    second, runner = algorithm_of(folder, policy, settings)
    second.restore(*through_file(tmp_path, *first.state()))
    assert second.jobs(2) == ahead[2]
    for iteration in range(2, 4):
        jobs = second.jobs(iteration)
        second.learn(iteration, jobs, [runner.run(job) for job in jobs])
    assert to_bytes(second.versions.newest) == to_bytes(whole)


def test_costs_of_other_actions_are_refused(folder: tuple[Path, str], policy: Mlp) -> None:
    algorithm, runner = algorithm_of(folder, policy, SMALL)
    job = algorithm.jobs(0)[0]
    result = runner.run(job)
    batch = rebuild(runner, policy, job, result)
    again = rebuild(runner, policy, job, runner.run(job))
    assert_array_equal(batch.observations, again.observations)
    result["cost"][5, 3] *= 1.001
    with pytest.raises(DataError, match="differ from a replay of its actions"):
        rebuild(runner, policy, job, result)
