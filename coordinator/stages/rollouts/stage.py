"""The rollouts stage: train a control policy with jobs that a learner process requests and the workers run.

`coordinator start --rollouts` runs it. The learner (`worker/control/learner.py`, a process of its own) decides about the
training and keeps its state: its leases are not in the journal, and after a restart it requests them again.
"""

import hashlib
import time
import tomllib
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from msgspec import UNSET, UnsetType

from coordinator.server.folder_lock import FolderLock
from coordinator.stages.display import choose_display
from coordinator.stages.documents import LAST_RUN, DryRun, StageSummary
from coordinator.stages.fleet import Fleet, StageOptions, build_fleet
from coordinator.stages.rollouts.artifacts import ControlResult, forecaster_digest, request_digest
from coordinator.stages.rollouts.controller import RolloutController
from coordinator.stages.rollouts.learner_process import COMMAND
from coordinator.stages.run_folder import (
    NOTHING_TO_DO,
    Conclusion,
    check_config,
    completed_result,
    conclude,
    read_config,
)
from coordinator.stages.run_log import RunLog
from coordinator.stages.runner import StageRunner
from coordinator.stages.stage import OutputMode
from coordinator.stages.trackers import reporting
from coordinator.stages.years import check_control_years, years_on_disk
from coordinator.wire.exit_codes import ExitCode
from ingest import checksums, manifest, snapshot
from ingest.console import printable
from rl.distributed.protocol import Finished


@dataclass(frozen=True, kw_only=True)
class RolloutOptions(StageOptions):
    """Options of a control training."""

    config: Path | None  # the control training's configuration; None: worker/control/config.py's defaults
    forecaster: Path  # run folder of the forecaster's training, if there is one

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.data_dir / "control"

    def read_config(self) -> bytes:
        """Return the content of the configuration file; empty if the training uses the defaults."""
        return b"" if self.config is None else self.config.read_bytes()

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], **own: Any) -> Self:
        """Return the options of resolved settings.

        Raises:
            UsageError: the configuration file cannot be read, is not TOML, or has a wrong key or value.
        """
        path = settings["control-config"]
        read_config(path, "control-config")  # checked before an hour of extraction
        check_config(path, "control-config")
        forecaster = settings["run"] or settings["data"] / "train"
        return super().from_settings(settings, config=path, forecaster=forecaster, **own)


class RolloutDryRun(DryRun, frozen=True, kw_only=True):
    """What the stage would do, and why."""

    run: str
    workers: int
    would: str  # "run", "go on" or "do nothing"
    why: str

    @property
    def has_work(self) -> bool:
        """Whether a training would run."""
        return self.would != "do nothing"

    def to_text(self) -> str:
        """Return the plan as a line, and one about its time."""
        plan = f"rollouts, {self.workers} workers: would {self.would}: {self.why}"
        return "\n".join(filter(None, (plan, self.duration)))


class RolloutSummary(StageSummary, frozen=True, kw_only=True):
    """How a control training ended. The figures are unset if nothing was left to do."""

    run: str
    result: ControlResult | None
    leases: int | UnsetType = UNSET
    issued_twice: int | UnsetType = UNSET
    put_out: list[str] | UnsetType = UNSET  # excluded workers
    worker_restarts: int | UnsetType = UNSET
    seconds: float


