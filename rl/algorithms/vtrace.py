"""V-trace (Espeholt et al. 2018) with PPO's clipped objective (Schulman et al. 2017): learns from rollouts of older policies.

Read from top to bottom: settings, targets, networks, algorithm. The jobs of iteration i run with the weights of iteration
i - staleness while the learner still learns. The importance ratio, how much likelier the present policy makes an action than the
policy that took it, corrects for that and is cut off at `rho_max`. The advantage is the target's distance to the value, so with
staleness 0, where all ratios are 1, this *is* PPO with GAE(λ) (Schulman et al. 2016; tests/unit/rl/test_vtrace.py).

It starts from any `Mlp`, best from a clone. The reward of an hour is what the action saved against leaving every store at rest:
minus the cost, plus a number that no action changes, so the optimum is the same with far less noise. An episode ends where
nothing is left to be valued, so there is no bootstrap. Metrics have cleanrl's names. Weights after iteration i depend on the
settings and the results in the order of their jobs alone.

Left out: entropy bonus, replay, a separate target network, value clipping, orthogonal initialisation, learning-rate schedules by KL.
"""

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
from rl.algorithms.clone import Network
from rl.distributed.audit import replay
from rl.distributed.jobs import Arrays, Rollout
from rl.distributed.runner import JobRunner
from rl.evaluation.score import idle_cost
from rl.policy import Mlp, init_mlp

Array = NDArray[np.float32]
Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Settings:
    """The algorithm's settings, under cleanrl's names where it has one."""

    iterations: int = 60
    jobs: int = 4  # rollouts an iteration, each a lease
    num_envs: int = 16  # episodes of a rollout, side by side
    episode_hours: int = 168  # cleanrl's num_steps
    staleness: int = 1  # iterations that the weights of a rollout may be behind; 0: PPO
    epochs: int = 4  # passes over an iteration's hours
    minibatch_size: int = 1024  # hours
    learning_rate: float = 3e-4
    gamma: float = 0.995  # an hour
    gae_lambda: float = 0.95
    rho_max: float = 1.0  # upper bound of an hour's importance ratio
    clip_coef: float = 0.2  # of the probability ratio to the policy at the iteration's start
    noise: float = 0.1  # standard deviation of actions at the start, as a share of full power
    target_kl: float = 0.02  # epochs end when the policy has moved this far
    max_grad_norm: float = 0.5
    width: int = 128  # of the value network's hidden layers
    seed: int = 0


def targets(
    rewards: Floats, values: Floats, ratios: Floats, gamma: float, gae_lambda: float = 1.0, rho_max: float = 1.0
) -> Floats:
    """Return the V-trace targets of whole episodes, [hour, N].

    v_t = V_t + rho_t (r_t + gamma V_{t+1} - V_t) + gamma c_t (v_{t+1} - V_{t+1}), with rho = min(rho_max, ratio) and
    c = gae_lambda · min(1, ratio); the value after the last hour is 0.

    Args:
        rewards: [hour, N].
        values: V, [hour, N].
        ratios: Probability of each action under the present policy, divided by that under the policy that took it, [hour, N].
        gamma: Discount of an hour.
        gae_lambda: λ.
        rho_max: Upper bound of rho.
    """
    out = np.empty_like(rewards)
    rho, c = np.minimum(rho_max, ratios), gae_lambda * np.minimum(1.0, ratios)
    ahead, following = np.zeros_like(rewards[0]), np.zeros_like(rewards[0])
    for hour in range(len(rewards) - 1, -1, -1):
        ahead = rho[hour] * (rewards[hour] + gamma * following - values[hour]) + gamma * c[hour] * ahead
        out[hour], following = values[hour] + ahead, values[hour]
    return out


