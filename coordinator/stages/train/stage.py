"""The train stage: one rank a worker through leases, supervised, restarted after every fault, until the result is verified.

`coordinator start --train` runs it. The run folder decides what is left to do: a result that was accepted for the same
configuration and series ends the stage at once; otherwise the ranks resume from the newest checkpoint.
"""

import time
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

from coordinator.scheduling.progress import planned_seconds
from coordinator.server.folder_lock import FolderLock
from coordinator.stages.display import choose_display
from coordinator.stages.documents import LAST_RUN, DryRun, StageSummary
from coordinator.stages.fleet import Fleet, build_fleet
from coordinator.stages.run_folder import NOTHING_TO_DO, Conclusion, completed_result, conclude, request_digest
from coordinator.stages.run_log import RunLog, with_costs
from coordinator.stages.runner import StageRunner
from coordinator.stages.stage import OutputMode
from coordinator.stages.trackers import reporting
from coordinator.stages.train import artifacts
from coordinator.stages.train.artifacts import TrainingResult
from coordinator.stages.train.controller import TrainController, TrainOptions
from coordinator.stages.train.ring_state import RoundSummary, TrainingOutcome
from coordinator.stages.train.stall import SupervisionTimeouts
from coordinator.stages.train.work import TrainingPlan, TrainingWork, like
from coordinator.stages.years import check_years, years_on_disk
from coordinator.wire.exit_codes import ExitCode
from ingest import checksums, manifest, snapshot
from ingest.console import printable
from ingest.files import atomic_write


class TrainDryRun(DryRun, frozen=True, kw_only=True):
    """What the stage would do, and why."""

    run: str
    ranks: int
    would: str  # "run", "go on" or "do nothing"
    why: str

    @property
    def has_work(self) -> bool:
        """Whether a training would run."""
        return self.would != "do nothing"

    def to_text(self) -> str:
        """Return the plan as a line, and one about its time."""
        plan = f"train, {self.ranks} ranks: would {self.would}: {self.why}"
        return "\n".join(filter(None, (plan, self.duration)))


class TrainSummary(StageSummary, frozen=True, kw_only=True):
    """How a training ended, and its rounds in this run."""

    run: str
    result: TrainingResult | None
    ranks: int
    rounds: tuple[RoundSummary, ...]
    restarts: int
    seconds: float


@dataclass(frozen=True)
class TrainStage:
    """Implements `Stage` for trainings; `fleet` and `timeouts` replace those of the options."""

    fleet: Fleet | None = None
    timeouts: SupervisionTimeouts | None = None

    def options_from(self, settings: Mapping[str, Any]) -> TrainOptions:
        """Return the options of resolved settings. See `TrainOptions.from_settings` for its errors."""
        return TrainOptions.from_settings(settings)

    def dry_run(self, options: TrainOptions, after: str) -> TrainDryRun:
        """Return whether a training would run, resume, or has nothing to do.

        Raises:
            UsageError: the years on disk do not suffice for a training.
        """
        would, why = self._would(options, after)
        done = artifacts.checkpoint_step(options.run) if would == "go on" else 0
        years = years_on_disk(options.data_dir)
        costs = RunLog(options.data_dir).costs("train", like(options.config, options.ranks, years))
        work = TrainingWork(TrainingPlan.of(options.config, years), done)
        seconds = planned_seconds(with_costs(work.parts(), costs))
        return TrainDryRun(
            run=str(options.run),
            ranks=options.ranks,
            would=would,
            why=why,
            eta_s=seconds if would != "do nothing" else 0.0,
            eta_from=LAST_RUN,
        )

    def _would(self, options: TrainOptions, after: str) -> tuple[str, str]:
        if after:
            return "run", f"on the series that `{after}` makes"
        request = request_digest(options.data_dir, options.config)
        result = completed_result(options.run, TrainingResult, request)
        if result is not None:
            return (
                "do nothing",
                f"{options.run} holds the result for this configuration and these series: {result.steps:,} steps",
            )
        check_years(options.data_dir, options.config)
        checkpoints = sorted(path.parent.name for path in (options.run / "checkpoints").glob("[0-9]*/state.json"))
        if checkpoints:
            return "go on", f"from step {int(checkpoints[-1]):,}, the newest checkpoint in {options.run}"
        return "run", f"{options.run} holds no checkpoint"

    def run(self, options: TrainOptions, mode: OutputMode) -> TrainSummary:
        """Run the stage to its end, with the data folder and the run folder locked.

        Raises:
            UsageError: the years on disk do not suffice for a training; nothing was started.
        """
        began = time.monotonic()
        with ExitStack() as stack:
            stack.enter_context(FolderLock(options.data_dir))
            stack.enter_context(FolderLock(options.run))
            request = request_digest(options.data_dir, options.config)
            result = completed_result(options.run, TrainingResult, request)
            if result is not None:
                done = Conclusion("done", NOTHING_TO_DO, result)
                return _summary(options, done, (), time.monotonic() - began)
            check_years(options.data_dir, options.config)
            snapshot.publish(
                options.data_dir, manifest.build_results(options.data_dir)
            )  # what is on disk is what it reads
            checksums.remove(options.run)
            if options.config:
                atomic_write(options.run / artifacts.CONFIG, options.config)
            timeouts = self.timeouts or SupervisionTimeouts(max_rounds_without_progress=options.retries)
            controller = TrainController(options, timeouts)
            display = stack.enter_context(closing(choose_display(mode)))
            fleet = self.fleet or build_fleet(options, display.note)
            asked = tomllib.loads(options.config.decode())
            stack.enter_context(reporting(options.run, options.report_to, asked, display.note))
            ended = StageRunner(fleet, controller, display).run().outcome
            outcome = controller.ring.outcome or TrainingOutcome("drain", ended.message)
            conclusion = conclude(options.run, TrainingResult, request, outcome.status, outcome.message, ended)
            if conclusion.status == "done":
                finish_s = time.monotonic() - controller.last_work_at
                RunLog(options.data_dir).add_part("train", controller.like, ("finish", ""), 1, finish_s)
            return _summary(options, conclusion, controller.ring.history, time.monotonic() - began)

    def describe(self, summary: TrainSummary) -> str:
        """Return a summary as text: the result, and what this run did."""
        lines = []
        if (result := summary.result) is not None:
            skill = f"best validation skill {result.validation_skill:+.3f}"
            lines.append(f"trained {result.steps:,} steps, {skill}: {summary.run}/{result.checkpoint}")
        if summary.rounds:
            sizes = ", ".join(f"{past.ranks} ({past.why})" for past in summary.rounds)
            lines.append(f"this run: {summary.seconds:.1f} s, {summary.restarts} restarts; rings of {sizes}")
        elif summary.status == "done":
            lines.append(summary.message)
        return "\n".join(map(printable, lines))


def _summary(
    options: TrainOptions, conclusion: Conclusion[TrainingResult], history: Sequence[RoundSummary], seconds: float
) -> TrainSummary:
    return TrainSummary(
        exit_code=ExitCode.of_status(conclusion.status),
        status=conclusion.status,
        message=conclusion.message,
        run=str(options.run),
        result=conclusion.result,
        ranks=options.ranks,
        rounds=tuple(history),
        restarts=sum(past.why == "fault" for past in history),
        seconds=seconds,
    )
