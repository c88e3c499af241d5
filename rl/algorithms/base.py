"""Policy versions kept for stale rollouts, and the `Algorithm` interface.

Iteration i runs with version max(0, i - staleness) and makes version i + 1. Its list of jobs is fixed, whichever worker runs them
and when.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rl.distributed.jobs import AnyJob, Arrays
from rl.policy import Mlp, to_bytes


class PolicyVersions:
    """The newest version, and the older ones that stale rollouts still need."""

    def __init__(self, first: Mlp, staleness: int) -> None:
        """Hold version 0, for an algorithm whose rollouts may be `staleness` iterations behind."""
        self._staleness = staleness
        self.held: dict[int, Mlp] = {0: first}
        self._content: dict[int, bytes] = {}

    def of(self, iteration: int) -> int:
        """Return the version that an iteration runs with."""
        return max(0, iteration - self._staleness)

    @property
    def number(self) -> int:
        """The newest version's number."""
        return max(self.held)

    @property
    def newest(self) -> Mlp:
        """The newest version's policy."""
        return self.held[self.number]

    def add(self, policy: Mlp) -> None:
        """Add the next version; drop those that no later iteration runs with."""
        self.held[self.number + 1] = policy
        oldest = self.of(self.number)
        self.held = {number: policy for number, policy in self.held.items() if number >= oldest}
        self._content = {number: content for number, content in self._content.items() if number >= oldest}

    def content(self, number: int) -> bytes:
        """Return a version as `rl.policy.to_bytes` serializes it."""
        if number not in self._content:
            self._content[number] = to_bytes(self.held[number])
        return self._content[number]

    def contents(self) -> list[bytes]:
        """Return all held versions, serialized."""
        return [self.content(number) for number in sorted(self.held)]

    def sha256(self, number: int) -> str:
        """Return the hex digest by which jobs name a version."""
        return hashlib.sha256(self.content(number)).hexdigest()

    def arrays(self) -> Arrays:
        """Return the layers of all held versions for a state; names and normalisation do not change."""
        return {
            f"version/{number}/{i}/{part}": array
            for number, policy in self.held.items()
            for i, layer in enumerate(policy.layers)
            for part, array in zip(("weight", "bias"), layer, strict=True)
        }

    def restore(self, arrays: Mapping[str, NDArray]) -> None:
        """Resume from `arrays`: weight [out, in] and bias [out] of each layer of each version."""
        newest = self.newest
        numbers = sorted({int(name.split("/")[1]) for name in arrays if name.startswith("version/")})

        def layer(number: int, i: int) -> tuple[NDArray, NDArray]:
            weight, bias = (np.array(arrays[f"version/{number}/{i}/{part}"]) for part in ("weight", "bias"))
            return weight, bias

        self._content = {}
        self.held = {
            number: newest.with_layers(tuple(layer(number, i) for i in range(len(newest.layers)))) for number in numbers
        }


class Algorithm(Protocol):
    """Makes weights from results. The weights must follow from settings and results in job order alone.

    The jobs of an iteration may be requested as soon as its version exists, before the iterations between are learned.
    """

    staleness: int
    iterations: int
    versions: PolicyVersions

    def jobs(self, iteration: int) -> Sequence[AnyJob]:
        """Return the jobs of an iteration."""

    def contents(self) -> list[bytes]:
        """Return every policy that jobs name by sha256, as `rl.policy.to_bytes` serializes it."""

    def learn(self, iteration: int, jobs: Sequence[Any], results: Sequence[Arrays]) -> dict[str, float]:
        """Make the next version and return metrics.

        `results` are in the order of `jobs`; each has the arrays that `rl.distributed.jobs.shapes` lists.
        """

    def state(self) -> tuple[dict[str, float], Arrays]:
        """Return all that a restart needs: plain numbers, and arrays of any shape and dtype."""

    def restore(self, numbers: Mapping[str, float], arrays: Mapping[str, NDArray]) -> None:
        """Resume from `state`: arrays of the same shapes and dtypes."""


def train(
    algorithm: Algorithm,
    run: Callable[[AnyJob], Arrays],
    log: Callable[[int, Mapping[str, float]], None] | None = None,
) -> Mlp:
    """Train in one process: run the jobs and learn in turn, and return the last version.

    Jobs are requested when a fleet's learner would, as soon as their version exists, so the weights are the same.

    Args:
        algorithm: Trained to its last iteration.
        run: Runs a job and returns its arrays.
        log: Called after each iteration with its number and metrics.
    """
    requested: dict[int, Sequence[AnyJob]] = {}
    for iteration in range(algorithm.iterations):
        for ahead in range(iteration, min(iteration + algorithm.staleness + 1, algorithm.iterations)):
            if ahead not in requested:
                requested[ahead] = algorithm.jobs(ahead)
        jobs = requested.pop(iteration)
        metrics = algorithm.learn(iteration, jobs, [run(job) for job in jobs])
        if log:
            log(iteration, metrics)
    return algorithm.versions.newest
