"""Checkpoints of a training: one folder a step, written atomically, with all that resuming and forecasting need.

<folder>/000120/weights.safetensors    the trained weights
                average.safetensors    their moving average, which validates and forecasts
                optimizer.safetensors
                state.json             model, normalisation, position, and the SHA-256 of the other three
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from ingest.errors import UsageError, quoted
from ingest.files import file_sha256, fsync_path

FORMAT = 1
_ARRAYS = ("weights", "average", "optimizer")


class CheckpointError(UsageError):
    """A checkpoint is damaged or does not fit; the message states the next command."""


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint in memory."""

    weights: dict[str, Any]  # trees of arrays: `Module.parameters` and `Optimizer.state`
    average: dict[str, Any]
    optimizer: dict[str, Any]
    state: dict[str, Any]  # plain data; "step" is its position


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write `folder/<step>` atomically: its files are synced before the folder gets its name.

    Returns:
        Path of the new folder.
    """
    final = folder / f"{checkpoint.state['step']:06d}"
    part = folder / f".{final.name}.{os.getpid()}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    digests = {}
    for name in _ARRAYS:
        path = part / f"{name}.safetensors"
        # By name: the layout of the file follows the order, which is another one after a resume.
        arrays = dict(tree_flatten(getattr(checkpoint, name)))
        mx.save_safetensors(str(path), {key: arrays[key] for key in sorted(arrays)})
        digests[name] = file_sha256(path)
    state = part / "state.json"
    state.write_text(json.dumps({"format": FORMAT, **checkpoint.state, "sha256": digests}, indent=1), "utf-8")
    for path in part.iterdir():
        fsync_path(path)
    shutil.rmtree(final, ignore_errors=True)
    part.replace(final)
    fsync_path(folder)
    return final


def load(path: Path) -> Checkpoint:
    """Read a checkpoint and verify its files against their digests.

    Raises:
        CheckpointError: if a file is missing or damaged.
    """
    state = read_state(path)
    trees = {}
    for name in _ARRAYS:
        file = path / f"{name}.safetensors"
        if not file.exists() or file_sha256(file) != state["sha256"][name]:
            raise CheckpointError(_damaged(file))
        arrays = cast(dict[str, mx.array], mx.load(str(file)))
        trees[name] = tree_unflatten(list(arrays.items()))
    return Checkpoint(**trees, state=state)


def _damaged(file: Path) -> str:
    return (
        f"{file} is missing or damaged: `rm -r {quoted(file.parent)}`, then the command of the training "
        "(`coordinator start --train`) resumes from the checkpoint before it"
    )


def read_state(path: Path) -> dict[str, Any]:
    """Read state.json alone.

    Raises:
        CheckpointError: if there is none, if it is damaged, or if it has another format.
    """
    file = path / "state.json"
    try:
        state = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"{path} is no checkpoint ({file.name}: {error.strerror}): name a folder that a training wrote"
        ) from error
    except ValueError as error:
        raise CheckpointError(_damaged(file)) from error
    if not isinstance(state, dict):
        raise CheckpointError(_damaged(file))
    if state.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {state.get('format')}, this version reads {FORMAT}: "
            "`coordinator start --train --run NEW` trains again"
        )
    return state


def steps(folder: Path) -> list[Path]:
    """Return the paths of all checkpoints in `folder`, oldest first."""
    return sorted(path for path in folder.glob("[0-9]" * 6) if path.is_dir())


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Load the newest checkpoint that is not damaged.

    Returns:
        The checkpoint, or None if there is none, and a reason for each newer one that was skipped.
    """
    rejected: list[str] = []
    for path in reversed(steps(folder)):
        try:
            return load(path), rejected
        except CheckpointError as error:
            rejected.append(str(error))
    return None, rejected


def prune(folder: Path, keep: set[str]) -> None:
    """Remove all checkpoints except the two newest and those named in `keep`."""
    for path in steps(folder)[:-2]:
        if path.name not in keep:
            shutil.rmtree(path)


def fingerprint(path: Path) -> str:
    """Return the SHA-256 of a checkpoint's averaged weights, as its state.json has it."""
    return str(read_state(path)["sha256"]["average"])
