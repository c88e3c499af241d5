"""The linear program: a replay of its schedule costs its objective, no policy beats it, and its duals are values of energy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from numpy.typing import NDArray

from rl.env.dataset import Dataset, build_dataset
from rl.env.grid import Grid
from rl.env.region import region, synthetic
from rl.env.vector import VectorGridEnv
from rl.errors import DataError, SolveError
from rl.evaluation.score import idle_cost, reference_costs
from rl.planning.optimum import Program, Schedule, optimum
from tests.support.recordings import RESPONDENTS, demand, needs_recordings

GRID = Grid()
WEEK = 168


@pytest.fixture(scope="module")
def made() -> Dataset:
    one, _ = synthetic(2 * 8760)
    return build_dataset([one], [None], "2017-01-02T00", "2018-12-31T00")


def replay(
    grid: Grid, data: Dataset, starts: NDArray[np.int64], schedules: tuple[Schedule, ...]
) -> NDArray[np.float64]:
    """The environment's cost of the schedules, [N]."""
    actions = np.stack([s.actions(grid) for s in schedules], axis=-1)
    env = VectorGridEnv(grid, data, len(starts), actions.shape[1])
    env.reset(starts)
    return np.sum([env.step(actions[:, hour])[1].copy() for hour in range(actions.shape[1])], axis=0)


def random_weeks(data: Dataset, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).choice(data.starts(WEEK), 50)


def test_replay_costs_the_objective_in_50_random_weeks(made: Dataset) -> None:
    starts = random_weeks(made, 0)
    scale = reference_costs(GRID, made, starts, WEEK)
    assert_allclose(replay(GRID, made, starts, scale.schedules), scale.optimum, rtol=1e-9, atol=1e-6)
    assert (scale.optimum < scale.idle).all()


@needs_recordings
@pytest.mark.parametrize(
    "respondent",  # one claim for any load, of which the synthetic one is another
    [pytest.param(one, marks=() if one == "CAL" else pytest.mark.long) for one in RESPONDENTS],
)
def test_replay_costs_the_objective_in_weeks_of_a_real_region(respondent: str) -> None:
    hours, columns = demand(respondent)
    load = np.where(np.isfinite(columns["D"]) & (columns["D"] > 0), columns["D"], np.nan)
    load[load > 3 * np.nanmedian(load)] = np.nan  # real outliers of the recordings
    one = region(respondent, np.array(hours, "datetime64[h]"), load, offset=-6, reference_end="2018-01-01T00")
    data = build_dataset([one], [None], "2016-01-01T00", "2020-01-01T00")
    starts = random_weeks(data, 1)
    scale = reference_costs(GRID, data, starts, WEEK)
    assert_allclose(replay(GRID, data, starts, scale.schedules), scale.optimum, rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize("hours", [2190, pytest.param(8760, marks=pytest.mark.long)])
def test_a_season_and_a_year_are_solved_and_replayed(made: Dataset, hours: int) -> None:
    scale = reference_costs(GRID, made, np.array([100]), hours)
    assert_allclose(replay(GRID, made, np.array([100]), scale.schedules), scale.optimum, rtol=1e-9)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    hours=st.integers(2, 30),
    level=st.floats(-0.2, 1.1),
    # HiGHS holds constraints to 1e-7: it ignores swings as small as that, but they cost something in the environment.
    spread=st.just(0.0) | st.floats(1e-3, 0.5),
    curtailment=st.floats(1.0, 25.0),
)
def test_no_policy_beats_the_optimum(seed: int, hours: int, level: float, spread: float, curtailment: float) -> None:
    """Loads from negative to scarce; policies at random, and the optimum's own with noise, the hardest to beat."""
    rng = np.random.default_rng(seed)
    load = level + spread * rng.standard_normal(hours + 1)
    stamps = np.datetime64("2018-01-01T00", "h") + np.arange(hours + 1).astype("timedelta64[h]")
    one = replace(synthetic(48)[0], hours=stamps, load=load, known=np.ones(hours + 1, bool))
    data = build_dataset([one], [None], str(stamps[1]), str(stamps[-1] + 1))
    grid = Grid(curtailment=curtailment)
    plan = optimum(grid, load[1:], load[0])
    noise = np.array([0, 0, 0.01, 0.1, 0.5, 2.0])
    asked = plan.actions(grid)[..., None] * (noise != 0.5) + noise * rng.standard_normal((4, hours, 6))
    env = VectorGridEnv(grid, data, 6, hours)
    env.reset(np.zeros(6, np.int64))
    costs = np.sum([env.step(asked[:, hour])[1].copy() for hour in range(hours)], axis=0)
    assert_allclose(costs[0], plan.cost, rtol=1e-9, atol=1e-7)
    assert (costs >= plan.cost - 1e-7).all()
    assert idle_cost(grid, load[1:, None], load[:1]).sum() >= plan.cost - 1e-7


