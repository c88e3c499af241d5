"""Baselines and scores on the synthetic region: the score of each, that none uses the future, and that the gaps add up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from rl.env.dataset import Dataset, build_dataset
from rl.env.forecasts import day_ahead, oracle, persistence, with_quantiles
from rl.env.grid import Grid
from rl.env.region import Region, synthetic
from rl.errors import DataError
from rl.evaluation.score import Policy, ReferenceCosts, cost_parts, gaps, reference_costs, rollout
from rl.planning.baselines import best_peak_shaving, hour_rule, idle, peak_shaving
from rl.planning.mpc import Mpc

GRID = Grid()
HOURS = 48
TRAIN = ("2017-01-02T00", "2018-01-01T00")
TEST = ("2018-01-01T00", "2019-01-01T00")
STARTS = np.array([700, 4700])


@pytest.fixture(scope="module")
def region() -> tuple[Region, np.ndarray]:
    return synthetic(2 * 8760 + 48)


@pytest.fixture(scope="module")
def evaluation_year(region: tuple[Region, np.ndarray]) -> Dataset:
    return build_dataset([region[0]], [None], *TEST)


@pytest.fixture(scope="module")
def scale(evaluation_year: Dataset) -> ReferenceCosts:
    return reference_costs(GRID, evaluation_year, STARTS, HOURS)


def pop(data: Dataset, scale: ReferenceCosts, policy: Policy) -> float:
    return scale.pop(rollout(GRID, data, policy, STARTS, HOURS).cost.sum(axis=0))


def test_idle_scores_zero_and_the_optimum_one(evaluation_year: Dataset, scale: ReferenceCosts) -> None:
    trace = rollout(GRID, evaluation_year, idle, STARTS, HOURS)
    assert_allclose(trace.cost.sum(axis=0), scale.idle, rtol=1e-12)
    assert_array_equal(trace.residual, trace.load)
    assert pop(evaluation_year, scale, idle) == pytest.approx(0, abs=1e-9)
    assert scale.pop(scale.optimum) == 1
    actions = np.stack([s.actions(GRID) for s in scale.schedules], axis=-1)
    assert pop(evaluation_year, scale, lambda e: actions[:, HOURS - e.hours_left]) == pytest.approx(1, abs=1e-9)


def test_mpc_scores_follow_the_forecasts_quality(
    region: tuple[Region, np.ndarray], evaluation_year: Dataset, scale: ReferenceCosts
) -> None:
    one, issued = region
    point = day_ahead(one, issued, 24)
    scores = {
        name: pop(evaluation_year, scale, Mpc(GRID, evaluation_year.gather([forecast])))
        for name, forecast in (("perfect", oracle(one, 24)), ("day ahead", point), ("yesterday", persistence(one, 24)))
    }
    assert 0.97 < scores["perfect"] <= 1
    assert scores["yesterday"] < scores["day ahead"] < scores["perfect"]
    parts = gaps(scores["perfect"], scores["day ahead"], 0.5)
    assert parts.horizon + parts.forecast + parts.policy == pytest.approx(0.5)
    assert parts.horizon > 0 and parts.forecast > 0


def test_mpc_over_the_whole_episode_equals_the_optimum(
    region: tuple[Region, np.ndarray], evaluation_year: Dataset
) -> None:
    """Replanned every hour over all hours left, on the true load."""
    starts, hours = np.array([4000]), 30
    trace = rollout(GRID, evaluation_year, Mpc(GRID, evaluation_year.gather([oracle(region[0], hours)])), starts, hours)
    # The oracle is float32.
    assert trace.cost.sum() == pytest.approx(reference_costs(GRID, evaluation_year, starts, hours).optimum[0], rel=1e-6)


def test_equal_scenarios_plan_as_one(region: tuple[Region, np.ndarray], evaluation_year: Dataset) -> None:
    point = evaluation_year.gather([day_ahead(region[0], region[1], 12)])
    starts = np.array([1000])
    one, three = (
        rollout(GRID, evaluation_year, Mpc(GRID, f), starts, 24) for f in (point, np.repeat(point, 3, axis=2))
    )
    assert_allclose(one.cost.sum(), three.cost.sum(), rtol=1e-3)
    with pytest.raises(DataError, match="weights"):
        Mpc(GRID, point, (0.5, 0.5))


def test_hour_rule_is_the_best_of_its_class_on_its_days(region: tuple[Region, np.ndarray]) -> None:
    train = build_dataset([region[0]], [None], *TRAIN)
    rule = hour_rule(GRID, train, most_days=8)
    january = np.flatnonzero((train.month == 0) & (train.clock == 0))
    january = january[np.linspace(0, len(january) - 1, 8).astype(int)]  # the days that it was fitted on

    def cost(policy: Policy) -> float:
        return rollout(GRID, train, policy, january, 24).cost.sum()

    own = cost(rule)
    assert own < cost(idle)
    rng = np.random.default_rng(0)
    for size in (0.02, 0.1, 0.5):
        other = replace(rule, actions=rule.actions + size * rng.standard_normal(rule.actions.shape))
        assert own <= cost(other)


def test_peak_shaving_fitted_on_training_weeks_lowers_peaks(
    region: tuple[Region, np.ndarray], evaluation_year: Dataset
) -> None:
    train = build_dataset([region[0]], [None], *TRAIN)
    choice = best_peak_shaving(GRID, train, train.starts(HOURS)[::400], HOURS)
    trace = rollout(GRID, evaluation_year, peak_shaving(evaluation_year, *choice), STARTS, HOURS)
    assert trace.residual.max(axis=0).mean() < trace.load.max(axis=0).mean()


@pytest.mark.parametrize("kind", ["rule", "peak", "quantiles"])
def test_no_policy_uses_the_future(region: tuple[Region, np.ndarray], kind: str) -> None:
    """Another load from hour 40 on changes neither the first 40 hours nor the decision for the 41st."""
    one, issued = region

    def run(changed: Region) -> np.ndarray:
        data = build_dataset([changed], [None], *TEST)
        make: dict[str, Callable[[], Policy]] = {
            "rule": lambda: hour_rule(GRID, build_dataset([changed], [None], *TRAIN), most_days=2).on(data),
            "peak": lambda: peak_shaving(data, 0.8, 0.2, 1.0),
            "quantiles": lambda: Mpc(
                GRID, data.gather([with_quantiles(changed, day_ahead(changed, issued, 8), TRAIN[1], (0.2, 0.8))])
            ),
        }
        return rollout(GRID, data, make[kind](), np.array([3000]), 48).power[:41]

    first = int(np.searchsorted(one.hours, np.datetime64(TEST[0], "h"))) + 3000
    load = one.load.copy()
    load[first + 40 :] = 0.9
    assert_array_equal(run(one), run(replace(one, load=load)))


def test_parts_of_the_cost_add_up(evaluation_year: Dataset) -> None:
    trace = rollout(GRID, evaluation_year, peak_shaving(evaluation_year, 0.8, 0.2, 1.0), STARTS, HOURS)
    parts = cost_parts(GRID, trace)
    assert_allclose(sum(parts.values()), trace.cost.sum(axis=0), rtol=1e-12)
    assert all((part >= 0).all() for part in parts.values()) and parts["wear"].min() > 0
