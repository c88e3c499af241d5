"""Blocks of attention for tests of kernels, and their outputs and gradients in float64 by numpy."""

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from ringattn.kernels import Block, Kernel
from ringattn.layout import local_positions

TOLERANCE = 2e-5  # absolute, plus the same relative; arithmetic is fp32 except bf16 by dot products
HALF_UNIT = 2.0**-8  # relative error of rounding to bf16


@dataclass(frozen=True)
class Case:
    """One block: sizes, mask, dtype."""

    kv_heads: int = 1
    group: int = 1
    q_len: int = 101
    k_len: int = 229
    dim: int = 16
    v_dim: int = 0  # of the values; 0: dim
    causal: bool = False
    window: int | None = None
    segments: int = 0
    dtype: mx.Dtype = mx.float32
    softcap: float | None = None
    shuffled: bool = False
    leap: int = 0  # between two runs of positions, as in zigzag
    layout: str = ""  # of a ring of 4: queries of rank 1, keys of `k_rank`
    k_rank: int = 1
    batch: int = 2
    seed: int = 0

    @property
    def scale(self) -> float:
        return self.dim**-0.5

    @property
    def scores(self) -> dict[str, Any]:
        return {"scale": self.scale, "softcap": self.softcap}


def draw(case: Case) -> tuple[list[mx.array], Block]:
    """q, k, v, do (rounded to the case's dtype) and the block."""
    rng = np.random.default_rng(case.seed)
    q_shape = (case.batch, case.kv_heads * case.group, case.q_len, case.dim)
    k_shape = (case.batch, case.kv_heads, case.k_len, case.dim)
    width = case.v_dim or case.dim
    arrays = [
        mx.array(rng.standard_normal(s, dtype=np.float32)).astype(case.dtype)
        for s in (q_shape, k_shape, (*k_shape[:3], width), (*q_shape[:3], width))
    ]
    q_pos = np.arange(case.q_len, dtype=np.int32) + max(0, case.k_len - case.q_len) // 2
    k_pos = np.arange(case.k_len, dtype=np.int32)
    q_pos[case.q_len // 3 :] += case.leap
    k_pos[case.k_len // 2 :] += case.leap
    if case.shuffled:
        rng.shuffle(q_pos)
        rng.shuffle(k_pos)
    if case.layout:
        q_pos = local_positions(case.layout, 4 * case.q_len, 4, 1).astype(np.int32)
        k_pos = local_positions(case.layout, 4 * case.k_len, 4, case.k_rank).astype(np.int32)
    segs = (
        [np.sort(rng.integers(0, case.segments, (case.batch, n)).astype(np.int32)) for n in (case.q_len, case.k_len)]
        if case.segments
        else [None, None]
    )
    return arrays, Block(q_pos, k_pos, case.causal, case.window, *segs)


def sees(block: Block) -> np.ndarray:
    """The mask's definition, independent of the library's: [B or 1, 1, Tq, Tk]."""
    gap = block.q_pos[:, None].astype(int) - block.k_pos[None, :].astype(int)
    mask = np.ones_like(gap, dtype=bool)
    if block.causal:
        mask &= gap >= 0
    if block.window is not None:
        mask &= np.abs(gap) < block.window
    if block.q_seg is None or block.k_seg is None:
        return mask[None, None]
    return (mask & (block.q_seg[..., :, None] == block.k_seg[..., None, :])).reshape(-1, 1, *mask.shape)


def oracle(arrays: list[mx.array], block: Block, scale: float, softcap: float | None = None) -> dict[str, np.ndarray]:
    q, k, v, do = (np.array(x.astype(mx.float32)).astype(np.float64) for x in arrays)
    group = q.shape[1] // k.shape[1]
    keys, values = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    scores, slope = q @ keys.swapaxes(-1, -2) * scale, np.ones(())
    if softcap is not None:
        slope = 1 - np.tanh(scores / softcap) ** 2
        scores = softcap * np.tanh(scores / softcap)
    scores = np.where(sees(block), scores, -np.inf)
    top = scores.max(axis=-1, keepdims=True)
    p = np.exp(scores - np.where(np.isinf(top), 0, top))
    total = p.sum(axis=-1, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = (np.log(total) + np.where(np.isinf(top), 0, top))[..., 0]
    p /= np.where(total == 0, 1, total)
    o = p @ values
    delta = (do * o).sum(axis=-1)
    ds = p * (do @ values.swapaxes(-1, -2) - delta[..., None]) * slope * scale

    def by_kv_head(x: np.ndarray) -> np.ndarray:
        return x.reshape(*k.shape[:2], group, k.shape[2], -1).sum(axis=2)

    return {
        "o": o,
        "lse": lse,
        "dq": ds @ keys,
        "dk": by_kv_head(ds.swapaxes(-1, -2) @ q),
        "dv": by_kv_head(p.swapaxes(-1, -2) @ do),
        "delta": delta,
        # Error bounds of rounding P and dS to bf16.
        "o by": HALF_UNIT * p @ abs(values),
        "lse by": np.zeros_like(lse),
        "dq by": HALF_UNIT * abs(ds) @ abs(keys),
        "dk by": HALF_UNIT * by_kv_head(abs(ds).swapaxes(-1, -2) @ abs(q)),
        "dv by": HALF_UNIT * by_kv_head(p.swapaxes(-1, -2) @ abs(do)),
    }


def run(kernel: Kernel, arrays: list[mx.array], block: Block, truth: dict, **scores: Any) -> dict[str, np.ndarray]:
    q, k, v, do = arrays
    o, own_lse = kernel.forward(q, k, v, block, **scores)
    lse, delta = (mx.array(truth[name].astype(np.float32)) for name in ("lse", "delta"))
    dq, dk, dv = kernel.backward(q, k, v, do, lse, delta, block, **scores)
    return {name: np.array(x) for name, x in {"o": o, "lse": own_lse, "dq": dq, "dk": dk, "dv": dv}.items()}


def assert_exact(case: Case, *kernels: Kernel) -> None:
    arrays, block = draw(case)
    truth = oracle(arrays, block, **case.scores)
    for kernel in kernels:
        for name, got in run(kernel, arrays, block, truth, **case.scores).items():
            rounded = case.dtype == mx.bfloat16 and "bf16" in getattr(kernel, "isa", "")
            by = truth[f"{name} by"] if rounded else np.zeros(())
            assert_close(got, truth[name], f"{name} of {kernel.name} {getattr(kernel, 'isa', '')}, {case}", by)


def assert_close(got: np.ndarray, wanted: np.ndarray, where: str, by: np.ndarray | float = 0.0) -> None:
    """The bound of every kernel: TOLERANCE absolute and relative, plus `by`; infinities must be equal."""
    assert got.dtype == np.float32
    finite = np.isfinite(wanted)
    np.testing.assert_array_equal(got[~finite], wanted[~finite], err_msg=where)
    got, wanted, by = got[finite], wanted[finite], np.broadcast_to(by, got.shape)[finite]
    assert (abs(got - wanted) <= by + TOLERANCE * (1 + abs(wanted))).all(), where
