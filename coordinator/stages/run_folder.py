"""The run folder of a training, of the forecaster or of a policy: which request its result answers, and whether it is whole.

The training's program writes the folder; the coordinator adds `proved.json`, which names the request that the result answers.
"""

import hashlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import msgspec

from coordinator.scheduling.events import Outcome
from coordinator.wire.exit_codes import ExitCode
from ingest import checksums, manifest
from ingest.errors import UsageError, VerificationError
from ingest.files import atomic_write, file_sha256
from ingest.settings import read_toml

RESULT, COMPLETION = "result.json", "proved.json"
NOTHING_TO_DO = "nothing was left to do"
CHECK = "worker.check_settings"


class RunResultFile(Protocol):
    """What `result.json` holds of any training. Further fields are allowed in the file."""

    @property
    def sha256(self) -> str:
        """Digest of the file with the weights."""

    @property
    def file(self) -> str:
        """Path of the file with the weights, relative to the run folder."""


R = TypeVar("R", bound=RunResultFile)


class CompletionRecord(msgspec.Struct, frozen=True):
    """The request that a result answers; both as digests."""

    request: str = msgspec.field(name="asked")
    result: str


def read_config(path: Path | None, setting: str) -> bytes:
    """Return the content of a training's configuration file; empty if it uses the program's defaults.

    Args:
        path: the file, if one was given.
        setting: the setting that names it.

    Raises:
        UsageError: the file cannot be read, or is not TOML: before an hour of extraction finds it wrong.
    """
    if path is None:
        return b""
    if not path.is_file():
        raise UsageError(
            f"{setting} {path}: no such file. Correct the name, or start without --{setting} for the defaults."
        )
    read_toml(path, setting, f"Correct the file, or start without --{setting} for the defaults.")
    return path.read_bytes()


def check_config(path: Path | None, setting: str) -> None:
    """Check the settings in a training's configuration file with the program that will read them, in a process of its own.

    Args:
        path: the file, if one was given.
        setting: the setting that names it: "train-config" or "control-config".

    Raises:
        UsageError: a key is unknown, or a value does not parse; nothing was started or written.
    """
    if path is None:
        return
    command = [sys.executable, "-m", CHECK, setting, str(path)]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False
    )
    problem = done.stdout.decode(errors="replace").strip()
    if done.returncode == ExitCode.USAGE and problem:
        raise UsageError(problem if problem.startswith(setting) else f"{setting} {problem}")


def request_digest(data_dir: Path, config: bytes) -> str:
    """Return the digest of a request: the training's configuration and the series in the data folder."""
    digest = hashlib.sha256(config)
    for built in sorted(manifest.build_results(data_dir), key=lambda result: result.key):
        digest.update(f"{built.key} {built.pieces}\n".encode())
    return digest.hexdigest()


def read_result(run: Path, kind: type[R]) -> R:
    """Return the result in a run folder, with the digest of its weights verified.

    Raises:
        VerificationError: there is none, or its weights are missing or changed.
    """
    path = run / RESULT
    try:
        result = msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        raise VerificationError(f"{path} does not exist: the training has not ended") from None
    except msgspec.MsgspecError as error:
        raise VerificationError(f"{path}: {error}") from error
    weights = run / result.file
    try:
        found = file_sha256(weights)
    except OSError as error:
        raise VerificationError(f"{path} names {weights}: {error.strerror}") from error
    if found != result.sha256:
        raise VerificationError(f"{weights} is not the file that {path} names: its sha256 differs")
    return result


def mark_complete(run: Path, kind: type[R], request: str) -> R:
    """Record that the result answers this request.

    Raises:
        VerificationError: the result is not whole.
    """
    result = read_result(run, kind)
    atomic_write(run / COMPLETION, msgspec.json.encode(CompletionRecord(request, file_sha256(run / RESULT))))
    checksums.write(run, checksums.run_files(run))
    return result


def completed_result(run: Path, kind: type[R], request: str) -> R | None:
    """Return the verified result of this request, or None if the training must run."""
    try:
        record = msgspec.json.decode((run / COMPLETION).read_bytes(), type=CompletionRecord)
        if record == CompletionRecord(request, file_sha256(run / RESULT)):
            return read_result(run, kind)
    except (FileNotFoundError, msgspec.MsgspecError, VerificationError):
        pass
    return None


@dataclass(frozen=True)
class Conclusion(Generic[R]):
    """How a training ended: its status and message, and the result if it is complete."""

    status: str
    message: str
    result: R | None = None


def conclude(run: Path, kind: type[R], request: str, status: str, message: str, ended: Outcome) -> Conclusion[R]:
    """Return how a training ended; a result counts when it is verified, whatever its program reported.

    Args:
        run: the run folder.
        kind: type of the result.
        request: digest of the requested training.
        status: what the training reported.
        message: the reported status as a sentence.
        ended: how the server's run ended; a full disk there decides.
    """
    if ended.status == "storage":
        return Conclusion("storage", ended.message)
    if status != "done":
        return Conclusion(status, message)
    try:
        return Conclusion("done", message, mark_complete(run, kind, request))
    except VerificationError as error:
        return Conclusion("failed", f"Training exited normally but its result could not be verified: {error}")
