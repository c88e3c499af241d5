"""Model-predictive control: each hour, plan the hours ahead on a forecast and apply the plan's first hour.

The plan is the same linear program as the optimum, on the forecast instead of the true load. A forecast with several features is
that many scenarios with one common decision (two-stage). A plan ends at rest: at the episode's end because it must, at the horizon
because the value of charge there is unknown; with 48 hours that costs almost nothing (docs/reference/control.md).
"""

import numpy as np
from numpy.typing import NDArray

from rl.env.dataset import Dataset
from rl.env.forecasts import Forecast
from rl.env.grid import Array, Grid
from rl.env.vector import VectorGridEnv
from rl.errors import DataError
from rl.planning.optimum import program
from rl.planning.two_stage import TwoStage

HORIZON = 36  # hours that a planning baseline looks ahead, or as far as the dataset's forecast goes


class Mpc:
    """A policy. `forecast` [row, horizon, scenario] (`Dataset.gather`), `weights` [scenario] of the scenarios, equal by default."""

    def __init__(self, grid: Grid, forecast: Forecast, weights: tuple[float, ...] | None = None) -> None:
        """Plan on `forecast`.

        Raises:
            DataError: The weights do not fit the scenarios.
        """
        count = forecast.shape[2]
        self.grid, self.forecast = grid, forecast
        self.weights = weights or (1 / count,) * count
        if len(self.weights) != count or abs(sum(self.weights) - 1) > 1e-9:
            raise DataError(
                f"{len(self.weights)} weights for {count} scenarios: give each scenario one weight, with sum 1"
            )

    def __call__(self, env: VectorGridEnv) -> Array:
        """Plan for every episode and return the actions [action, N] of the coming hour."""
        hours = min(self.forecast.shape[1], env.hours_left)
        solve = program(self.grid, hours, self.weights).solve
        plans = [
            solve(self.forecast[row, :hours].T.astype(float), residual, charge)
            for row, residual, charge in zip(env.row, env.reported, env.charge.T, strict=True)
        ]
        return np.stack([plan.actions(self.grid)[:, 0] for plan in plans], axis=1)


class PathMpc:
    """A policy as `Mpc`, whose plans have `common` hours in common and then one decision a path; all episodes are planned at once.

    With one path, or with all hours in common, its plans are those of `Mpc`, to `two_stage.GAP` of their cost.
    """

    def __init__(self, grid: Grid, paths: Forecast, common: int, weights: tuple[float, ...] | None = None) -> None:
        """Plan on `paths` [row, horizon, path] with `weights` [path], equal by default.

        Raises:
            DataError: The weights do not fit the paths.
        """
        self.grid, self.paths, self.plans = grid, paths, TwoStage(grid, common)
        count = paths.shape[2]
        self._near: Array | None = None  # the last plans, without their first hour
        self._left = 0  # hours left when they were made
        self.weights = np.array(weights or (1 / count,) * count)
        if len(self.weights) != count or abs(self.weights.sum() - 1) > 1e-9:
            raise DataError(f"{len(self.weights)} weights for {count} paths: give each path one weight, with sum 1")

    def __call__(self, env: VectorGridEnv) -> Array:
        """Plan for every episode and return the actions [action, N] of the coming hour."""
        hours = min(self.paths.shape[1], env.hours_left)
        loads = self.paths[env.row, :hours].transpose(1, 2, 0).astype(float)
        near = self._near if env.hours_left == self._left - 1 else None
        first = self.plans.solve(loads, env.reported, env.charge, self.weights, near)
        self._near, self._left = first.plan[:, 1:], env.hours_left
        share = first.shed / self.grid.shed_power if self.grid.shed_power else np.zeros_like(first.shed)
        return np.vstack([first.power / self.grid.each("power")[:, None], share])


def known_loads(dataset: Dataset, horizon: int) -> NDArray[np.float32]:
    """Return the true loads of every row's hours ahead, [row, horizon, 1].

    The hours after a region's last hour repeat it.
    """
    out = np.empty((len(dataset.load), horizon, 1), np.float32)
    for first, last in dataset.spans:
        rows = np.minimum(np.arange(first, last)[:, None] + np.arange(horizon), last - 1)
        out[first:last, :, 0] = dataset.load[rows]
    return out


def point_forecast(dataset: Dataset) -> NDArray[np.float32]:
    """Return the first forecast among a dataset's features, [row, horizon, 1].

    Raises:
        DataError: The dataset has no forecast.
    """
    column_of = {name: column for column, name in enumerate(dataset.feature_names)}
    columns = [column_of[name] for h in range(HORIZON) if (name := f"forecast +{h}.0") in column_of]
    if not columns:
        raise DataError("the dataset has no forecast, which the baseline `mpc` needs")
    return np.ascontiguousarray(dataset.features[:, columns, None])
