"""Gymnasium's two interfaces to the environment: `gymnasium.make("rl.gym:GridControl-v0")` and `make_vec` with the same name.

Both are thin: `rl.env.vector.VectorGridEnv` does the work. The reward is minus the hour's cost, $ per MW of reference peak. An
episode *terminates* after its last hour, where the stores are at rest again: nothing is left to be valued, so it is never truncated.
`rl.wrappers` scales observations and rewards for learners, `rl.render` draws episodes.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from operator import index
from pathlib import Path
from typing import Any, Self

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
from rl.evaluation.score import ReferenceCosts, idle_cost, reference_costs
from rl.render import FPS, Episode, Window, draw

Info = dict[str, Any]


class GridControl(gymnasium.Env[Any, Any]):
    """The environment as a `gymnasium.Env`: one episode at a time.

    Attributes:
        grid: Fleet and cost.
        data: Loads, forecasts and mask.
        observation_names: [feature].
        action_names: [action].
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array", "human"], "render_fps": FPS}  # noqa: RUF012 - gymnasium's own

    def __init__(
        self,
        grid: Grid | None = None,
        data: Dataset | None = None,
        hours: int = WEEK,
        render_mode: str | None = None,
    ) -> None:
        """Use the default grid and a synthetic region unless `grid` and `data` are given.

        Args:
            grid: Fleet and cost.
            data: Loads, forecasts and mask.
            hours: Of an episode.
            render_mode: "rgb_array": `render` returns a picture; "human": a window shows each hour (needs pygame); None: neither.

        Raises:
            DataError: The render mode is unknown, `data` is no dataset, or no episode fits into it.
        """
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise DataError(f"render_mode {render_mode!r} is unknown; choose rgb_array, human or None")
        self.env = _vector(grid, data, 1, hours)
        self.grid, self.data = self.env.grid, self.env.dataset
        self.observation_names, self.action_names = self.env.observation_names, _action_names(self.grid)
        self._starts = self.data.measured_starts(hours)
        self.observation_space, self.action_space = _spaces(self.env)
        self.render_mode = render_mode
        self._window = Window() if render_mode == "human" else None
        shown = self.env.dataset
        self._idle_cost = idle_cost(self.env.grid, shown.load[None], shown.previous_load)[0]  # [row]
        self._wear, self._holding, self._energy = map(self.env.grid.each, ("wear", "holding", "energy"))
        self._knots = np.array([self.env.grid.must_run, *(bound for bound, _ in self.env.grid.merit_order)])
        self._start = -1  # row of the episode's first hour; -1: none began yet

    @classmethod
    def from_folder(
        cls,
        data_dir: Path | str,
        respondents: Sequence[str],
        *,
        start: str = "",
        end: str = "",
        horizon: int = 24,
        grid: Grid | None = None,
        hours: int = WEEK,
        render_mode: str | None = None,
    ) -> Self:
        """Return an environment of measured hours: net load and operators' day-ahead forecast of series in a data folder.

        Args:
            data_dir: Data folder of an extraction.
            respondents: EIA codes, e.g. `["ERCO"]`; each episode is in one of them.
            start: First hour of episodes, `YYYY-MM-DDTHH`; "": a week after the first year begins that all of them have on disk.
            end: The hour after the last; "": the end of the last such year.
            horizon: Hours of forecast in each observation.
            grid: As in the constructor.
            hours: As in the constructor.
            render_mode: As in the constructor.

        Raises:
            DataError: the folder does not have these hours.
        """
        from rl.folder import dataset_from  # here: it loads pyarrow, which the synthetic region does not need

        data = dataset_from(data_dir, respondents, start, end, horizon)
        env = cls(grid, data, hours, render_mode)
        # As `gymnasium.make` leaves it, so that checkers can make the environment again.
        again = {"grid": grid, "data": data, "hours": hours, "render_mode": render_mode}
        env.spec = replace(gymnasium.spec("GridControl-v0"), kwargs=again)
        return env

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[NDArray[np.float32], Info]:
        """Start an episode; return the observation [feature] and the info.

        The info has the dataset's row `start`, its `region`, that region's reference peak `peak`, MW, and the first hour `time`, UTC,
        hour-ending. `options={"start": …}` chooses the row, or its hour as `YYYY-MM-DDTHH`, with `"region"` where there are
        several; otherwise the row is drawn.

        Raises:
            DataError: There is no such hour, or an hour of the episode was not measured.
        """
        super().reset(seed=seed)
        chosen = self._chosen(options or {})
        self._start = row = int(self.np_random.choice(self._starts)) if chosen is None else chosen
        observation = self.env.reset(np.array([row]))[0].copy()
        self._episode = Episode(tuple(store.name for store in self.env.grid.stores), self.env.hours)
        if self._window is not None:
            self._window.show(draw(self._episode))
        peak = self.data.peaks[self.data.region_of(row)] if self.data.peaks else float("nan")
        return observation, {"start": row, **self._where(row), "peak": peak}

    def _where(self, row: int) -> Info:
        return {"region": self.data.regions[self.data.region_of(row)], "time": self.data.time_of(row)}

    def _chosen(self, options: Info) -> int | None:
        """Return the row that the options of `reset` choose; None for a drawn one."""
        start = options.get("start")
        if unknown := set(options) - {"start", "region"}:
            raise DataError(f"reset: unknown options {', '.join(sorted(unknown))}; known are start and region")
        if start is None:
            return None
        row = self.data.row_of(start, options.get("region", "")) if isinstance(start, str) else index(start)
        if row not in self._starts:
            hours = self.data.known[max(row, 0) : row + self.env.hours]
            if row < 0 or len(hours) < self.env.hours:
                reason = f"the data have {len(self.data.load)} rows, and an episode needs {self.env.hours}"
            elif hours.all():
                reason = "the episode would end in another region"
            else:
                missing = row + int(np.argmin(hours))
                reason = f"the hour {self.data.time_of(missing)} (row {missing}) or the one before was not measured"
            raise DataError(
                f"reset: no episode starts at {start}: {reason}. Choose one of data.starts({self.env.hours})"
            )
        return row

    def step(self, action: NDArray[np.floating]) -> tuple[NDArray[np.float32], float, bool, bool, Info]:
        """Run one hour with `action` [action]; return observation [feature], reward (minus the cost), terminated, truncated, info.

        The info has, of this hour: `region` and `time`, as of `reset`; `cost_parts` (their sum is the cost) and `idle_cost` (of doing nothing), $ per MW of reference
        peak; `load`, `residual` and `shed`, reference peaks; `power` [store] into the grid and `charge` [store] as shares of the
        store's energy; `price`, $/MWh of the merit order's next MWh. `cut` is the energy [store], in reference peaks × 1 h, by which
        actions of this episode were cut to what each store's power and charge allow.

        Raises:
            DataError: The action has another shape, or a value that is not finite; or the episode is over.
        """
        asked = np.asarray(action, float)
        if asked.shape != self.action_space.shape or not np.isfinite(asked).all():
            raise DataError(
                f"action {action}: needed are {len(self.action_names)} finite numbers, {', '.join(self.action_names)}"
            )
        row, before = int(self.env.row[0]), float(self.env.residual[0])
        observation, cost = self.env.step(asked[:, None])
        info = self._info(row, before)
        if self.render_mode is not None:
            self._episode.add(info, float(cost[0]))
        if self._window is not None:
            self._window.show(draw(self._episode))
        return observation[0].copy(), -float(cost[0]), self.env.hours_left == 0, False, info

    def _info(self, row: int, before: float) -> Info:
        env, grid, data = self.env, self.env.grid, self.env.dataset
        residual, power, charge = float(env.residual[0]), env.power[:, 0].copy(), env.charge[:, 0]
        parts = {
            "generation": float(grid.generation_cost(env.residual)[0]),
            "ramps": grid.ramp * abs(residual - before),
            "wear": float(self._wear @ np.maximum(power, 0)),
            "owing": float(self._holding @ (self._energy - charge)),
            "shed": grid.shed * float(env.shed[0]),
        }
        return {
            **self._where(row),
            "cost_parts": parts,
            "idle_cost": float(self._idle_cost[row]),
            "load": float(data.load[row]),
            "residual": residual,
            "shed": float(env.shed[0]),
            "power": power,
            "charge": charge / self._energy,
            "price": float(grid.slopes[np.searchsorted(self._knots, residual, side="right")]),
            "cut": env.clipped_energy[:, 0].copy(),
        }

    def reference(self) -> ReferenceCosts:
        """Return the two ends of this episode's scale: the cost of doing nothing, and the exact optimum with its schedule.

        `env.reference().pop([-sum_of_rewards])` is the share of the perfect-foresight saving that an episode earned, and
        `env.reference().schedules[0].actions(grid)` has the optimum's actions, [action, hour].

        Raises:
            DataError: no episode began yet.
        """
        if self._start < 0:
            raise DataError("no episode began yet: reset before asking for its reference")
        return reference_costs(self.env.grid, self.env.dataset, np.array([self._start]), self.env.hours)

    def render(self) -> NDArray[np.uint8] | None:
        """Return a picture of the episode so far, [height, width, 3], in render mode "rgb_array"; None in others."""
        if self.render_mode != "rgb_array" or self._start < 0:
            return None
        return draw(self._episode)

    def close(self) -> None:
        """Close the window, if there is one."""
        if self._window is not None:
            self._window.close()


