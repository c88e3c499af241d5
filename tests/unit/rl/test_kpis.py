"""Key performance indicators, each against a sum by hand."""

from __future__ import annotations

import numpy as np
import pytest

from rl.env.grid import Grid
from rl.errors import DataError
from rl.evaluation.kpis import cvar, kpis, weekly
from rl.evaluation.score import Trajectory

GRID = Grid()


def trace() -> Trajectory:
    """One day of one episode at 0.5, with hour 5 at 1.2 and hour 9 at 0.1; some power in hours 1 to 3."""
    residual = np.full((24, 1), 0.5)
    residual[5], residual[9] = 1.2, 0.1
    power = np.zeros((24, 3, 1))
    power[1, :, 0] = 0.03, 0.046, 0.02
    power[2, :, 0] = -0.03, 0, -0.021
    shed = np.zeros((24, 1))
    shed[3] = 0.01
    return Trajectory(
        starts=np.array([0]),
        load=residual,
        residual=residual,
        previous_load=np.array([0.4]),
        power=power,
        charge=np.zeros((24, 3, 1)),
        shed=shed,
        cost=np.ones((24, 1)),
        clipped_energy=np.array([[0.1], [0.0], [0.05]]),
    )


def test_kpis_equal_sums_by_hand() -> None:
    found = kpis(GRID, trace(), 1000.0)
    assert found.cost == pytest.approx(24_000)
    assert found.ramp_absolute == pytest.approx(100 + 2 * 700 + 2 * 400)
    assert found.ramp_up_only == pytest.approx(100 + 700 + 400)
    assert found.steepest_up == pytest.approx(700)
    assert found.peak == found.daily_peak == pytest.approx(1200)
    assert found.load_factor == pytest.approx((22 * 0.5 + 1.3) / 24 / 1.2)
    assert found.unserved == pytest.approx(100) and found.curtailed == pytest.approx(200)
    assert found.cycles == pytest.approx(
        {"battery_2h": 0.03 / 0.92 / 0.06, "battery_4h": 0.05 / 0.2, "shiftable": 0.02 / 0.09}
    )
    assert (found.shifted, found.rebound, found.shed) == pytest.approx((20, 21, 10))
    assert found.cut == pytest.approx(150) and found.cvar_week == pytest.approx(24_000)


def test_cvar_is_the_mean_of_the_worst_weeks() -> None:
    costs = np.arange(1.0, 21.0)
    assert cvar(costs, 0.1) == pytest.approx(19.5) and cvar(costs[:3], 0.1) == 3
    hourly = np.repeat(np.array([1.0, 3.0]), 168)[:, None]
    assert weekly(np.concatenate([hourly, hourly[:5]])).tolist() == [168, 504]


def test_episodes_shorter_than_a_day_are_refused() -> None:
    short = trace()
    with pytest.raises(DataError, match="24"):
        kpis(GRID, Trajectory(**{**vars(short), "cost": short.cost[:10]}), 1.0)
