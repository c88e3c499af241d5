"""PolicyVersions of a policy while it is trained, and what an algorithm is to those who play its jobs.

Iteration i is played with version max(0, i - staleness) and makes version i + 1: a fixed list of jobs, whoever does them and when.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rl.distributed.jobs import AnyJob, Arrays
from rl.policy import Mlp, to_bytes


class Algorithm(Protocol):
    """What makes weights from results. Weights must follow from settings and results in job order alone.

    The jobs of an iteration may be asked for as soon as its version is there, before the iterations between are learned.
    `contents`: whatever jobs name by its sha256, as `rl.policy.to_bytes` gives it.
    """

    staleness: int
    iterations: int
    versions: PolicyVersions

    def jobs(self, iteration: int) -> Sequence[AnyJob]:
        """What an iteration plays."""
        ...

    def contents(self) -> list[bytes]:
        """Policies that jobs name, as they travel."""
        ...

    def learn(self, iteration: int, jobs: Sequence[Any], results: Sequence[Arrays]) -> dict[str, float]:
        """Make the next version; metrics.

        `results` are in the order of `jobs`, each as `rl.distributed.jobs.shapes` has it.
        """
        ...

    def state(self) -> tuple[dict[str, float], Arrays]:
        """All that a restart needs: plain numbers, and arrays of any shape and dtype."""
        ...

    def restore(self, numbers: Mapping[str, float], arrays: Mapping[str, NDArray]) -> None:
        """Go on from what `state` gave: arrays of the same shapes and dtypes."""
        ...


class PolicyVersions:
    """The newest version, and the older ones that late rollouts still need."""

    def __init__(self, first: Mlp, staleness: int) -> None:
        self._staleness = staleness
        self.held: dict[int, Mlp] = {0: first}
        self._content: dict[int, bytes] = {}

    def of(self, iteration: int) -> int:
        """The version that an iteration is played with."""
        return max(0, iteration - self._staleness)

    @property
    def number(self) -> int:
        """The newest version's number."""
        return max(self.held)

    @property
    def newest(self) -> Mlp:
        """Its policy."""
        return self.held[self.number]

    def add(self, policy: Mlp) -> None:
        """The next version; those that no iteration to come is played with are let go."""
        self.held[self.number + 1] = policy
        keep = self.of(self.number)
        self.held = {number: policy for number, policy in self.held.items() if number >= keep}
        self._content = {number: content for number, content in self._content.items() if number >= keep}

    def content(self, number: int) -> bytes:
        """The version as it travels."""
        if number not in self._content:
            self._content[number] = to_bytes(self.held[number])
        return self._content[number]

    def contents(self) -> list[bytes]:
        """All that is held, as it travels."""
        return [self.content(number) for number in sorted(self.held)]

    def sha256(self, number: int) -> str:
        """The digest that jobs name it by, in hex."""
        return hashlib.sha256(self.content(number)).hexdigest()

    def arrays(self) -> Arrays:
        """For a checkpoint: the layers of all that is held; names and normalisation do not change."""
        return {
            f"version/{number}/{i}/{part}": array
            for number, policy in self.held.items()
            for i, layer in enumerate(policy.layers)
            for part, array in zip(("weight", "bias"), layer, strict=True)
        }

    def restore(self, arrays: Mapping[str, NDArray]) -> None:
        """Go on from `arrays`: weight [out, in] and bias [out] of every layer held."""
        one = self.newest
        numbers = sorted({int(name.split("/")[1]) for name in arrays if name.startswith("version/")})
        self._content = {}
        self.held = {
            n: Mlp(
                one.observation_names,
                one.mean,
                one.scale,
                tuple(
                    (np.array(arrays[f"version/{n}/{i}/weight"]), np.array(arrays[f"version/{n}/{i}/bias"]))
                    for i in range(len(one.layers))
                ),
            )
            for n in numbers
        }


def train(
    algorithm: Algorithm,
    do: Callable[[AnyJob], Arrays],
    log: Callable[[int, Mapping[str, float]], None] | None = None,
) -> Mlp:
    """One process: play and learn in turn; the last version. `log(iteration, metrics)` after each iteration.

    Jobs are asked for when they would be in a fleet, as soon as their version is there, so the weights are the same.
    """
    asked: dict[int, Sequence[AnyJob]] = {}
    for iteration in range(algorithm.iterations):
        for ahead in range(iteration, min(iteration + algorithm.staleness + 1, algorithm.iterations)):
            if ahead not in asked:
                asked[ahead] = algorithm.jobs(ahead)
        jobs = asked.pop(iteration)
        metrics = algorithm.learn(iteration, jobs, [do(job) for job in jobs])
        if log:
            log(iteration, metrics)
    return algorithm.versions.newest
