"""The leases of a control training: what each kind is told, what it gives back, and how it is done. Pure numpy but for labels.

A job names its table and its policy by the sha256 of their bytes and draws everything else from its seed, so anybody who holds
both can do it again: that is how a result is audited. Results are arrays of `shapes(job)` and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from rl.arrays import Spec
from rl.env.dataset import Table
from rl.env.dataset_file import load
from rl.env.grid import Grid
from rl.env.vector import Episodes
from rl.errors import DataError
from rl.evaluation.score import Policy, nothing_cost, rollout
from rl.planning.baselines import HourRule, hour_rule, nothing
from rl.planning.mpc import Mpc
from rl.planning.optimum import optimum
from rl.policy import Mlp

Arrays = dict[str, NDArray]

HORIZON = 36  # hours that a planning baseline looks ahead, or as far as the table's forecast goes
BASELINES = ("nothing", "optimum", "hour rule", "mpc", "mpc perfect")
KEPT = 6  # tables and policies that a process keeps
EPISODES_KEPT = 3  # each copies its table


class Job(msgspec.Struct, frozen=True, tag_field="kind", forbid_unknown_fields=True):
    """Base: `table` is the sha256 of the table's file."""

    table: str


class Labels(Job, frozen=True, tag="labels"):
    """The optimum's actions from random rows and charges: `rl.algorithms.clone.solve_labels` of this seed."""

    seed: int
    plans: int
    hours: int
    features: int  # of an observation


class Rollout(Job, frozen=True, tag="rollout"):
    """Episodes of a policy with noise. Observations are not sent: whoever replays the actions has them, and the costs again."""

    policy: str
    seed: int
    episodes: int
    hours: int
    noise: tuple[float, ...]  # [action] standard deviation


class Evaluate(Job, frozen=True, tag="evaluate"):
    """What episodes from these rows cost under a policy: a sha256, or one of `BASELINES`."""

    policy: str
    starts: tuple[int, ...]
    hours: int
    fit: str = ""  # table that "hour rule" is fitted on


class Evolve(Job, frozen=True, tag="evolve"):
    """What mirrored perturbations of a policy's weights cost in the same episodes."""

    policy: str
    seed: int  # of the episodes
    perturbations: tuple[int, ...]  # seeds
    sigma: float
    episodes: int
    hours: int


class Descend(Job, frozen=True, tag="descend"):
    """Some steps of `rl.algorithms.pathwise`, from the weights `policy` and Adam's moments `mean` and `square`, which travel as policies do."""

    policy: str
    mean: str
    square: str
    size: int  # weights
    seed: int
    member: int
    first: int  # step
    steps: int
    total: int  # steps of the training
    episodes: int
    hours: int
    learning_rate: float
    saving: tuple[float, ...]  # [region] $ per MW of reference peak and hour, of the optimum


AnyJob = Labels | Rollout | Evaluate | Evolve | Descend


def shapes(job: AnyJob, actions: int) -> tuple[Spec, ...]:
    """The arrays that a result of `job` must have, for a fleet with so many actions."""
    if isinstance(job, Labels):
        count = job.plans * job.hours
        return ("observations", "float32", (count, job.features)), ("actions", "float32", (count, actions))
    if isinstance(job, Rollout):
        steps = (job.hours, job.episodes)
        return ("actions", "float32", (job.hours, actions, job.episodes)), ("cost", "float32", steps)
    if isinstance(job, Evaluate):
        return (("cost", "float64", (len(job.starts),)),)
    if isinstance(job, Descend):
        rows = tuple((name, "float32", (job.size,)) for name in ("weights", "mean", "square"))
        return (*rows, ("losses", "float64", (job.steps, 2)))
    return (("cost", "float64", (len(job.perturbations), 2)),)


def tables_of(job: AnyJob) -> tuple[str, ...]:
    """sha256 of the tables that a job reads."""
    fit = job.fit if isinstance(job, Evaluate) else ""
    return (job.table, *([fit] if fit and fit != job.table else []))


