"""Two-stage plans of the interior-point method against HiGHS, and what makes them plans: independence, the common hours, no future."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from rl.env.dataset import build_dataset
from rl.env.forecasts import day_ahead
from rl.env.grid import Grid
from rl.env.region import synthetic
from rl.errors import DataError
from rl.evaluation.score import rollout
from rl.planning.mpc import Mpc, PathMpc
from rl.planning.optimum import program
from rl.planning.two_stage import TwoStage

GRID = Grid()
HOURS, PATHS, PLANS = 10, 4, 5
EQUAL = np.full(PATHS, 1 / PATHS)


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Paths [hour, path, plan] around the synthetic load, residual loads before, and charges, also at both bounds."""
    rng = np.random.default_rng(0)
    load = synthetic(8760)[0].load
    begin = rng.integers(1, 8000, PLANS)
    loads = load[begin + np.arange(HOURS)[:, None]][:, None] + rng.normal(0, 0.01, (HOURS, PATHS, PLANS)).cumsum(axis=0)
    energy = GRID.each("energy")
    charge = energy[:, None] * rng.uniform(0, 1, (3, PLANS))
    charge[:, 0], charge[:, 1] = 0, energy
    charge[2] = np.maximum(charge[2], energy[2] - 8 * GRID.stores[2].power / 1.05)  # the debt can be paid back in time
    return loads, load[begin - 1], charge


def first_hour_cost(loads: np.ndarray, before: float, charge: np.ndarray, power: np.ndarray, shed: float) -> float:
    """The mean over paths [hour, path] of the first hour's cost with this decision, and of the least cost of the others after it."""
    into, out = GRID.each("charge_efficiency"), GRID.each("discharge_efficiency")
    after = (charge + np.maximum(-power, 0) * into - np.maximum(power, 0) / out).clip(0, GRID.each("energy"))
    own = (GRID.each("wear") * np.maximum(power, 0)).sum() + GRID.each("holding") @ (GRID.each("energy") - after)
    total = own + GRID.shed * shed
    for path in loads.T:
        residual = path[0] - power.sum() - shed
        total += (GRID.generation_cost(residual) + GRID.ramp * abs(residual - before)) / PATHS
        total += program(GRID, HOURS - 1).solve(path[1:], residual, after).cost / PATHS
    return float(total)


def test_common_plans_are_those_of_highs(drawn: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    """All hours in common: the decision costs what the linear program's does."""
    loads, before, charge = drawn
    found = TwoStage(GRID, HOURS, gap=1e-4).solve(loads, before, charge, EQUAL)
    for plan in range(PLANS):
        exact = program(GRID, HOURS, tuple(EQUAL)).solve(loads[:, :, plan].T, before[plan], charge[:, plan])
        assert_allclose(found.power[:, plan].sum(), exact.power[:, 0].sum(), atol=2e-3)
        assert_allclose(found.shed[plan], exact.shed[0], atol=1e-4)


def test_first_hour_of_two_stages_is_best(drawn: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    """Each path's best cost after the decision comes from HiGHS; no other decision near it has a lower mean."""
    loads, before, charge = drawn
    found = TwoStage(GRID, 1, gap=1e-4).solve(loads, before, charge, EQUAL)
    rng = np.random.default_rng(1)
    for plan in (0, 4):
        own = loads[:, :, plan], before[plan], charge[:, plan]
        least = first_hour_cost(*own, found.power[:, plan], found.shed[plan])
        for size in (1e-3, 1e-2):
            for _ in range(3):
                other = found.power[:, plan] + rng.normal(0, size, 3)
                # Only what the stores can do in an hour.
                other = np.minimum(other, charge[:, plan] * GRID.each("discharge_efficiency"))
                room = (GRID.each("energy") - charge[:, plan]) / GRID.each("charge_efficiency")
                other = np.maximum(other, -room).clip(-GRID.each("power"), GRID.each("power"))
                assert least <= first_hour_cost(*own, other, found.shed[plan]) + 5e-3


def test_plans_do_not_depend_on_their_neighbours(drawn: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    loads, before, charge = drawn
    together = TwoStage(GRID, 2).solve(loads, before, charge, EQUAL)
    for plan in range(PLANS):
        one = slice(plan, plan + 1)
        alone = TwoStage(GRID, 2).solve(loads[:, :, one], before[one], charge[:, one], EQUAL)
        assert_allclose(alone.power[:, 0], together.power[:, plan], atol=5e-3)


def test_refuses_what_is_no_plan(drawn: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    loads, before, charge = drawn
    with pytest.raises(DataError, match="common"):
        TwoStage(GRID, 0)
    with pytest.raises(DataError, match="finite"):
        TwoStage(GRID, 1).solve(np.where(loads > 0.7, np.nan, loads), before, charge, EQUAL)
    with pytest.raises(DataError, match="weights"):
        PathMpc(GRID, np.zeros((3, 2, 2), np.float32), 1, (0.5, 0.4))


def test_one_path_earns_what_a_linear_program_an_hour_does() -> None:
    """Also near the end of the episode, where every store must come back to rest."""
    region, issued = synthetic(8760 + 1000)
    data = build_dataset([region], [None], "2018-01-01T00", "2018-02-01T00")
    ahead, starts, hours = data.gather([day_ahead(region, issued, 8)]), np.array([100, 300]), 12
    exact, fast = (rollout(GRID, data, each, starts, hours) for each in (Mpc(GRID, ahead), PathMpc(GRID, ahead, 8)))
    assert_allclose(fast.cost.sum(axis=0), exact.cost.sum(axis=0), rtol=2e-4)
    assert_allclose(fast.charge[-1], exact.charge[-1], atol=1e-9)


def test_paths_of_later_hours_change_no_decision_before_them() -> None:
    """Other paths from the sixth hour on change nothing that was decided by then."""
    region, _ = synthetic(8760 + 1000)
    data = build_dataset([region], [None], "2018-01-01T00", "2018-02-01T00")
    rng = np.random.default_rng(0)
    paths = (0.6 + rng.normal(0, 0.02, (len(data.load), 6, 3))).astype(np.float32)
    other = paths.copy()
    other[106:] += 0.1
    one, two = (rollout(GRID, data, PathMpc(GRID, each, 1), np.array([100]), 10) for each in (paths, other))
    assert (one.power[:6] == two.power[:6]).all()
    assert (one.power[6:] != two.power[6:]).any()
