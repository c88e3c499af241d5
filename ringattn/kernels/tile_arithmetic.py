"""What the mlx kernel computes in one tile, in MLX operations: on a CPU to base 2, on a GPU to base e with fewer passes over memory.

Shapes: rows are [B, Hkv, G * tile, D], the tile's queries of all G query heads that share a kv head; keys [B, Hkv, keys, D];
values [B, Hkv, keys, Dv]; scores [B, Hkv, G * tile, keys]. A mask is bool [tile, keys] or [B, 1, 1, tile, keys]; None: all visible.
"""

import functools
import math
import operator
from typing import NamedTuple, Protocol

import mlx.core as mx

_LOG2E = math.log2(math.e)
_LN2 = math.log(2.0)

State = tuple[mx.array, ...]
"""The softmax of some queries over the keys seen so far; what it holds is the arithmetic's own."""


class Rules(NamedTuple):
    """What a tile's mask is compared from; None where no rule needs it, and at least one does."""

    first: mx.array | None
    """first position that a query sees [tile, 1]"""
    last: mx.array | None
    """last position that a query sees [tile, 1]"""
    q_segments: mx.array | None
    """[1 or B, 1, 1, tile, 1]"""
    positions: mx.array
    """of the keys [keys]"""
    k_segments: mx.array | None
    """[1 or B, 1, 1, 1, keys]"""


def visible(
    first: mx.array | None,
    last: mx.array | None,
    q_segments: mx.array | None,
    positions: mx.array,
    k_segments: mx.array | None,
) -> mx.array:
    """Return which keys each query of a tile sees, from the fields of its `Rules`."""
    seen = []
    if first is not None:
        seen.append(positions >= first)
    if last is not None:
        seen.append(positions <= last)
    if q_segments is not None and k_segments is not None:
        seen.append(q_segments == k_segments)
    return functools.reduce(operator.and_, seen)


class Arithmetic(Protocol):
    """The steps of a tile that depend on the device."""

    unit: float
    """factor on the scores: log2(e) where exponentials have base 2"""

    def visible(self, rules: Rules) -> mx.array:
        """Return a tile's mask."""

    def capped(self, scores: mx.array) -> mx.array:
        """Return softcap * tanh(scores / softcap), or the scores where there is no softcap."""

    def start(self, rows: mx.array, width: int) -> State:
        """Return the softmax over no key; values are `width` wide."""

    def attend(self, state: State, scores: mx.array, values: mx.array, *, mixed: bool) -> State:
        """Return the softmax that also has this tile's keys; `mixed`: some scores may be -inf."""

    def result(self, state: State) -> tuple[mx.array, mx.array]:
        """Return the output [B, Hkv, G * tile, Dv] and the natural log-sum-exp [B, Hkv, G * tile, 1]."""

    def gradients(
        self,
        rows: mx.array,
        keys: mx.array,
        minus_lse: mx.array,
        d_rows: mx.array,
        values: mx.array,
        minus_delta: mx.array,
        seen: mx.array | None,
    ) -> tuple[mx.array, mx.array]:
        """Return P = exp(scores - lse) and dS = P (dO V^T - delta), as scores; minus_lse is in units of the scores.

        With a softcap the scores are the capped ones, and dS is the gradient of those before.
        """

    def add_product(self, total: mx.array | None, a: mx.array, b: mx.array) -> mx.array:
        """Return total + a @ b."""

    def submit(self, *arrays: mx.array) -> None:
        """Begin to compute arrays, so that a whole block's graph never waits in memory."""


