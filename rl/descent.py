"""The pathwise policy gradient (`rl.pathwise`) as jobs of a fleet: parts of an iteration's episodes, their gradients added in order.

With staleness 1 a gradient is that of the weights before the last step: workers go through the next episodes while the learner steps.
Weights after a step depend on the settings and on the gradients in the order of their jobs, on nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rl import pathwise
from rl.jobs import Arrays, Gradient, Player
from rl.pathwise import Learner, savings
from rl.versions import Versions


@dataclass(frozen=True)
class Settings(pathwise.Settings):
    """What the algorithm can be told."""

    steps: int = 3000  # of Adam
    jobs: int = 2  # leases a step
    staleness: int = 1  # steps that the weights of a gradient may be behind


class Descent:
    """An algorithm (`rl.versions.Algorithm`) that starts from weights of its own."""

    def __init__(self, player: Player, table: str, settings: Settings) -> None:
        self.settings, self.staleness, self.iterations = settings, settings.staleness, settings.steps
        self._table = table
        saving = savings(player.grid, player.table(table))
        self._saving = tuple(map(float, saving))
        self._learner = Learner(player.grid, player.table(table), settings, saving)
        self.versions = Versions(self._learner.policy, settings.staleness)

    def jobs(self, iteration: int) -> list[Gradient]:
        """What iteration `iteration` plays."""
        s, sha256 = self.settings, self.versions.sha256(self.versions.of(iteration))
        layers = self.versions.newest.layers
        sizes = (layers[0][0].shape[1], *(len(bias) for _, bias in layers))
        seed = int(np.random.SeedSequence([s.seed, iteration]).generate_state(1, np.uint64)[0] >> np.uint64(1))
        return [
            Gradient(self._table, sha256, seed, part, s.jobs, s.episodes, s.hours, s.at_rest, self._saving, sizes)
            for part in range(s.jobs)
        ]

    def learn(self, iteration: int, jobs: Sequence[Gradient], results: Sequence[Arrays]) -> dict[str, float]:
        """One step of Adam against the sum of the parts."""
        total = {name: array.copy() for name, array in results[0].items()}
        for result in results[1:]:
            for name, array in result.items():
                total[name] += array
        count = len(self.versions.newest.layers)
        norm = self._learner.descend(tuple((total[f"weight.{i}"], total[f"bias.{i}"]) for i in range(count)))
        self.versions.add(self._learner.policy)
        return {"losses/cost": float(total["cost"][0]), "losses/grad_norm": norm}

    def state(self) -> tuple[dict[str, float], Arrays]:
        """All that a restart needs."""
        return {}, self._learner.state() | self.versions.arrays()

    def restore(self, numbers: Mapping[str, float], arrays: Mapping[str, NDArray]) -> None:
        """Go on from `state`."""
        own = {name: np.array(array) for name, array in arrays.items() if not name.startswith(("version/", "first"))}
        self._learner.restore(own)
        self.versions.restore(arrays)