class Kept:
    """The newest few of what is dear to make."""

    def __init__(self, most: int = KEPT) -> None:
        self._most, self._held = most, {}  # type: tuple[int, dict[Hashable, Any]]

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What is kept under `key`, else what `make` gives, kept; the least used go first."""
        if key in self._held:
            self._held[key] = self._held.pop(key)
        else:
            self._held[key] = make()
            while len(self._held) > self._most:
                self._held.pop(next(iter(self._held)))
        return self._held[key]


class Player:
    """Does jobs. `folder` has the tables; `policy_of(sha256)` has the policies. One thread at a time."""

    def __init__(self, folder: Path, policy_of: Callable[[str], Mlp], grid: Grid | None = None) -> None:
        self.folder, self.grid, self.policy_of = folder, grid or Grid(), policy_of
        self._tables, self._starts, self._episodes, self._rules = Kept(), Kept(), Kept(EPISODES_KEPT), Kept()

    def do(self, job: AnyJob) -> Arrays:
        """The result's arrays, as `shapes` has them. ControlError where the job can't be done."""
        if isinstance(job, Labels):
            return self._labels(job)
        if isinstance(job, Rollout):
            return self._rollout(job)
        if isinstance(job, Evaluate):
            return self._evaluate(job)
        if isinstance(job, Descend):
            return self._descend(job)
        return self._evolve(job)

    def table(self, sha256: str) -> Table:
        """The table of this digest."""
        return self._tables.get(sha256, lambda: load(self.folder, sha256))

    def starts(self, table: str, hours: int) -> NDArray[np.int64]:
        """Rows [start] of the table at which an episode of `hours` hours can begin."""
        return self._starts.get((table, hours), lambda: self.table(table).starts(hours))

    def episodes(self, table: str, count: int, hours: int) -> Episodes:
        """An environment that anybody may reset."""
        return self._episodes.get((table, count, hours), lambda: Episodes(self.grid, self.table(table), count, hours))

    def drawn(self, job: Rollout | Evolve) -> tuple[NDArray[np.int64], np.random.Generator]:
        """First rows [N] of the job's episodes, and the generator that goes on from there.

        DataError where no episode can begin.
        """
        rng = np.random.default_rng(job.seed)
        starts = self.starts(job.table, job.hours)
        if not len(starts):
            raise DataError(f"no {job.hours} hours in a row were measured: there is nothing to play")
        return rng.choice(starts, job.episodes), rng

    def _labels(self, job: Labels) -> Arrays:
        from rl.algorithms.clone import solve_labels  # with mlx, which no other kind needs

        found = solve_labels(self.grid, self.table(job.table), job.plans, np.random.default_rng(job.seed), job.hours)
        return {"observations": found.observations, "actions": found.actions}

    def _rollout(self, job: Rollout) -> Arrays:
        policy, episodes = self.policy_of(job.policy), self.episodes(job.table, job.episodes, job.hours)
        starts, rng = self.drawn(job)
        tried = rng.standard_normal((job.hours, episodes.actions, job.episodes), np.float32)
        tried *= np.array(job.noise, np.float32)[:, None]
        cost = np.empty((job.hours, job.episodes), np.float32)
        episodes.reset(starts)
        for hour in range(job.hours):
            tried[hour] += policy(episodes)
            _, cost[hour] = episodes.step(tried[hour])
        return {"actions": tried, "cost": cost}

    def _evaluate(self, job: Evaluate) -> Arrays:
        table, starts = self.table(job.table), np.array(job.starts, np.int64)
        if job.policy in ("nothing", "optimum"):
            loads, before = table.load[starts + np.arange(job.hours)[:, None]], table.before[starts]
            if job.policy == "nothing":
                return {"cost": nothing_cost(self.grid, loads, before).sum(axis=0)}
            return {"cost": np.array([optimum(self.grid, *each).cost for each in zip(loads.T, before, strict=True)])}
        return {"cost": rollout(self.grid, table, self.policy(job), starts, job.hours).cost.sum(axis=0)}

    def policy(self, job: Evaluate) -> Policy:
        """What acts. DataError for a baseline that the table has no forecast for."""
        table = self.table(job.table)
        if job.policy not in BASELINES:
            return self.policy_of(job.policy)
        if job.policy == "nothing":
            return nothing
        if job.policy == "hour rule":
            rule: HourRule = self._rules.get(job.fit, lambda: hour_rule(self.grid, self.table(job.fit)))
            return rule.on(table)
        return Mpc(self.grid, known_loads(table, HORIZON) if job.policy == "mpc perfect" else point_forecast(table))

    def _descend(self, job: Descend) -> Arrays:
        from rl.algorithms.pathwise import descend

        state = [self.policy_of(name) for name in (job.policy, job.mean, job.square)]
        return descend(
            self.episodes(job.table, job.episodes, job.hours), self.starts(job.table, job.hours), job, *state
        )

    def _evolve(self, job: Evolve) -> Arrays:
        from rl.algorithms.evolution import costs

        starts, _ = self.drawn(job)
        episodes = self.episodes(job.table, job.episodes, job.hours)
        return {"cost": costs(self.policy_of(job.policy), episodes, starts, job.perturbations, job.sigma)}


def known_loads(table: Table, horizon: int) -> NDArray[np.float32]:
    """The truth of every row's hours ahead, [row, horizon, 1]; a region's last hour stands for those beyond it."""
    out = np.empty((len(table.load), horizon, 1), np.float32)
    for first, last in table.spans:
        rows = np.minimum(np.arange(first, last)[:, None] + np.arange(horizon), last - 1)
        out[first:last, :, 0] = table.load[rows]
    return out


def point_forecast(table: Table) -> NDArray[np.float32]:
    """The forecast in a table's features, its first one, [row, horizon, 1]. DataError where there is none."""
    columns = _forecast_columns(table.names)
    if not columns:
        raise DataError("the table has no forecast: planning on one is no baseline here")
    return np.ascontiguousarray(table.features[:, columns, None])


@lru_cache
def _forecast_columns(names: tuple[str, ...]) -> list[int]:
    """Columns of the first feature, by horizon, up to `HORIZON`."""
    found = {name: column for column, name in enumerate(names)}
    return [found[f"forecast +{h}.0"] for h in range(HORIZON) if f"forecast +{h}.0" in found]
