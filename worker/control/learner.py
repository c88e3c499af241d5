"""The learner of a control training: `coordinator start --rollouts` starts it, and runs its jobs on the workers.

    python -m worker.control.learner --data DIR --run DIR --asked DIGEST [--config FILE] [--forecaster RUN --checkpoint SHA256]

Read from top to bottom: datasets, labels and clone where the algorithm needs them, improvement, evaluation on the validation year,
evaluation on the test year with its report. The run folder has the newest state (checkpoint) after every step. So a learner that was
killed resumes and reaches the same weights, whichever workers run its jobs and whenever they do.
"""

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

from ringattn.blas import loader as blas

if __name__ == "__main__":
    # One thread: the same sums in the same order on every host, and the workers use the other cores.
    os.environ |= dict.fromkeys(blas.THREADS, "1")
    blas.prepare()

import msgspec
import numpy as np
from numpy.typing import NDArray

from coordinator.wire.lease_kinds import LeaseKind
from ingest.errors import IngestError, StorageError, UsageError
from ingest.files import atomic_write, file_sha256, visible
from ingest.loader import available, respondents_on_disk
from ingest.metrics import keep_until
from rl import arrays as array_file
from rl.algorithms.base import Algorithm
from rl.algorithms.clone import Labels, clone
from rl.algorithms.evolution import Evolution
from rl.algorithms.pathwise import PathwiseGradient
from rl.algorithms.vtrace import VTrace
from rl.distributed.jobs import Arrays, Evaluate, MakeLabels
from rl.distributed.protocol import Finished, WorkPlan
from rl.distributed.runner import JobRunner
from rl.env.dataset import Dataset
from rl.env.dataset_file import path_of
from rl.env.grid import Grid
from rl.env.region import WEEK
from rl.env.vector import VectorGridEnv
from rl.errors import ControlError
from rl.policy import Mlp, from_bytes, to_bytes
from rl.policy import load as load_policy
from worker.control import report
from worker.control.config import ControlConfig, read_config
from worker.control.datasets import DatasetSpec
from worker.control.lease_client import LeaseClient
from worker.control.work import plan_of
from worker.process.parent_death import set_parent_death_signal

STATE, DATASETS, METRICS, POLICY, RESULT = "state.pack", "tables.json", "metrics.jsonl", "policy.npz", "result.json"
OPTIONS: dict[str, dict[str, Any]] = {
    "--data": {"type": Path, "required": True},
    "--run": {"type": Path, "required": True},
    "--asked": {"required": True, "help": "digest of the request; a state of another one is not resumed"},
    "--config": {"type": Path},
    "--forecaster": {"default": "", "help": "run folder of a forecaster's training"},
    "--checkpoint": {"default": "", "help": "sha256 of its weights"},
}


@dataclass(frozen=True)
class EvaluatedVersion:
    """A version, and its share of the perfect-foresight saving in the validation year."""

    version: int
    pop: float


