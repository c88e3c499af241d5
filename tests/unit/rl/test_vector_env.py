"""The environment: a day's cost by hand, the projection, the return of stores to rest, and the observation."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

from rl.env.dataset import Dataset, build_dataset
from rl.env.forecasts import oracle
from rl.env.grid import Grid, Store
from rl.env.region import Region, region, synthetic
from rl.env.vector import HOURS_LEFT_CAP, VectorGridEnv
from rl.errors import DataError

BATTERY = Store("battery", power=0.1, hours=2.0, charge_efficiency=0.8, discharge_efficiency=0.5, wear=20.0)
LOAD = Store("load", 0.05, 2.0, charge_efficiency=0.8, discharge_efficiency=1.0, wear=6.0, holding=1.0, rest=1.0)
SMALL = Grid(
    stores=(BATTERY, LOAD),
    shed_power=0.04,
    shed=500.0,
    must_run=0.3,
    merit_order=((0.5, 20.0), (0.8, 50.0), (1.0, 100.0)),
    unserved=1000.0,
    curtailment=10.0,
    ramp=1.0,
)


def table_of(loads: list[float]) -> Dataset:
    """One region whose peak is 1 MW; the first load is that of the hour before the table's first row."""
    hours = np.datetime64("2018-01-01T00", "h") + np.arange(len(loads)).astype("timedelta64[h]")
    scaled = np.array(loads, float)
    one = Region("HAND", hours, scaled, np.ones(len(loads), bool), 1.0, 0)
    end = str(hours[-1] + 1)
    return build_dataset([one], [None], str(hours[1]), end)


def random_actions(rng: np.random.Generator, hours: int, env: VectorGridEnv) -> NDArray[np.float64]:
    return rng.uniform(-1.3, 1.3, (hours, env.num_actions, env.num_envs))


# Hour: load, action of battery, of shiftable load, of shedding → power of both, shed, charge of both after the hour, all by hand.
# The battery holds 0.2 and starts at 0.1; the load holds 0.1 and starts full.
DAY: list[tuple[float, float, float, float, float, float, float, float, float]] = [
    (0.40, 0, 0, 0, 0, 0, 0, 0.1, 0.1),
    (0.20, -1, 0, 0, -0.1, 0, 0, 0.18, 0.1),  # takes 0.1, stores 0.08; below must-run with it: 0.3 exactly
    (0.10, -1, 0, 0, -0.025, 0, 0, 0.2, 0.1),  # only 0.02 fit in; 0.125 of 0.3 needed: curtailment
    (0.30, 0, -1, 0, 0, 0, 0, 0.2, 0.1),  # full already
    (0.60, 0, 0, 0, 0, 0, 0, 0.2, 0.1),
    (0.80, 0, 1, 0, 0, 0.05, 0, 0.2, 0.05),
    (0.90, 0.5, 1, 0, 0.05, 0.05, 0, 0.1, 0.0),  # gives 0.05, takes 0.1 out
    (1.10, 1, 1, 1, 0.05, 0, 0.04, 0.0, 0.0),  # only 0.1 x 0.5 is left; scarcity
    (0.90, 1, 0, 0.5, 0, 0, 0.02, 0.0, 0.0),
    (0.70, 0, -0.5, 0, 0, -0.025, 0, 0.0, 0.02),
    *[(0.50, 0, 0, 0, 0, 0, 0, 0.0, 0.02)] * 10,
    (0.50, 0, -2, 0, 0, -0.05, 0, 0.0, 0.06),  # never more than full power
    (0.45, -0.4, 0, 0, -0.04, 0, 0, 0.032, 0.06),
    # Two hours left. The load must be at 0.06 at least after this one, as 0.04 come back in the last; the battery at 0.02.
    (0.45, 1, 1, 0, 0.006, 0, 0, 0.02, 0.06),
    (0.45, 1, 1, 0, -0.1, -0.05, 0, 0.1, 0.1),  # back to rest, whatever the action
]


