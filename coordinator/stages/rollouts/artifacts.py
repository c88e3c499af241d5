"""The result of a control training in its run folder, and the digests of the inputs that it depends on."""

from pathlib import Path

import msgspec

from coordinator.stages import run_folder
from coordinator.stages.train.artifacts import TrainingResult
from ingest.errors import VerificationError


class ControlResult(msgspec.Struct, frozen=True):
    """What a control training reports about itself. Further fields are allowed in the file."""

    algorithm: str
    version: int
    validation_pop: float
    test_pop: dict[str, dict[str, float | None]]  # region → policy → share of the perfect-foresight saving (PoP)
    policy: str  # its file, relative to the run folder
    sha256: str  # of that file
    report: str
    known: str

    @property
    def file(self) -> str:
        """The policy, relative to the run folder."""
        return self.policy


def forecaster_digest(run: Path) -> str:
    """Return the sha256 of the weights of a forecaster whose training is complete, or ""."""
    try:
        return run_folder.read_result(run, TrainingResult).sha256
    except VerificationError:
        return ""


def request_digest(data_dir: Path, config: bytes, weights: str) -> str:
    """Return the digest of a request: configuration, series in the data folder, forecaster's weights."""
    return run_folder.request_digest(data_dir, config + b"\0" + weights.encode())
