"""V-gae_lambda (Espeholt et al. 2018) for rollouts that are late, with PPO's clipped objective: the learner of distributed rollouts.

Read from top to bottom: settings, targets, learner. The jobs of iteration i are played with the weights of iteration i - staleness,
while the learner still learns; how much likelier the present policy makes what was tried than the one that tried it
corrects for that, cut off at `rho_max`. The advantage is the target's distance to the value, so with staleness 0, where all
ratios are 1, this *is* PPO with GAE(lambda) (`rl.algorithms.ppo`; tests/unit/rl/test_vtrace.py). Weights after iteration i depend on the settings and
the results in the order of their jobs, on nothing else. Left out: entropy bonus, replay, a separate target network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from numpy.typing import NDArray

from rl.algorithms.base import PolicyVersions
from rl.algorithms.ppo import ActorCritic
from rl.distributed.audit import replay
from rl.distributed.jobs import Arrays, Rollout
from rl.distributed.runner import JobRunner
from rl.evaluation.score import idle_cost
from rl.policy import Mlp, init_mlp

Array = NDArray[np.float32]
Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Settings:
    """What the algorithm can be told."""

    iterations: int = 60
    jobs: int = 4  # rollouts an iteration, each a lease
    num_envs: int = 16  # episodes of a rollout, side by side
    episode_hours: int = 168
    staleness: int = 1  # iterations that the weights of a rollout may be behind; 0: PPO
    epochs: int = 4  # passes over an iteration's hours
    minibatch_size: int = 1024  # hours
    learning_rate: float = 3e-4
    gamma: float = 0.995  # an hour
    gae_lambda: float = 0.95
    rho_max: float = 1.0  # most weight of an hour
    clip_coef: float = 0.2  # of the probability ratio to the policy at the iteration's start
    noise: float = 0.1  # standard deviation of actions at the start, as a share of full power
    target_kl: float = 0.02  # epochs end when the policy has moved this far
    max_grad_norm: float = 0.5
    width: int = 128  # of the value network's hidden layers
    seed: int = 0


def targets(
    rewards: Floats, values: Floats, ratios: Floats, gamma: float, gae_lambda: float = 1.0, rho_max: float = 1.0
) -> Floats:
    """V-gae_lambda targets of whole episodes, [hour, N]; `ratios` of the present policy's probability to that of the one that acted.

    v_t = V_t + rho_t (r_t + gamma V_{t+1} - V_t) + gamma c_t (v_{t+1} - V_{t+1}), with rho = min(rho_max, ratio) and
    c = gae_lambda · min(1, ratio); the value after the last hour is 0.
    """
    out = np.empty_like(rewards)
    rho, c = np.minimum(rho_max, ratios), gae_lambda * np.minimum(1.0, ratios)
    ahead, following = np.zeros_like(rewards[0]), np.zeros_like(rewards[0])
    for hour in range(len(rewards) - 1, -1, -1):
        ahead = rho[hour] * (rewards[hour] + gamma * following - values[hour]) + gamma * c[hour] * ahead
        out[hour], following = values[hour] + ahead, values[hour]
    return out


@dataclass(frozen=True)
class Batch:
    """The hours of an iteration, rebuilt from what was tried."""

    observations: Array  # [hour, N, feature] normalised
    actions: Array  # [hour, N, action] before any projection
    rewards: Array  # [hour, N] saved against doing nothing, $ per MW of reference peak


def rebuild(runner: JobRunner, policy: Mlp, job: Rollout, result: Arrays) -> Batch:
    """Replay a rollout's actions: its observations and rewards. DataError where the costs are not those that were reported."""
    (starts, _), dataset = runner.draw_starts(job), runner.dataset(job.dataset)
    seen, cost = replay(runner, job, result)
    idle = idle_cost(runner.grid, dataset.load[starts + np.arange(job.hours)[:, None]], dataset.previous_load[starts])
    normal = (seen - policy.mean) * policy.scale
    return Batch(normal, result["actions"].transpose(0, 2, 1), (idle - cost).astype(np.float32))


