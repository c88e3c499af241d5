"""Fleet and cost: the convex piecewise-linear cost of an hour, and the rules that keep the optimum exact."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose

from rl.env.grid import BATTERIES, SHIFTABLE, Grid
from rl.errors import GridError

STEPS = ((0.5, 20.0), (0.8, 50.0), (1.0, 100.0))


def test_generation_cost_is_the_area_under_the_merit_order() -> None:
    grid = Grid(must_run=0.3, merit_order=STEPS, unserved=1000.0, curtailment=10.0)
    expected = {
        0.3: 0.3 * 20,
        0.1: 0.3 * 20 + 0.2 * 10,  # 0.2 curtailed
        -0.2: 0.3 * 20 + 0.5 * 10,
        0.5: 0.5 * 20,
        0.7: 0.5 * 20 + 0.2 * 50,
        1.0: 0.5 * 20 + 0.3 * 50 + 0.2 * 100,
        1.1: 0.5 * 20 + 0.3 * 50 + 0.2 * 100 + 0.1 * 1000,
    }
    assert_allclose(grid.generation_cost(np.array(list(expected))), list(expected.values()), rtol=1e-14)


def test_generation_cost_is_convex_and_rises_above_must_run() -> None:
    loads = np.linspace(-0.5, 1.5, 4001)
    slopes = np.diff(Grid().generation_cost(loads))
    assert (np.diff(slopes) > -1e-10).all()
    assert (slopes[loads[:-1] >= 0.3] > 0).all() and (slopes[loads[1:] <= 0.3] < 0).all()


def test_store_that_profits_from_burning_energy_is_refused() -> None:
    """Loss 0.18 x (25 + 2 x 2) = 5.26 $/MWh: wear must be above it."""
    assert BATTERIES[0].loss == pytest.approx(1 / 0.92**2 - 1)
    with pytest.raises(GridError, match=r"battery_2h: wear 5.2 must be above .* = 5.26"):
        Grid(stores=(replace(BATTERIES[0], wear=5.2),))
    Grid(stores=(replace(BATTERIES[0], wear=5.3),))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"merit_order": ((0.5, 20.0), (0.8, 20.0))}, "must rise"),
        ({"merit_order": ((0.5, 20.0), (0.4, 50.0))}, "must rise"),
        ({"must_run": 0.6}, "must rise"),
        ({"unserved": 900.0}, "must rise"),
        ({"shed_power": -0.1}, "shed_power -0.1 must be 0 or more"),
        ({"stores": ()}, "stores: none; give at least one"),
        ({"stores": SHIFTABLE}, "one Store alone; write stores="),
        ({"stores": (SHIFTABLE, SHIFTABLE)}, "each with a name of its own"),
        ({"stores": (replace(SHIFTABLE, hours=float("nan")),)}, "store shiftable: power and hours must be positive"),
        ({"stores": (replace(SHIFTABLE, charge_efficiency=1.2),)}, "efficiency"),
        ({"stores": (replace(SHIFTABLE, hours=0.0),)}, "positive"),
        ({"stores": (replace(SHIFTABLE, rest=1.5),)}, "between 0 and 1"),
    ],
)
def test_parameters_against_a_rule_are_refused(change: dict, words: str) -> None:
    with pytest.raises(GridError, match=words):
        Grid(**change)


def test_grid_of_lists_is_that_of_tuples() -> None:
    """A planner caches its programs by grid."""
    made = Grid(stores=list(BATTERIES), merit_order=[[0.5, 20.0], [0.8, 50.0]])  # type: ignore[arg-type]
    assert hash(made) == hash(Grid(stores=BATTERIES, merit_order=((0.5, 20.0), (0.8, 50.0))))
