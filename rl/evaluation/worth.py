"""What forecasts are worth in control: the score of the same planning on each of them."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from rl.env.dataset import Dataset
from rl.env.forecasts import Forecast
from rl.env.grid import Grid
from rl.evaluation.score import reference_costs, rollout
from rl.planning.mpc import PathMpc


def forecast_worth(
    grid: Grid, dataset: Dataset, forecasts: Mapping[str, Forecast], starts: NDArray[np.int64], hours: int
) -> dict[str, float]:
    """Return the PoP (share of the perfect-foresight saving) that planning on each forecast earns, by the forecast's name.

    Each hour, the hours that the forecast reaches are planned and the plan's first hour is applied (`rl.planning.mpc.PathMpc`, all episodes side
    by side). Differences between forecasts are therefore due to the forecasts. Doing nothing is 0. A perfect forecast stays below 1 by what
    hours beyond the horizon are worth.

    Args:
        grid: Fleet and cost.
        dataset: The hours.
        forecasts: [row, horizon, scenario] of the dataset's rows, as `Dataset.gather` returns them.
        starts: First rows of the episodes, as `Dataset.episodes` returns them.
        hours: Of an episode.
    """
    scale = reference_costs(grid, dataset, starts, hours)
    found = {}
    for name, forecast in forecasts.items():
        plans = PathMpc(grid, forecast, forecast.shape[1])
        found[name] = scale.pop(rollout(grid, dataset, plans, starts, hours).cost.sum(axis=0))
    return found
