"""Load a model of mlx-lm's format from a folder, and convert it."""

from pathlib import Path
from typing import Any

import mlx.nn as nn

from ringattn._errors import ArgumentError
from ringattn.layout import Layout
from ringattn.lm._command import refused
from ringattn.lm.convert import shard_model
from ringattn.transport import Group


def load(
    folder: str | Path,
    group: Group = None,
    *,
    layout: str | Layout = "zigzag",
    timeout: float | None = None,
    check: bool = False,
) -> tuple[nn.Module, Any]:
    """Load a model and its tokenizer as `mlx_lm.load` does, and convert the model by `shard_model`.

    Args:
        folder: folder with config.json, weights and tokenizer, the same on every rank's host; nothing is downloaded.
        group: as for `shard_model`.
        layout: as for `shard_model`.
        timeout: as for `shard_model`.
        check: as for `shard_model`.

    Returns:
        The converted model, and mlx-lm's tokenizer.

    Raises:
        ArgumentError: if the folder holds no model, or a damaged one.
    """
    from mlx_lm import load as load_whole

    if not (Path(folder) / "config.json").is_file():
        raise ArgumentError(f"{folder} holds no config.json; name the folder of a model in mlx-lm's format")
    with refused(
        f"{folder}: the model cannot be loaded", "copy or download its files again, or name another folder with --model"
    ):
        model, tokenizer = load_whole(str(folder))[:2]
    return shard_model(model, group, layout=layout, timeout=timeout, check=check), tokenizer