def by_hand(loads: list[float]) -> list[float]:
    """Cost of each hour of DAY from its powers, with the merit order written out."""
    costs, last = [], loads[0]
    for load, (_, *_asked, battery, shifted, shed, _, held) in zip(loads[1:], DAY, strict=True):
        residual = load - battery - shifted - shed
        if residual < 0.3:
            fuel = 0.3 * 20 + (0.3 - residual) * 10
        elif residual < 0.5:
            fuel = residual * 20
        elif residual < 0.8:
            fuel = 10 + (residual - 0.5) * 50
        elif residual < 1.0:
            fuel = 25 + (residual - 0.8) * 100
        else:
            fuel = 45 + (residual - 1.0) * 1000
        wear = 20 * max(battery, 0) + 6 * max(shifted, 0) + 1.0 * (0.1 - held) + 500 * shed
        costs.append(fuel + abs(residual - last) + wear)
        last = residual
    return costs


def test_cost_of_a_day_equals_sums_by_hand() -> None:
    loads = [0.4, *(hour[0] for hour in DAY)]
    expected = by_hand(loads)
    # Some of them as plain sums, which also checks the helper.
    assert expected[0] == pytest.approx(0.4 * 20)
    assert expected[2] == pytest.approx(0.3 * 20 + 0.175 * 10 + 0.175)
    assert expected[7] == pytest.approx(45 + 0.01 * 1000 + 0.21 + 20 * 0.05 + 500 * 0.04 + 0.1)
    env = VectorGridEnv(SMALL, table_of(loads), 1, 24)
    env.reset(np.array([0]))
    total = 0.0
    for hour, (_, ask, shift, shed_share, *after) in enumerate(DAY):
        _, cost = env.step(np.array([[ask], [shift], [shed_share]], float))
        found = [*env.power[:, 0], env.shed[0], *env.charge[:, 0]]
        assert_allclose(found, after, atol=1e-12, err_msg=f"hour {hour}")
        assert cost[0] == pytest.approx(expected[hour], abs=1e-11), f"hour {hour}"
        total += cost[0]
    assert total == pytest.approx(sum(expected), abs=1e-10)
    assert total == pytest.approx(381.732, abs=1e-9)


def test_clipped_energy_is_counted_by_store() -> None:
    """It is the energy that full or empty stores, their power and the way back to rest did not allow."""
    env = VectorGridEnv(SMALL, table_of([0.5] * 6), 1, 4)
    env.reset(np.array([0]))
    env.step(np.array([[-1.0], [-1.0], [0.0]]))  # the load is full: 0.04 were asked
    assert_allclose(env.clipped_energy[:, 0], [0, 0.04], atol=1e-15)
    env.step(np.array([[2.0], [0.0], [0.0]]))  # twice the power: 0.4 asked, 0.18 held, 0.16 can come back in two hours
    assert_allclose(env.charge[0, 0], 0.0, atol=1e-15)
    assert_allclose(env.clipped_energy[:, 0], [0.4 - 0.18, 0.04], atol=1e-15)


@pytest.mark.parametrize("hours", [1, 2, 5, 24, 60])
def test_any_actions_end_at_rest_and_stay_in_bounds(hours: int) -> None:
    made, _ = synthetic(24 * 30)
    data = build_dataset([made], [None], "2017-01-02T00", "2017-01-25T00")
    for grid in (SMALL, Grid()):
        env = VectorGridEnv(grid, data, 7, hours)
        rng = np.random.default_rng(hours)
        env.reset(rng.integers(0, 400, 7))
        power, energy = grid.each("power")[:, None], grid.each("energy")[:, None]
        for action in random_actions(rng, hours, env):
            before = env.charge.copy()
            env.step(action)
            assert (np.abs(env.power) <= power + 1e-12).all()
            assert ((env.charge >= 0) & (env.charge <= energy)).all()
            into, out = grid.each("charge_efficiency")[:, None], grid.each("discharge_efficiency")[:, None]
            lost = np.maximum(env.power, 0) / out - np.maximum(-env.power, 0) * into
            assert_allclose(before - env.charge, lost, atol=1e-12)  # each efficiency once
        assert_array_equal(env.charge, np.broadcast_to(grid.rest[:, None], env.charge.shape))


