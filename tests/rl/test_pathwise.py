"""The gradient through the environment is the gradient; a learner gets better by it, and goes on bitwise where it stopped."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from rl import pathwise
from rl.env import Episodes
from rl.forecasts import corrected, day_ahead
from rl.grid import Grid
from rl.pathwise import Learner, Settings, gradient, savings, train
from rl.policy import Layers, Mlp
from rl.region import synthetic
from rl.score import rollout, yardstick
from rl.table import Table, table

SMALL = Settings(episodes=16, hours=48, steps=60, width=16)


@pytest.fixture(scope="module")
def grid() -> Grid:
    return Grid()


@pytest.fixture(scope="module")
def made(grid: Grid) -> Table:
    region, issued = synthetic(24 * 400)
    ahead = corrected(region, day_ahead(region, issued, 12), "2018-01-01T00")
    return table([region], [ahead], "2017-02-01T00", "2018-01-01T00", grid)


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


def test_gradient_is_that_of_finite_differences(grid: Grid, made: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the derivative of a clip as it is (0 outside), where the learner's lets a policy come back in.

    The environment shows float32, so a difference needs a step well above its rounding; a few kinks may lie within it.
    """
    monkeypatch.setattr(
        pathwise, "_inwards", lambda flow, value, lowest, highest: flow * ((value <= highest) & (value >= lowest))
    )
    learner = Learner(grid, made, SMALL, np.array([1.0]))
    rng = np.random.default_rng(0)
    # Weights large enough that every projection cuts somewhere and load is shed.
    wild = tuple(
        (w.astype(float) * gain, b + rng.normal(0, 0.1, b.shape))
        for (w, b), gain in zip(learner.policy.layers, (1, 1, 30), strict=True)
    )
    policy = learner.policy.with_layers(wild)  # type: ignore[arg-type]
    episodes = Episodes(grid, made, 16, 48)
    starts = rng.choice(made.starts(48), 16)
    charge = rng.uniform(0, 1, (len(grid.stores), 16)) * grid.each("energy")[:, None]
    weight = rng.uniform(0.5, 2, 16)
    _, slopes = gradient(episodes, policy, starts, charge, weight)
    assert episodes.cut.min() > 0 and episodes.shed.max() > 0

    def cost(layers: Layers) -> float:
        return float((gradient(episodes, policy.with_layers(layers), starts, charge, weight)[0] * weight).sum())

    step, exact = 1e-5, []
    for (layer, part, at, more), (_, _, _, less) in zip(
        moved(policy.layers, step), moved(policy.layers, -step), strict=True
    ):
        exact.append((slopes[layer][part][at], (cost(more) - cost(less)) / (2 * step)))
    found, expected = np.array(exact).T
    assert (expected != 0).sum() > len(exact) / 2
    assert_allclose(found, expected, rtol=2e-2, atol=1e-3 * np.abs(expected).max())


def test_a_learner_beats_nothing_on_hours_that_it_never_saw(grid: Grid) -> None:
    region, issued = synthetic(24 * 500)
    ahead = corrected(region, day_ahead(region, issued, 12), "2018-01-01T00")
    learnt = train(grid, table([region], [ahead], "2017-02-01T00", "2018-01-01T00", grid), SMALL)
    later = table([region], [ahead], "2018-01-01T08", "2018-04-01T08", grid)
    starts = later.starts(168)[:1680:168]
    scale = yardstick(grid, later, starts, 168)
    assert scale.pop(rollout(grid, later, learnt, starts, 168).cost.sum(axis=0)) > 0.3


def test_a_learner_goes_on_bitwise_where_it_stopped(grid: Grid, made: Table) -> None:
    whole, part, rest = (Learner(grid, made, SMALL, np.array([1.0])) for _ in range(3))
    for _ in range(6):
        whole.step()
    for _ in range(3):
        part.step()
    rest.restore(part.state())
    for _ in range(3):
        rest.step()
    for name, value in whole.state().items():
        assert_array_equal(rest.state()[name], value, err_msg=name)


def test_saving_is_that_of_the_optimum(grid: Grid, made: Table) -> None:
    saving = savings(grid, made, most=3)
    every = made.starts(168)
    own = every[np.linspace(0, len(every) - 1, 3).astype(int)]
    scale = yardstick(grid, made, own, 168)
    assert_allclose(saving, [(scale.nothing - scale.optimum).sum() / (3 * 168)])


def test_a_policy_keeps_its_features(grid: Grid, made: Table) -> None:
    learner = Learner(grid, made, SMALL, np.array([1.0]))
    moved_on: Mlp = learner.policy.with_layers(learner.policy.layers)
    assert moved_on.names == learner.policy.names
    assert_array_equal(moved_on.folded[0][0], learner.policy.folded[0][0])
