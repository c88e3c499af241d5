"""The classes of mlx-lm that the conversion knows, by role. A module of any other class makes it refuse the model.

Names are those of mlx-lm's own modules, without `mlx_lm.models.`: a class of the same name elsewhere is not known.
"""

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from ringattn.lm import own_attention

_PREFIX = "mlx_lm.models."

# Attention → its own call over the ring; None: the class's own code, with mlx-lm's `scaled_dot_product_attention` replaced.
ATTENTION: dict[str, Callable[..., mx.array] | None] = {
    "llama.Attention": None,
    "qwen2.Attention": None,
    "qwen3.Attention": None,
    "qwen3_moe.Attention": None,
    "phi3.Attention": None,
    "olmo2.Attention": None,
    "gemma2.Attention": own_attention.gemma2,
    "gemma3_text.Attention": None,
    "gemma4_text.Attention": None,
    "cohere2.Attention": None,
    "gpt_oss.AttentionBlock": None,
    "deepseek_v3.DeepseekV3Attention": own_attention.deepseek_v3,
}

# The module that makes the masks and runs the layers → its methods that name mlx-lm's `create_attention_mask`.
BODIES: dict[str, tuple[str, ...]] = {
    "llama.LlamaModel": ("__call__",),
    "qwen2.Qwen2Model": ("__call__",),
    "qwen3.Qwen3Model": ("__call__",),
    "qwen3_moe.Qwen3MoeModel": ("__call__",),
    "phi3.Phi3Model": ("__call__",),
    "olmo2.LlamaModel": ("__call__",),
    "gemma2.GemmaModel": ("__call__",),
    "gemma3_text.Gemma3Model": ("__call__",),
    "gemma4_text.Gemma4TextModel": ("_make_masks",),
    "cohere2.CohereModel": ("__call__",),
    "gpt_oss.GptOssMoeModel": ("__call__",),
    "deepseek_v3.DeepseekV3Model": ("__call__",),
}

# Rotations by absolute position, whose angles do not depend on the length of a pass.
ROPES = frozenset(
    {
        "mlx.nn.layers.positional_encoding.RoPE",
        "rope_utils.Llama3RoPE",
        "rope_utils.YarnRoPE",
        "rope_utils.SuScaledRoPE",
        "rope_utils.ProportionalRoPE",
    }
)

# Modules that treat every token alone, or only pass on to their children.
TOKENWISE = frozenset(
    {
        *(f"mlx.nn.layers.linear.{name}" for name in ("Linear", "Identity")),
        *(f"mlx.nn.layers.quantized.{name}" for name in ("QuantizedLinear", "QuantizedEmbedding")),
        "mlx.nn.layers.embedding.Embedding",
        *(f"mlx.nn.layers.normalization.{name}" for name in ("RMSNorm", "LayerNorm")),
        "mlx.nn.layers.dropout.Dropout",
        *(f"mlx_lm.tuner.lora.{name}" for name in ("LoRALinear", "LoRASwitchLinear", "LoRAEmbedding")),
        *(f"mlx_lm.tuner.dora.{name}" for name in ("DoRALinear", "DoRAEmbedding")),
        *(f"switch_layers.{name}" for name in ("SwitchGLU", "SwitchLinear", "QuantizedSwitchLinear", "SwiGLU")),
        "activations.SwiGLU",
        "activations.SwigluOAI",
        "mla.MultiLinear",
        "mla.QuantizedMultiLinear",
        *(f"llama.{name}" for name in ("MLP", "TransformerBlock", "Model")),
        *(f"qwen2.{name}" for name in ("MLP", "TransformerBlock", "Model")),
        *(f"qwen3.{name}" for name in ("MLP", "TransformerBlock", "Model")),
        *(f"qwen3_moe.{name}" for name in ("MLP", "Qwen3MoeSparseMoeBlock", "Qwen3MoeDecoderLayer", "Model")),
        *(f"phi3.{name}" for name in ("MLP", "TransformerBlock", "Model")),
        *(f"olmo2.{name}" for name in ("MLP", "TransformerBlock", "Model")),
        *(f"gemma2.{name}" for name in ("RMSNorm", "MLP", "TransformerBlock", "Model")),
        *(f"gemma3_text.{name}" for name in ("RMSNorm", "MLP", "TransformerBlock", "Model")),
        "gemma3.Model",
        *(
            f"gemma4_text.{name}"
            for name in ("RMSNormNoScale", "MLP", "Router", "GeGLU", "Experts", "DecoderLayer", "Model")
        ),
        "gemma4.Model",
        *(f"cohere2.{name}" for name in ("MLP", "TransformerBlock", "Model")),
        *(f"gpt_oss.{name}" for name in ("MLPBlock", "TransformerBlock", "Model")),
        *(f"smollm3.{name}" for name in ("NoPE", "Model")),
        *(
            f"deepseek_v3.{name}"
            for name in ("DeepseekV3MLP", "MoEGate", "DeepseekV3MoE", "DeepseekV3DecoderLayer", "Model")
        ),
    }
)

# Why some classes cannot be converted, for the refusal.
REASONS = {
    "rope_utils.DynamicNTKScalingRoPE": "its base depends on the length of a pass, so keys of different passes would not fit together",
}


def class_name(module: Any) -> str:
    """Return the name of a module's class as the tables above write it."""
    cls = type(module)
    return f"{cls.__module__}.{cls.__qualname__}".removeprefix(_PREFIX)


def reason(name: str) -> str:
    """Return why a class is not converted."""
    if name in REASONS:
        return REASONS[name]
    low = name.lower()
    if any(
        word in low
        for word in ("ssm", "mamba", "conv", "delta", "linearattention", "lightning", "recurrent", "rwkv", "kda")
    ):
        return "its state goes from token to token, which attention over a ring does not carry"
    if "attention" in low or "attn" in low:
        return "its attention would see this rank's tokens only"
    if "rope" in low or "rotary" in low:
        return "it would count positions from this rank's first token"
    return "it is not known whether it treats every token alone"
