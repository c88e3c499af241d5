"""Pathwise policy gradient: differentiate the cost of whole episodes through the environment.

The load does not depend on the fleet's actions. So on measured hours the cost of a policy is a known, piecewise smooth function of
its weights. Going through the episode backwards gives its exact gradient, without the noise of methods that estimate from random
actions which of them was good (PPO, evolution strategies). The idea is direct backpropagation for exogenous decision processes,
Madeka et al. 2022 ("Deep Inventory Management"); see also Sinclair et al. 2022 (hindsight learning).

Read from top to bottom: settings, gradient, steps, algorithm. `VectorGridEnv` itself does the forward pass; only its derivative
is written here, by hand and in numpy, because MLX on a CPU spends tens of microseconds on each of the hundred small operations of
an hour. A step depends only on weights, moments, seed and its own number, so any worker can take the steps of a lease.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rl.algorithms.adam import Adam
from rl.algorithms.base import PolicyVersions
from rl.distributed.jobs import Arrays, GradientSteps
from rl.env.dataset import Dataset
from rl.env.grid import Array, Grid
from rl.env.vector import VectorGridEnv
from rl.evaluation.score import reference_costs
from rl.policy import Layers, Mlp, combined, flatten, init_mlp, normalisation, to_bytes, unflatten

SAMPLE = 20_000  # hours from which the normalisation is computed
WARM_UP = 50  # steps until the learning rate is full
AT_REST = 0.3  # share of episodes that start at rest; the others start with any charge
MAX_NORM = 1.0  # of a gradient
BETA2 = 0.99  # of Adam
RESULTS = ("weights", "mean", "square")  # names of weights, m and v in results and states


@dataclass(frozen=True)
class Settings:
    """The algorithm's settings."""

    iterations: int = 24  # with the other defaults, the whole pipeline ends within 15 minutes on two cores
    members: int = 4  # policies that learn side by side, each a lease an iteration
    steps: int = 100  # of Adam, of a lease
    num_envs: int = 128  # episodes of a step, side by side
    episode_hours: int = 72
    learning_rate: float = 3e-3
    width: int = 128  # of both hidden layers of a member
    seed: int = 0


class _Hour(NamedTuple):
    """What the backward pass needs of an hour; arrays [store, N] or [N] unless stated."""

    hidden: tuple[NDArray[np.float32], ...]  # [width, N] of each hidden layer
    action: NDArray[np.float32]  # [action, N] before the projection
    held: Array  # charge before
    charge: Array  # charge after
    power: Array
    before: Array  # residual load of the hour before
    residual: Array


def episode_gradient(
    env: VectorGridEnv, policy: Mlp, starts: NDArray[np.int64], charge: Array, weight: Array
) -> tuple[Array, Layers]:
    """Run one episode from each start and differentiate the weighted sum of the costs.

    Where the projection cuts an action, the derivative is 0 outwards, and inwards as if it were not cut: a policy that asks
    for too much can still learn to ask for less.

    Args:
        env: Reset here.
        policy: Acts, and is differentiated.
        starts: First rows, [N].
        charge: At the start, [store, N].
        weight: Of each episode in the sum, [N].

    Returns:
        The cost [hour, N], and d Σ weight · cost / d layers.
    """
    seen = np.empty((env.hours, env.num_envs, len(policy.observation_names)), np.float32)
    cost = np.empty(seen.shape[:2])
    tape = []
    env.reset(starts, charge)
    for hour in range(env.hours):
        seen[hour] = env.observation
        hidden, action = policy.forward(seen[hour])
        held, before = env.charge.copy(), env.residual.copy()
        _, cost[hour] = env.step(action)
        tape.append(_Hour(hidden, action, held, env.charge.copy(), env.power.copy(), before, env.residual.copy()))
    return cost, _backwards(env, policy, seen, tape, weight)


