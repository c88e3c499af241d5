"""Behaviour cloning: a policy that imitates the exact optimum, as far as its observations allow.

The labels are the optimum's actions for the hours ahead, which only the linear program knows; the policy has forecasts. It
learns the mean of the right actions given its observation, which hedges, because the cost is convex. Labels start from random
charge and a random previous residual load, so that the policy can recover from the states that its own errors lead to.

Read from top to bottom: labels, loss, learner. The learner is MLX; see `rl.policy` for the actor.
"""

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from numpy.typing import NDArray

from rl.env.dataset import Dataset
from rl.env.grid import Grid
from rl.env.vector import HOURS_LEFT_CAP, VectorGridEnv
from rl.planning.optimum import program
from rl.policy import Mlp, init_mlp, normalisation


@dataclass(frozen=True)
class Settings:
    """Settings of cloning."""

    width: int = 128  # of both hidden layers
    batch_size: int = 512  # labels
    steps: int = 3000  # of Adam
    learning_rate: float = 2e-3  # at the start; falls to a hundredth as a cosine
    seed: int = 0


@dataclass(frozen=True)
class Labels:
    """Observations, and the optimum's actions."""

    observation_names: tuple[str, ...]
    observations: NDArray[np.float32]  # [label, feature]
    actions: NDArray[np.float32]  # [label, action]


def solve_labels(
    grid: Grid, dataset: Dataset, plans: int, rng: np.random.Generator, hours: int = HOURS_LEFT_CAP + 24
) -> Labels:
    """Solve `plans` optima of `hours` hours each, from random rows and charges: `plans · hours` labels.

    In 24 hours of each, at least `HOURS_LEFT_CAP` hours are left, as in most hours of a long episode; the other hours show the
    way back to rest.
    """
    starts = rng.choice(dataset.starts(hours), plans)
    charge = rng.uniform(0, 1, (len(grid.stores), plans)) * grid.each("energy")[:, None]
    # As far from the load as a residual load can be.
    reach = grid.each("power").sum()
    before = dataset.previous_load[starts] + rng.uniform(-reach, reach, plans)
    solve = program(grid, hours).solve
    loads = dataset.load[starts[:, None] + np.arange(hours)]
    solved = [solve(load, first, held).actions(grid) for load, first, held in zip(loads, before, charge.T, strict=True)]
    actions = np.stack(solved, axis=-1).transpose(1, 0, 2)  # [hour, action, plan]
    env = VectorGridEnv(grid, dataset, plans, hours)
    env.reset(starts, charge, before)
    observations = np.empty((hours, plans, len(env.observation_names)), np.float32)
    for hour, action in enumerate(actions):
        observations[hour] = env.observation
        env.step(action)
    rows = actions.transpose(0, 2, 1).reshape(-1, env.num_actions)
    return Labels(env.observation_names, observations.reshape(len(rows), -1), rows.astype(np.float32))


class Network(nn.Module):
    """`rl.policy.Mlp` in MLX, on normalised observations."""

    def __init__(self, policy: Mlp) -> None:
        """Copy the layers of `policy`."""
        super().__init__()
        self.layers = [{"weight": mx.array(weight), "bias": mx.array(bias)} for weight, bias in policy.layers]

    def __call__(self, x: mx.array) -> mx.array:
        """Return the network's output [sample, action] for normalised observations [sample, feature]."""
        for layer in self.layers[:-1]:
            x = nn.relu(x @ layer["weight"].T + layer["bias"])
        return x @ self.layers[-1]["weight"].T + self.layers[-1]["bias"]

    def numbers(self) -> tuple[tuple[NDArray[np.float32], NDArray[np.float32]], ...]:
        """Return the layers as numpy arrays for an actor: weight [out, in] and bias [out] each."""
        return tuple((np.array(layer["weight"]), np.array(layer["bias"])) for layer in self.layers)


def clone(labels: Labels, settings: Settings = Settings(), log: Callable[[int, float], None] | None = None) -> Mlp:
    """Train on `labels` by mean squared error, which is least at their mean; call `log(step, loss)` every hundred steps."""
    rng = np.random.default_rng(settings.seed)
    mean, scale = normalisation(labels.observations)
    policy = init_mlp(labels.observation_names, mean, scale, labels.actions.shape[1], settings.width, rng)
    network = Network(policy)
    optimiser = optim.Adam(optim.cosine_decay(settings.learning_rate, settings.steps, settings.learning_rate / 100))
    x, y = mx.array((labels.observations - mean) * scale), mx.array(labels.actions)

    def loss(network: Network, x: mx.array, y: mx.array) -> mx.array:
        return nn.losses.mse_loss(network(x), y, reduction="mean")

    value_and_grad = nn.value_and_grad(network, loss)
    for step in range(1, settings.steps + 1):
        batch = mx.array(rng.integers(0, len(labels.actions), settings.batch_size))
        value, gradient = value_and_grad(network, x[batch], y[batch])
        optimiser.update(network, gradient)
        mx.eval(network.parameters(), optimiser.state)
        if log and step % 100 == 0:
            log(step, float(value))
    return policy.with_layers(network.numbers())
