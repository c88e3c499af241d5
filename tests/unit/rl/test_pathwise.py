"""The gradient through the environment is the gradient; members get better by it, act as one, and go on bitwise where they stopped."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

from rl.algorithms import pathwise
from rl.algorithms.base import train
from rl.algorithms.pathwise import PathwiseGradient, Settings, episode_gradient, optimal_savings
from rl.arrays import pack, unpack
from rl.distributed.runner import JobRunner
from rl.env.dataset import Dataset, build_dataset
from rl.env.dataset_file import path_of
from rl.env.dataset_file import to_bytes as dataset_bytes
from rl.env.forecasts import corrected, day_ahead
from rl.env.grid import Grid
from rl.env.region import synthetic
from rl.env.vector import VectorGridEnv
from rl.errors import DataError
from rl.evaluation.score import reference_costs, rollout
from rl.policy import Layers, Mlp, combined, flatten, from_bytes, init_mlp, normalisation, to_bytes, unflatten

SMALL = Settings(iterations=4, members=2, steps=30, num_envs=16, episode_hours=48, width=16)


@pytest.fixture(scope="module")
def grid() -> Grid:
    return Grid()


@pytest.fixture(scope="module")
def made(grid: Grid) -> Dataset:
    region, issued = synthetic(24 * 400)
    ahead = corrected(region, day_ahead(region, issued, 12), "2018-01-01T00")
    return build_dataset([region], [ahead], "2017-02-01T00", "2018-01-01T00", grid)


def beginner(grid: Grid, made: Dataset) -> Mlp:
    env = VectorGridEnv(grid, made, 256, 24)
    mean, scale = normalisation(env.reset(np.random.default_rng(0).choice(made.starts(24), 256)))
    return init_mlp(env.observation_names, mean, scale, env.num_actions, 16, np.random.default_rng(0))


def descent(folder: Path, grid: Grid, made: Dataset) -> tuple[PathwiseGradient, JobRunner]:
    """An algorithm, and who does its jobs."""
    sha256, content = dataset_bytes(made)
    path_of(folder, sha256).parent.mkdir(exist_ok=True)
    path_of(folder, sha256).write_bytes(content)

    def policy_of(wanted: str) -> Mlp:
        return next(from_bytes(each) for each in algorithm.contents() if hashlib.sha256(each).hexdigest() == wanted)

    runner = JobRunner(folder, policy_of)
    algorithm = PathwiseGradient(sha256, runner.env(sha256, SMALL.num_envs, SMALL.episode_hours), SMALL)
    return algorithm, runner


def members(algorithm: PathwiseGradient) -> list[Mlp]:
    return [from_bytes(content) for content in algorithm.contents()[::3]]


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


def test_gradient_is_that_of_finite_differences(grid: Grid, made: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the derivative of a clip as it is (0 outside), where the learner's lets a policy come back in.

    The environment shows float32, so a difference needs a step well above its rounding; a few kinks may lie within it.
    """
    monkeypatch.setattr(
        pathwise, "_inwards", lambda flow, value, lowest, highest: flow * ((value <= highest) & (value >= lowest))
    )
    beginning = beginner(grid, made)
    rng = np.random.default_rng(0)
    # Weights large enough that every projection cuts somewhere and load is shed.
    wild = tuple(
        (w.astype(float) * gain, b + rng.normal(0, 0.1, b.shape))
        for (w, b), gain in zip(beginning.layers, (1, 1, 30), strict=True)
    )
    policy = beginning.with_layers(wild)  # type: ignore[arg-type]
    env = VectorGridEnv(grid, made, 16, 48)
    starts = rng.choice(made.starts(48), 16)
    charge = rng.uniform(0, 1, (len(grid.stores), 16)) * grid.each("energy")[:, None]
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


def test_members_together_beat_nothing_on_hours_that_they_never_saw(grid: Grid, tmp_path: Path) -> None:
    region, issued = synthetic(24 * 500)
    ahead = corrected(region, day_ahead(region, issued, 12), "2018-01-01T00")
    train_table = build_dataset([region], [ahead], "2017-02-01T00", "2018-01-01T00", grid)
    algorithm, runner = descent(tmp_path, grid, train_table)
    learnt = train(algorithm, runner.run)
    later = build_dataset([region], [ahead], "2018-01-01T08", "2018-04-01T08", grid)
    starts = later.starts(168)[:1680:168]
    scale = reference_costs(grid, later, starts, 168)
    costs = [rollout(grid, later, policy, starts, 168).cost.sum(axis=0) for policy in (learnt, *members(algorithm))]
    pops = [scale.pop(cost) for cost in costs]
    assert pops[0] > 0.3
    assert pops[0] > np.mean(pops[1:])  # the cost is convex


def test_a_restart_from_its_state_changes_no_bit(grid: Grid, made: Dataset, tmp_path: Path) -> None:
    def go_on(algorithm: PathwiseGradient, runner: JobRunner, iterations: Iterable[int]) -> None:
        for iteration in iterations:
            jobs = algorithm.jobs(iteration)
            algorithm.learn(iteration, jobs, [runner.run(job) for job in jobs])

    whole, one = descent(tmp_path, grid, made)
    go_on(whole, one, range(2))
    numbers, arrays = unpack(pack(*whole.state()))
    second, other = descent(tmp_path, grid, made)
    second.restore(numbers, arrays)
    assert second.versions.number == 2
    assert second.jobs(2) == whole.jobs(2)
    go_on(whole, one, range(2, 4))
    go_on(second, other, range(2, 4))
    assert to_bytes(second.versions.newest) == to_bytes(whole.versions.newest)


def test_combined_does_what_its_members_do_on_average(grid: Grid, made: Dataset) -> None:
    shown = VectorGridEnv(grid, made, 1, 24).observation_names
    rng = np.random.default_rng(1)
    one = init_mlp(shown, np.zeros(len(shown), np.float32), np.ones(len(shown), np.float32), 4, 16, rng)
    several = [
        unflatten(one, flatten(one) + rng.normal(0, 0.1, flatten(one).size).astype(np.float32)) for _ in range(3)
    ]
    seen = made.features[:50]
    seen = np.concatenate(
        [rng.uniform(0, 1, (50, len(one.observation_names) - seen.shape[1])).astype(np.float32), seen], axis=1
    )
    assert_allclose(combined(several).act(seen), np.mean([p.act(seen) for p in several], axis=0), atol=1e-5)
    with pytest.raises(DataError, match="do not combine"):
        combined([one, Mlp(one.observation_names, one.mean + 1, one.scale, one.layers)])


def test_saving_is_that_of_the_optimum(grid: Grid, made: Dataset) -> None:
    saving = optimal_savings(grid, made, most=3)
    every = made.starts(168)
    own = every[np.linspace(0, len(every) - 1, 3).astype(int)]
    scale = reference_costs(grid, made, own, 168)
    assert_allclose(saving, [(scale.idle - scale.optimum).sum() / (3 * 168)])