def test_episodes_are_independent() -> None:
    made, _ = synthetic(24 * 60)
    data = build_dataset([made], [oracle(made, 6)], "2017-01-02T00", "2017-02-20T00")
    starts = np.array([3, 500, 77])
    together, alone = VectorGridEnv(Grid(), data, 3, 48), VectorGridEnv(Grid(), data, 1, 48)
    actions = random_actions(np.random.default_rng(1), 48, together)
    together.reset(starts)
    rows = [(o.copy(), c.copy()) for o, c in map(together.step, actions)]
    for k, start in enumerate(starts):
        alone.reset(np.array([start]))
        for action, (observation, cost) in zip(actions, rows, strict=True):
            own, paid = alone.step(action[:, k : k + 1])
            assert_array_equal(own[0], observation[k])
            # A product with one column sums in another order.
            assert_allclose(paid[0], cost[k], rtol=1e-13)


def test_observation_has_state_and_past_but_not_the_coming_hour() -> None:
    loads = [0.1 * k for k in range(3, 40)]
    env = VectorGridEnv(SMALL, table_of(loads), 1, 4)
    names = env.observation_names
    first = dict(zip(names, env.reset(np.array([30]))[0].tolist(), strict=True))
    assert names[:4] == ("charge battery", "charge load", "residual load", "hours left")
    assert first["charge battery"] == 0.5 and first["charge load"] == 1.0
    assert first["residual load"] == pytest.approx(loads[30])  # row 30 is the series' hour 31
    assert first["load -1"] == pytest.approx(loads[30]) and first["load -24"] == pytest.approx(loads[7])
    assert first["hours left"] == pytest.approx(4 / HOURS_LEFT_CAP)
    observation, _ = env.step(np.array([[1.0], [0.0], [0.0]]))
    second = dict(zip(names, observation[0].tolist(), strict=True))
    assert second["charge battery"] == 0.0 and second["residual load"] == pytest.approx(loads[31] - 0.05)
    assert second["load -1"] == pytest.approx(loads[31]) and second["hours left"] == pytest.approx(3 / HOURS_LEFT_CAP)


def test_starts_exclude_gaps_and_region_borders() -> None:
    demand = np.full(100, 50.0)
    demand[40] = np.nan
    hours = np.datetime64("2018-01-01T00", "h") + np.arange(100).astype("timedelta64[h]")
    one = region("A", hours, demand, offset=0, reference_end="2018-01-04T00")
    data = build_dataset([one, one], [None, None], "2018-01-01T01", "2018-01-05T03")
    assert data.spans == ((0, 98), (98, 196))
    # Row r is the series' hour r + 1: hour 40 is unknown, and hour 41 lacks the one before.
    assert data.starts(10).tolist() == [r + f for f in (0, 98) for r in (*range(30), *range(41, 89))]


def test_invalid_calls_are_refused() -> None:
    data = table_of([0.5] * 10)
    with pytest.raises(DataError, match="at least 1"):
        VectorGridEnv(SMALL, data, 1, 0)
    env = VectorGridEnv(SMALL, data, 2, 4)
    for starts in ([0], [0, 6], [-1, 0]):
        with pytest.raises(DataError, match="starts must be"):
            env.reset(np.array(starts))
    with pytest.raises(DataError, match="reset before"):
        env.step(np.zeros((3, 2)))
    with pytest.raises(DataError, match="no reference peak"):
        region("A", np.arange(5).astype("datetime64[h]"), np.ones(5), offset=0, reference_end="1970-01-01T00")
    with pytest.raises(DataError, match="without a gap"):
        region("A", np.array([0, 2]).astype("datetime64[h]"), np.ones(2), offset=0, reference_end="1971-01-01T00")


def test_net_load_subtracts_wind_and_fills_gaps_from_a_week_ago() -> None:
    hours = np.datetime64("2018-01-01T00", "h") + np.arange(400).astype("timedelta64[h]")
    demand, wind = 100 + np.arange(400.0), np.full(400, 20.0)
    wind[350] = np.nan
    made = region("A", hours, demand, offset=0, reference_end="2018-01-10T00", wind=wind)
    assert made.peak == 100 + 9 * 24 - 1 - 20
    assert not made.known[350] and made.known.sum() == 399
    assert made.load[350] == made.load[350 - 168]
    assert made.load[10] == pytest.approx((110 - 20) / made.peak)
