"""Convert an mlx-lm model so that each rank holds a part of the sequence: `shard_model(model, group)`.

The models' own code keeps running. An attention module's class is exchanged for a subclass whose code sees `attend` in
the place of mlx-lm's `scaled_dot_product_attention`; the module that makes the masks, likewise, for one that makes
`RingMask`s; RoPE, for one that rotates by positions. Nothing in mlx_lm itself is changed, so that other models of the
process stay as they are. A module of a class that `families` does not list is refused, never left local.
"""

import inspect
import re
import types
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ringattn import sharding
from ringattn._errors import ModelError
from ringattn.layout import Layout, as_layout
from ringattn.lm import families
from ringattn.lm.attention import Ring, attend, attention_call, create_mask, forward_pass, given_hidden, hidden_at_hand
from ringattn.lm.rope import rope_by_runs
from ringattn.transport import Group, transport_of, wait_limit

_IS_BODY = "_ringattn_body"  # an attribute of the class that `_body_class` makes


def shard_model(
    model: nn.Module,
    group: Group = None,
    *,
    layout: str | Layout = "zigzag",
    kernel: str | None = None,
    timeout: float | None = None,
    check: bool = False,
) -> nn.Module:
    """Convert an mlx-lm model in place, so that it takes and returns this rank's tokens, and attends to those of all ranks.

    The model is called as before, with `local_tokens(model, tokens)`; every rank has to call it at the same time. Its
    parameters do not change. LoRA layers may be added before or after.

    Args:
        model: a model of `mlx_lm.load`, the same on every rank; not in parts (mlx-lm's tensor or pipeline parallelism).
        group: an MLX group (None: the global one), or a Transport.
        layout: layout of the sequence over the ranks.
        kernel: name of the block kernel; None: environment RINGATTN_KERNEL, else the best one for each call.
        timeout: seconds that any wait may take; None: environment RINGATTN_TIMEOUT, else 60.
        check: also prove the conversion by one small forward pass before and after it.

    Returns:
        The model.

    Raises:
        ModelError: if a module's class is not known, or if the check finds other logits; the message names the module.
    """
    if ring_of(model, required=False) is not None:
        raise ModelError(f"{type(model).__name__} is converted already; load it again for another group or layout")
    ring = Ring(group, as_layout(layout), kernel, timeout)
    attention, body, ropes = _known_parts(model)
    tokens = _sample(model, transport_of(group).size()) if check else None
    wanted = None if tokens is None else model(tokens)
    for layer, module in attention.items():
        module.__class__ = _attention_class(type(module), layer)
    body.__class__ = _body_class(type(body), ring, len(attention))
    for module in ropes:
        module.__class__ = rope_by_runs(type(module))
    model.ring = ring
    if tokens is not None and wanted is not None:
        _compare(model, tokens, wanted)
    return model


def ring_of(model: nn.Module, *, required: bool = True) -> Ring | None:
    """Return how a model was converted; None if it was not.

    Raises:
        ModelError: if it was not, and it is required.
    """
    ring = model.__dict__.get("ring")
    if ring is None and required:
        raise ModelError(
            f"{type(model).__name__} holds the whole sequence; convert it with ringattn.lm.shard_model first"
        )
    return ring


def local_tokens(model: nn.Module, tokens: mx.array) -> mx.array:
    """Return this rank's part [B, T_local] of tokens, labels or masks [B, T] that every rank holds whole."""
    ring = _ring(model)
    return sharding.shard(tokens, 1, layout=ring.layout, group=ring.group)


def gather_logits(model: nn.Module, logits: mx.array) -> mx.array:
    """Return the whole logits [B, T, V] on every rank, from the local ones [B, T_local, V]. No gradient flows through it."""
    ring = _ring(model)
    return sharding.unshard(logits, 1, layout=ring.layout, group=ring.group, timeout=ring.timeout)


def hidden_states(model: nn.Module, tokens: mx.array, cache: Any = None) -> mx.array:
    """Return what the model's layers make of this rank's tokens [B, L], before its head: [B, L, hidden size].

    Args:
        model: a converted model.
        tokens: this rank's tokens [B, L].
        cache: caches, one a layer, or None.
    """
    (body,) = (module for _, module in model.named_modules() if hasattr(type(module), _IS_BODY))
    return body(tokens, cache=cache)


def head(model: nn.Module, hidden: mx.array) -> mx.array:
    """Return the logits [B, L, V] of hidden states [B, L, hidden size] of any of this rank's tokens, e.g. of the last alone."""
    with given_hidden(hidden):
        return model(mx.zeros(hidden.shape[:2], dtype=mx.int32))


def _ring(model: nn.Module) -> Ring:
    ring = ring_of(model)
    assert ring is not None
    return ring


