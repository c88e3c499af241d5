"""Gymnasium's two interfaces to the environment: `gymnasium.make("rl.gym:GridControl-v0")` and `make_vec` with the same name.

Both are thin: `rl.env.vector.VectorGridEnv` does the work. The reward is minus the hour's cost, $ per MW of reference peak. An
episode *terminates* after its last hour, where the stores are at rest again: nothing is left to be valued, so it is never truncated.
"""

from functools import cache
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from rl.env.dataset import Dataset, build_dataset
from rl.env.forecasts import day_ahead
from rl.env.grid import Grid
from rl.env.region import WEEK, synthetic
from rl.env.vector import VectorGridEnv
from rl.errors import DataError

Info = dict[str, Any]


class GridControl(gymnasium.Env[Any, Any]):
    """The environment as a `gymnasium.Env`: one episode at a time."""

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - gymnasium's own attribute

    def __init__(self, grid: Grid | None = None, data: Dataset | None = None, hours: int = WEEK) -> None:
        """Use the default grid and a synthetic region unless `grid` and `data` are given; an episode has `hours` hours."""
        self.env = VectorGridEnv(grid or Grid(), data or synthetic_dataset(), 1, hours)
        self._starts = _starts(self.env)
        self.observation_space, self.action_space = _spaces(self.env)

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[NDArray[np.float32], Info]:
        """Start an episode; return the observation [feature] and the info, whose `start` is the dataset's row.

        `options={"start": row}` chooses the row; otherwise it is drawn.
        """
        super().reset(seed=seed)
        start = (options or {}).get("start")
        row = int(self.np_random.choice(self._starts)) if start is None else int(start)
        return self.env.reset(np.array([row]))[0].copy(), {"start": row}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, Info]:
        """Run one hour with `action` [action]; return observation [feature], reward (minus the cost), terminated, truncated, info.

        The info has `cut`: the energy, MWh [store], by which actions of this episode were cut to what each store's power and charge allow.
        """
        observation, cost = self.env.step(np.asarray(action, float)[:, None])
        info = {"cut": self.env.clipped_energy[:, 0].copy()}
        return observation[0].copy(), -float(cost[0]), self.env.hours_left == 0, False, info


class GridControlVector(VectorEnv[Any, Any, Any]):
    """N episodes that start and end together. The step that ends them returns the first observation of the next ones."""

    metadata: dict[str, Any] = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(
        self, num_envs: int = 1, grid: Grid | None = None, data: Dataset | None = None, hours: int = WEEK
    ) -> None:
        """Use the default grid and a synthetic region unless `grid` and `data` are given; an episode has `hours` hours."""
        self.num_envs = num_envs
        self.env = VectorGridEnv(grid or Grid(), data or synthetic_dataset(), num_envs, hours)
        self._starts = _starts(self.env)
        self.single_observation_space, self.single_action_space = _spaces(self.env)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: Info | None = None
    ) -> tuple[NDArray[np.float32], Info]:
        """Start all episodes; return the observations [N, feature] and the info, whose `start` has the rows [N].

        `options={"start": rows}` chooses the rows [N]. One generator draws for all episodes, so `seed` is one number.

        Raises:
            DataError: `seed` is a list.
        """
        if isinstance(seed, list):
            raise DataError("GridControlVector draws the starts of all episodes from one generator: give one seed")
        super().reset(seed=seed)
        start = (options or {}).get("start")
        rows = self._draw() if start is None else np.asarray(start, np.int64)
        return self.env.reset(rows).copy(), {"start": rows}

    def step(
        self, actions: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[Any], NDArray[Any], NDArray[Any], Info]:
        """Run one hour; at the episodes' end the info has their `final_obs` and the `cut` of the whole episode, [store, N]."""
        observation, cost = self.env.step(np.asarray(actions).T)
        reward, ended = -cost, self.env.hours_left == 0
        info: Info = {}
        if ended:
            everyone = np.ones(self.num_envs, bool)
            info = {"final_obs": observation.copy(), "_final_obs": everyone, "cut": self.env.clipped_energy.copy()}
            observation = self.env.reset(self._draw())
        return observation.copy(), reward, np.full(self.num_envs, ended), np.zeros(self.num_envs, bool), info

    def _draw(self) -> NDArray[np.int64]:
        return self.np_random.choice(self._starts, self.num_envs)


@cache
def synthetic_dataset() -> Dataset:
    """Build two synthetic years with a day-ahead forecast, the default dataset."""
    region, issued = synthetic()
    return build_dataset([region], [day_ahead(region, issued, 24)], "2017-01-02T00", "2019-01-01T00")


def _starts(env: VectorGridEnv) -> NDArray[np.int64]:
    starts = env.dataset.starts(env.hours)
    if not len(starts):
        raise DataError(f"the dataset has no {env.hours} consecutive measured hours")
    return starts


def _spaces(env: VectorGridEnv) -> tuple[Box, Box]:
    n, grid = env.num_stores, env.grid
    reach = grid.each("power").sum() + grid.shed_power
    load = env.dataset.load
    features = env.dataset.features
    low = np.concatenate([np.zeros(n), [load.min() - reach, 0], features.min(axis=0)])
    high = np.concatenate([np.ones(n), [load.max() + reach, 1], features.max(axis=0)])
    # Half a float32 step of room: the bounds were float64.
    low, high = (np.nextafter(x.astype(np.float32), np.float32(to)) for x, to in ((low, -9e9), (high, 9e9)))
    ask = np.array([-1.0] * n + [0.0], np.float32)
    return Box(low, high, dtype=np.float32), Box(ask, np.ones(n + 1, np.float32), dtype=np.float32)


gymnasium.register(id="GridControl-v0", entry_point="rl.gym:GridControl", vector_entry_point="rl.gym:GridControlVector")
