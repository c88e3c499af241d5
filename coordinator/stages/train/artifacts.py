"""The files in a training's run folder: the result, and the metrics, followed as they grow. `worker/train.py` writes them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from ingest.files import LineFollower
from ingest.metrics import figures_of, number_of

METRICS, WEIGHTS = "metrics.jsonl", "average.safetensors"
CONFIG = "train.toml"  # the copy of the configuration file that the ranks read


class TrainingResult(msgspec.Struct, frozen=True):
    """What a training reports about itself. Further fields are allowed in the file."""

    steps: int
    validation_skill: float  # of the best checkpoint
    checkpoint: str  # its folder, relative to the run folder
    sha256: str  # of its averaged weights

    @property
    def file(self) -> str:
        """The averaged weights, relative to the run folder."""
        return f"{self.checkpoint}/{WEIGHTS}"


def checkpoint_step(run: Path) -> int:
    """Return the step of the newest checkpoint in a run folder; 0: there is none."""
    return max((int(path.parent.name) for path in (run / "checkpoints").glob("[0-9]*/state.json")), default=0)


@dataclass
class MetricsFollower:
    """Follows `metrics.jsonl` and keeps each figure's newest value. A run that resumes from a checkpoint replaces the file."""

    path: Path
    newest: dict[str, Any] = field(default_factory=dict)
    best_skill: float | None = None

    def __post_init__(self) -> None:
        """Start at the beginning of the file."""
        self._lines = LineFollower(self.path)

    def poll(self) -> None:
        """Read the lines that were added since the last call; all lines of a file that replaced the earlier one."""
        lines = self._lines.poll()
        if self._lines.replaced:
            self.best_skill = None
        for line in lines:
            self._take(line)

    def _take(self, line: bytes) -> None:
        figures = figures_of(line)
        if figures is None or number_of(figures, "step") is None:
            return
        self.newest.update(figures)
        skill = number_of(figures, "skill")
        if skill is not None:
            self.best_skill = skill if self.best_skill is None else max(self.best_skill, skill)

    def numbers(self, name: str) -> list[float]:
        """Return the newest value of a figure that is a list of numbers; empty if it has another type."""
        value = self.newest.get(name)
        whole = isinstance(value, list) and all(isinstance(x, int | float) for x in value)
        return [float(x) for x in value] if isinstance(value, list) and whole else []

    def number(self, name: str) -> float | None:
        """Return a figure's newest value, if it is a number."""
        return number_of(self.newest, name)
