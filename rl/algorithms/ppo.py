"""Proximal policy optimisation (Schulman et al. 2017), one process: numpy actors in `VectorGridEnv`, learner in MLX.

Read from top to bottom: settings, rollout, advantages (GAE, Schulman et al. 2016), loss, loop. It starts from any `Mlp`, best from
one that was cloned. The reward of an hour is what the action saved against leaving every store at rest: minus the cost, plus a
number that no action changes, so the same optimum with far less noise. Episodes end where nothing is left to be valued, so
there is no bootstrap. Metrics have cleanrl's names. Left out: value clipping, orthogonal start, learning-rate schedules by KL.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from numpy.typing import NDArray

from rl.algorithms.clone import Network
from rl.env.dataset import Dataset
from rl.env.grid import Grid
from rl.env.vector import VectorGridEnv
from rl.evaluation.score import idle_cost
from rl.policy import Mlp, init_mlp

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Settings:
    """What the algorithm can be told."""

    num_envs: int = 64  # episodes side by side
    episode_hours: int = 168  # a rollout is one episode of each
    iterations: int = 100  # rollouts
    epochs: int = 4  # passes over a rollout
    minibatch_size: int = 1024  # hours
    learning_rate: float = 3e-4
    gamma: float = 0.995  # an hour
    gae_lambda: float = 0.95
    clip_coef: float = 0.2  # of the probability ratio
    noise: float = 0.1  # standard deviation of actions at the start, as a share of full power
    target_kl: float = 0.02  # epochs end when the policy has moved this far
    max_grad_norm: float = 0.5
    width: int = 128  # of the value network's hidden layers
    seed: int = 0


@dataclass(frozen=True)
class Batch:
    """A rollout: what was seen, tried and earned, hour by hour."""

    observations: Array  # [hour, N, feature] normalised
    actions: Array  # [hour, N, action] as tried, before any projection
    rewards: Array  # [hour, N] $ per MW of reference peak


class ActorCritic(nn.Module):
    """Policy mean, one standard deviation an action, value."""

    def __init__(self, policy: Mlp, value: Mlp, noise: float) -> None:
        super().__init__()
        self.mean, self.value = Network(policy), Network(value)
        self.log_std = mx.full((policy.layers[-1][0].shape[0],), float(np.log(noise)))

    def log_probability(self, observations: mx.array, actions: mx.array) -> mx.array:
        """[sample] of a Gaussian with independent actions."""
        z = (actions - self.mean(observations)) * mx.exp(-self.log_std)
        return (-0.5 * z * z - self.log_std - 0.5 * float(np.log(2 * np.pi))).sum(axis=-1)


def play(
    grid: Grid, env: VectorGridEnv, policy: Mlp, std: Array, starts: NDArray[np.int64], rng: np.random.Generator
) -> Batch:
    """One episode from each of the rows `starts` [N]: the policy's actions plus noise of deviation `std` [action]."""
    hours, count, dataset = env.hours, env.num_envs, env.dataset
    seen = np.empty((hours, count, len(env.observation_names)), np.float32)
    tried = np.empty((hours, env.num_actions, count), np.float32)
    cost = np.empty((hours, count))
    noise = rng.standard_normal(tried.shape, np.float32) * std[:, None]
    env.reset(starts)
    for hour in range(hours):
        seen[hour] = env.observation
        tried[hour] = policy(env) + noise[hour]
        _, cost[hour] = env.step(tried[hour])
    idle = idle_cost(grid, dataset.load[starts + np.arange(hours)[:, None]], dataset.previous_load[starts])
    normal = (seen - policy.mean) * policy.scale
    return Batch(normal, tried.transpose(0, 2, 1), (idle - cost).astype(np.float32))


def advantages(rewards: Array, values: Array, gamma: float, gae_lambda: float) -> Array:
    """GAE(λ) of whole episodes, [hour, N]; the value after the last hour is 0."""
    out = np.zeros_like(rewards)
    ahead, following = np.zeros_like(rewards[0]), np.zeros_like(rewards[0])
    for hour in range(len(rewards) - 1, -1, -1):
        ahead = rewards[hour] + gamma * following - values[hour] + gamma * gae_lambda * ahead
        out[hour], following = ahead, values[hour]
    return out