class ActorCritic(nn.Module):
    """The policy's mean, one standard deviation for each action, and the value."""

    def __init__(self, policy: Mlp, value: Mlp, noise: float) -> None:
        """Copy the weights of `policy` and `value`; `noise` is the standard deviation of all actions."""
        super().__init__()
        self.mean, self.value = Network(policy), Network(value)
        self.log_std = mx.full((policy.layers[-1][0].shape[0],), float(np.log(noise)))

    def log_probability(self, observations: mx.array, actions: mx.array) -> mx.array:
        """Return the log-density [sample] of a Gaussian with independent actions."""
        z = (actions - self.mean(observations)) * mx.exp(-self.log_std)
        return (-0.5 * z * z - self.log_std - 0.5 * float(np.log(2 * np.pi))).sum(axis=-1)


@dataclass(frozen=True)
class Batch:
    """The hours of one or several rollouts, rebuilt from their actions."""

    observations: Array  # [hour, N, feature] normalised
    actions: Array  # [hour, N, action] before any projection
    rewards: Array  # [hour, N] saved against doing nothing, $ per MW of reference peak


def rebuild(runner: JobRunner, policy: Mlp, job: Rollout, result: Arrays) -> Batch:
    """Replay a rollout's actions to get its observations and rewards; DataError, from `replay`, where the costs differ."""
    (starts, _), dataset = runner.draw_starts(job), runner.dataset(job.dataset)
    observations, cost = replay(runner, job, result)
    loads = dataset.load[starts + np.arange(job.hours)[:, None]]
    saved = idle_cost(runner.grid, loads, dataset.previous_load[starts]) - cost
    normalised = (observations - policy.mean) * policy.scale
    return Batch(normalised, result["actions"].transpose(0, 2, 1), saved.astype(np.float32))


