"""The environment: many episodes of grid control side by side, in numpy.

`VectorGridEnv` holds N episodes of one length, each with its own first row of the dataset. A step is some forty numpy calls on
preallocated arrays, so its time is nearly the same for 1 and for 256 episodes. Units are those of `rl.env.grid`.

Timing: the action for hour t is decided at its start. Then its load becomes known, and its cost is due.

Actions, [action, episode]: for every store -1 (charge with full power) to 1 (discharge with full power), then 0 to 1 of the
sheddable load. Each store's action is projected to what its power, its energy and the way back to rest allow: an episode starts
at rest and ends there, so a policy and the linear program choose from the same set of schedules.
"""

import numpy as np
from numpy.typing import NDArray

from rl.env.dataset import Dataset
from rl.env.grid import Array, Grid
from rl.errors import DataError

FAR = 100.0  # reference peaks: no residual load lies beyond
# Hours at which the observation "hours left" saturates, so that a year looks like a week.
HOURS_LEFT_CAP = 48


class VectorGridEnv:
    """N synchronous episodes. Each step overwrites the attributes and the arrays that `reset` and `step` return.

    Attributes:
        charge: [store, N].
        power: [store, N] into the grid.
        shed: [N].
        residual: [N].
        reported: [N] the residual load as far as it is known: `Dataset.reported_load` less what the fleet gave.
        cost: [N] of the last hour.
        row: [N] of the coming hour.
        hours_left: Hours to come.
        clipped_energy: [store, N] energy that the projection has cut from the actions, summed over the episode.
        bounds: [hour] lowest and highest charge [store, N] at the hour's end from which rest can still be reached.
    """

    def __init__(self, grid: Grid, dataset: Dataset, num_envs: int, hours: int) -> None:
        """Allocate `num_envs` episodes of `hours` hours.

        Raises:
            DataError: A number is below 1, or a load of the dataset is unusable.
        """
        count = num_envs
        if hours < 1 or count < 1:
            raise DataError(f"{count} episodes of {hours} hours: both must be at least 1")
        if not np.abs(dataset.load).max() < FAR - 1:
            raise DataError(f"a load of the dataset is not finite, or above {FAR - 1:.0f} reference peaks")
        self.grid, self.dataset, self.num_envs, self.hours = grid, dataset, count, hours
        n = self.num_stores = len(grid.stores)
        self.num_actions = n + 1
        self.observation_names = (
            *(f"charge {s.name}" for s in grid.stores),
            "residual load",
            "hours left",
            *dataset.feature_names,
        )
        # Leading columns of state, then the dataset's: one gather of whole rows fills an observation.
        self._source = np.zeros((len(dataset.load), len(self.observation_names)), np.float32)
        self._source[:, n + 2 :] = dataset.features
        self.observation = np.zeros((count, len(self.observation_names)), np.float32)
        power, energy, rest = grid.each("power"), grid.each("energy"), grid.rest
        into, out = grid.each("charge_efficiency"), grid.each("discharge_efficiency")

        def wide(values: Array) -> Array:
            """Repeat [store] to [store, N]: numpy multiplies equal shapes more than twice as fast as it broadcasts."""
            return np.repeat(values[:, None], count, axis=1)

        # What a full action changes in the store: `fall` for 1, `rise` for -1.
        self._fall, self._rise, self._minus_rise = wide(-power / out), wide(power * into), wide(-power * into)
        self._give, self._take, self._shares = wide(-out), wide(-1 / into), wide(1 / energy)
        # Charge from which rest can still be reached after each step: bounds of the store alone until the last few hours.
        back = int(np.ceil(max(np.maximum(rest / (power * into), (energy - rest) * out / power)))) + 1
        near = [min(left, back) for left in range(hours - 1, -1, -1)]
        lowest = [wide(np.maximum(0, rest - left * power * into)) for left in range(back + 1)]
        highest = [wide(np.minimum(energy, rest + left * power / out)) for left in range(back + 1)]
        self.bounds = [(lowest[left], highest[left]) for left in near]
        # One buffer of rows, so that residual load and cost are one product each: power given and charge of every store, shed
        # and power, then |ramp| and generation cost.
        self._rows = np.zeros((3 * n + 3, count))
        self._given, self.charge = self._rows[:n], self._rows[n : 2 * n]
        self._injected = self._rows[2 * n : 3 * n + 1]
        self.shed, self.power = self._injected[0], self._injected[1:]
        self._ramp, self._generation = self._rows[3 * n + 1], self._rows[3 * n + 2]
        wear, holding = grid.each("wear"), grid.each("holding")
        self._prices = np.concatenate([wear, -holding, [grid.shed], np.zeros(n), [grid.ramp, 1.0]])
        self._constant = float(holding @ energy)
        knots = [-FAR, grid.must_run, *(bound for bound, _ in grid.merit_order), FAR]
        self._knots, self._at_knots = np.array(knots), grid.generation_cost(np.array(knots))
        self._ones = np.ones(n + 1)
        self._seen = np.zeros((n + 2, count))  # charge as a share of energy, residual load, hours left
        self._a, self._b, self._before, self._nothing = (np.zeros((n, count)) for _ in range(4))
        self._ones_wide, self._sheddable = np.ones(count), np.full(count, grid.shed_power)
        self._load, self._old = np.zeros(count), np.zeros(count)
        late = dataset.reported_load - dataset.previous_load
        self._late = late if late.any() else None  # [row] what is known of the load before, less that load
        self.residual, self.cost, self.clipped_energy = np.zeros(count), np.zeros(count), np.zeros((n, count))
        self.reported = self.residual
        self.row = np.zeros(count, np.int64)
        self.hours_left = 0

    def reset(
        self, starts: NDArray[np.int64], charge: Array | None = None, before: Array | None = None
    ) -> NDArray[np.float32]:
        """Start every episode at its row of `starts` [N] and return the observation [N, feature].

        Args:
            starts: [N].
            charge: [store, N] instead of rest, for labels; rest must be reachable from it.
            before: [N] residual load of the hour before, instead of its load, for labels.

        Raises:
            DataError: An episode does not fit into the dataset.
        """
        if (
            np.shape(starts) != (self.num_envs,)
            or np.min(starts) < 0
            or np.max(starts) + self.hours > len(self.dataset.load)
        ):
            raise DataError(f"starts must be {self.num_envs} rows with {self.hours} hours after each in the dataset")
        self.row[:] = starts
        self.charge[:] = self.grid.rest[:, None] if charge is None else charge
        self.residual[:] = self.dataset.previous_load[self.row] if before is None else before
        self.clipped_energy[:] = 0
        self.hours_left = self.hours
        return self._observe()

    def step(self, action: NDArray[np.floating]) -> tuple[NDArray[np.float32], Array]:
        """Run one hour with `action` [action, N], which must be finite.

        Returns:
            The next observation [N, feature], and the hour's cost [N] in $ per MW of peak.

        Raises:
            DataError: The episode is over.
        """
        if self.hours_left == 0:
            raise DataError("the episode is over: reset before the next step")
        n = self.num_stores
        lowest, highest = self.bounds[self.hours - self.hours_left]
        asked, change, charge = self._a, self._b, self.charge
        # The requested change of charge: the smaller of two lines, because both directions lose energy.
        np.multiply(action[:n], self._fall, out=asked)
        np.multiply(action[:n], self._minus_rise, out=change)
        np.minimum(asked, change, out=asked)
        np.maximum(asked, self._fall, out=change)
        np.minimum(change, self._rise, out=change)
        np.add(charge, change, out=change)
        np.maximum(change, lowest, out=change)
        np.minimum(change, highest, out=change)
        self._before[:] = charge
        charge[:] = change
        np.subtract(change, self._before, out=change)
        np.subtract(asked, change, out=asked)
        np.abs(asked, out=asked)
        np.add(self.clipped_energy, asked, out=self.clipped_energy)
        np.multiply(change, self._give, out=asked)
        np.multiply(change, self._take, out=change)
        np.minimum(asked, change, out=self.power)
        np.maximum(self.power, self._nothing, out=self._given)
        np.maximum(action[n], self._nothing[0], out=self.shed)
        np.minimum(self.shed, self._ones_wide, out=self.shed)
        np.multiply(self.shed, self._sheddable, out=self.shed)
        self._settle()
        np.add(self.row, 1, out=self.row)
        self.hours_left -= 1
        return self._observe(), self.cost

    def _settle(self) -> None:
        """Compute residual load and cost of the hour from its load, the stores and the shed load."""
        self.dataset.load.take(self.row, out=self._load, mode="clip")
        self._old, self.residual = self.residual, self._old
        np.dot(self._ones, self._injected, out=self.residual)
        np.subtract(self._load, self.residual, out=self.residual)
        np.subtract(self.residual, self._old, out=self._ramp)
        np.abs(self._ramp, out=self._ramp)
        self._generation[:] = np.interp(self.residual, self._knots, self._at_knots)
        np.dot(self._prices, self._rows, out=self.cost)
        np.add(self.cost, self._constant, out=self.cost)

    def _observe(self) -> NDArray[np.float32]:
        n, seen = self.num_stores, self._seen
        self._source.take(self.row, axis=0, out=self.observation, mode="clip")
        np.multiply(self.charge, self._shares, out=seen[:n])
        self.reported = self.residual if self._late is None else self.residual + self._late.take(self.row, mode="clip")
        seen[n] = self.reported
        seen[n + 1] = min(self.hours_left, HOURS_LEFT_CAP) / HOURS_LEFT_CAP
        self.observation[:, : n + 2] = seen.T
        return self.observation