def train(
    grid: Grid,
    dataset: Dataset,
    policy: Mlp,
    settings: Settings,
    log: Callable[[int, Mapping[str, float]], None] | None = None,
) -> Mlp:
    """Improve `policy` on episodes drawn from `dataset`; `log(iteration, metrics)` after each rollout."""
    rng = np.random.default_rng(settings.seed)
    env = VectorGridEnv(grid, dataset, settings.num_envs, settings.episode_hours)
    starts = dataset.starts(settings.episode_hours)
    value = init_mlp(policy.observation_names, policy.mean, policy.scale, 1, settings.width, rng)
    learner = ActorCritic(policy, value, settings.noise)
    optimiser = optim.Adam(settings.learning_rate, eps=1e-5)
    scale = 1.0  # of returns: the value network learns numbers near 1

    def loss(
        learner: ActorCritic, seen: mx.array, actions: mx.array, old: mx.array, advantage: mx.array, target: mx.array
    ) -> tuple[mx.array, mx.array, mx.array, mx.array]:
        log_ratio = learner.log_probability(seen, actions) - old
        ratio = mx.exp(log_ratio)
        clipped = mx.clip(ratio, 1 - settings.clip_coef, 1 + settings.clip_coef)
        policy_loss = -mx.minimum(ratio * advantage, clipped * advantage).mean()
        value_loss = 0.5 * mx.square(learner.value(seen)[:, 0] - target).mean()
        return policy_loss + value_loss, policy_loss, value_loss, (ratio - 1 - log_ratio).mean()

    gradient_of = nn.value_and_grad(learner, loss)
    began, played = time.perf_counter(), 0
    for iteration in range(settings.iterations):
        std = np.exp(np.array(learner.log_std))
        batch = play(grid, env, policy, std, rng.choice(starts, settings.num_envs), rng)
        played += batch.rewards.size
        seen = mx.array(batch.observations.reshape(batch.rewards.size, -1))
        actions = mx.array(batch.actions.reshape(batch.rewards.size, -1))
        values = np.array(learner.value(seen)[:, 0]).reshape(batch.rewards.shape) * np.float32(scale)
        gains = advantages(batch.rewards, values, settings.gamma, settings.gae_lambda)
        returns = gains + values
        if iteration == 0:
            scale = float(returns.std()) or 1.0
        old = learner.log_probability(seen, actions)
        normal = mx.array(((gains - gains.mean()) / (gains.std() + 1e-8)).ravel())
        target = mx.array((returns / scale).ravel())
        moved = policy_loss = value_loss = 0.0
        for _ in range(settings.epochs):
            order = rng.permutation(batch.rewards.size)
            for at in range(0, len(order), settings.minibatch_size):
                own = mx.array(order[at : at + settings.minibatch_size])
                losses, gradient = gradient_of(learner, *(x[own] for x in (seen, actions, old, normal, target)))
                gradient, _ = optim.clip_grad_norm(gradient, settings.max_grad_norm)
                optimiser.update(learner, gradient)
                mx.eval(learner.parameters(), optimiser.state)
                policy_loss, value_loss, moved = (float(x) for x in losses[1:])
            if moved > settings.target_kl:
                break
        policy = Mlp(policy.observation_names, policy.mean, policy.scale, learner.mean.numbers())
        if log:
            metrics = {
                "charts/episodic_return": float(batch.rewards.sum(axis=0).mean()),
                "charts/SPS": played / (time.perf_counter() - began),
                "losses/policy_loss": policy_loss,
                "losses/value_loss": value_loss,
                "losses/approx_kl": moved,
                "losses/explained_variance": 1 - float(gains.var()) / max(float(returns.var()), 1e-12),
                "charts/action_std": float(std.mean()),
            }
            log(iteration, metrics)
    return policy
