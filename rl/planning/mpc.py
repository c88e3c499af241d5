"""Model-predictive control: each hour, plan the hours ahead on a forecast, do the plan's first hour.

The plan is the same linear program as the optimum, over what is forecast instead of what will be. A forecast with several
features is taken as that many scenarios, decided for together (two-stage). A plan ends at rest: at the episode's end because
it must, at the horizon because nobody knows what charge is worth there; 48 hours make that nearly free (docs/reference/control.md).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rl.env.forecasts import Forecast
from rl.env.grid import Grid
from rl.env.vector import Episodes
from rl.errors import DataError
from rl.planning.optimum import program

Array = NDArray[np.float64]


class Mpc:
    """A policy. `forecast` [row, horizon, scenario] (`Table.gather`), `weights` [scenario] of the scenarios, equal by default."""

    def __init__(self, grid: Grid, forecast: Forecast, weights: tuple[float, ...] | None = None) -> None:
        count = forecast.shape[2]
        self.grid, self.forecast = grid, forecast
        self.weights = weights or (1 / count,) * count
        if len(self.weights) != count or abs(sum(self.weights) - 1) > 1e-9:
            raise DataError(f"{len(self.weights)} weights for {count} scenarios: one each, with sum 1")

    def __call__(self, episodes: Episodes) -> Array:
        hours = min(self.forecast.shape[1], episodes.left)
        solve = program(self.grid, hours, self.weights).solve
        plans = [
            solve(self.forecast[row, :hours].T.astype(float), residual, charge)
            for row, residual, charge in zip(episodes.row, episodes.residual, episodes.charge.T, strict=True)
        ]
        return np.stack([plan.actions(self.grid)[:, 0] for plan in plans], axis=1)
