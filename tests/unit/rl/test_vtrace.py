"""V-trace: targets by hand, PPO where nothing is late, training that earns more, and a restart that changes no bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from rl.algorithms.base import PolicyVersions, train
from rl.algorithms.ppo import advantages
from rl.algorithms.vtrace import Settings, VTrace, rebuild, targets
from rl.arrays import pack, unpack
from rl.distributed.runner import JobRunner
from rl.env.dataset import Dataset, build_dataset
from rl.env.dataset_file import path_of
from rl.env.dataset_file import to_bytes as dataset_bytes
from rl.env.forecasts import oracle
from rl.env.grid import Grid
from rl.env.region import synthetic
from rl.env.vector import VectorGridEnv
from rl.errors import DataError
from rl.evaluation.score import rollout
from rl.policy import Mlp, init_mlp, normalisation, to_bytes

GRID = Grid()


@pytest.fixture(scope="module")
def data() -> Dataset:
    made, _ = synthetic(8760)
    return build_dataset([made], [oracle(made, 12)], "2017-01-02T00", "2017-12-01T00")


@pytest.fixture(scope="module")
def folder(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A control folder with the table."""
    made = tmp_path_factory.mktemp("control")
    sha256, content = dataset_bytes(data)
    path = path_of(made, sha256)
    path.parent.mkdir()
    path.write_bytes(content)
    return made, sha256


@pytest.fixture(scope="module")
def beginner(data: Dataset) -> Mlp:
    env = VectorGridEnv(GRID, data, 256, 24)
    mean, scale = normalisation(env.reset(np.random.default_rng(0).choice(data.starts(24), 256)))
    return init_mlp(env.observation_names, mean, scale, env.num_actions, 32, np.random.default_rng(0))


def runner_of(folder: Path, known: PolicyVersions | None = None) -> JobRunner:
    """Looks policies up among the versions that it is given."""

    def policy_of(sha256: str) -> Mlp:
        return next(held for number, held in runners[0].held.items() if runners[0].sha256(number) == sha256)

    runners: list[PolicyVersions] = [known] if known else []
    made = JobRunner(folder, policy_of)
    made.known = runners  # type: ignore[attr-defined]
    return made


def algorithm(folder: tuple[Path, str], policy: Mlp, settings: Settings) -> tuple[VTrace, JobRunner]:
    runner = runner_of(folder[0])
    made = VTrace(runner, folder[1], policy, settings)
    runner.known.append(made.versions)  # type: ignore[attr-defined]
    return made, runner


SMALL = Settings(iterations=10, jobs=2, num_envs=16, episode_hours=48, minibatch_size=512, width=32, learning_rate=2e-3)


def test_targets_by_hand() -> None:
    rewards = np.array([[1.0], [2.0], [4.0]])
    values = np.array([[0.5], [1.0], [3.0]])
    ratios = np.array([[0.5], [2.0], [1.5]])
    last = 3 + 1.2 * (4 - 3)
    middle = 1 + 1.2 * (2 + 0.9 * 3 - 1) + 0.9 * 0.8 * 1 * (last - 3)
    first = 0.5 + 0.5 * (1 + 0.9 * 1 - 0.5) + 0.9 * 0.8 * 0.5 * (middle - 1)
    found = targets(rewards, values, ratios, 0.9, 0.8, 1.2)
    assert_allclose(found[:, 0], [first, middle, last], rtol=1e-6)
    # Espeholt et al. 2018: on policy, with everything kept, the target is the return itself.
    assert_allclose(targets(rewards, values, np.ones((3, 1)), 1.0)[:, 0], [7, 6, 4])


def test_where_nothing_is_late_it_is_ppo() -> None:
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=(2, 30, 5))
    ours = targets(rewards, values, np.ones((30, 5)), 0.99, 0.9) - values
    assert_allclose(ours, advantages(rewards, values, 0.99, 0.9), atol=1e-12)


@pytest.mark.parametrize("staleness", [0, 1])
def test_training_earns_more_than_it_started_with(
    folder: tuple[Path, str], data: Dataset, beginner: Mlp, staleness: int
) -> None:
    made, runner = algorithm(folder, beginner, Settings(**{**vars(SMALL), "staleness": staleness}))
    ratios: list[float] = []
    policy = train(made, runner.run, lambda _, metrics: ratios.append(metrics["charts/mean_ratio"]))
    starts = data.starts(48)[::301]
    costs = [rollout(GRID, data, actor, starts, 48).cost.sum() for actor in (beginner, policy)]
    assert costs[1] < costs[0]
    assert ratios[0] == pytest.approx(1, abs=1e-5)
    late = [abs(ratio - 1) > 1e-5 for ratio in ratios[2:]]
    assert all(late) if staleness else not any(late)


def test_a_restart_from_its_state_changes_no_bit(folder: tuple[Path, str], beginner: Mlp) -> None:
    settings = Settings(**{**vars(SMALL), "iterations": 4, "staleness": 1})
    made, runner = algorithm(folder, beginner, settings)
    whole = train(made, runner.run)
    first, runner = algorithm(folder, beginner, settings)
    ahead = {0: first.jobs(0), 1: first.jobs(1)}
    for iteration in range(2):
        first.learn(iteration, ahead[iteration], [runner.run(job) for job in ahead[iteration]])
        ahead[iteration + 2] = first.jobs(iteration + 2) if iteration == 0 else []
    numbers, arrays = unpack(pack(*first.state()))
    second, runner = algorithm(folder, beginner, settings)
    second.restore(numbers, arrays)
    assert second.jobs(2) == ahead[2]
    for iteration in range(2, 4):
        jobs = second.jobs(iteration)
        second.learn(iteration, jobs, [runner.run(job) for job in jobs])
    assert to_bytes(second.versions.newest) == to_bytes(whole)


def test_costs_that_are_not_those_of_the_actions_are_refused(folder: tuple[Path, str], beginner: Mlp) -> None:
    made, runner = algorithm(folder, beginner, SMALL)
    job = made.jobs(0)[0]
    result = runner.run(job)
    batch = rebuild(runner, beginner, job, result)
    again = rebuild(runner, beginner, job, runner.run(job))
    assert_array_equal(batch.observations, again.observations)
    result["cost"][5, 3] *= 1.001
    with pytest.raises(DataError, match="not those of its actions"):
        rebuild(runner, beginner, job, result)
