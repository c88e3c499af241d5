"""Pathwise policy gradient: the cost of whole episodes, differentiated through the environment.

The load does not depend on what the fleet does. So on hours that were measured, the cost of a policy is a known, piecewise smooth
function of its weights, and its exact gradient comes from going through the episode backwards, without the noise of methods that
must guess from random actions which of them was good (PPO, evolution strategies). The idea is direct backpropagation for
exogenous decision processes, Madeka et al. 2022 ("Deep Inventory Management"); see also Sinclair et al. 2022 (hindsight learning).

Read from top to bottom: settings, gradient, learner. Forwards it is `Episodes` itself that steps; only its derivative is written here,
by hand and in numpy, because MLX on a CPU spends tens of microseconds on each of the hundred small operations of an hour. The
optimiser is MLX's. A learner's step depends on its weights, its seed and the number of the step alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from numpy.typing import NDArray

from rl.env import Episodes
from rl.grid import Grid
from rl.policy import Layers, Mlp, normalisation, start
from rl.score import yardstick
from rl.table import Table

Array = NDArray[np.float64]
SAMPLE = 20_000  # hours from which the normalisation is taken
WARM_UP = 50  # steps until the learning rate is full


@dataclass(frozen=True)
class Settings:
    """What the algorithm can be told."""

    episodes: int = 128  # of a step, side by side
    hours: int = 72  # of an episode
    steps: int = 6000  # of Adam
    learning_rate: float = 3e-3  # after the warm-up; falls to a fiftieth as a cosine
    max_grad_norm: float = 1.0
    width: int = 128  # of both hidden layers
    at_rest: float = 0.3  # share of episodes that start at rest; the others start with any charge
    seed: int = 0


class _Hour(NamedTuple):
    """What the way back needs of an hour; arrays [store, N] or [N] unless said."""

    hidden: tuple[NDArray[np.float32], ...]  # [width, N] of each hidden layer
    action: NDArray[np.float32]  # [action, N] as asked
    held: Array  # charge before
    charge: Array  # charge after
    power: Array
    before: Array  # residual load of the hour before
    residual: Array


def gradient(
    episodes: Episodes, policy: Mlp, starts: NDArray[np.int64], charge: Array, weight: Array
) -> tuple[Array, Layers]:
    """Cost [hour, N] of an episode from each of `starts` [N] with `charge` [store, N], and d Σ weight · cost / d layers.

    `weight` [N]. Where the projection cuts an action, the derivative is 0 outwards and as if it were not cut inwards: a policy
    that asks too much can still learn to ask less.
    """
    seen = np.empty((episodes.hours, episodes.count, len(policy.names)), np.float32)
    cost = np.empty(seen.shape[:2])
    tape = []
    episodes.reset(starts, charge)
    for hour in range(episodes.hours):
        seen[hour] = episodes.observation
        hidden, action = policy.forward(seen[hour])
        held, before = episodes.charge.copy(), episodes.residual.copy()
        _, cost[hour] = episodes.step(action)
        tape.append(
            _Hour(hidden, action, held, episodes.charge.copy(), episodes.power.copy(), before, episodes.residual.copy())
        )
    return cost, _backwards(episodes, policy, seen, tape, weight)


def _backwards(episodes: Episodes, policy: Mlp, seen: NDArray[np.float32], tape: list[_Hour], weight: Array) -> Layers:
    grid, n = episodes.grid, episodes.stores
    into, out, wear, holding, energy = (
        grid.each(name)[:, None] for name in ("charge_efficiency", "discharge_efficiency", "wear", "holding", "energy")
    )
    fall, rise = -grid.each("power")[:, None] / out, grid.each("power")[:, None] * into
    knots = np.array([grid.must_run, *(bound for bound, _ in grid.merit_order)])
    state = policy.folded[0][0][:, : n + 1].T  # the first layer's weights for charges and residual load
    sums = [(np.zeros_like(w), np.zeros_like(b)) for w, b in policy.layers]
    first = np.empty((*seen.shape[:2], len(policy.layers[0][1])), np.float32)
    of_charge, of_residual = np.zeros_like(tape[0].charge), np.zeros_like(weight)
    for hour in range(len(tape) - 1, -1, -1):
        h = tape[hour]
        up = np.sign(h.residual - h.before) * grid.ramp
        by_residual = weight * (grid.slopes[np.searchsorted(knots, h.residual)] + up) + of_residual
        # Charge after the hour: power is the smaller of two lines in its change, and later hours depend on it.
        by_power = weight * wear * (h.power > 0) - by_residual
        by_change = by_power * np.where(h.charge < h.held, -out, -1 / into)
        by_charge = by_change + of_charge - weight * holding
        of_charge = -by_change
        # Back through the two projections: to what rest allows, to what power allows.
        lowest, highest = episodes.bounds[hour]
        asked = np.minimum(h.action[:n] * fall, -h.action[:n] * rise)
        after = h.held + asked.clip(fall, rise)
        of_charge += np.where((after > highest) | (after < lowest), 0, by_charge)
        by_asked = _inwards(by_charge, after, lowest, highest)
        by_asked = _inwards(by_asked, asked, fall, rise)
        by_action = np.empty_like(h.action)
        by_action[:n] = by_asked * np.where(h.action[:n] > 0, fall, -rise)
        by_shed = (weight * grid.shed - by_residual) * grid.shed_power
        by_action[n] = _inwards(by_shed, h.action[n], 0.0, 1.0)
        # Back through the network; the first layer's own weights come last, for all hours in one product.
        flow = by_action
        for layer in range(len(policy.layers) - 1, 0, -1):
            below = h.hidden[layer - 1]
            sums[layer][0][:] += flow @ below.T
            sums[layer][1][:] += flow.sum(axis=1)
            flow = (policy.layers[layer][0].T @ flow) * (below > 0)
        first[hour] = flow.T
        of_state = state @ flow
        of_charge += of_state[:n] / energy
        of_residual = of_state[n] - weight * up
    flat, inputs = first.reshape(-1, first.shape[2]), seen.reshape(-1, seen.shape[2])
    bias = flat.sum(axis=0)
    # On normalised inputs, without making them: (x - mean) · scale.
    sums[0] = ((flat.T @ inputs - np.outer(bias, policy.mean)) * policy.scale, bias)
    return tuple(sums)


def _inwards(flow: Array, value: Array, lowest: Array | float, highest: Array | float) -> Array:
    """The derivative through a clip to [lowest, highest]; outside, only the part by which a descent would come back."""
    return np.where(((value > highest) & (flow < 0)) | ((value < lowest) & (flow > 0)), 0, flow)


def savings(grid: Grid, table: Table, *, hours: int = 168, most: int = 26) -> Array:
    """[region] what the optimum saves in an hour, from up to `most` episodes evenly taken: costs over it count in PoP's unit."""
    every, found = table.starts(hours), []
    for first, last in table.spans:
        own = every[(every >= first) & (every < last)]
        own = own[np.unique(np.linspace(0, len(own) - 1, most).astype(int))]
        scale = yardstick(grid, table, own, hours)
        found.append(float((scale.nothing - scale.optimum).mean()) / hours)
    return np.array(found)


