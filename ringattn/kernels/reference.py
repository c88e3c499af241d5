"""Plain softmax attention over a whole block, in fp32 MLX operations: the oracle of the tests, and the interface's definition."""

import mlx.core as mx
import numpy as np

from ringattn.kernels.base import Block, check, visible


class ReferenceKernel:
    """Reference kernel with O(Tq * Tk) memory, for tests and readers."""

    name = "reference"

    def forward(
        self, q: mx.array, k: mx.array, v: mx.array, block: Block, *, scale: float, softcap: float | None = None
    ) -> tuple[mx.array, mx.array]:
        """See `Kernel.forward`."""
        check(q, k, v, block)
        scores = _seen(_capped(_scores(q, k, scale), softcap), block)
        lse = mx.logsumexp(scores, axis=-1)
        o = _probabilities(scores, lse) @ _grouped(v, k)
        return _heads(o, q), _heads(lse[..., None], q)[..., 0]

    def backward(
        self,
        q: mx.array,
        k: mx.array,
        v: mx.array,
        do: mx.array,
        lse: mx.array,
        delta: mx.array,
        block: Block,
        *,
        scale: float,
        softcap: float | None = None,
    ) -> tuple[mx.array, mx.array, mx.array]:
        """See `Kernel.backward`."""
        check(q, k, v, block)
        scores = _scores(q, k, scale)
        p = _probabilities(_seen(_capped(scores, softcap), block), _grouped(lse, k))
        dp = _grouped(do, k) @ _grouped(v, k).swapaxes(-1, -2)
        ds = p * (dp - _grouped(delta, k)[..., None]) * scale
        if softcap is not None:
            ds = ds * (1 - mx.tanh(scores / softcap) ** 2)
        dq = ds @ _grouped(k, k)
        dk = (ds.swapaxes(-1, -2) @ _grouped(q, k)).sum(axis=2)
        dv = (p.swapaxes(-1, -2) @ _grouped(do, k)).sum(axis=2)
        return _heads(dq, q), dk, dv


def _grouped(x: mx.array, k: mx.array) -> mx.array:
    """[B, H, ...] -> fp32 [B, Hkv, H / Hkv, ...]: the query heads of each kv head form a group."""
    return x.astype(mx.float32).reshape(x.shape[0], k.shape[1], -1, *x.shape[2:])


def _heads(x: mx.array, q: mx.array) -> mx.array:
    """[B, Hkv, G, Tq, n] -> [B, Hq, Tq, n]."""
    return x.reshape(q.shape[0], q.shape[1], q.shape[2], x.shape[-1])


def _scores(q: mx.array, k: mx.array, scale: float) -> mx.array:
    """Scaled scores [B, Hkv, G, Tq, Tk]."""
    return (_grouped(q, k) * scale) @ _grouped(k, k).swapaxes(-1, -2)


def _capped(scores: mx.array, softcap: float | None) -> mx.array:
    return scores if softcap is None else softcap * mx.tanh(scores / softcap)


def _seen(scores: mx.array, block: Block) -> mx.array:
    """Scores, -inf where a key is not visible."""
    if not block.masked:
        return scores
    seen = visible(block)
    seen = seen[:, None, None] if seen.ndim == 3 else seen
    return mx.where(mx.array(np.ascontiguousarray(seen)), scores, -mx.inf)


def _probabilities(scores: mx.array, lse: mx.array) -> mx.array:
    """exp(scores - lse), and 0 in rows that see no key (lse = -inf)."""
    return mx.exp(scores - mx.where(lse == -mx.inf, mx.inf, lse)[..., None])