class CpuArithmetic:
    """Online softmax (Dao 2023) with running maximum, to base 2: MLX's exp on CPUs is scalar, its power four times as fast."""

    unit = _LOG2E

    def __init__(self, softcap: float | None = None) -> None:
        self._cap = None if softcap is None else softcap * self.unit

    def visible(self, rules: Rules) -> mx.array:
        """See `Arithmetic.visible`."""
        return visible(*rules)

    def capped(self, scores: mx.array) -> mx.array:
        """See `Arithmetic.capped`."""
        return scores if self._cap is None else self._cap * mx.tanh(scores * (1 / self._cap))

    def start(self, rows: mx.array, width: int) -> State:
        """Return output, sum of exponentials and maximum over no key."""
        total = mx.zeros((*rows.shape[:-1], 1))
        return mx.zeros((*rows.shape[:-1], width)), total, mx.full(total.shape, -mx.inf)

    def attend(self, state: State, scores: mx.array, values: mx.array, *, mixed: bool) -> State:
        """See `Arithmetic.attend`."""
        o, total, top = state
        new_top = mx.maximum(top, scores.max(axis=-1, keepdims=True))
        # Rows that see no key yet: 0, so that -inf - 0 stays -inf.
        base = mx.where(new_top == -mx.inf, 0.0, new_top) if mixed else new_top
        p = mx.power(2.0, scores - base)
        shrink = mx.power(2.0, top - base)
        return o * shrink + p @ values, total * shrink + p.sum(axis=-1, keepdims=True), new_top

    def result(self, state: State) -> tuple[mx.array, mx.array]:
        """See `Arithmetic.result`."""
        o, total, top = state
        none = total == 0
        return o / mx.where(none, 1.0, total), mx.where(none, -mx.inf, top * _LN2 + mx.log(total))

    def gradients(
        self,
        rows: mx.array,
        keys: mx.array,
        minus_lse: mx.array,
        d_rows: mx.array,
        values: mx.array,
        minus_delta: mx.array,
        seen: mx.array | None,
    ) -> tuple[mx.array, mx.array]:
        """See `Arithmetic.gradients`."""
        s, slope = rows @ keys.swapaxes(-1, -2), None
        if self._cap is not None:
            tanh = mx.tanh(s * (1 / self._cap))
            s, slope = self._cap * tanh, 1 - mx.square(tanh)
        p = mx.power(2.0, masked(s, seen) + minus_lse)
        ds = p * (d_rows @ values.swapaxes(-1, -2) + minus_delta)
        return p, ds if slope is None else ds * slope

    def add_product(self, total: mx.array | None, a: mx.array, b: mx.array) -> mx.array:
        """See `Arithmetic.add_product`."""
        return a @ b if total is None else total + a @ b

    def submit(self, *arrays: mx.array) -> None:
        """Compute them at once: the same cores would do it later."""
        mx.eval(*arrays)


class GpuArithmetic:
    """Each tile's own softmax and log-sum-exp, merged by the latter, to base e.

    A tile of scores is larger than a GPU's caches, so that time is passes over memory: forward 5 (the product's write, log-sum-exp,
    softmax's read and write, the product's read), backward 9; a mask costs forward 2 more. MLX's softmax and log-sum-exp are one
    launch each, element-wise chains are compiled into one, additions are part of the products.
    """

    unit = 1.0

    def __init__(self, softcap: float | None = None) -> None:
        self._cap = softcap

    def visible(self, rules: Rules) -> mx.array:
        """See `Arithmetic.visible`."""
        return _visible(*rules)

    def capped(self, scores: mx.array) -> mx.array:
        """See `Arithmetic.capped`."""
        return scores if self._cap is None else _capped(scores, self._cap)

    def start(self, rows: mx.array, width: int) -> State:
        """Return output and log-sum-exp over no key."""
        return mx.zeros((*rows.shape[:-1], width)), mx.full((*rows.shape[:-1], 1), -mx.inf)

    def attend(self, state: State, scores: mx.array, values: mx.array, *, mixed: bool) -> State:
        """See `Arithmetic.attend`; rows of a full tile and of a mixed one take the same steps."""
        o, lse = state
        part = mx.logsumexp(scores, axis=-1, keepdims=True)
        o_part = mx.softmax(scores, axis=-1) @ values
        return _merged(o, lse, o_part, part), mx.logaddexp(lse, part)

    def result(self, state: State) -> tuple[mx.array, mx.array]:
        """See `Arithmetic.result`."""
        o, lse = state
        return o, lse

    def gradients(
        self,
        rows: mx.array,
        keys: mx.array,
        minus_lse: mx.array,
        d_rows: mx.array,
        values: mx.array,
        minus_delta: mx.array,
        seen: mx.array | None,
    ) -> tuple[mx.array, mx.array]:
        """See `Arithmetic.gradients`."""
        dp = mx.addmm(minus_delta, d_rows, values.swapaxes(-1, -2))
        if self._cap is not None:
            return _of_capped(rows @ keys.swapaxes(-1, -2), minus_lse, dp, seen, self._cap)
        s = mx.addmm(minus_lse, rows, keys.swapaxes(-1, -2))
        if seen is None:
            p, ds = _full_gradients(s, dp)
            return p, ds
        p, ds = _masked_gradients(by_head(s, seen), by_head(dp, seen), seen)
        return p.reshape(s.shape), ds.reshape(s.shape)

    def add_product(self, total: mx.array | None, a: mx.array, b: mx.array) -> mx.array:
        """See `Arithmetic.add_product`."""
        return a @ b if total is None else mx.addmm(total, a, b)

    def submit(self, *arrays: mx.array) -> None:
        """Hand them to the GPU and go on: MLX itself waits where too much is under way."""
        try:
            mx.async_eval(*arrays)
        except ValueError:  # inside a graph transformation, where MLX evaluates only at once
            mx.eval(*arrays)


