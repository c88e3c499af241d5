"""The pathwise gradient equals finite differences; members improve, act as one policy, and restart bit-identically."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

from rl.algorithms import pathwise
from rl.algorithms.pathwise import PathwiseGradient, Settings, episode_gradient, optimal_savings
from rl.distributed.jobs import GradientSteps
from rl.distributed.runner import JobRunner
from rl.env.dataset import Dataset, build_dataset
from rl.env.forecasts import Forecast, corrected, day_ahead
from rl.env.region import Region, synthetic
from rl.env.vector import VectorGridEnv
from rl.errors import DataError
from rl.evaluation.score import reference_costs, rollout
from rl.policy import Layers, Mlp, combined, flatten, from_bytes, init_mlp, to_bytes, unflatten
from tests.support.grid_control import GRID, through_file, untrained, write_dataset

SMALL = Settings(iterations=4, members=2, steps=30, num_envs=16, episode_hours=48, width=16)
HALF = 2  # iterations before the restart


@pytest.fixture(scope="module")
def region() -> tuple[Region, Forecast]:
    """A region of 500 days, and its day-ahead forecast, corrected by the errors of the first year."""
    made, issued = synthetic(24 * 500)
    return made, corrected(made, day_ahead(made, issued, 6), "2018-01-01T00")


@pytest.fixture(scope="module")
def dataset(region: tuple[Region, Forecast]) -> Dataset:
    return build_dataset([region[0]], [region[1]], "2017-02-01T00", "2018-01-01T00", GRID)


@dataclass
class Trained:
    """An algorithm after all its iterations, and its state and next jobs after `HALF` of them."""

    algorithm: PathwiseGradient
    runner: JobRunner
    half: tuple[Any, Any]
    next_jobs: list[GradientSteps]


def algorithm_of(folder: Path, dataset: Dataset) -> tuple[PathwiseGradient, JobRunner]:
    sha256 = write_dataset(folder, dataset)

    def policy_of(wanted: str) -> Mlp:
        return next(from_bytes(each) for each in algorithm.contents() if hashlib.sha256(each).hexdigest() == wanted)

    runner = JobRunner(folder, policy_of)
    env = runner.env(sha256, SMALL.num_envs, SMALL.episode_hours)
    with pytest.MonkeyPatch.context() as patch:  # a scale of the cost; computed from 26 weeks it takes most of the test
        patch.setattr(pathwise, "optimal_savings", partial(optimal_savings, most=2))
        algorithm = PathwiseGradient(sha256, env, SMALL)
    return algorithm, runner


def learn(algorithm: PathwiseGradient, runner: JobRunner, first: int, last: int) -> None:
    for iteration in range(first, last):
        jobs = algorithm.jobs(iteration)
        algorithm.learn(iteration, jobs, [runner.run(job) for job in jobs])


@pytest.fixture(scope="module")
def trained(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    algorithm, runner = algorithm_of(tmp_path_factory.mktemp("control"), dataset)
    learn(algorithm, runner, 0, HALF)
    half, next_jobs = algorithm.state(), algorithm.jobs(HALF)
    learn(algorithm, runner, HALF, SMALL.iterations)
    return Trained(algorithm, runner, half, next_jobs)


def moved(layers: Layers, step: float) -> Iterator[tuple[int, int, tuple[int, ...], Layers]]:
    """A dozen weights, each moved by `step` in float64, which the policy keeps as it is given."""
    rng = np.random.default_rng(3)
    for layer in range(len(layers)):
        for part in range(2):
            for _ in range(3):
                at = tuple(int(rng.integers(0, size)) for size in layers[layer][part].shape)
                copies = [[np.array(x, float) for x in pair] for pair in layers]
                copies[layer][part][at] += step
                yield layer, part, at, tuple((w, b) for w, b in copies)


def test_gradient_equals_finite_differences(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the true derivative of a clip (0 outside), where the learner's lets a policy come back in.

    Observations are float32, so a difference needs a step well above their rounding; a few kinks may lie within it.
    """
    monkeypatch.setattr(
        pathwise, "_inwards", lambda flow, value, lowest, highest: flow * ((value <= highest) & (value >= lowest))
    )
    policy = untrained(dataset, 16)
    rng = np.random.default_rng(0)
    # Weights large enough that every projection cuts somewhere and load is shed.
    wild = tuple(
        (w.astype(float) * gain, b + rng.normal(0, 0.1, b.shape))
        for (w, b), gain in zip(policy.layers, (1, 1, 30), strict=True)
    )
    policy = policy.with_layers(wild)  # type: ignore[arg-type]
    env = VectorGridEnv(GRID, dataset, 16, 48)
    starts = rng.choice(dataset.starts(48), 16)
    charge = rng.uniform(0, 1, (len(GRID.stores), 16)) * GRID.each("energy")[:, None]
    weight = rng.uniform(0.5, 2, 16)
    _, slopes = episode_gradient(env, policy, starts, charge, weight)
    assert env.clipped_energy.min() > 0 and env.shed.max() > 0

    def cost(layers: Layers) -> float:
        return float((episode_gradient(env, policy.with_layers(layers), starts, charge, weight)[0] * weight).sum())

    step, exact = 1e-5, []
    for (layer, part, at, more), (_, _, _, less) in zip(
        moved(policy.layers, step), moved(policy.layers, -step), strict=True
    ):
        exact.append((slopes[layer][part][at], (cost(more) - cost(less)) / (2 * step)))
    found, expected = np.array(exact).T
    assert (expected != 0).sum() > len(exact) / 2
    assert_allclose(found, expected, rtol=2e-2, atol=1e-3 * np.abs(expected).max())


