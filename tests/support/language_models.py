"""Tiny models of mlx-lm's families with random weights, and their errors over the ring against one process."""

import importlib
import re
from pathlib import Path
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
_EXPERTS = {"moe_intermediate_size": 16, "num_experts_per_tok": 2}
_GEMMA4 = _DENSE | {
    "num_hidden_layers": 5,
    "head_dim": 16,
    "global_head_dim": 288,  # above 256, as the 512 of the real ones: only the mlx kernel takes it
    "num_kv_shared_layers": 2,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCABULARY,
    "sliding_window": 7,
    "sliding_window_pattern": 2,
}
_DEEPSEEK = (
    _DENSE
    | _EXPERTS
    | {"num_key_value_heads": 4, "q_lora_rank": 20, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 12}
    | {"v_head_dim": 10, "n_routed_experts": 6, "n_shared_experts": 1, "n_group": 2, "topk_group": 1}
    | {"first_k_dense_replace": 1}
)
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
    "qwen3 yarn": ("qwen3", _DENSE | {"head_dim": 16, "tie_word_embeddings": False, "rope_scaling": _YARN}),
    "qwen3_moe": (
        "qwen3_moe",
        _DENSE
        | _EXPERTS
        | {"head_dim": 8, "num_experts": 6, "mlp_only_layers": [1], "decoder_sparse_step": 1}
        | {"norm_topk_prob": True, "tie_word_embeddings": False},
    ),
    "phi3": ("phi3", _DENSE),
    "phi3 longrope": (
        "phi3",
        _DENSE
        | {"partial_rotary_factor": 0.5, "original_max_position_embeddings": 32}
        | {"rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.0], "long_factor": [1.5, 4.0]}},
    ),
    "olmo2": ("olmo2", _DENSE),
    "gemma2": ("gemma2", _DENSE | {"head_dim": 16, "attn_logit_softcapping": 2.0}),
    "gemma3": ("gemma3_text", _DENSE | {"head_dim": 16, "sliding_window": 7, "sliding_window_pattern": 3}),
    "gemma3 with a picture's part": (
        "gemma3",
        {
            "vocab_size": VOCABULARY,
            "text_config": _DENSE
            | {"model_type": "gemma3_text", "head_dim": 16, "sliding_window": 40, "sliding_window_pattern": 2},
        },
    ),
    "gemma4": ("gemma4_text", _GEMMA4),
    "gemma4 experts": (
        "gemma4_text",
        _GEMMA4
        | {"num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0, "attention_k_eq_v": True}
        | {"enable_moe_block": True, "num_experts": 6, "top_k_experts": 2, "moe_intermediate_size": 16},
    ),
    "cohere2": (
        "cohere2",
        {k: v for k, v in _DENSE.items() if k != "max_position_embeddings"}
        | {"head_dim": 8, "sliding_window": 7, "sliding_window_pattern": 2},
    ),
    "gpt_oss": (
        "gpt_oss",
        _DENSE
        | {"head_dim": 16, "sliding_window": 7, "num_local_experts": 6, "num_experts_per_tok": 2}
        | {"num_hidden_layers": 4, "rope_scaling": _YARN},
    ),
    "smollm3": ("smollm3", _DENSE | {"no_rope_layer_interval": 2}),
    "deepseek_v3": ("deepseek_v3", _DEEPSEEK),
    "deepseek_v3 yarn": (
        "deepseek_v3",
        _DEEPSEEK | {"q_lora_rank": None, "rope_scaling": _YARN | {"mscale_all_dim": 1.0, "mscale": 1.0}},
    ),
}


def make(name: str, seed: int = 0) -> nn.Module:
    """A model of float32, whose weights, zero ones too, are all random."""
    module, config = FAMILIES[name]
    family = importlib.import_module(f"mlx_lm.models.{module}")
    mx.random.seed(seed)
    model = family.Model(family.ModelArgs.from_dict({"model_type": module, **config}))
    model.update(tree_map(lambda w: w + 0.05 * mx.random.normal(w.shape), model.parameters()))
    for path, part in model.named_modules():
        if "gemma4" in module and path.endswith("q_norm"):
            # Gemma 4 has no scale on its scores: what is trained holds it. Without it scores of 60 round to 4e-6.
            part.weight = part.weight * part.weight.size**-0.5
    mx.eval(model.parameters())
    return model


def write(folder: Path, name: str) -> None:
    """Write a model and a tokenizer, whose words are the numbers of the tokens, as mlx-lm reads them."""
    from mlx_lm.utils import save_config, save_model
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    module, config = FAMILIES[name]
    words = Tokenizer(models.WordLevel({str(i): i for i in range(VOCABULARY)}, unk_token="0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    save_model(folder, make(name))
    save_config({"model_type": module, **config}, folder / "config.json")
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="0", eos_token="1").save_pretrained(folder)


def tokens(length: int, batch: int = 2, seed: int = 1) -> mx.array:
    return mx.random.randint(0, VOCABULARY, (batch, length), key=mx.random.key(seed))


def summed_loss(model: nn.Module, inputs: mx.array, labels: mx.array) -> tuple[mx.array, mx.array]:
    """Cross entropy of all labels, summed, and the logits."""
    logits = model(inputs)
    return nn.losses.cross_entropy(logits, labels).sum(), logits


def worst(got: list[tuple[str, mx.array]], wanted: dict[str, mx.array]) -> tuple[float, str]:
    """The largest error of a parameter's gradient, of the largest value of that gradient, and the parameter's name.

    A parameter of one number (Gemma 4's layer_scalar) is measured by the largest of its kind over the layers: alone it may be
    nothing but rounding, as the last layer's is, which the norm after it cancels.
    """
    assert {name for name, _ in got} == set(wanted)
    largest: dict[str, float] = {}
    for name, g in wanted.items():
        kind = _kind(name, g)
        largest[kind] = max(largest.get(kind, 1e-12), float(abs(g).max()))
    return max((float(abs(g - wanted[name]).max()) / largest[_kind(name, g)], name) for name, g in got)


def _kind(name: str, x: mx.array) -> str:
    return re.sub(r"\.\d+\.", ".*.", name) if x.size == 1 else name


def flat(tree: Any) -> list[tuple[str, mx.array]]:
    return list(dict(tree_flatten(tree)).items())
