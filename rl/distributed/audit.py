"""Audit by replay: which results are computed again, and whether two results of one job agree."""

from collections.abc import Mapping
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from rl.distributed.jobs import Arrays, Rollout
from rl.distributed.runner import JobRunner
from rl.errors import DataError

EVERY = 16  # of a worker's results of a kind, one is audited; and always the first
# Hosts of one kind agree to the last bit. Another kind of processor multiplies matrices in another order, and an episode
# carries the difference on; a worker gains nothing from an error below this.
TOLERANCE = 1e-3  # of the largest number of an array


class AuditSampler:
    """Chooses the results to audit: of each worker and kind the first, then one in each `EVERY`, at a place drawn from both names.

    So a worker whose results of a kind are all wrong is caught by its first, and one that turns wrong later within 2 · EVERY - 1.
    """

    def __init__(self, every: int = EVERY) -> None:
        """Audit one result in `every`."""
        self._every = every
        self._counts: dict[tuple[str, str], int] = {}

    def pick(self, worker: str, kind: str) -> bool:
        """Return whether to audit this worker's next result of this kind."""
        count = self._counts.get((worker, kind), 0)
        self._counts[worker, kind] = count + 1
        block, place = divmod(count, self._every)
        drawn = int.from_bytes(blake2b(f"{worker}/{kind}/{block}".encode(), digest_size=8).digest(), "big")
        return count == 0 or place == drawn % self._every


def replay(runner: JobRunner, job: Rollout, result: Arrays) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Run a rollout's actions again; return observations [hour, N, feature] and costs [hour, N].

    Raises:
        DataError: The costs are not those that were reported.
    """
    starts, _ = runner.draw_starts(job)
    env = runner.env(job.dataset, job.episodes, job.hours)
    observations = np.empty((job.hours, job.episodes, len(env.observation_names)), np.float32)
    cost = np.empty((job.hours, job.episodes))
    env.reset(starts)
    for hour, action in enumerate(result["actions"]):
        observations[hour] = env.observation
        _, cost[hour] = env.step(action)
    if not np.allclose(result["cost"], cost, rtol=1e-5, atol=1e-5):
        raise DataError(f"the costs of the rollout with seed {job.seed} differ from a replay of its actions")
    return observations, cost


def difference(result: Mapping[str, NDArray], again: Mapping[str, NDArray]) -> str:
    """Describe how a result differs from the same job's result here, array by array of one shape; "" where they agree."""
    for name, ours in again.items():
        theirs = result[name]
        apart = np.abs(theirs.astype(float) - ours)
        limit = TOLERANCE * float(np.abs(ours).max(initial=0.0))
        if (wrong := int((~(apart <= limit)).sum())) > 0:
            return f"{name}: {wrong:,} of {ours.size:,} numbers differ, by {float(np.nanmax(apart)):.3g} at most"
    return ""