class VTrace:
    """An algorithm (`rl.algorithms.base.Algorithm`) that improves a policy and a value network once an iteration."""

    def __init__(self, runner: JobRunner, dataset: str, policy: Mlp, settings: Settings) -> None:
        """Start from `policy`, on the dataset named `dataset`; `runner` replays the rollouts."""
        self.settings, self.staleness, self.iterations = settings, settings.staleness, settings.iterations
        self._runner, self._dataset = runner, dataset
        rng = np.random.default_rng(settings.seed)
        value = init_mlp(policy.observation_names, policy.mean, policy.scale, 1, settings.width, rng)
        self._learner = ActorCritic(policy, value, settings.noise)
        self._optimiser = optim.Adam(settings.learning_rate, eps=1e-5)
        self._optimiser.init(self._learner.trainable_parameters())
        self._scale = 0.0  # of returns: the value network learns numbers near 1
        self.versions = PolicyVersions(policy, settings.staleness)
        self._noise = {0: np.full(policy.layers[-1][0].shape[0], settings.noise, np.float32)}
        self._gradient = nn.value_and_grad(self._learner, self._loss)

    def jobs(self, iteration: int) -> list[Rollout]:
        """Return the rollouts of an iteration."""
        s, version = self.settings, self.versions.of(iteration)
        noise = tuple(map(float, self._noise[version]))
        sha256 = self.versions.sha256(version)
        seeds = np.random.SeedSequence([s.seed, iteration]).generate_state(s.jobs, np.uint64) >> np.uint64(1)
        return [Rollout(self._dataset, sha256, int(seed), s.num_envs, s.episode_hours, noise) for seed in seeds]

    def contents(self) -> list[bytes]:
        """Return the policies that jobs name."""
        return self.versions.contents()

    def learn(self, iteration: int, jobs: Sequence[Rollout], results: Sequence[Arrays]) -> dict[str, float]:
        """Learn from an iteration's results, in the order of its jobs: make version `iteration` + 1, and return metrics."""
        s, policy = self.settings, self.versions.newest
        parts = [rebuild(self._runner, policy, job, result) for job, result in zip(jobs, results, strict=True)]
        batch = Batch(
            *(np.concatenate([getattr(p, n) for p in parts], axis=1) for n in ("observations", "actions", "rewards"))
        )
        shape = batch.rewards.shape
        seen, tried = (mx.array(x.reshape(batch.rewards.size, -1)) for x in (batch.observations, batch.actions))
        old = self._learner.log_probability(seen, tried)
        behaviour = self._behaviour(self.versions.of(iteration)).log_probability(seen, tried)
        ratios = np.exp(np.clip((np.array(old) - np.array(behaviour)).reshape(shape), -20, 20))
        values = np.array(self._learner.value(seen)[:, 0]).reshape(shape) * np.float32(self._scale or 1.0)
        returns = targets(batch.rewards, values, ratios, s.gamma, s.gae_lambda, s.rho_max)
        self._scale = self._scale or float(returns.std()) or 1.0
        advantages = returns - values
        normalised = mx.array(((advantages - advantages.mean()) / (advantages.std() + 1e-8)).ravel())
        target = mx.array((returns / np.float32(self._scale)).ravel())
        rng = np.random.default_rng([s.seed, iteration])
        policy_loss, value_loss, kl = self._update(rng, seen, tried, old, normalised, target)
        self.versions.add(policy.with_layers(self._learner.mean.numbers()))
        self._noise[iteration + 1] = np.exp(np.array(self._learner.log_std))
        self._noise = {version: std for version, std in self._noise.items() if version in self.versions.held}
        return {
            "charts/episodic_return": float(batch.rewards.sum(axis=0).mean()),
            "losses/policy_loss": policy_loss,
            "losses/value_loss": value_loss,
            "losses/approx_kl": kl,
            "losses/explained_variance": 1 - float(advantages.var()) / max(float(returns.var()), 1e-12),
            "charts/action_std": float(self._noise[iteration + 1].mean()),
            "charts/mean_ratio": float(ratios.mean()),
        }

    def _update(self, rng: np.random.Generator, *samples: mx.array) -> tuple[float, ...]:
        """Run the epochs over `samples`, the arguments of `_loss`; return the last minibatch's losses and KL divergence."""
        s, count = self.settings, len(samples[0])
        losses: tuple[float, ...] = (0.0, 0.0, 0.0)
        for _ in range(s.epochs):
            order = rng.permutation(count)
            for at in range(0, count, s.minibatch_size):
                own = mx.array(order[at : at + s.minibatch_size])
                (_, *found), gradient = self._gradient(self._learner, *(x[own] for x in samples))
                gradient, _ = optim.clip_grad_norm(gradient, s.max_grad_norm)
                self._optimiser.update(self._learner, gradient)
                mx.eval(self._learner.parameters(), self._optimiser.state)
                losses = tuple(map(float, found))
            if losses[2] > s.target_kl:
                break
        return losses

    def _loss(
        self,
        learner: ActorCritic,
        seen: mx.array,
        tried: mx.array,
        old: mx.array,
        advantage: mx.array,
        target: mx.array,
    ) -> tuple[mx.array, mx.array, mx.array, mx.array]:
        """Return PPO's loss, its policy and value parts, and the KL divergence from the iteration's start."""
        log_ratio = learner.log_probability(seen, tried) - old
        ratio = mx.exp(log_ratio)
        clipped = mx.clip(ratio, 1 - self.settings.clip_coef, 1 + self.settings.clip_coef)
        policy_loss = -mx.minimum(ratio * advantage, clipped * advantage).mean()
        value_loss = 0.5 * mx.square(learner.value(seen)[:, 0] - target).mean()
        return policy_loss + value_loss, policy_loss, value_loss, (ratio - 1 - log_ratio).mean()

    def _behaviour(self, version: int) -> ActorCritic:
        """Return the policy of an earlier version, with the noise of its rollouts."""
        policy = self.versions.held[version]
        actor = ActorCritic(policy, policy, 1.0)
        actor.log_std = mx.array(np.log(self._noise[version]))
        return actor

    def state(self) -> tuple[dict[str, float], Arrays]:
        """Return all that a restart needs: plain numbers, and arrays."""
        arrays = _leaves("learner/", self._learner.parameters()) | _leaves("optimiser/", self._optimiser.state)
        arrays |= {f"noise/{version}": std for version, std in self._noise.items()}
        return {"scale": self._scale}, arrays | self.versions.arrays()

    def restore(self, numbers: Mapping[str, float], arrays: Mapping[str, NDArray]) -> None:
        """Resume from `state`. The arrays are float32, except the optimizer's counts."""

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