_visible = mx.compile(visible)


@mx.compile
def _merged(o: mx.array, lse: mx.array, o_part: mx.array, part: mx.array) -> mx.array:
    """Return the output over both sets of keys: o and o_part weighted by sigmoids of the difference of their log-sum-exps.

    A row that sees no key of the tile has part = -inf, and NaN from softmax.
    """
    none = part == -mx.inf
    old, new = mx.where(none, 1.0, mx.sigmoid(lse - part)), mx.where(none, 0.0, mx.sigmoid(part - lse))
    return o * old + mx.where(none, 0.0, o_part) * new


@mx.compile
def _capped(scores: mx.array, cap: float) -> mx.array:
    return cap * mx.tanh(scores * (1 / cap))


@mx.compile
def _capped_gradients(
    s: mx.array, minus_lse: mx.array, dp: mx.array, seen: mx.array | None, cap: float
) -> tuple[mx.array, mx.array]:
    tanh = mx.tanh(s * (1 / cap))
    capped = cap * tanh
    p = mx.exp((capped if seen is None else mx.where(seen, capped, -mx.inf)) + minus_lse)
    return p, p * dp * (1 - mx.square(tanh))


def _of_capped(
    s: mx.array, minus_lse: mx.array, dp: mx.array, seen: mx.array | None, cap: float
) -> tuple[mx.array, mx.array]:
    if seen is None:
        return _capped_gradients(s, minus_lse, dp, None, cap)
    row = minus_lse.reshape(*s.shape[:2], -1, seen.shape[-2], 1)
    p, ds = _capped_gradients(by_head(s, seen), row, by_head(dp, seen), seen, cap)
    return p.reshape(s.shape), ds.reshape(s.shape)


@mx.compile
def _full_gradients(s: mx.array, dp: mx.array) -> tuple[mx.array, mx.array]:
    p = mx.exp(s)
    return p, p * dp


@mx.compile
def _masked_gradients(s: mx.array, dp: mx.array, seen: mx.array) -> tuple[mx.array, mx.array]:
    p = mx.exp(mx.where(seen, s, -mx.inf))
    return p, p * dp


def by_head(scores: mx.array, seen: mx.array) -> mx.array:
    """Return scores as [B, Hkv, G, tile, keys], to which a mask broadcasts."""
    return scores.reshape(*scores.shape[:2], -1, *seen.shape[-2:])


def masked(scores: mx.array, seen: mx.array | None) -> mx.array:
    """Return scores, -inf where a mask is false."""
    if seen is None:
        return scores
    return mx.where(seen, by_head(scores, seen), -mx.inf).reshape(scores.shape)
