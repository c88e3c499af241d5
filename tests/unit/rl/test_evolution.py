"""Evolution strategies: ranks and a step by hand, training that lowers the cost, and bit-identical restarts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.testing import assert_allclose

from rl.algorithms.evolution import Evolution, Settings, costs, perturbation, ranks
from rl.env.vector import VectorGridEnv
from rl.evaluation.score import rollout
from rl.policy import Mlp, flatten, init_mlp, to_bytes, unflatten
from tests.support.grid_control import GRID, through_file, untrained, year

DATASET = "t" * 64


def tiny(names: int = 3, width: int = 4) -> Mlp:
    ones = np.ones(names, np.float32)
    return init_mlp([f"f{i}" for i in range(names)], 0 * ones, ones, 2, width, np.random.default_rng(0))


def test_ranks_equal_numbers_by_hand() -> None:
    assert_allclose(ranks(np.array([[10.0, -5.0], [7.0, 1e9]])), np.array([[1 / 6, -0.5], [-1 / 6, 0.5]]))


def test_unflatten_inverts_flatten() -> None:
    policy = tiny()
    assert to_bytes(unflatten(policy, flatten(policy))) == to_bytes(policy)


def test_step_equals_numbers_by_hand() -> None:
    """One pair whose plus side costs more: the first step of Adam is the learning rate against the perturbation's signs."""
    policy = tiny()
    algorithm = Evolution(DATASET, policy, Settings(jobs=1, pairs=1, learning_rate=0.1))
    jobs = algorithm.jobs(0)
    algorithm.learn(0, jobs, [{"cost": np.array([[5.0, 3.0]])}])
    moved = flatten(algorithm.versions.newest) - flatten(policy)
    assert_allclose(moved, -0.1 * np.sign(perturbation(jobs[0].perturbations[0], moved.size)), atol=1e-5)


def test_perturbations_share_episodes_and_are_drawn_once() -> None:
    algorithm = Evolution(DATASET, tiny(), Settings(jobs=3, pairs=5))
    jobs = algorithm.jobs(0)
    seeds = [seed for job in jobs for seed in job.perturbations]
    assert len(set(seeds)) == 15 and len({job.seed for job in jobs}) == 1
    assert jobs == algorithm.jobs(0)
    algorithm.learn(0, jobs, [{"cost": np.array([[i, 0.0] for i in range(5)])}] * 3)
    assert not {seed for job in algorithm.jobs(1) for seed in job.perturbations} & set(seeds)


def test_training_lowers_cost_and_restart_is_bit_identical(tmp_path: Path) -> None:
    policy, env, starts = untrained(year(12), 16), VectorGridEnv(GRID, year(12), 8, 24), year(12).starts(24)
    settings = Settings(iterations=20, jobs=2, pairs=8, num_envs=8, episode_hours=24, sigma=0.05, learning_rate=0.03)

    def learn(algorithm: Evolution, iteration: int) -> None:
        actor, jobs, results = algorithm.versions.newest, algorithm.jobs(iteration), []
        for job in jobs:
            assert job.policy == algorithm.versions.sha256(iteration)
            own = np.random.default_rng(job.seed).choice(starts, job.episodes)
            results.append({"cost": costs(actor, env, own, job.perturbations, job.sigma)})
        algorithm.learn(iteration, jobs, results)

    whole, restarted = Evolution(DATASET, policy, settings), Evolution(DATASET, policy, settings)
    for iteration in range(settings.iterations):
        learn(whole, iteration)
        if iteration == 2:
            restarted.restore(*through_file(tmp_path, *whole.state()))
        elif iteration == 3:
            learn(restarted, iteration)
            assert to_bytes(restarted.versions.newest) == to_bytes(whole.versions.newest)
    some = starts[::301]
    before, after = (rollout(GRID, year(12), actor, some, 24).cost.sum() for actor in (policy, whole.versions.newest))
    assert after < before
