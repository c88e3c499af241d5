"""Checkpoints of a fine-tuning, in mlx-lm's formats, from which it resumes.

`adapters.safetensors` and `adapter_config.json` are what `mlx_lm.load(…, adapter_path=…)` reads; `NNNNNNN_adapters.safetensors`
are those of mlx_lm.lora's checkpoints. `training_state.json` is written last and names the files of the newest checkpoint.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optimizers
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from ringattn._errors import ArgumentError
from ringattn.lm._command import refused
from ringattn.lm.convert import ring_of
from ringattn.lm.training import of_first_rank
from ringattn.transport import transport_of

STATE = "training_state.json"
_OTHER = "name a folder that can be written, with room, by --adapter-path"


def is_first_rank(model: nn.Module) -> bool:
    """Return whether this process is rank 0 of a converted model's ring: it alone reads and writes checkpoints."""
    ring = ring_of(model)
    assert ring is not None
    return transport_of(ring.group).rank() == 0


def save(folder: Path, model: nn.Module, optimizer: optimizers.Optimizer, iteration: int) -> None:
    """Write a checkpoint; on rank 0 only. A crash in between leaves the one before.

    Args:
        folder: made if needed.
        model: a converted model.
        optimizer: its optimizer.
        iteration: batches trained on so far.
    """
    if is_first_rank(model):
        with refused(f"{folder}: the checkpoint cannot be written", _OTHER):
            _save(folder, model, optimizer, iteration)


def _save(folder: Path, model: nn.Module, optimizer: optimizers.Optimizer, iteration: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    weights = dict(tree_flatten(model.trainable_parameters()))
    adapters, moments = f"{iteration:07d}_adapters.safetensors", f"{iteration:07d}_optimizer.safetensors"
    _replace(folder / adapters, lambda path: mx.save_safetensors(str(path), weights))
    _replace(folder / moments, lambda path: mx.save_safetensors(str(path), dict(tree_flatten(optimizer.state))))
    _replace(folder / "adapters.safetensors", lambda path: shutil.copyfile(folder / adapters, path))
    state = json.dumps({"iteration": iteration, "adapters": adapters, "optimizer": moments})
    _replace(folder / STATE, lambda path: path.write_text(state, "utf-8"))
    for old in folder.glob("*_optimizer.safetensors"):
        if old.name != moments:
            old.unlink()


def read_newest(folder: Path, model: nn.Module, optimizer: optimizers.Optimizer) -> dict[str, Any]:
    """Return the newest checkpoint of rank 0's folder, on the other ranks arrays of the same shapes, for `resume`. Nothing is exchanged.

    Args:
        folder: as for `save`; the other ranks need none.
        model: a converted model, made trainable as before.
        optimizer: a new one, of the same class.

    Raises:
        ArgumentError: on rank 0, if there is no checkpoint or it is not of this model and optimizer.
    """
    optimizer.init(model.trainable_parameters())
    parts: dict[str, Any] = {
        "weights": model.trainable_parameters(),
        "optimizer": optimizer.state,
        "iteration": mx.array([0]),
    }
    if is_first_rank(model):
        shapes = _shapes(parts)
        if not (folder / STATE).is_file():
            raise ArgumentError(f"{folder} holds no {STATE}; train without --resume first")
        with refused(
            f"{folder}: the checkpoint cannot be read", "name another by --adapter-path, or train without --resume"
        ):
            state = json.loads((folder / STATE).read_text("utf-8"))
            parts = {
                "weights": _read(folder / state["adapters"]),
                "optimizer": _read(folder / state["optimizer"]),
                "iteration": mx.array([state["iteration"]]),
            }
        if _shapes(parts) != shapes:
            raise ArgumentError(
                f"{folder}: the checkpoint has other weights than this model, fine-tuning type, layers or optimizer; use the options of before"
            )
    return parts


def resume(parts: dict[str, Any], model: nn.Module, optimizer: optimizers.Optimizer) -> int:
    """Give every rank the checkpoint of rank 0, and return the batches that it was trained on.

    Args:
        parts: what `read_newest` returned on this rank.
        model: as there.
        optimizer: as there.
    """
    parts = of_first_rank(model, parts)
    model.update(parts["weights"])
    optimizer.state = parts["optimizer"]
    return int(np.array(parts["iteration"])[0])


def _read(path: Path) -> Any:
    return tree_unflatten(list(dict(mx.load(str(path))).items()))  # type: ignore[arg-type]  # a file of names


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {name: x.shape for name, x in dict(tree_flatten(tree)).items()}


def write_config(folder: Path, options: dict[str, Any]) -> None:
    """Write adapter_config.json, from which mlx-lm makes the layers of the adapters.

    Args:
        folder: made if needed.
        options: mlx_lm.lora's, by its names; `fine_tune_type`, `num_layers` and `lora_parameters` count.
    """
    from mlx_lm.utils import save_config

    with refused(f"{folder}: adapter_config.json cannot be written", _OTHER):
        folder.mkdir(parents=True, exist_ok=True)
        save_config(dict(options), folder / "adapter_config.json")


def write_model(folder: Path, source: Path, model: nn.Module) -> None:
    """Write a whole model of mlx-lm's format: the weights of `model`, and the other files of `source`.

    Args:
        folder: made if needed.
        source: folder of the model that was trained.
        model: the converted model.
    """
    from mlx_lm.utils import save_model

    with refused(f"{folder}: the model cannot be written", _OTHER):
        save_model(folder, model)
        for path in source.iterdir():
            if path.is_file() and ".safetensors" not in path.name:
                shutil.copy(path, folder / path.name)


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside `path` and rename it, so that a reader sees the old one or the new one."""
    new = path.with_name(f".{path.name}")
    write(new)
    with new.open("rb") as file:
        os.fsync(file.fileno())
    new.replace(path)
