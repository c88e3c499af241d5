"""Conversion of mlx-lm's models in a group of one: numbers, refusals by name, and that nothing is left local."""

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

pytest.importorskip("mlx_lm", reason="mlx-lm is not installed (extra lm)")

from mlx_lm.models import cache as local_caches
from mlx_lm.models import llama, rope_utils
from mlx_lm.tuner.utils import linear_to_lora_layers

from ringattn import ArgumentError, ModelError, ShapeError
from ringattn.layout import runs
from ringattn.lm import (
    CachedModel,
    gather_logits,
    local_tokens,
    loss_and_grad,
    make_cache,
    next_token_labels,
    shard_model,
)
from ringattn.lm.attention import Ring, RingMask, attention_call
from ringattn.lm.rope import rope_by_runs
from tests.support import language_models as models


def test_a_converted_model_gives_the_logits_of_the_model_before_and_others_stay_as_they_are():
    model, other = models.make("llama sliding"), models.make("llama sliding", seed=1)
    tokens = models.tokens(29)
    wanted, untouched = model(tokens), other(tokens)
    shard_model(model, check=True)
    got = gather_logits(model, model(local_tokens(model, tokens)))
    assert abs(got - wanted).max() <= 1e-5 * abs(wanted).max()
    assert mx.array_equal(other(tokens), untouched)
    assert isinstance(model.layers[0].self_attn, llama.Attention)
    with pytest.raises(ModelError, match="converted already"):
        shard_model(model)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_quantised_weights_and_lora_layers_are_converted(dtype: mx.Dtype):
    model = models.make("llama")
    model.set_dtype(dtype)
    nn.quantize(model, 32, 8, class_predicate=lambda _, m: hasattr(m, "to_quantized") and m.weight.shape[-1] % 32 == 0)
    linear_to_lora_layers(model, 2, {"rank": 4, "scale": 10.0, "dropout": 0.0})
    shard_model(model, check=True)
    tokens, labels = next_token_labels(models.tokens(20), mx.array([[0, 20], [20, 20]]))
    loss, grads = loss_and_grad(model, tokens, labels)
    assert 3 < float(np.array(loss)) < 6
    assert {name.split(".")[-1] for name, _ in models.flat(grads)} >= {"lora_a", "lora_b"}
    with pytest.raises(ArgumentError, match="no label counts"):
        loss_and_grad(model, tokens, mx.full(labels.shape, -100))
    with pytest.raises(ShapeError, match="must both be"):
        loss_and_grad(model, tokens, labels[:, 1:])


# Keys of other layers, latent keys, sinks by default; the others are long.
SPECIAL = ("gemma4", "deepseek_v3", "gpt_oss")


@pytest.mark.parametrize(
    "family", [name if name in SPECIAL else pytest.param(name, marks=pytest.mark.long) for name in models.FAMILIES]
)
def test_every_family_goes_on_from_its_cache(family: str):
    model, tokens = models.make(family), models.tokens(40, batch=1)
    wanted = model(tokens)
    cache = make_cache(shard_model(model))
    cached = CachedModel(model)
    parts = [cached(tokens[:, a:b], cache=cache) for a, b in ((0, 17), (17, 33), (33, 34), (34, 35), (35, 40))]
    assert abs(mx.concatenate(parts, axis=1) - wanted).max() <= 1e-5 * abs(wanted).max()