def _backwards(env: VectorGridEnv, policy: Mlp, seen: NDArray[np.float32], tape: list[_Hour], weight: Array) -> Layers:
    grid, n = env.grid, env.num_stores
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
        lowest, highest = env.bounds[hour]
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
    flows, inputs = first.reshape(-1, first.shape[2]), seen.reshape(-1, seen.shape[2])
    bias = flows.sum(axis=0)
    # On normalised inputs, without computing them: (x - mean) · scale.
    sums[0] = ((flows.T @ inputs - np.outer(bias, policy.mean)) * policy.scale, bias)
    return tuple(sums)


def _inwards(flow: Array, value: Array, lowest: Array | float, highest: Array | float) -> Array:
    """Differentiate through a clip to [lowest, highest]; outside, keep only the part that brings a descent back in."""
    return np.where(((value > highest) & (flow < 0)) | ((value < lowest) & (flow > 0)), 0, flow)


def optimal_savings(grid: Grid, dataset: Dataset, *, hours: int = 168, most: int = 26) -> Array:
    """Return the optimum's saving in an hour, [region], from up to `most` episodes at even distances.

    A cost divided by it is in units of the share of the perfect-foresight saving.
    """
    every, savings = dataset.starts(hours), []
    for first, last in dataset.spans:
        own = every[(every >= first) & (every < last)]
        own = own[np.unique(np.linspace(0, len(own) - 1, most).astype(int))]
        scale = reference_costs(grid, dataset, own, hours)
        savings.append(float((scale.idle - scale.optimum).mean()) / hours)
    return np.array(savings)


def learning_rate(highest: float, step: int, total: int) -> float:
    """Return the rate of a step, counted from 0: up in a line, then down to a fiftieth as a cosine."""
    fall = 0.5 * (1 + np.cos(np.pi * step / total))
    return highest * min(1.0, (step + 1) / WARM_UP) * (0.02 + 0.98 * fall)


def gradient_steps(
    env: VectorGridEnv, starts: NDArray[np.int64], job: GradientSteps, policy: Mlp, m: Mlp, v: Mlp
) -> Arrays:
    """Take `job.steps` steps of Adam on episodes drawn from `starts`.

    Args:
        env: Reset here.
        starts: Rows at which an episode can begin, [start].
        job: Steps, seed and learning rate.
        policy: The weights before the first step.
        m: Adam's first moments, in the shape of the policy.
        v: Adam's second moments, in the shape of the policy.

    Returns:
        Weights and moments after the steps, and `losses` [step, 2]: cost, in units of the optimum's saving, and gradient norm.
    """
    dataset, grid = env.dataset, env.grid
    region = np.searchsorted([last for _, last in dataset.spans], starts, side="right")
    worth = 1 / (np.array(job.saving)[region] * job.episodes * job.hours)
    # Every region counts the same, however many of its hours were measured.
    chance = 1 / np.bincount(region, minlength=len(dataset.spans))[region]
    chance /= chance.sum()
    weights, adam = flatten(policy), Adam(flatten(m), flatten(v))
    losses = np.empty((job.steps, 2))
    for at in range(job.steps):
        step = job.first + at
        rng = np.random.default_rng([job.seed, job.member, step])
        drawn = rng.choice(len(starts), job.episodes, p=chance)
        charge = rng.uniform(0, 1, (len(grid.stores), job.episodes)) * grid.each("energy")[:, None]
        charge = np.where(rng.uniform(size=job.episodes) < AT_REST, grid.rest[:, None], charge)
        cost, layers = episode_gradient(env, unflatten(policy, weights), starts[drawn], charge, worth[drawn])
        gradient = flatten(policy.with_layers(layers)).astype(np.float32)
        norm = float(np.sqrt((gradient.astype(float) ** 2).sum()))
        gradient *= np.float32(min(1.0, MAX_NORM / max(norm, 1e-12)))
        rate = learning_rate(job.learning_rate, step, job.total)
        weights = weights - adam.step(gradient, step + 1, rate, beta2=BETA2)
        losses[at] = (cost * worth[drawn]).sum(), norm
    return {**dict(zip(RESULTS, (weights, adam.m, adam.v), strict=True)), "losses": losses}