def test_price_is_the_cost_of_one_more_unit_of_load(made: Dataset) -> None:
    """The dual lies between the costs of a little less and a little more load."""
    load, before, step = made.load[4000:4036], made.previous_load[4000], 1e-6
    program = Program(GRID, 36)
    plan = program.solve(load, before)
    for hour in (0, 9, 20, 35):
        nudge = np.eye(36)[hour] * step
        less, more = (program.solve(load + sign * nudge, before).cost for sign in (-1, 1))
        assert (plan.cost - less) / step - 1e-3 <= plan.price[hour] <= (more - plan.cost) / step + 1e-3


def test_value_is_the_saving_of_one_more_unit_in_a_store(made: Dataset) -> None:
    """Energy given at the start stays until it is used, so it is worth the first hour's dual."""
    load, before, step = made.load[3000:3048], made.previous_load[3000], 1e-6
    program = Program(GRID, 48)
    plan = program.solve(load, before)
    for store in range(3):
        nudge = np.eye(3)[store] * step
        more, less = (program.solve(load, before, GRID.rest + sign * nudge).cost for sign in (1, -1))
        assert (plan.cost - more) / step - 1e-3 <= plan.value[store, 0] <= (less - plan.cost) / step + 1e-3


def test_stores_never_charge_and_discharge_at_once() -> None:
    load = np.where(np.arange(48) % 24 < 12, -0.5, 0.9)
    plan = optimum(GRID, load, -0.5)
    into, out = GRID.each("charge_efficiency")[:, None], GRID.each("discharge_efficiency")[:, None]
    lost = np.maximum(plan.power, 0) / out - np.maximum(-plan.power, 0) * into
    assert_allclose(-np.diff(plan.charge, axis=1, prepend=GRID.rest[:, None]), lost, atol=1e-9)


def test_scenarios_share_one_decision(made: Dataset) -> None:
    """One plan for two futures costs at least the mean of the two optima, and equal futures cost as much as one."""
    a, b, before = made.load[1000:1024], made.load[5000:5024], 0.6
    pair = Program(GRID, 24, (0.3, 0.7))
    apart = 0.3 * optimum(GRID, a, before).cost + 0.7 * optimum(GRID, b, before).cost
    plan = pair.solve(np.stack([a, b]), before)
    assert plan.cost > apart
    assert pair.solve(np.stack([a, a]), before).cost == pytest.approx(optimum(GRID, a, before).cost, rel=1e-9)
    assert plan.price.mean() == pytest.approx(optimum(GRID, a, before).price.mean(), rel=0.5)


def test_unsolvable_programs_are_refused() -> None:
    program = Program(GRID, 2)
    with pytest.raises(DataError, match=r"expected finite \[1, 2\]"):
        program.solve(np.ones(3), 1.0)
    with pytest.raises(DataError, match="finite"):
        program.solve(np.array([1.0, np.nan]), 1.0)
    with pytest.raises(SolveError, match="no plan for 2 hours"):
        program.solve(np.ones(2), 1.0, np.zeros(3))  # two hours are too short to return to rest
