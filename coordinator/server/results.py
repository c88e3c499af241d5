"""Validate a worker's result against its lease, before anything is written: arrays, type, files, and what its stage knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from coordinator.scheduling.records import TaskSpec
from coordinator.server.hooks import StageHooks
from coordinator.server.uploads import missing_files
from coordinator.wire import codec
from coordinator.wire.failures import FailureKind
from coordinator.wire.messages import BadMessage, Failure, Result
from coordinator.wire.paths import RefusedPath
from ingest.errors import VerificationError


def validate_result(
    result: Result, frames: tuple[bytes, ...], spec: TaskSpec, hooks: StageHooks, data_dir: Path
) -> Any:
    """Return a valid result's output in the stage's type, or the Failure that the result amounts to.

    Args:
        result: The message.
        frames: Its raw frames, one an array.
        spec: The task that it ends.
        hooks: The stage's types and upload roots.
        data_dir: The coordinator's data folder, which must hold the files that the result names.
    """
    error, problem, output = FailureKind.BAD_ARRAYS, "", None
    try:
        codec.validate_frames(result.arrays, tuple(map(len, frames)), spec.arrays)
        arrays = zip(result.arrays, frames, strict=True)
        bad = next((one.name for one, frame in arrays if not np.isfinite(np.frombuffer(frame, one.dtype)).all()), "")
        if bad:
            problem = f"array {bad} has numbers that are not finite"
        else:
            error = FailureKind.BAD_RESULT
            output = convert_output(result.output, spec, hooks)
            problem = missing_files(data_dir, result.output, hooks.lease_files(spec), hooks.upload_roots)
            if problem:
                error = FailureKind.FILES_MISSING
            else:
                hooks.check_result(spec, output)
    except (msgspec.ValidationError, BadMessage, RefusedPath, VerificationError) as refusal:
        problem = str(refusal)
    return Failure(result.worker, result.task, result.attempt, error, problem) if problem else output


def convert_output(output: dict[str, Any], spec: TaskSpec, hooks: StageHooks) -> Any:
    """Return an output in the type that the stage gives its task kind, or unchanged.

    Raises:
        msgspec.ValidationError: It does not convert.
    """
    kind = hooks.result_types.get(spec.kind)
    return output if kind is None else msgspec.convert(output, kind)
