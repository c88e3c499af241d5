"""The learner of a control training: `coordinator start --rollouts` starts it, and leases out what it asks for over its pipe.

    python -m worker.control.learner --data DIR --run DIR --asked DIGEST [--config FILE] [--forecaster RUN --checkpoint SHA256]

Read from top to bottom: tables, labels and clone where they are needed, improvement, judgement on the validation year, the test
year, report. The newest state lies in the run folder after every step, so a learner that was killed goes on to the same weights,
whoever plays and whenever.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from worker.process import blas_env

if __name__ == "__main__":
    # One thread: the same sums in the same order whatever the host, and the workers have its other cores.
    os.environ |= dict.fromkeys(blas_env.THREADS, "1")
    blas_env.restart_prepared()

import msgspec
import numpy as np
from numpy.typing import NDArray

from coordinator.wire.lease_kinds import LeaseKind
from ingest.errors import IngestError, StorageError, UsageError
from ingest.files import atomic_write, file_sha256
from rl import arrays as array_file
from rl.algorithms.base import Algorithm
from rl.algorithms.clone import Labels, clone
from rl.algorithms.evolution import Evolution
from rl.algorithms.pathwise import PathwiseGradient
from rl.algorithms.vtrace import VTrace
from rl.distributed.jobs import Arrays, Evaluate, MakeLabels
from rl.distributed.protocol import Finished
from rl.distributed.runner import JobRunner
from rl.env.dataset import Dataset
from rl.env.dataset_file import path_of
from rl.env.grid import Grid
from rl.env.region import WEEK
from rl.env.vector import VectorGridEnv
from rl.errors import ControlError
from rl.policy import Mlp, from_bytes, to_bytes
from worker.control import report
from worker.control.config import ControlConfig, read_config
from worker.control.datasets import DatasetSpec
from worker.control.lease_client import LeaseClient
from worker.process.parent_death import set_parent_death_signal

STATE, TABLES, METRICS, POLICY, RESULT = "state.pack", "tables.json", "metrics.jsonl", "policy.npz", "result.json"


@dataclass(frozen=True)
class EvaluatedVersion:
    """A version as the validation year judges it."""

    version: int
    pop: float


class Training:
    """One run. `jobs` leases out, everything else happens here."""

    def __init__(self, data: Path, run: Path, asked: str, settings: ControlConfig, forecaster: tuple[str, str]) -> None:
        self.data, self.run, self.asked, self.settings, self.forecaster = data, run, asked, settings, forecaster
        self.grid = Grid()
        pipe = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)  # whatever a library prints goes to the log
        self.client = LeaseClient(sys.stdin.buffer, pipe, len(self.grid.stores) + 1)
        self.client.runner = self.runner = JobRunner(data / "control", self.client.policy_of, self.grid)
        self.history: list[EvaluatedVersion] = []
        self.members: list[Mlp] = []  # that the policy combines, as they are at the end
        self._rated = "", 0.0, 0  # stage, when it began, steps until then
        self.tables: dict[str, str] = {}
        self.about: dict[str, Any] = {}

    def train_and_evaluate(self) -> None:
        """All of it, from wherever an earlier learner of the same request had come."""
        self.run.mkdir(parents=True, exist_ok=True)
        for path in self.run.rglob(".*.tmp"):  # what a learner that was killed was writing
            path.unlink()
        self.make_tables()
        best, first = self.improve(self.initial_policy())
        self.evaluate_on_test(first, best)

    # -- tables ---------------------------------------------------------------------------------------------------------

    def make_tables(self) -> None:
        """Tables of this request: kept ones where they are whole, else a worker makes them."""
        path = self.run / TABLES
        try:
            kept = json.loads(path.read_bytes())
        except (OSError, ValueError):
            kept = {}
        there = [path_of(self.data / "control", sha256).exists() for sha256 in kept.get("tables", {}).values()]
        if kept.get("asked") != self.asked or not all(there):
            self.client.progress("tables", 0, 1)
            run, checkpoint = self.forecaster
            job = msgspec.to_builtins(DatasetSpec((), run, checkpoint, self.settings.horizon))
            kept = {"asked": self.asked, **self.client.run_on_series(LeaseKind.TABLE, job)}
            atomic_write(path, json.dumps(kept).encode())
        self.about, self.tables = kept, kept["tables"]
        self.client.log(f"control of {', '.join(kept['respondents'])}; known ahead: {kept['known']}")

    def table(self, split: str) -> Dataset:
        """Of "train", "validate" or "test"."""
        return self.runner.dataset(self.tables[split])

    # -- what improvement starts from -----------------------------------------------------------------------------------

    def initial_policy(self) -> Mlp | None:
        """A clone, kept in the state or labelled and cloned now; None for an algorithm that needs none."""
        if self.settings.algorithm == "pathwise":
            return None
        meta, arrays = self._state()
        return from_bytes(arrays["first"].tobytes(), f"{self.run / STATE}: first") if meta else self.behaviour_clone()

    def behaviour_clone(self) -> Mlp:
        """A policy that imitates planning: labels by the fleet, then fitted here."""
        s = self.settings
        features = len(VectorGridEnv(self.grid, self.table("train"), 1, 1).observation_names)
        seeds = np.random.SeedSequence([s.seed, 0]).generate_state(s.label_jobs, np.uint64) >> np.uint64(1)
        asked = self.client.submit(
            [MakeLabels(self.tables["train"], int(seed), s.label_plans, s.label_hours, features) for seed in seeds]
        )
        parts = []
        for done, number in enumerate(asked):
            self.client.progress("labels", done, len(asked), self._rate("labels"))
            parts += self.client.collect([number])
        names = VectorGridEnv(self.grid, self.table("train"), 1, 1).observation_names
        labels = Labels(
            names, *(np.concatenate([part[name] for part in parts]) for name in ("observations", "actions"))
        )
        settings = replace(s.clone, seed=s.seed)

        def log(step: int, loss: float) -> None:
            self.client.progress("clone", step, settings.steps, {"clone/loss": loss})

        return clone(labels, settings, log)

    # -- improvement ----------------------------------------------------------------------------------------------------

    def algorithm(self, policy: Mlp | None) -> Algorithm:
        """What the settings name. Another one needs a line here and a table in `worker.control.config`."""
        s = self.settings
        if policy is None:
            env = self.runner.env(self.tables["learn"], s.pathwise.num_envs, s.pathwise.episode_hours)
            return PathwiseGradient(self.tables["learn"], env, replace(s.pathwise, seed=s.seed))
        if s.algorithm == "evolve":
            return Evolution(self.tables["train"], policy, replace(s.evolve, seed=s.seed))
        return VTrace(self.runner, self.tables["train"], policy, replace(s.vtrace, seed=s.seed))

    def improve(self, beginner: Mlp | None) -> tuple[Mlp, Mlp]:
        """The version that is best on the validation year, and the first one."""
        s, algorithm = self.settings, self.algorithm(beginner)
        first = algorithm.versions.newest
        meta, arrays = self._state()
        if not meta:
            self._save(0, first, algorithm)
            meta, arrays = self._state()
        done = int(meta["iteration"])
        self.history = [EvaluatedVersion(**one) for one in meta["history"]]
        if done:
            algorithm.restore(meta["numbers"], arrays)
        self._cut_metrics(done)
        for path in (self.run / "versions").glob("*.npz"):
            if int(path.stem) > done:  # made after the state: made once more
                path.unlink()
        self._publish(done, algorithm)
        scale = self._scale("validate")
        looking: tuple[int, list[int]] | None = None
        if not self.history:
            looking = self._look(0, first)
        asked: dict[int, Any] = {}
        for iteration in range(done, algorithm.iterations):
            for ahead in range(iteration, min(iteration + algorithm.staleness + 1, algorithm.iterations)):
                if ahead not in asked:
                    jobs = algorithm.jobs(ahead)
                    asked[ahead] = jobs, self.client.submit(jobs)
            jobs, numbers = asked.pop(iteration)
            metrics = algorithm.learn(iteration, jobs, self.client.collect(numbers))
            version = iteration + 1
            self._publish(version, algorithm)
            self._write_metrics(version, metrics)
            if version % s.evaluate_every == 0 or version == algorithm.iterations:
                self._collect_evaluations(looking, scale)
                looking = self._look(version, algorithm.versions.newest)
            if version % s.save_every == 0 or version == algorithm.iterations:
                self._save(version, first, algorithm)
            figures = {**self._rate("improve"), **metrics, "staleness": float(version - algorithm.versions.of(version))}
            if self.history:
                figures |= {"pop": self.history[-1].pop, "best_pop": max(one.pop for one in self.history)}
            self.client.progress("improve", version, algorithm.iterations, figures)
        self._collect_evaluations(looking, scale)
        self._save(algorithm.iterations, first, algorithm)
        if isinstance(algorithm, PathwiseGradient):
            self.members = algorithm.members
        best = max(self.history, key=lambda one: (one.pop, -one.version))
        return self._load_version(best.version), first

    def _publish(self, version: int, algorithm: Algorithm) -> None:
        for content in algorithm.contents():
            self.client.publish(version, content)

    def _look(self, version: int, policy: Mlp) -> tuple[int, list[int]]:
        """Have a version judged; its weights are kept meanwhile, should it be the best."""
        content = to_bytes(policy)
        atomic_write(self.run / "versions" / f"{version}.npz", content)
        sha256 = self.client.publish(version, content)
        return version, self._ask_evaluation("validate", sha256, self.settings.chunk)

    def _collect_evaluations(self, looking: tuple[int, list[int]] | None, scale: tuple[NDArray, NDArray]) -> None:
        """Take what the validation year says; versions that were looked at before a restart are asked for once more."""
        known = {one.version for one in self.history}
        waiting = [] if looking is None else [looking]
        there = sorted(int(path.stem) for path in (self.run / "versions").glob("*.npz"))
        mine = {version for version, _ in waiting}
        waiting += [
            self._look(version, self._load_version(version)) for version in there if version not in known | mine
        ]
        for version, numbers in sorted(waiting):
            cost = np.concatenate([result["cost"] for result in self.client.collect(numbers)])
            self.history.append(EvaluatedVersion(version, share_of_optimal_saving(cost, *scale)))
            self.client.log(f"version {version}: PoP {self.history[-1].pop:.3f} on the validation year")
        self.history.sort(key=lambda one: one.version)

    def _load_version(self, version: int) -> Mlp:
        path = self.run / "versions" / f"{version}.npz"
        return from_bytes(path.read_bytes(), str(path))

    # -- judgement ------------------------------------------------------------------------------------------------------

    def weeks(self, split: str) -> NDArray[np.int64]:
        """First rows of the weeks that are judged, [week].

        Measured whole, from local midnight on, one in `every`, region by region.
        """
        table = self.table(split)
        whole = table.starts(WEEK)
        found = []
        for first, last in table.spans:
            midnight = first + int(np.argmax(table.clock[first:last] == 0))
            weeks = np.arange(midnight, last - WEEK + 1, WEEK)
            found.append(weeks[np.isin(weeks, whole)][:: self.settings.every])
        return np.concatenate(found)

    def _ask_evaluation(self, split: str, policy: str, chunk: int) -> list[int]:
        starts = [int(row) for row in self.weeks(split)]
        fit = self.tables["train"] if policy == "hour rule" else ""
        return self.client.submit(
            [
                Evaluate(self.tables[split], policy, tuple(starts[at : at + chunk]), WEEK, fit)
                for at in range(0, len(starts), chunk)
            ]
        )

    def _scale(self, split: str) -> tuple[NDArray, NDArray]:
        """Costs of nothing and of the optimum, [week] each."""
        nothing, optimum = (self._ask_evaluation(split, name, 32) for name in ("nothing", "optimum"))
        costs = [np.concatenate([r["cost"] for r in self.client.collect(numbers)]) for numbers in (nothing, optimum)]
        return costs[0], costs[1]

    def evaluate_on_test(self, first: Mlp, best: Mlp) -> None:
        """The test year, once: the policies, the baselines, the report, the result."""
        s = self.settings
        named = {"policy": best} if s.algorithm == "pathwise" else {"clone": first, "policy": best}
        named |= {f"member {i}": member for i, member in enumerate(self.members)}
        scale = self._scale("test")  # before the plans, which take their time
        asked = {}
        for name in (one for one in s.baselines.split(",") if one):
            # The rule is fitted once, in one lease.
            asked[name] = self._ask_evaluation("test", name, 1 << 20 if name == "hour rule" else s.plan_chunk)
        for name, policy in named.items():
            asked[name] = self._ask_evaluation("test", self.client.publish(0, to_bytes(policy)), s.chunk)
        costs: dict[str, NDArray] = {}
        whole, taken = sum(map(len, asked.values())), 0
        for name, numbers in asked.items():
            parts = []
            for number in numbers:
                self.client.progress("test", taken, whole, self._rate("test"))
                parts += self.client.collect([number])
                taken += 1
            costs[name] = np.concatenate([part["cost"] for part in parts])
        atomic_write(self.run / POLICY, to_bytes(best))
        looked = max(self.history, key=lambda one: (one.pop, -one.version))
        found = report.EvaluationResult(
            grid=self.grid,
            table=self.table("test"),
            starts=self.weeks("test"),
            policy=best,
            costs=costs,
            nothing=scale[0],
            optimum=scale[1],
            history=[(one.version, one.pop) for one in self.history],
            best=looked.version,
            about=self.about,
            algorithm=s.algorithm,
            settings=asdict(s),
        )
        pops = report.write(found, self.run)
        result = {
            "algorithm": s.algorithm,
            "version": looked.version,
            "validation_pop": looked.pop,
            "test_pop": pops,
            "policy": POLICY,
            "sha256": file_sha256(self.run / POLICY),
            "report": report.REPORT,
            "known": self.about["known"],
            "audits": self.client.audits,
            "seed": s.seed,
            "machine": f"{platform.platform(terse=True)}, numpy {np.__version__}",  # of the learner
        }
        atomic_write(self.run / RESULT, json.dumps(result, indent=1).encode())

    # -- what survives ----------------------------------------------------------------------------------------------------

    def _state(self) -> tuple[dict[str, Any], Arrays]:
        """The newest state of this request; nothing where there is none."""
        path = self.run / STATE
        if not path.exists():
            return {}, {}
        meta, arrays = array_file.load(path)
        return (meta, arrays) if meta.get("asked") == self.asked else ({}, {})

    def _save(self, iteration: int, first: Mlp, algorithm: Algorithm) -> None:
        numbers, arrays = algorithm.state()
        meta = {
            "asked": self.asked,
            "iteration": iteration,
            "history": [asdict(one) for one in self.history],
            "numbers": numbers,
        }
        content = np.frombuffer(to_bytes(first), np.uint8)
        if not iteration:
            for path in (self.run / "versions").glob("*.npz"):
                path.unlink()
        atomic_write(self.run / STATE, array_file.to_bytes(meta, {"first": content, **arrays}))

    def _rate(self, stage: str) -> dict[str, float]:
        """Environment steps a second since the stage's first call."""
        if self._rated[0] != stage:
            self._rated = stage, time.monotonic(), self.client.steps
        _, began, steps = self._rated
        return {"charts/SPS": (self.client.steps - steps) / max(time.monotonic() - began, 1e-3)}

    def _cut_metrics(self, iteration: int) -> None:
        """Lines of iterations that are done once more go."""
        path = self.run / METRICS
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["version"] <= iteration]
        atomic_write(path, "".join(line + "\n" for line in kept).encode())

    def _write_metrics(self, version: int, metrics: Mapping[str, float]) -> None:
        with (self.run / METRICS).open("a") as file:
            file.write(json.dumps({"version": version, **metrics}) + "\n")


