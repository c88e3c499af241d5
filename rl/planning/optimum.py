"""The exact optimum: the environment's cost as a linear program, a day to a year, solved by HiGHS (scipy).

Nothing is approximated: every piece of the cost is a variable, and `Grid` refuses parameters under which a store would charge and
discharge at once. Replayed in the environment, the schedule costs what the objective says (tests/unit/rl/test_optimum.py).
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from rl.env.grid import Array, Grid
from rl.errors import DataError, SolveError


@dataclass(frozen=True)
class Schedule:
    """An optimal plan of T hours, in the units of `rl.env.grid`."""

    cost: float  # the objective: all hours, $ per MW of reference peak
    power: Array  # [store, hour] into the grid; negative: charging
    charge: Array  # [store, hour] at the hour's end
    shed: Array  # [hour]
    price: Array  # [hour] $/MWh: cost of one more MWh of net load in this hour, the balance's dual
    value: Array  # [store, hour] $/MWh: value of one more MWh in the store at the hour's end, its balance's dual

    def actions(self, grid: Grid) -> Array:
        """Return the actions [action, hour] that follow the plan in the environment."""
        share = self.shed / grid.shed_power if grid.shed_power else np.zeros_like(self.shed)
        return np.vstack([self.power / grid.each("power")[:, None], share])


class Program:
    """The linear program of `hours` hours and one or several scenarios of load with their weights.

    Stores and shedding have one decision for all scenarios, and the cost is the weighted mean: with one scenario the exact
    optimum, with several a two-stage plan. Variables of each hour: charging, discharging and charge of each store; shed load; and
    in every scenario the residual load, curtailment, the generation of every piece of the merit order, ramps up and down. The
    matrix is built once; loads and bounds change with each solve.
    """

    def __init__(self, grid: Grid, hours: int, weights: tuple[float, ...] = (1.0,)) -> None:
        """Build the matrix for `hours` hours and scenarios with `weights`, whose sum is 1."""
        from scipy import sparse  # here, as scipy.optimize: it takes longer to load than all else of a learner

        self.grid, self.hours, self.weights = grid, hours, weights
        prices = [price for _, price in grid.merit_order] + [grid.unserved]
        widths = [grid.merit_order[0][0], *np.diff([bound for bound, _ in grid.merit_order]), np.inf]
        now = sparse.eye_array(hours, format="csr")
        change = now - sparse.eye_array(hours, k=-1, format="csr")
        columns: dict[str, tuple[float, float, float]] = {}  # name → cost, lowest, highest
        rows: list[dict[str, object]] = []
        grid_terms = {"shed": now}
        for s in grid.stores:
            columns[f"in.{s.name}"] = 0.0, 0.0, s.power
            columns[f"out.{s.name}"] = s.wear, 0.0, s.power
            columns[f"charge.{s.name}"] = -s.holding, 0.0, s.energy
            rows.append(
                {
                    f"in.{s.name}": -s.charge_efficiency * now,
                    f"out.{s.name}": now / s.discharge_efficiency,
                    f"charge.{s.name}": change,
                }
            )
            grid_terms |= {f"in.{s.name}": -now, f"out.{s.name}": now}
        columns["shed"] = grid.shed, 0.0, grid.shed_power
        for q, weight in enumerate(weights):
            columns[f"residual.{q}"] = 0.0, -np.inf, np.inf
            columns[f"curtailed.{q}"] = weight * grid.curtailment, 0.0, np.inf
            pieces = {f"generation.{q}.{j}": now for j in range(len(prices))}
            for j, (name, price, width) in enumerate(zip(pieces, prices, widths, strict=True)):
                columns[name] = weight * price, 0.0 if j else grid.must_run, width
            columns[f"up.{q}"] = columns[f"down.{q}"] = weight * grid.ramp, 0.0, np.inf
            rows.append({f"residual.{q}": now, **grid_terms})
            rows.append({**pieces, f"residual.{q}": -now, f"curtailed.{q}": -now})
            rows.append({f"residual.{q}": change, f"up.{q}": -now, f"down.{q}": now})
        self._place = {name: slice(i * hours, (i + 1) * hours) for i, name in enumerate(columns)}
        self._matrix = sparse.block_array([[row.get(name) for name in columns] for row in rows], format="csc")
        dataset = np.repeat(np.array(list(columns.values())), hours, axis=0)
        self._costs, self._bounds = dataset[:, 0], dataset[:, 1:]
        self._constant = hours * float(grid.each("holding") @ grid.each("energy"))

    def solve(self, load: Array, before: float | Array, charge: Array | None = None) -> Schedule:
        """Find the plan of least cost. It ends at rest.

        Args:
            load: [scenario, hour] or [hour].
            before: Residual load of the hour before, one number or [scenario].
            charge: At the start, [store]; at rest by default.

        Raises:
            DataError: `load` has a wrong shape or a number that is not finite.
            SolveError: There is no plan, because rest is out of reach; the message has HiGHS's own reason.
        """
        from scipy.optimize import linprog

        load = np.atleast_2d(load)
        if load.shape != (len(self.weights), self.hours) or not np.isfinite(load).all():
            raise DataError(f"load {load.shape}: expected finite [{len(self.weights)}, {self.hours}]")
        stores, hours = self.grid.stores, self.hours
        right = np.zeros(self._matrix.shape[0])
        right[: len(stores) * hours : hours] = self.grid.rest if charge is None else charge
        balances = right[len(stores) * hours :].reshape(len(load), 3, hours)
        balances[:, 0], balances[:, 2, 0] = load, before
        bounds = self._bounds.copy()
        for store, rest in zip(stores, self.grid.rest, strict=True):
            bounds[self._place[f"charge.{store.name}"].stop - 1] = rest
        found = linprog(
            self._costs,
            A_eq=self._matrix,
            b_eq=right,
            bounds=bounds,
            method="highs-ds",
            options={"presolve": right.size > 1000},
        )
        if found.status != 0:
            raise SolveError(f"no plan for {hours} hours: {found.message}")
        rows = -found.eqlin.marginals.reshape(-1, hours)
        taken = np.stack([found.x[self._place[f"in.{s.name}"]] for s in stores])
        given = np.stack([found.x[self._place[f"out.{s.name}"]] for s in stores])
        return Schedule(
            cost=found.fun + self._constant,
            power=given - taken,
            charge=np.stack([found.x[self._place[f"charge.{s.name}"]] for s in stores]),
            shed=found.x[self._place["shed"]],
            price=-rows[len(stores) :: 3].sum(axis=0),
            value=rows[: len(stores)],
        )


@lru_cache(maxsize=256)
def program(grid: Grid, hours: int, weights: tuple[float, ...] = (1.0,)) -> Program:
    """Return a cached `Program`: a controller that replans every hour needs the same ones again."""
    return Program(grid, hours, weights)


def optimum(grid: Grid, load: Array, before: float) -> Schedule:
    """Find the exact optimum of `load` [hour] from rest to rest; see `Program.solve`."""
    return Program(grid, len(load)).solve(load, before)