def _known_parts(model: nn.Module) -> tuple[dict[int, nn.Module], nn.Module, list[nn.Module]]:
    """Return the attention of each layer, the module that makes the masks, and the RoPEs.

    Raises:
        ModelError: if a module's class is not known, or if the attention modules are not one a layer.
    """
    attention: dict[int, nn.Module] = {}
    bodies, ropes = [], {}
    for path, module in sorted(model.named_modules()):
        name = families.class_name(module)
        where = f"{path or 'the model'} is a {name}"
        if name in families.ATTENTION:
            number = re.search(r"layers\.(\d+)", path)
            if number is None or int(number[1]) in attention:
                raise ModelError(f"{where}, but not the one attention of a layer; the conversion knows one a layer")
            attention[int(number[1])] = module
        elif name in families.BODIES:
            bodies.append(module)
        elif name in families.ROPES:
            ropes[id(module)] = module
        elif name not in families.TOKENWISE:
            raise ModelError(
                f"{where}, which the conversion does not know: {families.reason(name)}. Nothing was changed; "
                "docs/reference/language_models.md lists what is converted"
            )
        if getattr(module, "sharding_group", None) is not None or getattr(module, "pipeline_size", 1) != 1:
            raise ModelError(f"{where}, and is in parts already (mlx-lm's own parallelism); load the model whole")
    layers = len(model.layers)
    if len(bodies) != 1 or sorted(attention) != list(range(layers)):
        raise ModelError(
            f"{families.class_name(model)} has {layers} layers, attention in layers {sorted(attention)} and "
            f"{len(bodies)} modules that make masks; the conversion needs attention in each layer and one such module"
        )
    return attention, bodies[0], list(ropes.values())


def _attention_class(cls: type[nn.Module], layer: int) -> type[nn.Module]:
    """Return a subclass of an attention class whose call attends over the ring, as layer number `layer`."""
    own = families.ATTENTION[_name(cls)]

    def scaled_dot_product_attention(
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        cache: Any = None,
        scale: float = 1.0,
        mask: Any = None,
        sinks: mx.array | None = None,
    ) -> mx.array:
        return attend(queries, keys, values, cache=cache, scale=scale, mask=mask, sinks=sinks, layer=layer)

    call: Callable[..., Any]
    if own is None:
        call = _rebound(cls, "__call__", scaled_dot_product_attention=scaled_dot_product_attention)
    else:
        function = own

        def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return function(self, *args, layer=layer, **kwargs)

    signature = inspect.signature(cls.__call__)

    def attention(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with attention_call(signature.bind(self, *args, **kwargs).arguments.get("mask"), layer):
            return call(self, *args, **kwargs)

    return _subclass(cls, __call__=attention)


def _body_class(cls: type[nn.Module], ring: Ring, layers: int) -> type[nn.Module]:
    """Return a subclass of a class that makes masks, whose masks are RingMasks and whose passes are checked."""
    methods = {name: _rebound(cls, name, create_attention_mask=create_mask) for name in families.BODIES[_name(cls)]}
    call = methods.get("__call__", cls.__call__)

    def body(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if (hidden := hidden_at_hand()) is not None:
            return hidden
        with forward_pass(ring, layers):
            return call(self, *args, **kwargs)

    return _subclass(cls, **{**methods, "__call__": body, _IS_BODY: True})


def _name(cls: type[nn.Module]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}".removeprefix("mlx_lm.models.")


def _subclass(cls: type[nn.Module], **methods: Any) -> type[nn.Module]:
    return type(cls.__name__, (cls,), {"__qualname__": cls.__qualname__, **methods})


def _rebound(cls: type[nn.Module], method: str, **names: Any) -> Callable[..., Any]:
    """Return a method of a class with other values for some of the global names that its code uses.

    Raises:
        ModelError: if its code does not use them: this mlx-lm is not the one that the conversion knows.
    """
    function = getattr(cls, method)
    for name in names:
        if name not in function.__code__.co_names:
            raise ModelError(
                f"{_name(cls)}.{method} does not use {name} in this version of mlx-lm, so its attention cannot be reached; "
                "install a version that docs/reference/language_models.md names"
            )
    rebound = types.FunctionType(
        function.__code__, {**function.__globals__, **names}, method, function.__defaults__, function.__closure__
    )
    rebound.__kwdefaults__ = function.__kwdefaults__
    return rebound


def _sample(model: nn.Module, ranks: int) -> mx.array:
    """Return random tokens [1, T] of the model's vocabulary, the same on every rank; T is odd and no multiple of the ranks."""
    vocabulary = model(mx.zeros((1, 2), dtype=mx.int32)).shape[-1]
    return mx.array(np.random.default_rng(0).integers(0, vocabulary, (1, 16 * ranks + 1)).astype(np.int32))


def _compare(model: nn.Module, tokens: mx.array, wanted: mx.array) -> None:
    """Compare the converted model's logits with those of the model before.

    Raises:
        ModelError: if they differ by more than rounding does, on every rank.
    """
    ring = _ring(model)
    transport = transport_of(ring.group)
    got, here = (x.astype(mx.float32) for x in (model(local_tokens(model, tokens)), local_tokens(model, wanted)))
    bound = 1e-4 if wanted.dtype == mx.float32 else 5e-2  # of the largest logit; half precision rounds each layer
    error = (abs(got - here).max() / mx.maximum(abs(wanted).max(), 1e-6)).astype(mx.float32).reshape(1)
    mx.eval(error)
    if transport.size() > 1:
        limit = wait_limit(ring.timeout)
        (error,) = transport.all_gather(error, "proof of a conversion").wait(limit)
    if not error.max().item() <= bound:
        raise ModelError(
            f"the converted {families.class_name(model)} gives logits that differ by {error.max().item():.1e} of the largest "
            f"(bound {bound:g}) from those of the model before; do not use it"
        )
