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
from ingest.errors import ProofError
from ingest.store import atomic_write

RESULT, PROVED, METRICS, LOGS = "result.json", "proved.json", "metrics.jsonl", "logs"
CONFIG = "train.toml"  # the copy of the configuration file that the ranks read
MAX_READ = 1 << 20  # bytes taken at once


class Result(msgspec.Struct, frozen=True):
    """What a training proved, by its own word. More fields may stand in the file."""

    steps: int
    checkpoint: str  # file, relative to the run folder
    sha256: str  # of that file
    best_skill: float | None = None


class Proved(msgspec.Struct, frozen=True):
    """The result of this digest answers this request."""

    asked: str
    result: str


def asked(data_dir: Path, config: bytes) -> str:
    """Digest of a request: the training's configuration and the series in the data folder."""
    digest = hashlib.sha256(config)
    for built in sorted(manifest.read_builds(data_dir), key=lambda proof: proof.key):
        digest.update(f"{built.key} {built.pieces}\n".encode())
    return digest.hexdigest()


def read_result(run: Path) -> Result:
    """The result, with its checkpoint proved. ProofError says what is wrong with it."""
    path = run / RESULT
    try:
        result = msgspec.json.decode(path.read_bytes(), type=Result)
    except FileNotFoundError:
        raise ProofError(f"{path} is not there: the training has not ended") from None
    except msgspec.MsgspecError as error:
        raise ProofError(f"{path}: {error}") from error
    checkpoint = run / result.checkpoint
    try:
        with checkpoint.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ProofError(f"{path} names {checkpoint}: {error.strerror}") from error
    if found != result.sha256:
        raise ProofError(f"{checkpoint} is not the file that {path} names: its sha256 differs")
    return result


def accept(run: Path, request: str) -> Result:
    """Remember that the result answers this request. ProofError unless it is whole."""
    result = read_result(run)
    atomic_write(run / PROVED, msgspec.json.encode(Proved(request, _digest(run / RESULT))))
    return result


def accepted(run: Path, request: str) -> Result | None:
    """The result that was accepted for this request and is still whole; None where there is something to do."""
    try:
        proved = msgspec.json.decode((run / PROVED).read_bytes(), type=Proved)
        return read_result(run) if proved == Proved(request, _digest(run / RESULT)) else None
    except (FileNotFoundError, msgspec.MsgspecError, ProofError):
        return None


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass
class Metrics:
    """Follows `metrics.jsonl`: each figure's newest value. A shorter file than before was begun afresh."""

    path: Path
    newest: dict[str, Any] = field(default_factory=dict)
    best_skill: float | None = None
    _read: int = 0
    _rest: bytes = b""

    def look(self) -> None:
        try:
            with self.path.open("rb") as file:
                if file.seek(0, 2) < self._read:
                    self._read, self._rest = 0, b""
                file.seek(self._read)
                while chunk := file.read(MAX_READ):
                    self._read += len(chunk)
                    *lines, self._rest = (self._rest + chunk).split(b"\n")
                    for line in lines:
                        self._take(line)
        except FileNotFoundError:
            return

    def _take(self, line: bytes) -> None:
        try:
            figures = msgspec.json.decode(line, type=dict[str, Any])
        except msgspec.MsgspecError:
            return
        self.newest.update(figures)
        skill = figures.get("skill")
        if isinstance(skill, int | float):
            self.best_skill = skill if self.best_skill is None else max(self.best_skill, skill)

    def number(self, name: str) -> float | None:
        """A figure's newest value, if it is a number."""
        value = self.newest.get(name)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