def _normalisation(env: VectorGridEnv, rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Normalise the dataset's features on drawn rows, and the state on any charge at all."""
    dataset = env.dataset
    rows = rng.integers(0, len(dataset.load), SAMPLE)
    share = rng.uniform(0, 1, (SAMPLE, env.num_stores))
    state = np.column_stack([share, dataset.previous_load[rows], rng.uniform(0, 1, SAMPLE)])
    return normalisation(np.concatenate([state, dataset.features[rows]], axis=1).astype(np.float32))


class PathwiseGradient:
    """An algorithm (`rl.algorithms.base.Algorithm`): members learn independently and act as one policy, by their mean action.

    The cost is convex in the action, so the mean of several policies costs no more than they do on average.
    """

    def __init__(self, dataset: str, env: VectorGridEnv, settings: Settings) -> None:
        """Initialise the members for `env`, which runs on the dataset named `dataset`."""
        self.settings, self.staleness, self.iterations = settings, 0, settings.iterations
        self._dataset = dataset
        saving = optimal_savings(env.grid, env.dataset)
        mean, scale = _normalisation(env, np.random.default_rng(settings.seed))
        self._saving = tuple(float(f"{each:.5g}") for each in saving)  # the same on every host
        self._members: list[tuple[Mlp, ...]] = []  # policy, m, v
        for member in range(settings.members):
            rng = np.random.default_rng([settings.seed, member])
            policy = init_mlp(env.observation_names, mean, scale, env.num_actions, settings.width, rng)
            zeros = unflatten(policy, np.zeros_like(flatten(policy)))
            self._members.append((policy, zeros, zeros))
        self.versions = PolicyVersions(combined(self.members), 0)

    @property
    def members(self) -> list[Mlp]:
        """The members' present policies."""
        return [policy for policy, _, _ in self._members]

    def jobs(self, iteration: int) -> list[GradientSteps]:
        """Return one job a member."""
        s, jobs = self.settings, []
        for number, member in enumerate(self._members):
            policy, m, v = (hashlib.sha256(to_bytes(part)).hexdigest() for part in member)
            jobs.append(
                GradientSteps(
                    self._dataset,
                    policy,
                    m,
                    v,
                    size=flatten(member[0]).size,
                    seed=s.seed,
                    member=number,
                    first=iteration * s.steps,
                    steps=s.steps,
                    total=s.iterations * s.steps,
                    episodes=s.num_envs,
                    hours=s.episode_hours,
                    learning_rate=s.learning_rate,
                    saving=self._saving,
                )
            )
        return jobs

    def contents(self) -> list[bytes]:
        """Return the policies and moments that jobs name."""
        return [to_bytes(part) for member in self._members for part in member]

    def _update(self, rows: Sequence[Mapping[str, NDArray]]) -> None:
        """Set each member's weights and moments from rows of `RESULTS`."""
        self._members = [
            tuple(unflatten(policy, np.array(row[name])) for name in RESULTS)
            for policy, row in zip(self.members, rows, strict=True)
        ]

    def learn(self, iteration: int, jobs: Sequence[GradientSteps], results: Sequence[Arrays]) -> dict[str, float]:
        """Take the members' weights and moments from the results; return metrics."""
        self._update(results)
        self.versions.add(combined(self.members))
        cost, norm = np.mean([result["losses"] for result in results], axis=(0, 1))
        return {"losses/cost": float(cost), "losses/grad_norm": float(norm)}

    def state(self) -> tuple[dict[str, float], Arrays]:
        """Return all that a restart needs."""
        return {"version": self.versions.number}, {
            f"member/{number}/{name}": flatten(part)
            for number, member in enumerate(self._members)
            for name, part in zip(RESULTS, member, strict=True)
        }

    def restore(self, numbers: Mapping[str, float], arrays: Mapping[str, NDArray]) -> None:
        """Resume from `state`: its numbers and its float32 rows."""
        self._update(
            [{name: arrays[f"member/{number}/{name}"] for name in RESULTS} for number in range(len(self._members))]
        )
        self.versions.held = {int(numbers["version"]): combined(self.members)}
