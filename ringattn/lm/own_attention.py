"""Attention of the models that do not call mlx-lm's `scaled_dot_product_attention`, or not with plain keys and values.

Each function is a layer's whole attention: `(module, x [B, L, hidden], mask, cache, layer) → [B, L, hidden]`.
"""

from typing import Any

import mlx.core as mx

from ringattn.lm.attention import attend


def gemma2(module: Any, x: mx.array, mask: Any = None, cache: Any = None, *, layer: int) -> mx.array:
    """Compute Gemma 2's attention: scores are bounded by softcap · tanh(score / softcap) before the softmax."""
    q = module.rope(_heads(module.q_proj(x), module.n_heads))
    k = module.rope(_heads(module.k_proj(x), module.n_kv_heads))
    v = _heads(module.v_proj(x), module.n_kv_heads)
    if cache is not None:
        k, v = cache.update_and_fetch(k, v)
    o = attend(q, k, v, cache=cache, scale=module.scale, mask=mask, softcap=module.attn_logit_softcapping, layer=layer)
    return module.o_proj(_joined(o))


def deepseek_v3(module: Any, x: mx.array, mask: Any = None, cache: Any = None, *, layer: int) -> mx.array:
    """Compute DeepSeek V3's multi-head latent attention (MLA).

    A head's key is its own projection of the latent and one rotated part that all heads share; so the score is one inner
    product of the two joined, and no scores of the rotated part need be added as a mask. With a cache only the latent and
    the rotated part are kept: queries are then projected into the latent, which is key and value of all heads.
    """
    low_rank = module.q_lora_rank is not None
    q = module.q_b_proj(module.q_a_layernorm(module.q_a_proj(x))) if low_rank else module.q_proj(x)
    q_plain, q_rotated = mx.split(_heads(q, module.num_heads), [module.qk_nope_head_dim], axis=-1)
    q_rotated = module.rope(q_rotated)
    latent, k_rotated = mx.split(module.kv_a_proj_with_mqa(x), [module.kv_lora_rank], axis=-1)
    k_rotated = module.rope(k_rotated[:, None])
    latent = module.kv_a_layernorm(latent)[:, None]
    if cache is None:
        k_plain, v = module.embed_q(latent, transpose=False), module.unembed_out(latent)
        q = mx.concatenate([q_plain, q_rotated], axis=-1)
        k = mx.concatenate([k_plain, mx.broadcast_to(k_rotated, (*k_plain.shape[:3], k_rotated.shape[-1]))], axis=-1)
        o = attend(q, k, v, cache=None, scale=module.scale, mask=mask, layer=layer)
    else:
        q = mx.concatenate([module.embed_q(q_plain), q_rotated], axis=-1)
        k, v = cache.update_and_fetch(mx.concatenate([latent, k_rotated], axis=-1), latent)
        o = module.unembed_out(attend(q, k, v, cache=cache, scale=module.scale, mask=mask, layer=layer))
    return module.o_proj(_joined(o))


def _heads(x: mx.array, heads: int) -> mx.array:
    """Split [B, L, heads · D] into [B, heads, L, D]."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def _joined(o: mx.array) -> mx.array:
    """Join [B, heads, L, D] into [B, L, heads · D]."""
    return o.transpose(0, 2, 1, 3).reshape(o.shape[0], o.shape[2], -1)
