"""Evolution strategies: ranks and the step by hand, and training that costs less than it started with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.testing import assert_allclose

from rl.algorithms.base import train
from rl.algorithms.evolution import Evolution, Settings, costs, flatten, perturbation, ranks, unflatten
from rl.arrays import pack, unpack
from rl.distributed.jobs import AnyJob, Arrays, EvaluatePerturbations
from rl.env.dataset import build_dataset
from rl.env.forecasts import oracle
from rl.env.grid import Grid
from rl.env.region import synthetic
from rl.env.vector import VectorGridEnv
from rl.evaluation.score import rollout
from rl.policy import Mlp, init_mlp, normalisation, to_bytes

GRID = Grid()


def beginner(names: int = 3, width: int = 4) -> Mlp:
    ones = np.ones(names, np.float32)
    return init_mlp([f"f{i}" for i in range(names)], 0 * ones, ones, 2, width, np.random.default_rng(0))


def test_ranks_by_hand() -> None:
    assert_allclose(ranks(np.array([[10.0, -5.0], [7.0, 1e9]])), np.array([[1 / 6, -0.5], [-1 / 6, 0.5]]))


def test_flat_and_shaped_undo_one_another() -> None:
    policy = beginner()
    assert to_bytes(unflatten(policy, flatten(policy))) == to_bytes(policy)


def test_a_step_by_hand() -> None:
    """One pair whose plus side costs more: the first step of Adam is the learning rate against the perturbation's signs."""
    policy = beginner()
    algorithm = Evolution("t" * 64, policy, Settings(jobs=1, pairs=1, learning_rate=0.1))
    jobs = algorithm.jobs(0)
    algorithm.learn(0, jobs, [{"cost": np.array([[5.0, 3.0]])}])
    moved = flatten(algorithm.versions.newest) - flatten(policy)
    assert_allclose(moved, -0.1 * np.sign(perturbation(jobs[0].perturbations[0], moved.size)), atol=1e-5)


def test_every_perturbation_of_an_iteration_meets_the_same_episodes_and_is_drawn_once() -> None:
    algorithm = Evolution("t" * 64, beginner(), Settings(jobs=3, pairs=5))
    jobs = algorithm.jobs(0)
    seeds = [seed for job in jobs for seed in job.perturbations]
    assert len(set(seeds)) == 15 and len({job.seed for job in jobs}) == 1
    assert jobs == algorithm.jobs(0)
    algorithm.learn(0, jobs, [{"cost": np.array([[i, 0.0] for i in range(5)])}] * 3)
    assert not {seed for job in algorithm.jobs(1) for seed in job.perturbations} & set(seeds)


def test_training_costs_less_and_a_restart_changes_no_bit() -> None:
    made, _ = synthetic(8760)
    data = build_dataset([made], [oracle(made, 12)], "2017-01-02T00", "2017-12-01T00")
    env = VectorGridEnv(GRID, data, 16, 48)
    starts = data.starts(48)
    mean, scale = normalisation(VectorGridEnv(GRID, data, 256, 48).reset(starts[:: len(starts) // 256][:256]))
    policy = init_mlp(env.observation_names, mean, scale, env.num_actions, 16, np.random.default_rng(0))
    settings = Settings(iterations=25, jobs=2, pairs=8, num_envs=16, episode_hours=48, sigma=0.05, learning_rate=0.03)

    def runner(algorithm: Evolution) -> Callable[[AnyJob], Arrays]:
        def do(job: AnyJob) -> Arrays:
            assert isinstance(job, EvaluatePerturbations)
            actor = next(p for n, p in algorithm.versions.held.items() if algorithm.versions.sha256(n) == job.policy)
            own = np.random.default_rng(job.seed).choice(starts, job.episodes)
            return {"cost": costs(actor, env, own, job.perturbations, job.sigma)}

        return do

    whole = Evolution("t" * 64, policy, settings)
    found = train(whole, runner(whole))
    some = starts[::301]
    assert rollout(GRID, data, found, some, 48).cost.sum() < rollout(GRID, data, policy, some, 48).cost.sum()
    first = Evolution("t" * 64, policy, Settings(**{**vars(settings), "iterations": 3}))
    train(first, runner(first))
    second = Evolution("t" * 64, policy, settings)
    second.restore(*unpack(pack(*first.state())))
    third = Evolution("t" * 64, policy, Settings(**{**vars(settings), "iterations": 4}))
    train(third, runner(third))
    jobs = second.jobs(3)
    second.learn(3, jobs, [runner(second)(job) for job in jobs])
    assert to_bytes(second.versions.newest) == to_bytes(third.versions.newest)