def test_combined_policy_beats_idle_and_the_members_mean(region: tuple[Region, Forecast], trained: Trained) -> None:
    later = build_dataset([region[0]], [region[1]], "2018-01-01T08", "2018-04-01T08", GRID)
    starts = later.starts(168)[:1680:168]
    scale = reference_costs(GRID, later, starts, 168)
    policies = (trained.algorithm.versions.newest, *trained.algorithm.members)
    pops = [scale.pop(rollout(GRID, later, policy, starts, 168).cost.sum(axis=0)) for policy in policies]
    assert pops[0] > 0.3
    assert pops[0] > np.mean(pops[1:])  # the cost is convex


def test_restart_is_bit_identical(dataset: Dataset, trained: Trained, tmp_path: Path) -> None:
    restarted, runner = algorithm_of(tmp_path, dataset)
    restarted.restore(*through_file(tmp_path, *trained.half))
    assert restarted.versions.number == HALF
    assert restarted.jobs(HALF) == trained.next_jobs
    learn(restarted, runner, HALF, SMALL.iterations)
    assert to_bytes(restarted.versions.newest) == to_bytes(trained.algorithm.versions.newest)


def test_combined_policy_takes_the_mean_action(dataset: Dataset) -> None:
    names = VectorGridEnv(GRID, dataset, 1, 24).observation_names
    rng = np.random.default_rng(1)
    one = init_mlp(names, np.zeros(len(names), np.float32), np.ones(len(names), np.float32), 4, 16, rng)
    several = [
        unflatten(one, flatten(one) + rng.normal(0, 0.1, flatten(one).size).astype(np.float32)) for _ in range(3)
    ]
    seen = dataset.features[:50]
    seen = np.concatenate([rng.uniform(0, 1, (50, len(names) - seen.shape[1])).astype(np.float32), seen], axis=1)
    assert_allclose(combined(several).act(seen), np.mean([p.act(seen) for p in several], axis=0), atol=1e-5)
    with pytest.raises(DataError, match="different features or normalisation"):
        combined([one, Mlp(one.observation_names, one.mean + 1, one.scale, one.layers)])


def test_saving_equals_that_of_the_optimum(dataset: Dataset) -> None:
    saving = optimal_savings(GRID, dataset, most=3)
    every = dataset.starts(168)
    own = every[np.linspace(0, len(every) - 1, 3).astype(int)]
    scale = reference_costs(GRID, dataset, own, 168)
    assert_allclose(saving, [(scale.idle - scale.optimum).sum() / (3 * 168)])