class ControlTraining:
    """One run. Workers run the jobs through `client`; everything else happens here."""

    def __init__(
        self, data: Path, run: Path, request: str, settings: ControlConfig, forecaster: tuple[str, str]
    ) -> None:
        """Connect to the coordinator over stdin and stdout.

        Args:
            data: Data folder.
            run: Run folder.
            request: Digest of the request.
            settings: Of the training.
            forecaster: Run folder of the forecaster's training and the sha256 of its weights; empty: none.
        """
        self.data, self.run, self.request, self.settings, self.forecaster = data, run, request, settings, forecaster
        self.grid = Grid()
        pipe = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)  # what a library prints goes to the log
        self.client = LeaseClient(sys.stdin.buffer, pipe, len(self.grid.stores) + 1)
        self.client.runner = self.runner = JobRunner(data / "control", self.client.policy_of, self.grid)
        self.history: list[EvaluatedVersion] = []
        self.members: list[Mlp] = []  # of the combined policy, at the end of training
        self._rated = "", 0.0, 0  # stage, its start, steps until then
        self.datasets: dict[str, str] = {}  # split → sha256
        self.about: dict[str, Any] = {}

    def train_and_evaluate(self) -> None:
        """Run the training, from where an earlier learner of the same request stopped."""
        self.run.mkdir(parents=True, exist_ok=True)
        for path in self.run.rglob(".*.tmp"):  # unfinished files of a killed learner
            path.unlink()
        self.announce_work()
        self.make_datasets()
        best, first = self.improve(self.initial_policy())
        self.evaluate_on_test(first, best)

    def announce_work(self) -> None:
        """Tell the coordinator the parts of this training, from which it estimates the time left."""
        years = [len(available(self.data, name).years) for name in respondents_on_disk(self.data)]
        self.client.send(WorkPlan(plan_of(self.settings, years, bool(self.forecaster[1]))))

    # -- datasets -------------------------------------------------------------------------------------------------------

    def make_datasets(self) -> None:
        """Find the datasets of this request on disk, or have a worker build them."""
        path = self.run / DATASETS
        try:
            about = json.loads(path.read_bytes())
        except (OSError, ValueError):
            about = {}
        complete = all(path_of(self.data / "control", sha256).exists() for sha256 in about.get("tables", {}).values())
        if about.get("asked") != self.request or not complete:
            self.client.progress("tables", 0, 1)
            self.client.log("tables: net load and its forecast at every hour of every respondent, made once")
            run, checkpoint = self.forecaster
            job = msgspec.to_builtins(
                DatasetSpec((), run, checkpoint, self.settings.horizon, self.settings.publication)
            )
            about = {"asked": self.request, **self.client.run_on_series(LeaseKind.TABLE, job)}
            atomic_write(path, json.dumps(about).encode())
        self.about, self.datasets = about, about["tables"]
        self.client.log(f"control of {', '.join(about['respondents'])}; known ahead: {about['known']}")

    def dataset(self, split: str) -> Dataset:
        """Return the dataset of a split: "train", "validate" or "test"."""
        return self.runner.dataset(self.datasets[split])

    # -- initial policy -------------------------------------------------------------------------------------------------

    def initial_policy(self) -> Mlp | None:
        """Return the clone that training starts from: of the state, or a new one. None: the algorithm needs none."""
        if self.settings.algorithm == "pathwise":
            return None
        meta, arrays = self._state()
        return from_bytes(arrays["first"].tobytes(), f"{self.run / STATE}: first") if meta else self.behaviour_clone()

    def behaviour_clone(self) -> Mlp:
        """Return a policy that imitates the optimum: workers solve the labels, and this process fits the policy."""
        s = self.settings
        names = VectorGridEnv(self.grid, self.dataset("train"), 1, 1).observation_names
        seeds = np.random.SeedSequence([s.seed, 0]).generate_state(s.label_jobs, np.uint64) >> np.uint64(1)
        numbers = self.client.submit(
            [MakeLabels(self.datasets["train"], int(seed), s.label_plans, s.label_hours, len(names)) for seed in seeds]
        )
        parts = []
        for done, number in enumerate(numbers):
            self.client.progress("labels", done, len(numbers), self._rate("labels"))
            parts += self.client.collect([number])
        labels = Labels(
            names, *(np.concatenate([part[name] for part in parts]) for name in ("observations", "actions"))
        )
        settings = replace(s.clone, seed=s.seed)

        def log(step: int, loss: float) -> None:
            self.client.progress("clone", step, settings.steps, {"clone/loss": loss})

        return clone(labels, settings, log)

    # -- improvement ----------------------------------------------------------------------------------------------------

    def algorithm(self, policy: Mlp | None) -> Algorithm:
        """Return the algorithm of the settings. A new one needs a line here and a table in `worker.control.config`."""
        s = self.settings
        if policy is None:
            env = self.runner.env(self.datasets["learn"], s.pathwise.num_envs, s.pathwise.episode_hours)
            return PathwiseGradient(self.datasets["learn"], env, replace(s.pathwise, seed=s.seed))
        if s.algorithm == "evolve":
            return Evolution(self.datasets["train"], policy, replace(s.evolve, seed=s.seed))
        return VTrace(self.runner, self.datasets["train"], policy, replace(s.vtrace, seed=s.seed))

    def improve(self, initial: Mlp | None) -> tuple[Mlp, Mlp]:
        """Train; return the version that is best in the validation year, and the first version."""
        s, algorithm = self.settings, self.algorithm(initial)
        first = algorithm.versions.newest
        done = self._resume(first, algorithm)
        self._publish(done, algorithm)
        self.client.progress("reference", 0, 1)
        self.client.log("PoP is the share of the perfect-foresight saving: 1 is the optimum, 0 is no control")
        scale = self._reference_costs("validate")
        evaluation = None if self.history else self._start_evaluation(0, first)
        submitted: dict[int, Any] = {}
        self.client.progress("improve", done, algorithm.iterations)
        for iteration in range(done, algorithm.iterations):
            for ahead in range(iteration, min(iteration + algorithm.staleness + 1, algorithm.iterations)):
                if ahead not in submitted:
                    jobs = algorithm.jobs(ahead)
                    submitted[ahead] = jobs, self.client.submit(jobs)
            jobs, numbers = submitted.pop(iteration)
            metrics = algorithm.learn(iteration, jobs, self.client.collect(numbers))
            version = iteration + 1
            self._publish(version, algorithm)
            self._write_metrics(version, metrics)
            if version % s.evaluate_every == 0 or version == algorithm.iterations:
                self._collect_evaluations(evaluation, scale)
                evaluation = self._start_evaluation(version, algorithm.versions.newest)
            if version % s.save_every == 0 or version == algorithm.iterations:
                self._save(version, first, algorithm)
            figures = {**self._rate("improve"), **metrics, "staleness": float(version - algorithm.versions.of(version))}
            self.client.progress("improve", version, algorithm.iterations, figures | self._scores())
        self._collect_evaluations(evaluation, scale)
        self.client.progress("improve", algorithm.iterations, algorithm.iterations, self._scores())
        self._save(algorithm.iterations, first, algorithm)
        if isinstance(algorithm, PathwiseGradient):
            self.members = algorithm.members
        return self._load_version(self._best().version), first

    def _resume(self, first: Mlp, algorithm: Algorithm) -> int:
        """Restore the newest state, or write the first one; return the number of finished iterations."""
        meta, arrays = self._state()
        if not meta:
            self._save(0, first, algorithm)
            meta, arrays = self._state()
        done = int(meta["iteration"])
        self.history = [EvaluatedVersion(**one) for one in meta["history"]]
        if done:
            algorithm.restore(meta["numbers"], arrays)
        self._truncate_metrics(done)
        for path in self._version_files():
            if int(path.stem) > done:  # newer than the state: made again
                path.unlink()
        return done

    def _scores(self) -> dict[str, float]:
        """Return the PoP of the newest and of the best version, as far as they are evaluated."""
        return {"pop": self.history[-1].pop, "best_pop": self._best().pop} if self.history else {}

    def _best(self) -> EvaluatedVersion:
        return max(self.history, key=lambda one: (one.pop, -one.version))

    def _publish(self, version: int, algorithm: Algorithm) -> None:
        for content in algorithm.contents():
            self.client.publish(version, content)

    def _start_evaluation(self, version: int, policy: Mlp) -> tuple[int, list[int]]:
        """Submit a version's evaluation on the validation year; keep its weights, in case it is the best."""
        content = to_bytes(policy)
        atomic_write(self.run / "versions" / f"{version}.npz", content)
        sha256 = self.client.publish(version, content)
        return version, self._submit_evaluation("validate", sha256, self.settings.chunk)

    def _collect_evaluations(self, evaluation: tuple[int, list[int]] | None, scale: tuple[NDArray, NDArray]) -> None:
        """Add the results of the validation year to the history; repeat evaluations that a restart interrupted."""
        started = [] if evaluation is None else [evaluation]
        known = {one.version for one in self.history} | {version for version, _ in started}
        interrupted = {int(path.stem) for path in self._version_files()} - known
        started += [self._start_evaluation(version, self._load_version(version)) for version in sorted(interrupted)]
        for version, numbers in sorted(started):
            self.history.append(EvaluatedVersion(version, share_of_optimal_saving(self._costs(numbers), *scale)))
            self.client.log(f"version {version}: PoP {self.history[-1].pop:.3f} on the validation year")
        self.history.sort(key=lambda one: one.version)

    def _version_files(self) -> list[Path]:
        folder = self.run / "versions"
        return list(visible(folder.glob("*.npz"), folder))

    def _load_version(self, version: int) -> Mlp:
        return load_policy(self.run / "versions" / f"{version}.npz")

    # -- evaluation -----------------------------------------------------------------------------------------------------

    def weeks(self, split: str) -> NDArray[np.int64]:
        """Return the first rows of the weeks that are evaluated, [week].

        They are completely measured, start at local midnight, and are one in `every`, region by region.
        """
        return self.dataset(split).episodes(WEEK, self.settings.every)

    def _submit_evaluation(self, split: str, policy: str, chunk: int) -> list[int]:
        starts = [int(row) for row in self.weeks(split)]
        fit = self.datasets["train"] if policy == "hour rule" else ""
        return self.client.submit(
            [
                Evaluate(self.datasets[split], policy, tuple(starts[at : at + chunk]), WEEK, fit)
                for at in range(0, len(starts), chunk)
            ]
        )

    def _costs(self, numbers: Sequence[int]) -> NDArray:
        """Return the cost of each week, [week]."""
        return np.concatenate([result["cost"] for result in self.client.collect(numbers)])

    def _reference_costs(self, split: str) -> tuple[NDArray, NDArray]:
        """Return the costs of doing nothing and of the optimum, [week] each."""
        idle, optimum = (self._submit_evaluation(split, name, 32) for name in ("nothing", "optimum"))
        return self._costs(idle), self._costs(optimum)

    def evaluate_on_test(self, first: Mlp, best: Mlp) -> None:
        """Evaluate the policies and baselines on the test year, once; write the report and the result."""
        s = self.settings
        named = {"policy": best} if s.algorithm == "pathwise" else {"clone": first, "policy": best}
        named |= {f"member {i}": member for i, member in enumerate(self.members)}
        idle, optimum = self._reference_costs("test")  # before the plans, which take long
        submitted = {}
        for name in (one for one in s.baselines.split(",") if one):
            # One lease fits the rule once.
            submitted[name] = self._submit_evaluation("test", name, 1 << 20 if name == "hour rule" else s.plan_chunk)
        for name, policy in named.items():
            submitted[name] = self._submit_evaluation("test", self.client.publish(0, to_bytes(policy)), s.chunk)
        costs: dict[str, NDArray] = {}
        total, done = sum(map(len, submitted.values())), 0
        for name, numbers in submitted.items():
            parts = []
            for number in numbers:
                self.client.progress("test", done, total, self._rate("test"))
                parts.append(self._costs([number]))
                done += 1
            costs[name] = np.concatenate(parts)
        atomic_write(self.run / POLICY, to_bytes(best))
        version = self._best()
        evaluation = report.EvaluationResult(
            grid=self.grid,
            table=self.dataset("test"),
            starts=self.weeks("test"),
            policy=best,
            costs=costs,
            nothing=idle,
            optimum=optimum,
            history=[(one.version, one.pop) for one in self.history],
            best=version.version,
            about=self.about,
            algorithm=s.algorithm,
            settings=asdict(s),
        )
        pops = report.write(evaluation, self.run)
        result = {
            "algorithm": s.algorithm,
            "version": version.version,
            "validation_pop": version.pop,
            "test_pop": pops,
            "policy": POLICY,
            "sha256": file_sha256(self.run / POLICY),
            "report": report.REPORT,
            "known": self.about["known"],
            "audits": self.client.audits,
            "seed": s.seed,
            "machine": f"{platform.platform(terse=True)}, numpy {np.__version__}",  # of the learner
            "arithmetic": blas.record(),
        }
        atomic_write(self.run / RESULT, json.dumps(result, indent=1).encode())

    # -- state on disk --------------------------------------------------------------------------------------------------

    def _state(self) -> tuple[dict[str, Any], Arrays]:
        """Return metadata and arrays of the newest state of this request; both are empty if there is none."""
        path = self.run / STATE
        if not path.exists():
            return {}, {}
        meta, arrays = array_file.load(path)
        return (meta, arrays) if meta.get("asked") == self.request else ({}, {})

    def _save(self, iteration: int, first: Mlp, algorithm: Algorithm) -> None:
        numbers, arrays = algorithm.state()
        meta = {
            "asked": self.request,
            "iteration": iteration,
            "history": [asdict(one) for one in self.history],
            "numbers": numbers,
        }
        content = np.frombuffer(to_bytes(first), np.uint8)
        if not iteration:
            for path in self._version_files():
                path.unlink()
        atomic_write(self.run / STATE, array_file.to_bytes(meta, {"first": content, **arrays}))

    def _rate(self, stage: str) -> dict[str, float]:
        """Return the environment steps a second since the stage's first call."""
        if self._rated[0] != stage:
            self._rated = stage, time.monotonic(), self.client.steps
        _, began, steps = self._rated
        return {"charts/SPS": (self.client.steps - steps) / max(time.monotonic() - began, 1e-3)}

    def _truncate_metrics(self, iteration: int) -> None:
        """Remove the lines of iterations that run again."""
        keep_until(self.run / METRICS, "version", iteration)

    def _write_metrics(self, version: int, metrics: Mapping[str, float]) -> None:
        with (self.run / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"version": version, **metrics}) + "\n")


