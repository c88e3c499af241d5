"""Attention of a converted model: its one call, its mask, and the state of one forward pass.

The masks that a model makes become `RingMask`s. They go through the model's own code down to its attention, and carry
what the parts of the conversion need there: the ring, the positions of this rank's tokens, and the window. So a
recomputation of a layer (mx.checkpoint), which comes after the forward pass, has them too.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol

import mlx.core as mx

from ringattn._call_header import Kind, exchange
from ringattn._errors import LayoutError, ModelError
from ringattn.attention import ring_attention
from ringattn.layout import Layout, lengths, runs
from ringattn.transport import Group, transport_of, wait_limit


@dataclass(frozen=True)
class Ring:
    """How a converted model is spread over ranks.

    Attributes:
        group: an MLX group (None: the global one), or a Transport.
        layout: layout of the sequence over the ranks.
        kernel: name of the block kernel; None: the best one for each call.
        timeout: seconds that any wait may take; None: environment RINGATTN_TIMEOUT, else 60.
    """

    group: Group
    layout: Layout
    kernel: str | None = None
    timeout: float | None = None

    def local_runs(self, length: int) -> tuple[range, ...]:
        """Return the positions of this rank's tokens in local order, from the number of tokens that each rank holds.

        Raises:
            LayoutError: if the numbers do not follow the layout; on every rank.
        """
        transport = transport_of(self.group)
        rows = exchange(Kind.FORWARD, None, [length], transport, wait_limit(self.timeout))
        held = [row[0] for row in rows]
        total = sum(held)
        wanted = list(lengths(self.layout, total, transport.size()))
        if held != wanted:
            raise LayoutError(
                f"the layout gives {total} tokens over {len(held)} ranks as {wanted}, but the model got {held}; "
                "shard the tokens with ringattn.lm.local_tokens"
            )
        return runs(self.layout, total, transport.size())[transport.rank()]


class RingCache(Protocol):
    """Keys and values of a layer that stay sharded; `update_and_fetch` and `offset` are as mlx-lm's models use them."""

    offset: int

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Add the keys and values [B, Hkv, L, D] of a pass, and return what `attend` gets as k and v."""

    def local_runs(self, length: int) -> tuple[range, ...]:
        """Return the positions of the `length` tokens that this rank brings into the next pass."""

    def attend(  # noqa: D102  as `attend` below
        self,
        q: mx.array,
        k: mx.array,
        v: mx.array,
        *,
        scale: float,
        window: int | None,
        sinks: mx.array | None,
        softcap: float | None,
    ) -> mx.array: ...


@dataclass(frozen=True, eq=False)
class RingMask:
    """What a converted model passes to its layers in place of a mask; always causal.

    Attributes:
        ring: the model's ring.
        runs: positions of this rank's tokens, in local order.
        window: number of positions that a query sees, itself included; None: all.
        cached: whether the pass has caches.
    """

    ring: Ring
    runs: tuple[range, ...]
    window: int | None
    cached: bool = False


@dataclass
class Forward:
    """One forward pass: the positions of its tokens, found once, and the layers whose attention ran.

    Attributes:
        ring: the model's ring.
        layers: attention calls so far, each as its layer's number.
        caches: the keys that each cache gave so far, and the cache.
    """

    ring: Ring
    layers: list[int] = field(default_factory=list)
    caches: list[tuple[mx.array, RingCache]] = field(default_factory=list)
    _runs: tuple[range, ...] | None = None

    def mask(
        self, h: mx.array, cache: RingCache | None = None, window_size: int | None = None, return_array: bool = False
    ) -> RingMask:
        """Return a RingMask; replaces mlx-lm's `create_attention_mask`, which sees local lengths only.

        Args:
            h: hidden states [B, L, hidden] of this rank's tokens.
            cache: cache of a layer that will get the mask.
            window_size: number of positions that a query sees; None: all.
            return_array: of mlx-lm's signature; there is no array.

        Raises:
            ModelError: if the cache is not a RingCache.
        """
        if cache is not None and not hasattr(cache, "attend"):
            raise ModelError(
                f"a cache of class {type(cache).__name__} keeps keys and values of one rank; make one with ringattn.lm.make_cache"
            )
        if self._runs is None:
            self._runs = (self.ring if cache is None else cache).local_runs(h.shape[1])
        return RingMask(self.ring, self._runs, window_size or None, cached=cache is not None)


_forward: ContextVar[Forward | None] = ContextVar("ringattn_lm_forward", default=None)
_hidden: ContextVar[mx.array | None] = ContextVar("ringattn_lm_hidden", default=None)
_mask: ContextVar[RingMask | None] = ContextVar("ringattn_lm_mask", default=None)


@contextmanager
def forward_pass(ring: Ring, layers: int) -> Iterator[Forward]:
    """Hold the state of one forward pass, and check at its end that the attention of every layer went over the ring.

    Args:
        ring: the model's ring.
        layers: number of layers.

    Raises:
        ModelError: if a layer's attention did not run, or ran twice.
    """
    forward = Forward(ring)
    token = _forward.set(forward)
    try:
        yield forward
    finally:
        _forward.reset(token)
    if sorted(forward.layers) != list(range(layers)):
        raise ModelError(
            f"attention over the ring ran in layers {sorted(forward.layers)} of a model of {layers} layers; "
            "each must run once: the model's code is not what the conversion knows, so its numbers would be those of local attention"
        )


@contextmanager
def given_hidden(hidden: mx.array) -> Iterator[None]:
    """Make the model's layers return `hidden` [B, L, hidden size]: a call of the model then computes its head alone."""
    token = _hidden.set(hidden)
    try:
        yield
    finally:
        _hidden.reset(token)


