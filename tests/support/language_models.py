"""Tiny models of mlx-lm's families with random weights, and their errors over the ring against one process."""

import importlib
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map

VOCABULARY = 61
_DENSE = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCABULARY,
    "rope_theta": 10000.0,
    "max_position_embeddings": 512,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
_SLIDING = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": 7}
# name → (module of mlx_lm.models, config)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _DENSE),
    "llama traditional": ("llama", _DENSE | {"rope_traditional": True, "tie_word_embeddings": False}),
    "llama linear": ("llama", _DENSE | {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
    "llama llama3": ("llama", _DENSE | {"rope_scaling": _LLAMA3}),
    "llama yarn": ("llama", _DENSE | {"rope_scaling": _YARN}),
    "llama sliding": ("llama", _DENSE | _SLIDING),
    # Every rank holds fewer tokens than the window, so that a mask made of local lengths would lose it.
    "llama wide window": ("llama", _DENSE | _SLIDING | {"sliding_window": 40}),
    "qwen2": ("qwen2", _DENSE),
    "qwen3": ("qwen3", _DENSE | {"head_dim": 16, "tie_word_embeddings": True}),
}


def make(name: str, seed: int = 0) -> nn.Module:
    """A model of float32, whose weights, zero ones too, are all random."""
    module, config = FAMILIES[name]
    family = importlib.import_module(f"mlx_lm.models.{module}")
    mx.random.seed(seed)
    model = family.Model(family.ModelArgs.from_dict({"model_type": module, **config}))
    model.update(tree_map(lambda w: w + 0.05 * mx.random.normal(w.shape), model.parameters()))
    mx.eval(model.parameters())
    return model


def tokens(length: int, batch: int = 2, seed: int = 1) -> mx.array:
    return mx.random.randint(0, VOCABULARY, (batch, length), key=mx.random.key(seed))


def summed_loss(model: nn.Module, inputs: mx.array, labels: mx.array) -> tuple[mx.array, mx.array]:
    """Cross entropy of all labels, summed, and the logits."""
    logits = model(inputs)
    return nn.losses.cross_entropy(logits, labels).sum(), logits


def worst(got: list[tuple[str, mx.array]], wanted: dict[str, mx.array]) -> tuple[float, str]:
    """The largest error of a parameter's gradient, of the largest value of that gradient, and the parameter's name."""
    assert {name for name, _ in got} == set(wanted)
    errors = [(float(abs(g - wanted[name]).max() / (abs(wanted[name]).max() + 1e-12)), name) for name, g in got]
    return max(errors)


def flat(tree: Any) -> list[tuple[str, mx.array]]:
    return list(dict(tree_flatten(tree)).items())
