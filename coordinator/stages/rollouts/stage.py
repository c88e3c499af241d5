"""The rollouts stage: what a learner asks for, leased to the workers; a second issue of what is late; the end of who cheats.

`coordinator start --rollouts` runs it. Decisions about the training are the learner's (`worker/control/learner.py`, a process of its own), which
also keeps its state: its leases are not in the journal, and a coordinator that starts again has the learner ask again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from coordinator.server.folder_lock import FolderLock
from coordinator.server.hooks import StageHooks
from coordinator.stages.base import Fleet, build_fleet, run_tasks
from coordinator.stages.display import choose_display
from coordinator.stages.rollouts import artifacts
from coordinator.stages.rollouts.controller import RolloutController
from coordinator.stages.rollouts.learner_process import COMMAND
from coordinator.wire.exit_codes import ExitCode
from coordinator.workers.hostfile import Hosts, hosts_from
from ingest.errors import UsageError, VerificationError
from rl.distributed.protocol import Finished
from rl.env.dataset_file import DATASETS


@dataclass(frozen=True)
class RolloutOptions:
    """All that a run is told."""

    data_dir: Path
    config: Path | None  # the control training's configuration; None: worker/control/config.py's defaults
    forecaster: Path  # run folder of the forecaster's training, if there is one
    workers: int
    connections: int
    bind: str
    keys: Path
    retries: int
    hosts: Hosts | None = None

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.data_dir / "control"


def options_from(settings: Mapping[str, Any]) -> RolloutOptions:
    """Resolved settings → RolloutOptions. UsageError for a configuration file that is not there."""
    path = settings["control-config"]
    if path is not None and not path.is_file():
        raise UsageError(
            f"control-config {path}: no such file. Name the TOML file that worker/control/config.py reads."
        )
    return RolloutOptions(
        data_dir=settings["data"],
        config=path,
        forecaster=settings["run"] or settings["data"] / "train",
        workers=settings["workers"],
        connections=settings["connections"],
        bind=settings["bind"],
        keys=settings["keys"],
        retries=settings["retries"],
        hosts=hosts_from(settings),
    )


def run(
    options: RolloutOptions,
    *,
    as_json: bool = False,
    quiet: bool = False,
    fleet: Fleet | None = None,
    learner: tuple[str, ...] = COMMAND,
) -> dict[str, Any]:
    """Run the stage to its end; the summary, whose `exit_code` says how it ended. Data and run folder are locked meanwhile.

    `fleet`, `learner`: other workers than the options' and another program.
    """
    began = time.monotonic()
    with ExitStack() as stack:
        stack.enter_context(FolderLock(options.data_dir))
        stack.enter_context(FolderLock(options.run))
        config = options.config.read_bytes() if options.config is not None else b""
        forecaster = artifacts.forecaster_digest(options.forecaster)
        asked = artifacts.request_digest(options.data_dir, config, forecaster)
        result = artifacts.completed_result(options.run, asked)
        if result is not None:
            return _summary(options, Finished("done", "nothing was left to do"), result, {}, time.monotonic() - began)
        command = [*learner, "--data", str(options.data_dir), "--run", str(options.run), "--asked", asked]
        command += ["--config", str(options.config)] if options.config is not None else []
        if forecaster:
            command += ["--forecaster", str(options.forecaster.resolve()), "--checkpoint", forecaster]
        rollouts = RolloutController(tuple(command), options.run, options.retries)
        stack.callback(rollouts.close)
        display = stack.enter_context(closing(choose_display(as_json=as_json, quiet=quiet)))
        fleet = fleet or build_fleet(options, display.say)
        hooks = StageHooks(on_task_done=rollouts.on_task_done, download_roots={DATASETS: options.run / DATASETS})
        ended = run_tasks(fleet, (), {}, display, hooks, rollouts)
        over = rollouts.over or Finished("drain", ended.outcome.message or "interrupted; start again to resume")
        if ended.outcome.status == "storage":
            over = Finished("storage", ended.outcome.message)
        elif over.status == "done":
            try:
                result = artifacts.mark_complete(options.run, asked)
            except VerificationError as error:
                over = Finished("failed", f"the learner ended well, but proved nothing: {error}")
        figures = {**rollouts.figures, "worker_restarts": ended.restarts}
        return _summary(options, over, result, figures, time.monotonic() - began)


def _summary(
    options: RolloutOptions,
    over: Finished,
    result: artifacts.ControlResult | None,
    figures: Mapping[str, Any],
    seconds: float,
) -> dict[str, Any]:
    return {
        "exit_code": ExitCode.of_status(over.status),
        "status": over.status,
        "message": over.message,
        "run": str(options.run),
        "result": None if result is None else msgspec.to_builtins(result),
        **figures,
        "seconds": seconds,
    }


def _figure(pop: float | None) -> str:
    """PoP; None where nothing could have been saved."""
    return "–" if pop is None else f"{pop:.3f}"


def describe_summary(summary: Mapping[str, Any]) -> str:
    """A summary as text: what is proved, what this run did."""
    lines = []
    if (result := summary["result"]) is not None:
        lines.append(f"control by {result['algorithm']}, known ahead: {result['known']}; PoP in the test year:")
        for region, pops in result["test_pop"].items():
            lines.append("  " + region.ljust(6) + "  ".join(f"{name} {_figure(pop)}" for name, pop in pops.items()))
        lines.append(f"report: {summary['run']}/{result['report']}")
    if "leases" in summary:
        lines.append(f"this run: {summary['seconds']:.1f} s, {summary['leases']} leases")
    elif summary["status"] == "done":
        lines.append(summary["message"])
    return "\n".join(lines)
