"""Attention and its gradients in fp64 numpy: what every ring is compared with."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Rules:
    """Which keys a query sees, of whole arrays; positions default to 0, 1 and so on."""

    causal: bool = False
    window: int | None = None
    segments: np.ndarray | None = None  # [Tq] or [B, Tq]
    key_segments: np.ndarray | None = None
    positions: np.ndarray | None = None  # [Tq]
    key_positions: np.ndarray | None = None

    def sees(self, batch: int, q_len: int, k_len: int) -> np.ndarray:
        """Return bool [B, Tq, Tk]."""
        at, keys_at = (
            np.arange(n) if x is None else np.asarray(x).astype(int)
            for n, x in ((q_len, self.positions), (k_len, self.key_positions))
        )
        gap = at[:, None] - keys_at[None, :]
        seen = np.ones((batch, q_len, k_len), dtype=bool)
        if self.causal:
            seen &= gap >= 0
        if self.window is not None:
            seen &= (gap if self.causal else np.abs(gap)) < self.window
        if self.segments is not None:
            of_keys = self.segments if self.key_segments is None else self.key_segments
            ids = np.broadcast_to(self.segments, (batch, q_len))
            seen &= ids[:, :, None] == np.broadcast_to(of_keys, (batch, k_len))[:, None, :]
        return seen


def gradients(q, k, v, do, rules: Rules, *, scale, softcap=None, sinks=None, dlse=None) -> dict[str, np.ndarray]:
    """o, lse, dq, dk, dv and dsinks of softmax attention over whole arrays; dlse: gradient of lse [B, Hq, Tq]."""
    q, k, v, do = (np.asarray(x, dtype=np.float64) for x in (q, k, v, do))
    batch, heads, q_len, _ = q.shape
    kv_heads, k_len = k.shape[1:3]
    group = heads // kv_heads
    keys, values = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    scores, slope = q @ keys.swapaxes(-1, -2) * scale, 1.0
    if softcap is not None:
        slope = 1 - np.tanh(scores / softcap) ** 2
        scores = softcap * np.tanh(scores / softcap)
    scores = np.where(rules.sees(batch, q_len, k_len)[:, None], scores, -np.inf)
    logits = np.full(heads, -np.inf) if sinks is None else np.asarray(sinks, dtype=np.float64)
    logits = np.broadcast_to(logits[:, None, None], (batch, heads, q_len, 1))
    with_sinks = np.concatenate([scores, logits], axis=-1)
    top = with_sinks.max(axis=-1, keepdims=True)
    top = np.where(np.isinf(top), 0, top)
    p = np.exp(with_sinks - top)
    total = p.sum(axis=-1, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = (np.log(total) + top)[..., 0]
    p /= np.where(total == 0, 1, total)
    p, p_sink = p[..., :-1], p[..., -1]
    o = p @ values
    delta = (do * o).sum(axis=-1) - (0 if dlse is None else np.asarray(dlse, dtype=np.float64))
    ds = p * (do @ values.swapaxes(-1, -2) - delta[..., None]) * slope * scale

    def by_kv_head(x: np.ndarray) -> np.ndarray:
        return x.reshape(batch, kv_heads, group, k_len, -1).sum(axis=2)

    return {
        "o": o,
        "lse": lse,
        "dq": ds @ keys,
        "dk": by_kv_head(ds.swapaxes(-1, -2) @ q),
        "dv": by_kv_head(p.swapaxes(-1, -2) @ do),
        "dsinks": -(p_sink * delta).sum(axis=(0, 2)),
    }
