"""Run the jobs of `rl.distributed.jobs`: dispatch each kind, and cache what several jobs share (datasets, environments, rules)."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rl.algorithms.evolution import costs
from rl.algorithms.pathwise import gradient_steps
from rl.distributed.jobs import (
    BASELINES,
    AnyJob,
    Arrays,
    Evaluate,
    EvaluatePerturbations,
    GradientSteps,
    MakeLabels,
    Rollout,
)
from rl.env.dataset import Dataset
from rl.env.dataset_file import load
from rl.env.grid import Grid
from rl.env.vector import VectorGridEnv
from rl.errors import DataError
from rl.evaluation.score import Policy, idle_cost, rollout
from rl.planning.baselines import hour_rule, idle
from rl.planning.mpc import HORIZON, PathMpc, known_loads, point_forecast
from rl.planning.optimum import optimum
from rl.policy import Mlp

CACHED = 6  # datasets and policies that a process keeps
ENVS_CACHED = 3  # each copies its dataset


class JobRunner:
    """Runs jobs, one thread at a time."""

    def __init__(self, folder: Path, policy_of: Callable[[str], Mlp], grid: Grid | None = None) -> None:
        """Read datasets from the control folder `folder`, and get policies from `policy_of(sha256)`."""
        self.grid, self.policy_of = grid or Grid(), policy_of
        # Each runner has its own caches, because a dataset's digest names a file of the runner's own folder.
        self._datasets = lru_cache(CACHED)(lambda sha256: load(folder, sha256))
        self._starts = lru_cache(CACHED)(lambda dataset, hours: self.dataset(dataset).starts(hours))
        self._envs = lru_cache(ENVS_CACHED)(
            lambda dataset, *shape: VectorGridEnv(self.grid, self.dataset(dataset), *shape)
        )
        self._rules = lru_cache(CACHED)(lambda dataset: hour_rule(self.grid, self.dataset(dataset)))

    def run(self, job: AnyJob) -> Arrays:
        """Run `job` and return the arrays that `shapes` lists. Raises ControlError where the job cannot be done."""
        if isinstance(job, MakeLabels):
            from rl.algorithms.clone import solve_labels  # loads mlx, which no other kind needs

            rng = np.random.default_rng(job.seed)
            labels = solve_labels(self.grid, self.dataset(job.dataset), job.plans, rng, job.hours)
            return {"observations": labels.observations, "actions": labels.actions}
        if isinstance(job, Rollout):
            return self._rollout(job)
        if isinstance(job, Evaluate):
            return self._evaluate(job)
        env = self.env(job.dataset, job.episodes, job.hours)
        if isinstance(job, GradientSteps):
            state = [self.policy_of(name) for name in (job.policy, job.m, job.v)]
            return gradient_steps(env, self.starts(job.dataset, job.hours), job, *state)
        starts, _ = self.draw_starts(job)
        return {"cost": costs(self.policy_of(job.policy), env, starts, job.perturbations, job.sigma)}

    def dataset(self, sha256: str) -> Dataset:
        """Return the dataset of this digest."""
        return self._datasets(sha256)

    def starts(self, dataset: str, hours: int) -> NDArray[np.int64]:
        """Return the rows [start] of the dataset at which an episode of `hours` hours can begin."""
        return self._starts(dataset, hours)

    def env(self, dataset: str, num_envs: int, hours: int) -> VectorGridEnv:
        """Return a shared environment; every caller resets it first."""
        return self._envs(dataset, num_envs, hours)

    def draw_starts(self, job: Rollout | EvaluatePerturbations) -> tuple[NDArray[np.int64], np.random.Generator]:
        """Return the first rows [N] of the job's episodes, and the generator in its state after that draw.

        Raises:
            DataError: No episode of `job.hours` hours can begin in the dataset.
        """
        rng = np.random.default_rng(job.seed)
        starts = self.starts(job.dataset, job.hours)
        if not len(starts):
            raise DataError(f"dataset {job.dataset[:16]}: it has no {job.hours} consecutive measured hours")
        return rng.choice(starts, job.episodes), rng

    def _rollout(self, job: Rollout) -> Arrays:
        policy, env = self.policy_of(job.policy), self.env(job.dataset, job.episodes, job.hours)
        starts, rng = self.draw_starts(job)
        actions = rng.standard_normal((job.hours, env.num_actions, job.episodes), np.float32)
        actions *= np.array(job.noise, np.float32)[:, None]
        cost = np.empty((job.hours, job.episodes), np.float32)
        env.reset(starts)
        for hour in range(job.hours):
            actions[hour] += policy(env)
            _, cost[hour] = env.step(actions[hour])
        return {"actions": actions, "cost": cost}

    def _evaluate(self, job: Evaluate) -> Arrays:
        dataset, starts = self.dataset(job.dataset), np.array(job.starts, np.int64)
        if job.policy in ("nothing", "optimum"):
            loads, before = dataset.load[starts + np.arange(job.hours)[:, None]], dataset.previous_load[starts]
            if job.policy == "nothing":
                return {"cost": idle_cost(self.grid, loads, before).sum(axis=0)}
            return {"cost": np.array([optimum(self.grid, *each).cost for each in zip(loads.T, before, strict=True)])}
        return {"cost": rollout(self.grid, dataset, self.policy(job), starts, job.hours).cost.sum(axis=0)}

    def policy(self, job: Evaluate) -> Policy:
        """Return the policy that `job` evaluates. Raises DataError for a planner if the dataset has no forecast."""
        if job.policy not in BASELINES:
            return self.policy_of(job.policy)
        if job.policy == "nothing":
            return idle
        dataset = self.dataset(job.dataset)
        if job.policy == "hour rule":
            return self._rules(job.fit).on(dataset)
        ahead = known_loads(dataset, HORIZON) if job.policy == "mpc perfect" else point_forecast(dataset)
        return PathMpc(self.grid, ahead, HORIZON)  # all episodes of the job at once