def hidden_at_hand() -> mx.array | None:
    """Return what `given_hidden` gave, or None."""
    return _hidden.get()


def create_mask(
    h: mx.array, cache: RingCache | None = None, window_size: int | None = None, return_array: bool = False
) -> RingMask:
    """Return the mask of the pass that runs now: see `Forward.mask`.

    Args:
        h: as for `Forward.mask`.
        cache: as for `Forward.mask`.
        window_size: as for `Forward.mask`.
        return_array: as for `Forward.mask`.

    Raises:
        ModelError: if none runs, or if the cache is not a RingCache.
    """
    forward = _forward.get()
    if forward is None:
        raise ModelError("a converted model's mask was asked for outside its forward pass; call the model itself")
    return forward.mask(h, cache, window_size, return_array)


@contextmanager
def attention_call(mask: object, layer: int) -> Iterator[None]:
    """Make a layer's mask known to its RoPE while the layer's attention runs.

    Args:
        mask: what the layer was given as its mask.
        layer: the layer's number.

    Raises:
        ModelError: if it is not a RingMask.
    """
    token = _mask.set(checked_mask(mask, layer))
    try:
        yield
    finally:
        _mask.reset(token)


def checked_mask(mask: object, layer: int) -> RingMask:
    """Return the mask of a layer.

    Args:
        mask: what the layer was given as its mask.
        layer: the layer's number.

    Raises:
        ModelError: if it is not a RingMask.
    """
    if not isinstance(mask, RingMask):
        raise ModelError(
            f"layer {layer} got a mask of class {type(mask).__name__} that the conversion did not make; "
            "masks of one's own cannot go over the ring: pass none to the model"
        )
    return mask


def current_mask() -> RingMask:
    """Return the mask of the attention that runs now.

    Raises:
        ModelError: if none does.
    """
    mask = _mask.get()
    if mask is None:
        raise ModelError("a converted model's RoPE was called outside its attention; its positions are unknown there")
    return mask


# More than 10 parameters: mlx-lm's seven, and what a layer adds to them.
def attend(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    *,
    cache: RingCache | None,
    scale: float,
    mask: object,
    sinks: mx.array | None = None,
    softcap: float | None = None,
    layer: int,
) -> mx.array:
    """Compute a layer's attention over the whole sequence; replaces mlx-lm's `scaled_dot_product_attention`.

    Args:
        q: [B, Hq, L, D] of this rank's tokens.
        k: [B, Hkv, L, D]; with a cache, what its `update_and_fetch` gave.
        v: [B, Hkv, L, Dv], Dv <= D; with a cache, what its `update_and_fetch` gave.
        cache: the layer's cache, or None.
        scale: factor on the scores.
        mask: the layer's RingMask.
        sinks: [Hq], one more score a head that takes no value (gpt-oss), or None.
        softcap: bound of the scores by softcap · tanh(score / softcap) (Gemma 2), or None.
        layer: the layer's number.

    Returns:
        [B, Hq, L, Dv].

    Raises:
        ModelError: if the mask is not a RingMask.
    """
    mask, forward = checked_mask(mask, layer), _forward.get()
    if forward is not None:
        forward.layers.append(layer)
    if mask.cached and forward is not None:
        if cache is not None:
            forward.caches.append((k, cache))
        else:
            cache = _cache_that_gave(k, forward, layer)
    if cache is not None:
        return cache.attend(q, k, v, scale=scale, window=mask.window, sinks=sinks, softcap=softcap)
    ring = mask.ring
    return ring_attention(
        q,
        k,
        v,
        scale=scale,
        mask="causal",
        window=mask.window,
        sinks=sinks,
        softcap=softcap,
        layout=ring.layout,
        group=ring.group,
        kernel=ring.kernel,
        timeout=ring.timeout,
        tag=layer,
    )


def _cache_that_gave(k: mx.array, forward: Forward, layer: int) -> RingCache:
    """Return the cache of an earlier layer, whose keys this layer uses too and so has no cache of its own (Gemma 4).

    Raises:
        ModelError: if no cache gave these keys.
    """
    for keys, cache in forward.caches:
        if keys is k:
            return cache
    raise ModelError(
        f"layer {layer} has no cache in a pass with caches, nor an earlier layer's keys; give one cache a layer"
    )