class OwnSoftmax(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.q_proj = inner.q_proj

    def __call__(self, x: mx.array, mask: object = None, cache: object = None) -> mx.array:
        return self.q_proj(x)


class Subclass(llama.Attention):
    """Known by its base, but its code could be any."""


class GatedDeltaNet(nn.Module):
    def __call__(self, x: mx.array, *_: object) -> mx.array:
        return x


def own_softmax(model: nn.Module) -> None:
    model.layers[1].self_attn = OwnSoftmax(model.layers[1].self_attn)


def subclass(model: nn.Module) -> None:
    model.layers[2].self_attn.__class__ = Subclass


def state_space(model: nn.Module) -> None:
    model.layers[0].mlp = GatedDeltaNet()


def dynamic_rope(model: nn.Module) -> None:
    model.layers[0].self_attn.rope = rope_utils.DynamicNTKScalingRoPE(8, 512, False, 1e4, 2.0)


def no_attention(model: nn.Module) -> None:
    model.layers[1].self_attn = nn.Linear(32, 32)


def split_already(model: nn.Module) -> None:
    model.layers[1].mlp.sharding_group = object()


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (own_softmax, r"model\.layers\.1\.self_attn is a .*OwnSoftmax, which the conversion does not know"),
        (
            subclass,
            r"model\.layers\.2\.self_attn is a .*Subclass, which the conversion does not know",
        ),
        (state_space, r"model\.layers\.0\.mlp is a .*GatedDeltaNet, .* from token to token"),
        (dynamic_rope, r"rope is a rope_utils\.DynamicNTKScalingRoPE, .* length of a pass"),
        (no_attention, r"3 layers, attention in layers \[0, 2\]"),
        (split_already, r"layers\.1\.mlp is a llama\.MLP, and is in parts already"),
    ],
)
def test_what_the_conversion_does_not_know_is_refused_by_name_and_nothing_is_changed(
    plant: Callable[[nn.Module], None], message: str
):
    model = models.make("llama")
    plant(model)
    with pytest.raises(ModelError, match=message):
        shard_model(model)
    assert {type(m).__module__ for _, m in model.named_modules()} <= {
        __name__,
        llama.__name__,
        rope_utils.__name__,
        *(f"mlx.nn.layers.{name}" for name in ("embedding", "linear", "normalization", "positional_encoding")),
    }


def test_a_layer_that_does_not_attend_over_the_ring_is_an_error():
    model = shard_model(models.make("llama"))
    model.layers[1].__class__ = type("Skips", (llama.TransformerBlock,), {"__call__": lambda self, x, *_, **__: x})
    with pytest.raises(ModelError, match=r"ran in layers \[0, 2\] of a model of 3 layers"):
        model(models.tokens(9))


def test_local_caches_and_masks_and_code_that_another_version_changed_are_errors(monkeypatch: pytest.MonkeyPatch):
    model = shard_model(models.make("llama"))
    with pytest.raises(ModelError, match="class KVCache keeps keys and values of one rank"):
        model(models.tokens(9), cache=[local_caches.KVCache() for _ in model.layers])
    x = mx.zeros((1, 9, 32))
    with pytest.raises(ModelError, match=r"layer 1 got a mask of class array"):
        model.layers[1](x, mx.ones((9, 9), mx.bool_))
    with pytest.raises(ModelError, match="RoPE was called outside its attention"):
        model.layers[0].self_attn.rope(x[None])
    monkeypatch.setattr(llama.Attention, "__call__", lambda self, x, mask=None, cache=None: x)
    with pytest.raises(ModelError, match=r"llama\.Attention\.__call__ does not use scaled_dot_product_attention"):
        shard_model(models.make("llama"))


@pytest.mark.parametrize("layout", ["contiguous", "zigzag", "striped"])
@pytest.mark.parametrize("traditional", [False, True])
def test_rope_by_runs_rotates_by_absolute_positions(layout: str, traditional: bool):
    rope = nn.RoPE(8, traditional=traditional)
    x = mx.random.normal((2, 3, 23, 8), key=mx.random.key(0))
    wanted = rope(x)
    rope.__class__ = rope_by_runs(nn.RoPE)  # type: ignore[assignment]
    for held in runs(layout, 23, 3):
        here = mx.array([i for run in held for i in run])
        with attention_call(RingMask(Ring(None, None), held, None), 0):  # type: ignore[arg-type]
            assert abs(rope(x[:, :, here]) - wanted[:, :, here]).max() <= 1e-6
