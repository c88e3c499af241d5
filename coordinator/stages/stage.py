"""The interface of a stage and the list of stages. To add a stage, implement `Stage` and add a line to `STAGES`.

`coordinator start` takes a flag, the dry run, the run and the text of the result from here; it knows no stage by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:  # `coordinator --help` needs the list of stages only
    from coordinator.stages.documents import DryRun, StageSummary


@dataclass(frozen=True)
class OutputMode:
    """How a command reports: text or JSON, with or without progress."""

    as_json: bool = False
    quiet: bool = False


Options = TypeVar("Options")
Summary = TypeVar("Summary", bound="StageSummary")


class Stage(Protocol[Options, Summary]):
    """One step of the work: what it needs, what it would do, what it does, what it did."""

    def options_from(self, settings: Mapping[str, Any]) -> Options:
        """Return the stage's options from the resolved settings, with `update` and `rebuild` of the command line.

        Raises:
            UsageError: a setting cannot be right.
        """

    def dry_run(self, options: Options, after: str) -> DryRun:
        """Return what the stage would do; `after`: an earlier stage that has work to do. Reads files only."""

    def run(self, options: Options, mode: OutputMode) -> Summary:
        """Run the stage to its end."""

    def describe(self, summary: Summary) -> str:
        """Return a summary as text."""


@dataclass(frozen=True)
class StageEntry:
    """A stage by name. Its module is loaded when it is used, so that a wrong command line does not wait for it."""

    name: str
    help: str  # of its flag
    module: str
    class_name: str
    then: str  # the command that goes on from what it makes

    def load(self) -> Stage[Any, Any]:
        """Import the stage's module and return the stage."""
        stage: Stage[Any, Any] = getattr(import_module(self.module), self.class_name)()
        return stage


# In the order in which they run.
STAGES = (
    StageEntry(
        "extract",
        "Download hourly data, verify it and build the hourly series.",
        "coordinator.stages.extract.stage",
        "ExtractStage",
        "coordinator start --train",
    ),
    StageEntry(
        "train",
        "Train the demand forecaster on a ring of the workers.",
        "coordinator.stages.train.stage",
        "TrainStage",
        "coordinator start --rollouts",
    ),
    StageEntry(
        "rollouts",
        "Train the control policy on the workers and evaluate it.",
        "coordinator.stages.rollouts.stage",
        "RolloutStage",
        "coordinator report",
    ),
)
