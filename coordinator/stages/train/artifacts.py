"""What a training left in its run folder, as the coordinator reads it: metrics as they grow, what is proved, what was asked.

`worker/train.py` writes all of it but `proved.json`, which says for which request the result was accepted.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from ingest import manifest
from ingest.errors import VerificationError
from ingest.files import LineFollower, atomic_write, file_sha256

RESULT, PROVED, METRICS, WEIGHTS = "result.json", "proved.json", "metrics.jsonl", "average.safetensors"
CONFIG = "train.toml"  # the copy of the configuration file that the ranks read


class TrainingResult(msgspec.Struct, frozen=True):
    """What a training proved, by its own word. More fields may stand in the file."""

    steps: int
    validation_skill: float  # of the best checkpoint
    checkpoint: str  # its folder, relative to the run folder
    sha256: str  # of its averaged weights


class CompletionRecord(msgspec.Struct, frozen=True):
    """The result of this digest answers this request."""

    asked: str
    result: str


def request_digest(data_dir: Path, config: bytes) -> str:
    """Digest of a request: the training's configuration and the series in the data folder."""
    digest = hashlib.sha256(config)
    for built in sorted(manifest.build_results(data_dir), key=lambda proof: proof.key):
        digest.update(f"{built.key} {built.pieces}\n".encode())
    return digest.hexdigest()


def read_result(run: Path) -> TrainingResult:
    """The result, with its checkpoint proved. VerificationError says what is wrong with it."""
    path = run / RESULT
    try:
        result = msgspec.json.decode(path.read_bytes(), type=TrainingResult)
    except FileNotFoundError:
        raise VerificationError(f"{path} is not there: the training has not ended") from None
    except msgspec.MsgspecError as error:
        raise VerificationError(f"{path}: {error}") from error
    weights = run / result.checkpoint / WEIGHTS
    try:
        found = file_sha256(weights)
    except OSError as error:
        raise VerificationError(f"{path} names {weights}: {error.strerror}") from error
    if found != result.sha256:
        raise VerificationError(f"{weights} is not the file that {path} names: its sha256 differs")
    return result


def mark_complete(run: Path, request: str) -> TrainingResult:
    """Remember that the result answers this request. VerificationError unless it is whole."""
    result = read_result(run)
    write_completion(run, request)
    return result


def completed_result(run: Path, request: str) -> TrainingResult | None:
    """The result that was accepted for this request and is still whole; None where there is something to do."""
    try:
        return read_result(run) if is_completed(run, request) else None
    except VerificationError:
        return None


def write_completion(run: Path, request: str) -> None:
    """That the result as it lies there answers this request; of any training's folder."""
    atomic_write(run / PROVED, msgspec.json.encode(CompletionRecord(request, file_sha256(run / RESULT))))


def is_completed(run: Path, request: str) -> bool:
    """Whether that was remembered, and the result is the same file still."""
    try:
        proved = msgspec.json.decode((run / PROVED).read_bytes(), type=CompletionRecord)
        return proved == CompletionRecord(request, file_sha256(run / RESULT))
    except (FileNotFoundError, msgspec.MsgspecError):
        return False


@dataclass
class MetricsFollower:
    """Follows `metrics.jsonl`: each figure's newest value. A run that goes on from a checkpoint writes the file anew."""

    path: Path
    newest: dict[str, Any] = field(default_factory=dict)
    best_skill: float | None = None

    def __post_init__(self) -> None:
        self._lines = LineFollower(self.path)

    def poll(self) -> None:
        """Read the lines that were added since the last look; all of them of a file that is a new one."""
        lines = self._lines.poll()
        if self._lines.replaced:
            self.best_skill = None
        for line in lines:
            self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            figures = msgspec.json.decode(line, type=dict[str, Any])
        except msgspec.MsgspecError:
            return
        self.newest.update(figures)
        skill = figures.get("skill")
        if isinstance(skill, int | float):
            self.best_skill = skill if self.best_skill is None else max(self.best_skill, skill)

    def numbers(self, name: str) -> list[float]:
        """The newest value of a figure that is a list of numbers; empty where it is none."""
        value = self.newest.get(name)
        whole = isinstance(value, list) and all(isinstance(x, int | float) for x in value)
        return [float(x) for x in value] if isinstance(value, list) and whole else []

    def number(self, name: str) -> float | None:
        """A figure's newest value, if it is a number."""
        value = self.newest.get(name)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
