"""What `coordinator start --dry-run` says: what each stage would do with this folder as it is, and why. Reads only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coordinator.stages import extract as extract_stage
from coordinator.stages.rollouts import artifacts as rollouts_artifacts
from coordinator.stages.rollouts import stage as rollouts_stage
from coordinator.stages.train import artifacts as train_artifacts
from coordinator.stages.train import stage as train_stage

Plans = dict[str, dict[str, Any]]  # stage → its plan; "would" is "run", "go on" or "do nothing", "why" a sentence


def plans(
    extraction: extract_stage.ExtractOptions | None,
    training: train_stage.TrainOptions | None,
    control: rollouts_stage.RolloutOptions | None,
) -> Plans:
    """The plan of every stage that was asked for, in their order; a stage after one that would work has new series to work on."""
    made: Plans = {}
    renewed = ""  # the stage whose work changes what the next ones begin with
    if extraction is not None:
        made["extract"] = extract_stage.dry_run(extraction)
        renewed = "extract" if made["extract"]["shards"] else ""
    if training is not None:
        made["train"] = {"run": str(training.run), "ranks": training.ranks, **_train(training, renewed)}
        renewed = renewed or ("train" if made["train"]["would"] != "do nothing" else "")
    if control is not None:
        made["rollouts"] = {"run": str(control.run), "workers": control.workers, **_control(control, renewed)}
    return made


def _said(would: str, why: str) -> dict[str, Any]:
    return {"would": would, "why": why}


def _train(options: train_stage.TrainOptions, renewed: str) -> dict[str, Any]:
    if renewed:
        return _said("run", "on the series that the extraction makes")
    result = train_artifacts.completed_result(
        options.run, train_artifacts.request_digest(options.data_dir, options.config)
    )
    if result is not None:
        return _said("do nothing", f"{options.run} answers this configuration and these series: {result.steps:,} steps")
    whole = sorted(path.parent.name for path in (options.run / "checkpoints").glob("[0-9]*/state.json"))
    if whole:
        return _said("go on", f"from step {int(whole[-1]):,}, the newest checkpoint in {options.run}")
    return _said("run", f"{options.run} holds no checkpoint")


def _control(options: rollouts_stage.RolloutOptions, renewed: str) -> dict[str, Any]:
    if renewed:
        return _said("run", f"on what `{renewed}` makes")
    config = options.config.read_bytes() if options.config is not None else b""
    forecaster = rollouts_artifacts.forecaster_digest(options.forecaster)
    result = rollouts_artifacts.completed_result(
        options.run, rollouts_artifacts.request_digest(options.data_dir, config, forecaster)
    )
    if result is not None:
        return _said("do nothing", f"{options.run} answers this configuration, these series and this forecaster")
    known = "the trained forecaster" if forecaster else "the operators' day-ahead forecast, since none was trained"
    if (options.run / "state.pack").exists():
        return _said(
            "go on", f"from the newest state in {options.run} where it is of this request; known ahead: {known}"
        )
    return _said("run", f"{options.run} holds no policy; known ahead: {known}")


def describe(made: Mapping[str, Mapping[str, Any]]) -> str:
    """The plans as text."""
    lines = []
    for stage, plan in made.items():
        if stage == "extract":
            lines.append(extract_stage.describe_plan(plan))
        else:
            size = f"{plan['ranks']} ranks" if stage == "train" else f"{plan['workers']} workers"
            lines.append(f"{stage}, {size}: would {plan['would']}: {plan['why']}")
    return "\n".join(lines)
