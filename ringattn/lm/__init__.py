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
    from ringattn.lm.cache import CachedModel, LayerCache, ShardedCache, make_cache
    from ringattn.lm.convert import gather_logits, local_tokens, shard_model
    from ringattn.lm.generation import generate_step, model_digest, prefill, stream_generate
    from ringattn.lm.load import load
    from ringattn.lm.loss import loss_and_grad, loss_of, next_token_labels

__all__ = [
    "CachedModel",
    "LayerCache",
    "ShardedCache",
    "gather_logits",
    "generate_step",
    "load",
    "local_tokens",
    "loss_and_grad",
    "loss_of",
    "make_cache",
    "model_digest",
    "next_token_labels",
    "prefill",
    "shard_model",
    "stream_generate",
]

_HOMES = {  # module → its names
    "cache": ("CachedModel", "LayerCache", "ShardedCache", "make_cache"),
    "convert": ("gather_logits", "local_tokens", "shard_model"),
    "generation": ("generate_step", "model_digest", "prefill", "stream_generate"),
    "load": ("load",),
    "loss": ("loss_and_grad", "loss_of", "next_token_labels"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
