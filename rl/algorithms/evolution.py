"""Evolution strategies (Salimans et al. 2017): move the weights towards perturbations with lower cost. No gradient, no mlx.

Read from top to bottom: settings, costs of perturbations, algorithm. A perturbation is a seed, evaluated with both signs (mirrored
sampling) in the same episodes as all others of its iteration. A worker returns two costs for it, so little data travels. Costs
are replaced by their ranks, and the step is Adam's (Kingma & Ba 2015). Left out: weight decay, virtual batch normalisation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rl.algorithms.adam import Adam
from rl.algorithms.base import PolicyVersions
from rl.distributed.jobs import Arrays, EvaluatePerturbations
from rl.env.vector import VectorGridEnv
from rl.policy import Mlp, flatten, unflatten

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Settings:
    """The algorithm's settings."""

    iterations: int = 100
    jobs: int = 4  # leases an iteration
    pairs: int = 8  # mirrored perturbations a job
    num_envs: int = 32  # episodes side by side
    episode_hours: int = 168
    staleness: int = 0  # iterations that the weights of a job may be behind
    sigma: float = 0.02  # standard deviation of a perturbation
    learning_rate: float = 0.01
    seed: int = 0


def perturbation(seed: int, size: int) -> Array:
    """Return standard normal numbers [size], the same for the same seed on every host."""
    return np.random.default_rng(seed).standard_normal(size, np.float32)


def costs(
    policy: Mlp, env: VectorGridEnv, starts: NDArray[np.int64], seeds: Sequence[int], sigma: float
) -> NDArray[np.float64]:
    """Return the mean cost of an episode with each perturbation added and subtracted, [seed, 2], $ per MW of reference peak."""
    weights = flatten(policy)
    out = np.zeros((len(seeds), 2))
    for i, seed in enumerate(seeds):
        step = np.float32(sigma) * perturbation(seed, weights.size)
        for side, sign in enumerate((np.float32(1), np.float32(-1))):
            actor = unflatten(policy, weights + sign * step)
            env.reset(starts)
            for _ in range(env.hours):
                out[i, side] += env.step(actor(env))[1].mean()
    return out


def ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return centred ranks of the values' shape: -0.5 for the lowest to 0.5 for the highest, whatever the values' scale."""
    order = np.empty(values.size)
    order[np.argsort(values, axis=None, kind="stable")] = np.arange(values.size)
    return (order / max(values.size - 1, 1) - 0.5).reshape(values.shape)


class Evolution:
    """An algorithm (`rl.algorithms.base.Algorithm`)."""

    def __init__(self, dataset: str, policy: Mlp, settings: Settings) -> None:
        """Start from `policy`, on the dataset named `dataset`."""
        self.settings, self.staleness, self.iterations = settings, settings.staleness, settings.iterations
        self._dataset = dataset
        self.versions = PolicyVersions(policy, settings.staleness)
        weights = flatten(policy)
        self._adam = Adam(np.zeros_like(weights), np.zeros_like(weights))

    def jobs(self, iteration: int) -> list[EvaluatePerturbations]:
        """Return the jobs of an iteration."""
        s, sha256 = self.settings, self.versions.sha256(self.versions.of(iteration))
        drawn = np.random.SeedSequence([s.seed, iteration]).generate_state(1 + s.jobs * s.pairs, np.uint64)
        first, *seeds = (int(seed >> np.uint64(1)) for seed in drawn)
        parts = (tuple(seeds[at : at + s.pairs]) for at in range(0, len(seeds), s.pairs))
        return [
            EvaluatePerturbations(self._dataset, sha256, first, part, s.sigma, s.num_envs, s.episode_hours)
            for part in parts
        ]

    def contents(self) -> list[bytes]:
        """Return the policies that jobs name."""
        return self.versions.contents()

    def learn(
        self, iteration: int, jobs: Sequence[EvaluatePerturbations], results: Sequence[Arrays]
    ) -> dict[str, float]:
        """Take one step of Adam against the ranks of the perturbations' costs; return metrics."""
        s, policy = self.settings, self.versions.newest
        weights = flatten(policy)
        found = np.concatenate([result["cost"] for result in results])
        gradient = np.zeros_like(weights)
        for seed, (plus, minus) in zip((seed for job in jobs for seed in job.perturbations), ranks(found), strict=True):
            gradient += np.float32(plus - minus) * perturbation(seed, weights.size)
        gradient /= np.float32(len(found) * s.sigma)
        step = self._adam.step(gradient, iteration + 1, s.learning_rate)
        self.versions.add(unflatten(policy, weights - step))
        return {
            "charts/episodic_cost": float(found.mean()),
            "charts/best_cost": float(found.min()),
            "losses/step": float(np.abs(step).mean()),
        }

    def state(self) -> tuple[dict[str, float], Arrays]:
        """Return all that a restart needs."""
        return {}, {"moment/mean": self._adam.m, "moment/square": self._adam.v} | self.versions.arrays()

    def restore(self, numbers: Mapping[str, float], arrays: Mapping[str, NDArray]) -> None:
        """Resume from `state`: its numbers and its float32 arrays."""
        self._adam = Adam(arrays["moment/mean"].copy(), arrays["moment/square"].copy())
        self.versions.restore(arrays)