def share_of_optimal_saving(cost: NDArray, idle: NDArray, optimum: NDArray) -> float:
    """Return PoP, the share of the perfect-foresight saving, of all weeks together; [week] each, $ per MW of reference peak."""
    return float((idle - cost).sum() / (idle - optimum).sum())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the learner. Its last message has the outcome; the exit code is 0 whenever that message was sent."""
    parser = argparse.ArgumentParser(
        prog="python -m worker.control.learner", description="The learner of a control training."
    )
    for flag, arguments_of_flag in OPTIONS.items():
        parser.add_argument(flag, **arguments_of_flag)
    options = parser.parse_args(arguments)
    set_parent_death_signal()
    forecaster = (options.forecaster, options.checkpoint)
    training = ControlTraining(options.data, options.run, options.asked, ControlConfig(), forecaster)
    outcome = Finished("done")
    try:
        training.settings = read_config(options.config)
        training.train_and_evaluate()
    except UsageError as error:
        outcome = Finished("usage", str(error))
    except StorageError as error:
        outcome = Finished("storage", str(error))
    except (IngestError, ControlError) as error:
        outcome = Finished("failed", f"{type(error).__name__}: {error}")
    training.client.send(outcome)
    return 0


if __name__ == "__main__":
    sys.exit(main())