class Learner:
    """A policy on its way: weights, optimiser, and the number of steps done."""

    def __init__(self, grid: Grid, table: Table, settings: Settings, saving: Array) -> None:
        self.grid, self.table, self.settings = grid, table, settings
        self._episodes = Episodes(grid, table, settings.episodes, settings.hours)
        self._starts = table.starts(settings.hours)
        region = np.searchsorted([last for _, last in table.spans], self._starts, side="right")
        self._weight = 1 / (np.asarray(saving)[region] * settings.episodes * settings.hours)
        # Every region counts the same, however many of its hours were measured.
        share = 1 / np.bincount(region, minlength=len(table.spans))[region]
        self._chance = share / share.sum()
        rng = np.random.default_rng([settings.seed, settings.steps])
        mean, scale = self._normalisation(rng)
        self.policy = start(self._episodes.names, mean, scale, self._episodes.actions, settings.width, rng)
        falling = optim.cosine_decay(settings.learning_rate, settings.steps, settings.learning_rate / 50)
        rising = optim.linear_schedule(settings.learning_rate / WARM_UP, settings.learning_rate, WARM_UP)
        self.optimiser = optim.Adam(
            optim.join_schedules([rising, falling], [WARM_UP]), betas=[0.9, 0.99], bias_correction=True
        )
        self.done = 0

    def _normalisation(self, rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Of the table's features as they are; of the state as it is with any charge at all."""
        rows = rng.integers(0, len(self.table.load), SAMPLE)
        share = rng.uniform(0, 1, (len(rows), self._episodes.stores))
        state = np.column_stack([share, self.table.before[rows], rng.uniform(0, 1, len(rows))])
        return normalisation(np.concatenate([state, self.table.features[rows]], axis=1).astype(np.float32))

    def step(self) -> Mapping[str, float]:
        """One step of Adam; its metrics."""
        settings, grid = self.settings, self.grid
        rng = np.random.default_rng([settings.seed, settings.steps, self.done])
        drawn = rng.choice(len(self._starts), settings.episodes, p=self._chance)
        charge = rng.uniform(0, 1, (len(grid.stores), settings.episodes)) * grid.each("energy")[:, None]
        charge = np.where(rng.uniform(size=settings.episodes) < settings.at_rest, grid.rest[:, None], charge)
        weight = self._weight[drawn]
        cost, layers = gradient(self._episodes, self.policy, self._starts[drawn], charge, weight)
        return {"losses/cost": float((cost * weight).sum()), "losses/grad_norm": self.descend(layers)}

    def descend(self, layers: Layers) -> float:
        """One step of Adam against a gradient; its norm before clipping."""
        weights = {str(i): {"weight": mx.array(w), "bias": mx.array(b)} for i, (w, b) in enumerate(self.policy.layers)}
        slopes = {str(i): {"weight": mx.array(w), "bias": mx.array(b)} for i, (w, b) in enumerate(layers)}
        slopes, norm = optim.clip_grad_norm(slopes, self.settings.max_grad_norm)
        weights = self.optimiser.apply_gradients(slopes, weights)
        moved = [weights[str(i)] for i in range(len(layers))]
        self.policy = self.policy.with_layers(tuple((np.array(m["weight"]), np.array(m["bias"])) for m in moved))
        self.done += 1
        return float(norm)

    def state(self) -> dict[str, NDArray]:
        """Everything that `restore` needs to go on bitwise."""
        flat: dict[str, mx.array] = tree_flatten(self.optimiser.state, destination={})  # type: ignore[assignment]
        arrays = {f"optimiser.{name}": np.array(value) for name, value in flat.items()}
        for i, (weight, bias) in enumerate(self.policy.layers):
            arrays |= {f"weight.{i}": weight, f"bias.{i}": bias}
        return arrays | {"done": np.array(self.done)}

    def restore(self, arrays: Mapping[str, NDArray]) -> None:
        """Go on from a `state` of a learner with the same table and settings."""
        head = "optimiser."
        flat = [(name.removeprefix(head), mx.array(value)) for name, value in arrays.items() if name.startswith(head)]
        self.optimiser.state = tree_unflatten(flat)
        count = len(self.policy.layers)
        self.policy = self.policy.with_layers(tuple((arrays[f"weight.{i}"], arrays[f"bias.{i}"]) for i in range(count)))
        self.done = int(arrays["done"])


def train(
    grid: Grid,
    table: Table,
    settings: Settings = Settings(),
    log: Callable[[int, Mapping[str, float], Mlp], None] | None = None,
) -> Mlp:
    """All steps, in one process; `log(step, metrics, policy)` after each."""
    learner = Learner(grid, table, settings, savings(grid, table))
    while learner.done < settings.steps:
        metrics = learner.step()
        if log:
            log(learner.done, metrics, learner.policy)
    return learner.policy