class GridControlVector(VectorEnv[Any, Any, Any]):
    """N episodes that start and end together. The step that ends them returns the first observation of the next ones.

    Attributes:
        grid: Fleet and cost.
        data: Loads, forecasts and mask.
        observation_names: [feature].
        action_names: [action].
        env: `VectorGridEnv`; its arrays hold what each episode's stores did in the last hour.
    """

    metadata: dict[str, Any] = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(
        self, num_envs: int = 1, grid: Grid | None = None, data: Dataset | None = None, hours: int = WEEK
    ) -> None:
        """Use the default grid and a synthetic region unless `grid` and `data` are given; an episode has `hours` hours."""
        self.num_envs = num_envs
        self.env = _vector(grid, data, num_envs, hours)
        self.grid, self.data = self.env.grid, self.env.dataset
        self.observation_names, self.action_names = self.env.observation_names, _action_names(self.grid)
        self._starts = self.data.measured_starts(hours)
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
        self, actions: NDArray[np.floating]
    ) -> tuple[NDArray[np.float32], NDArray[Any], NDArray[Any], NDArray[Any], Info]:
        """Run one hour; at the episodes' end the info has their `final_obs` and the `cut` of the whole episode, [store, N].

        Raises:
            DataError: The actions have another shape; or, at an episode's end, one of them was not finite.
        """
        asked = np.asarray(actions)
        if asked.shape != self.action_space.shape:
            raise DataError(
                f"actions of shape {asked.shape}: needed is {self.action_space.shape}, for each episode {', '.join(self.action_names)}"
            )
        observation, cost = self.env.step(asked.T)
        reward, ended = -cost, self.env.hours_left == 0
        info: Info = {}
        if ended:
            if not np.isfinite(cost).all():
                raise DataError(
                    "an action of these episodes was not finite: NaN or infinite actions make every later cost NaN"
                )
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