def share_of_optimal_saving(cost: NDArray, nothing: NDArray, optimum: NDArray) -> float:
    """PoP of all weeks together, as a share; each [week], $ per MW of reference peak."""
    return float((nothing - cost).sum() / (nothing - optimum).sum())


def main(arguments: Sequence[str] | None = None) -> int:
    """The last word says how it ended; the exit code is 0 whenever one was said."""
    parser = argparse.ArgumentParser(
        prog="python -m worker.control.learner", description="The learner of a control training."
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument(
        "--asked", required=True, help="digest of the request: a state of another one is not gone on from"
    )
    parser.add_argument("--config", type=Path)
    parser.add_argument("--forecaster", default="", help="run folder of a forecaster's training")
    parser.add_argument("--checkpoint", default="", help="sha256 of its weights")
    options = parser.parse_args(arguments)
    set_parent_death_signal()
    forecaster = (options.forecaster, options.checkpoint)
    training = Training(options.data, options.run, options.asked, ControlConfig(), forecaster)
    try:
        training.settings = read_config(options.config)
        training.train_and_evaluate()
    except UsageError as error:
        training.client.send(Finished("usage", str(error)))
    except StorageError as error:
        training.client.send(Finished("storage", str(error)))
    except (IngestError, ControlError) as error:
        training.client.send(Finished("failed", f"{type(error).__name__}: {error}"))
    else:
        training.client.send(Finished("done"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
