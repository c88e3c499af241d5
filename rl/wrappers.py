"""Gymnasium wrappers for learners of other libraries: observations of mean 0 and deviation 1, rewards relative to doing nothing."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from rl.env.vector import VectorGridEnv
from rl.gym import GridControl

REACH = 10.0  # deviations at which an observation saturates
LEAST = 1e-3  # deviation of a column that hardly changes
CHARGE, HOURS_LEFT = (
    (0.5, 0.3),
    (0.9, 0.25),
)  # mean and deviation of columns that the dataset does not have, over a week


class NormalizedObservation(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Shift and scale each observation by constants of the dataset, so that training and evaluation see the same scale."""

    def __init__(self, env: gymnasium.Env[Any, Any], like: GridControl | None = None) -> None:
        """Wrap an environment whose innermost one is a `GridControl`; `like`: take the constants of another one's dataset."""
        super().__init__(env)
        self.mean, self.deviation = _constants((like or _innermost(env)).env)
        self.observation_space = Box(-REACH, REACH, self.mean.shape, np.float32)

    def observation(self, observation: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the scaled observation [feature]."""
        return np.clip((observation - self.mean) / self.deviation, -REACH, REACH)


class SavingReward(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Make the reward what the hour saved over doing nothing, $ per MW of reference peak.

    The sum over an episode ranks policies as the cost does, and it is 0 for doing nothing. What the load alone costs, which no action
    changes and which is most of the cost's variance, is gone.
    """

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Run one hour."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, float(reward) + info["idle_cost"], terminated, truncated, info


def normalized(env: gymnasium.Env[Any, Any], like: GridControl | None = None) -> gymnasium.Env[Any, Any]:
    """Return the environment with both wrappers. `like`: of the training, for a held-out one."""
    return SavingReward(NormalizedObservation(env, like))


def _innermost(env: gymnasium.Env[Any, Any]) -> GridControl:
    inner = env.unwrapped
    assert isinstance(inner, GridControl), f"{inner} is no GridControl"
    return inner


def _constants(env: VectorGridEnv) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return mean and deviation of each column of the observation, [feature]."""
    data = env.dataset
    own = [CHARGE] * env.num_stores + [(float(data.load.mean()), float(data.load.std())), HOURS_LEFT]
    mean = np.concatenate([[mean for mean, _ in own], data.features.mean(axis=0)])
    deviation = np.concatenate([[deviation for _, deviation in own], data.features.std(axis=0)])
    return mean.astype(np.float32), np.maximum(deviation, LEAST).astype(np.float32)
