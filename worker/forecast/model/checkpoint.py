"""Checkpoints: a folder a step, written whole or not at all, with everything that training and forecasting need to go on.

<folder>/000120/weights.safetensors    the trained weights
                average.safetensors    their moving average: what forecasts are made with
                optimizer.safetensors
                state.json             model, normalisation, position, and the sha256 of the other three
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from ingest.errors import UsageError
from ingest.files import file_sha256

FORMAT = 1
_ARRAYS = ("weights", "average", "optimizer")


class CheckpointError(UsageError):
    """A checkpoint is damaged or does not fit; the message states the next command."""


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint, in memory."""

    weights: dict[str, Any]  # trees of arrays, as `Module.parameters` and `Optimizer.state` give them
    average: dict[str, Any]
    optimizer: dict[str, Any]
    state: dict[str, Any]  # plain data; "step" is its position


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write `folder/<step>` atomically: its files are synced before the folder gets its name. Returns its path."""
    final = folder / f"{checkpoint.state['step']:06d}"
    part = folder / f".{final.name}.{os.getpid()}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    digests = {}
    for name in _ARRAYS:
        path = part / f"{name}.safetensors"
        mx.save_safetensors(str(path), dict(tree_flatten(getattr(checkpoint, name))))
        digests[name] = file_sha256(path)
    state = part / "state.json"
    state.write_text(json.dumps({"format": FORMAT, **checkpoint.state, "sha256": digests}, indent=1))
    for path in part.iterdir():
        _sync(path)
    shutil.rmtree(final, ignore_errors=True)
    part.replace(final)
    _sync(folder)
    return final


def load(path: Path) -> Checkpoint:
    """Read a checkpoint and hold its files against their digests. CheckpointError names what is wrong."""
    state = read_state(path)
    trees = {}
    for name in _ARRAYS:
        file = path / f"{name}.safetensors"
        if not file.exists() or file_sha256(file) != state["sha256"][name]:
            raise CheckpointError(
                f"{file} is missing or damaged: `rm -r {path}`, then `coordinator start --train` goes on from the one before it"
            )
        arrays = cast(dict[str, mx.array], mx.load(str(file)))
        trees[name] = tree_unflatten(list(arrays.items()))
    return Checkpoint(**trees, state=state)


def read_state(path: Path) -> dict[str, Any]:
    """state.json alone. CheckpointError where there is none that this version reads."""
    try:
        state = json.loads((path / "state.json").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is no checkpoint: {error}; name a folder that worker/train.py wrote") from error
    if state.get("format") != FORMAT:
        raise CheckpointError(f"{path} has format {state.get('format')}, this version reads {FORMAT}: train again")
    return state


def steps(folder: Path) -> list[Path]:
    """All checkpoints under `folder`, oldest first."""
    return sorted(path for path in folder.glob("[0-9]" * 6) if path.is_dir())


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint, None when there is none, and why newer ones were passed over."""
    refused: list[str] = []
    for path in reversed(steps(folder)):
        try:
            return load(path), refused
        except CheckpointError as error:
            refused.append(str(error))
    return None, refused


def prune(folder: Path, keep: set[str]) -> None:
    """Remove all checkpoints but the two newest and those named in `keep`."""
    for path in steps(folder)[:-2]:
        if path.name not in keep:
            shutil.rmtree(path)


def fingerprint(path: Path) -> str:
    """sha256 of a checkpoint's averaged weights, as its state.json has it."""
    return str(read_state(path)["sha256"]["average"])


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
