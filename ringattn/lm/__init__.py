"""Language models of mlx-lm over the ring: `from ringattn.lm import load`. Needs the extra `lm` (mlx-lm).

Each rank holds a part of every sequence, all weights, and computes its part of the logits:

    group = ringattn.init()
    model, tokenizer = load("path/of/model", group)
    logits = model(local_tokens(model, tokens))

This package alone of ringattn imports mlx_lm; each name below is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ringattn.lm.convert import gather_logits, local_tokens, shard_model
    from ringattn.lm.load import load

__all__ = ["gather_logits", "load", "local_tokens", "shard_model"]

_HOMES = {"convert": ("gather_logits", "local_tokens", "shard_model"), "load": ("load",)}  # module → its names


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
