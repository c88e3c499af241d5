"""Evolution strategies: ranks and a step by hand, training that lowers the cost, and bit-identical restarts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.testing import assert_allclose

from rl.algorithms.base import train
from rl.algorithms.evolution import Evolution, Settings, costs, perturbation, ranks
from rl.distributed.jobs import AnyJob, Arrays, EvaluatePerturbations
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


def test_a_step_by_hand() -> None:
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
    policy, env, starts = untrained(year(12), 16), VectorGridEnv(GRID, year(12), 16, 48), year(12).starts(48)
    settings = Settings(iterations=25, jobs=2, pairs=8, num_envs=16, episode_hours=48, sigma=0.05, learning_rate=0.03)

    def runner(algorithm: Evolution) -> Callable[[AnyJob], Arrays]:
        def run(job: AnyJob) -> Arrays:
            assert isinstance(job, EvaluatePerturbations)
            actor = next(p for n, p in algorithm.versions.held.items() if algorithm.versions.sha256(n) == job.policy)
            own = np.random.default_rng(job.seed).choice(starts, job.episodes)
            return {"cost": costs(actor, env, own, job.perturbations, job.sigma)}

        return run

    whole = Evolution(DATASET, policy, settings)
    trained = train(whole, runner(whole))
    some = starts[::301]
    before, after = (rollout(GRID, year(12), actor, some, 48).cost.sum() for actor in (policy, trained))
    assert after < before
    first, third = (Evolution(DATASET, policy, replace(settings, iterations=count)) for count in (3, 4))
    train(first, runner(first))
    train(third, runner(third))
    second = Evolution(DATASET, policy, settings)
    second.restore(*through_file(tmp_path, *first.state()))
    jobs = second.jobs(3)
    second.learn(3, jobs, [runner(second)(job) for job in jobs])
    assert to_bytes(second.versions.newest) == to_bytes(third.versions.newest)