@dataclass(frozen=True)
class RolloutStage:
    """Implements `Stage` for control trainings; `fleet` replaces the options' one, `learner` the learner's program."""

    fleet: Fleet | None = None
    learner: tuple[str, ...] = COMMAND

    def options_from(self, settings: Mapping[str, Any]) -> RolloutOptions:
        """Return the options of resolved settings. See `RolloutOptions.from_settings` for its errors."""
        return RolloutOptions.from_settings(settings)

    def dry_run(self, options: RolloutOptions, after: str) -> RolloutDryRun:
        """Return whether a training would run, resume, or has nothing to do.

        Raises:
            UsageError: the years on disk do not suffice for a control training.
        """
        would, why = self._would(options, after)
        last = RunLog(options.data_dir).last_seconds(
            "rollouts", like(options, after or forecaster_digest(options.forecaster))
        )
        return RolloutDryRun(
            run=str(options.run),
            workers=options.workers,
            would=would,
            why=why,
            eta_s=last if would != "do nothing" else 0.0,
            eta_from=LAST_RUN,
        )

    def _would(self, options: RolloutOptions, after: str) -> tuple[str, str]:
        if after:
            return "run", f"on what `{after}` makes"
        forecaster = forecaster_digest(options.forecaster)
        request = request_digest(options.data_dir, options.read_config(), forecaster)
        if completed_result(options.run, ControlResult, request) is not None:
            return (
                "do nothing",
                f"{options.run} holds the result for this configuration, these series and this forecaster",
            )
        check_control_years(options.data_dir)
        known = "the trained forecaster" if forecaster else "the operators' day-ahead forecast, because none is trained"
        if (options.run / "state.pack").exists():
            return (
                "go on",
                f"from the newest state in {options.run}, if it is of this request; known ahead: {known}",
            )
        return "run", f"{options.run} holds no policy; known ahead: {known}"

    def run(self, options: RolloutOptions, mode: OutputMode) -> RolloutSummary:
        """Run the stage to its end, with the data folder and the run folder locked.

        Raises:
            UsageError: the years on disk do not suffice for a control training; nothing was started.
        """
        began = time.monotonic()
        with ExitStack() as stack:
            stack.enter_context(FolderLock(options.data_dir))
            stack.enter_context(FolderLock(options.run))
            forecaster = forecaster_digest(options.forecaster)
            request = request_digest(options.data_dir, options.read_config(), forecaster)
            result = completed_result(options.run, ControlResult, request)
            if result is not None:
                done = Conclusion("done", NOTHING_TO_DO, result)
                return _summary(options, done, {}, time.monotonic() - began)
            check_control_years(options.data_dir)
            snapshot.publish(
                options.data_dir, manifest.build_results(options.data_dir)
            )  # what is on disk is what it reads
            checksums.remove(options.run)
            command = [*self.learner, "--data", str(options.data_dir), "--run", str(options.run), "--asked", request]
            command += ["--config", str(options.config)] if options.config is not None else []
            if forecaster:
                command += ["--forecaster", str(options.forecaster.resolve()), "--checkpoint", forecaster]
            controller = RolloutController(tuple(command), options.run, options.retries, like(options, forecaster))
            stack.callback(controller.close)
            display = stack.enter_context(closing(choose_display(mode)))
            fleet = self.fleet or build_fleet(options, display.note)
            asked = tomllib.loads(options.read_config().decode())
            stack.enter_context(reporting(options.run, options.report_to, asked, display.note))
            ended = StageRunner(fleet, controller, display).run()
            over = controller.over or Finished("drain", ended.outcome.message or "interrupted; start again to resume")
            conclusion = conclude(options.run, ControlResult, request, over.status, over.message, ended.outcome)
            if conclusion.status == "done":
                finish_s = time.monotonic() - controller.last_progress_at
                RunLog(options.data_dir).add_part("rollouts", controller.like, ("finish", ""), 1, finish_s)
            figures = {**controller.figures, "worker_restarts": ended.restarts}
            return _summary(options, conclusion, figures, time.monotonic() - began)

    def describe(self, summary: RolloutSummary) -> str:
        """Return a summary as text: the result, and what this run did."""
        lines = []
        if (result := summary.result) is not None:
            lines.append(f"control by {result.algorithm}, known ahead: {result.known}")
            lines.append("PoP (share of the perfect-foresight saving) in the test year:")
            for region, pops in result.test_pop.items():
                figures = "  ".join(f"{name} {_figure(pop)}" for name, pop in pops.items())
                lines.append(f"  {region:<6}{figures}")
            lines.append(f"report: {summary.run}/{result.report}")
        if summary.leases is not UNSET:
            lines.append(f"this run: {summary.seconds:.1f} s, {summary.leases} leases")
        elif summary.status == "done":
            lines.append(summary.message)
        return "\n".join(map(printable, lines))


def like(options: RolloutOptions, forecaster: str) -> str:
    """Return a key of what the times depend on: configuration, workers, series, and whether a forecaster is trained."""
    hosts = 0 if options.hosts is None else len(options.hosts.remote)
    known = "a forecaster" if forecaster else "no forecaster"
    series = sum(map(len, years_on_disk(options.data_dir).values()))
    digest = hashlib.sha256(options.read_config()).hexdigest()[:12]
    return f"{digest}, {options.workers + hosts} workers, {series} series, {known}"


def _summary(
    options: RolloutOptions, conclusion: Conclusion[ControlResult], figures: Mapping[str, Any], seconds: float
) -> RolloutSummary:
    return RolloutSummary(
        exit_code=ExitCode.of_status(conclusion.status),
        status=conclusion.status,
        message=conclusion.message,
        run=str(options.run),
        result=conclusion.result,
        **figures,
        seconds=seconds,
    )


def _figure(pop: float | None) -> str:
    """Return a PoP as text; None: nothing could have been saved."""
    return "–" if pop is None else f"{pop:.3f}"
