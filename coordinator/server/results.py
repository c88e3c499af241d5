"""Validate a worker's result: its arrays, its type, and the files that it names."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

from coordinator.scheduling.records import TaskSpec
from coordinator.server.hooks import StageHooks
from coordinator.server.uploads import missing_files
from coordinator.wire import codec
from coordinator.wire.failures import FailureKind
from coordinator.wire.messages import BadMessage, Failure, Result


def validate_result(
    result: Result, frames: tuple[bytes, ...], spec: TaskSpec, hooks: StageHooks, data_dir: Path
) -> Failure | None:
    """Return the failure that a result amounts to, or None when it is valid.

    Args:
        result: The message.
        frames: Its raw frames, one an array.
        spec: The task that it ends.
        hooks: The stage's types and upload roots.
        data_dir: The coordinator's data folder, which must hold the files that the result names.
    """
    error, problem = FailureKind.BAD_ARRAYS, ""
    try:
        codec.validate_frames(result.arrays, tuple(map(len, frames)), spec.arrays)
        arrays = zip(result.arrays, frames, strict=True)
        bad = next((one.name for one, frame in arrays if not np.isfinite(np.frombuffer(frame, one.dtype)).all()), "")
        if bad:
            problem = f"array {bad} has numbers that are not finite"
        else:
            error = FailureKind.BAD_RESULT
            if (kind := hooks.result_types.get(spec.kind)) is not None:
                msgspec.convert(result.output, kind)
            problem = missing_files(data_dir, result.output, hooks.upload_roots)
            error = FailureKind.FILES_MISSING
    except (msgspec.ValidationError, BadMessage) as refusal:
        problem = str(refusal)
    return Failure(result.worker, result.task, result.attempt, error, problem) if problem else None
