"""Attention and its gradients in fp64 numpy: what every ring is compared with."""

import numpy as np


def attention(q, k, v, do, *, scale, causal=False, window=None, segments=None):
    """o, dq, dk, dv of softmax attention over whole arrays [B, H, T, D]; segments [T] or [B, T]."""
    q, k, v, do = (np.asarray(x, dtype=np.float64) for x in (q, k, v, do))
    batch, heads, length, dim = q.shape
    group = heads // k.shape[1]
    keys, values = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    gap = np.arange(length)[:, None] - np.arange(length)[None, :]
    seen = np.ones((batch, length, length), dtype=bool)
    if causal:
        seen &= gap >= 0
    if window is not None:
        seen &= (gap if causal else np.abs(gap)) < window
    if segments is not None:
        ids = np.broadcast_to(segments, (batch, length))
        seen &= ids[:, :, None] == ids[:, None, :]
    scores = np.where(seen[:, None], q @ keys.swapaxes(-1, -2) * scale, -np.inf)
    p = np.exp(scores - scores.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    o = p @ values
    ds = p * (do @ values.swapaxes(-1, -2) - (do * o).sum(axis=-1, keepdims=True)) * scale
    dk, dv = ds.swapaxes(-1, -2) @ q, p.swapaxes(-1, -2) @ do
    dk, dv = (x.reshape(batch, -1, group, length, dim).sum(axis=2) for x in (dk, dv))
    return o, ds @ keys, dk, dv
