"""What a control training left in its folder, as the coordinator reads it: what is proved, and for which request."""

from __future__ import annotations

from pathlib import Path

import msgspec

from coordinator.stages.train import artifacts
from ingest.errors import VerificationError
from ingest.files import file_sha256


class ControlResult(msgspec.Struct, frozen=True):
    """What a training proved, by its own word. More fields may stand in the file."""

    algorithm: str
    version: int
    validation_pop: float
    test_pop: dict[str, dict[str, float | None]]  # region → policy → PoP
    policy: str  # its file, relative to the folder
    sha256: str  # of that file
    report: str
    known: str


def forecaster_digest(run: Path) -> str:
    """sha256 of the weights of a forecaster's training that has ended; "" where there is none."""
    try:
        return artifacts.read_result(run).sha256
    except VerificationError:
        return ""


def request_digest(data_dir: Path, config: bytes, weights: str) -> str:
    """Digest of a request: configuration, series in the data folder, forecaster."""
    return artifacts.request_digest(data_dir, config + b"\0" + weights.encode())


def read_result(run: Path) -> ControlResult:
    """The result, with its policy proved. VerificationError says what is wrong with it."""
    path = run / artifacts.RESULT
    try:
        result = msgspec.json.decode(path.read_bytes(), type=ControlResult)
        found = file_sha256(run / result.policy)
    except msgspec.MsgspecError as error:
        raise VerificationError(f"{path}: {error}") from error
    except OSError as error:
        raise VerificationError(f"{error.filename}: {error.strerror}") from error
    if found != result.sha256:
        raise VerificationError(f"{run / result.policy} is not the file that {path} names: its sha256 differs")
    return result


def mark_complete(run: Path, request: str) -> ControlResult:
    """Remember that the result answers this request. VerificationError unless it is whole."""
    result = read_result(run)
    artifacts.write_completion(run, request)
    return result


def completed_result(run: Path, request: str) -> ControlResult | None:
    """The result that was accepted for this request and is still whole; None where there is something to do."""
    try:
        return read_result(run) if artifacts.is_completed(run, request) else None
    except VerificationError:
        return None