class VTrace:
    """An algorithm (`rl.algorithms.base.Algorithm`): policy and value, improved once an iteration."""

    def __init__(self, runner: JobRunner, dataset: str, policy: Mlp, settings: Settings) -> None:
        self.settings, self.staleness, self.iterations = settings, settings.staleness, settings.iterations
        self._player, self._dataset = runner, dataset
        value = init_mlp(
            policy.observation_names, policy.mean, policy.scale, 1, settings.width, np.random.default_rng(settings.seed)
        )
        self._learner = ActorCritic(policy, value, settings.noise)
        self._optimiser = optim.Adam(settings.learning_rate, eps=1e-5)
        self._optimiser.init(self._learner.trainable_parameters())
        self._scale = 0.0  # of returns: the value network learns numbers near 1
        self.versions = PolicyVersions(policy, settings.staleness)
        self._noise = {0: np.full(policy.layers[-1][0].shape[0], settings.noise, np.float32)}
        self._gradient = nn.value_and_grad(self._learner, self._loss)

    def jobs(self, iteration: int) -> list[Rollout]:
        """What iteration `iteration` plays."""
        s, version = self.settings, self.versions.of(iteration)
        noise = tuple(map(float, self._noise[version]))
        sha256 = self.versions.sha256(version)
        seeds = np.random.SeedSequence([s.seed, iteration]).generate_state(s.jobs, np.uint64) >> np.uint64(1)
        return [Rollout(self._dataset, sha256, int(seed), s.num_envs, s.episode_hours, noise) for seed in seeds]

    def contents(self) -> list[bytes]:
        """What the jobs name."""
        return self.versions.contents()

    def learn(self, iteration: int, jobs: Sequence[Rollout], results: Sequence[Arrays]) -> dict[str, float]:
        """Take an iteration's results, in the order of its jobs: the weights of version `iteration` + 1, and metrics."""
        s, policy = self.settings, self.versions.newest
        parts = [rebuild(self._player, policy, job, result) for job, result in zip(jobs, results, strict=True)]
        batch = Batch(
            *(np.concatenate([getattr(p, n) for p in parts], axis=1) for n in ("observations", "actions", "rewards"))
        )
        count, shape = batch.rewards.size, batch.rewards.shape
        seen, tried = (mx.array(x.reshape(count, -1)) for x in (batch.observations, batch.actions))
        old = self._learner.log_probability(seen, tried)
        behaviour = self._behaviour(self.versions.of(iteration), batch).reshape(shape)
        ratios = np.exp(np.clip(np.array(old).reshape(shape) - behaviour, -20, 20))
        values = np.array(self._learner.value(seen)[:, 0]).reshape(shape) * np.float32(self._scale or 1.0)
        found = targets(batch.rewards, values, ratios, s.gamma, s.gae_lambda, s.rho_max)
        if not self._scale:
            self._scale = float(found.std()) or 1.0
        gains = found - values
        normal = mx.array(((gains - gains.mean()) / (gains.std() + 1e-8)).ravel())
        target = mx.array((found / np.float32(self._scale)).ravel())
        moved = policy_loss = value_loss = 0.0
        rng = np.random.default_rng([s.seed, iteration])
        for _ in range(s.epochs):
            order = rng.permutation(count)
            for at in range(0, count, s.minibatch_size):
                own = mx.array(order[at : at + s.minibatch_size])
                losses, gradient = self._gradient(self._learner, *(x[own] for x in (seen, tried, old, normal, target)))
                gradient, _ = optim.clip_grad_norm(gradient, s.max_grad_norm)
                self._optimiser.update(self._learner, gradient)
                mx.eval(self._learner.parameters(), self._optimiser.state)
                policy_loss, value_loss, moved = (float(x) for x in losses[1:])
            if moved > s.target_kl:
                break
        self.versions.add(Mlp(policy.observation_names, policy.mean, policy.scale, self._learner.mean.numbers()))
        self._noise[iteration + 1] = np.exp(np.array(self._learner.log_std))
        self._noise = {version: std for version, std in self._noise.items() if version in self.versions.held}
        return {
            "charts/episodic_return": float(batch.rewards.sum(axis=0).mean()),
            "losses/policy_loss": policy_loss,
            "losses/value_loss": value_loss,
            "losses/approx_kl": moved,
            "losses/explained_variance": 1 - float(gains.var()) / max(float(found.var()), 1e-12),
            "charts/action_std": float(self._noise[iteration + 1].mean()),
            "charts/mean_ratio": float(ratios.mean()),
        }

    def _loss(
        self, learner: ActorCritic, seen: mx.array, tried: mx.array, old: mx.array, gain: mx.array, target: mx.array
    ) -> tuple[mx.array, mx.array, mx.array, mx.array]:
        log_ratio = learner.log_probability(seen, tried) - old
        ratio = mx.exp(log_ratio)
        clipped = mx.clip(ratio, 1 - self.settings.clip_coef, 1 + self.settings.clip_coef)
        policy_loss = -mx.minimum(ratio * gain, clipped * gain).mean()
        value_loss = 0.5 * mx.square(learner.value(seen)[:, 0] - target).mean()
        return policy_loss + value_loss, policy_loss, value_loss, (ratio - 1 - log_ratio).mean()

    def _behaviour(self, version: int, batch: Batch) -> Array:
        """Log-probability of what was tried under the policy that tried it, [hour · N]."""
        acted, std = self.versions.held[version], self._noise[version]
        actor = ActorCritic(acted, acted, 1.0)
        actor.log_std = mx.array(np.log(std))
        count = batch.rewards.size
        seen, tried = (mx.array(x.reshape(count, -1)) for x in (batch.observations, batch.actions))
        return np.array(actor.log_probability(seen, tried))

    def state(self) -> tuple[dict[str, float], Arrays]:
        """All that a restart needs: plain numbers, and arrays."""
        arrays = _leaves("learner/", self._learner.parameters()) | _leaves("optimiser/", self._optimiser.state)
        arrays |= {f"noise/{version}": std for version, std in self._noise.items()}
        return {"scale": self._scale}, arrays | self.versions.arrays()

    def restore(self, numbers: Mapping[str, float], arrays: Mapping[str, NDArray]) -> None:
        """Go on from `state`: its numbers and its arrays, float32 but for the optimiser's counts."""

        def below(prefix: str) -> list[tuple[str, mx.array]]:
            return [(name.removeprefix(prefix), mx.array(x)) for name, x in arrays.items() if name.startswith(prefix)]

        self._learner.update(tree_unflatten(below("learner/")))
        self._optimiser.state = tree_unflatten(below("optimiser/"))
        self._noise = {int(name): np.array(std) for name, std in below("noise/")}
        self._scale = numbers["scale"]
        self.versions.restore(arrays)


def _leaves(prefix: str, tree: Any) -> Arrays:
    leaves: Any = tree_flatten(tree)
    return {f"{prefix}{name}": np.array(leaf) for name, leaf in leaves}