def _vector(grid: Grid | None, data: Dataset | None, num_envs: int, hours: int) -> VectorGridEnv:
    """Return the environment of both interfaces; a wrong argument is named here, not where it is first used."""
    if grid is not None and not isinstance(grid, Grid):
        raise DataError(f"grid must be an rl.env.grid.Grid, not {type(grid).__name__}")
    if data is not None and not isinstance(data, Dataset):
        raise DataError(
            f"data must be an rl.env.dataset.Dataset, not {type(data).__name__}: "
            '`rl.folder.dataset_from("data", ["ERCO"])` makes one of a data folder'
        )
    if isinstance(hours, bool) or not isinstance(hours, int | np.integer):
        raise DataError(f"hours must be a whole number of hours, not {hours!r}")
    return VectorGridEnv(grid or Grid(), data or synthetic_dataset(), num_envs, int(hours))


def _action_names(grid: Grid) -> tuple[str, ...]:
    return (*(store.name for store in grid.stores), "shed")


def _spaces(env: VectorGridEnv) -> tuple[Box, Box]:
    n, grid = env.num_stores, env.grid
    reach = grid.each("power").sum() + grid.shed_power
    load = env.dataset.load
    features = env.dataset.features
    # The residual load is computed in float64: half a float32 step of room. All other bounds are exact.
    lowest, highest = (
        float(np.nextafter(np.float32(x), np.float32(to)))
        for x, to in ((load.min() - reach, -9e9), (load.max() + reach, 9e9))
    )
    low = np.concatenate([np.zeros(n), [lowest, 0], features.min(axis=0)]).astype(np.float32)
    high = np.concatenate([np.ones(n), [highest, 1], features.max(axis=0)]).astype(np.float32)
    # Symmetric, as learners expect it: below 0 nothing is shed, so that an action of zeros does nothing.
    return Box(low, high, dtype=np.float32), Box(-1.0, 1.0, (n + 1,), np.float32)


gymnasium.register(id="GridControl-v0", entry_point="rl.gym:GridControl", vector_entry_point="rl.gym:GridControlVector")
