"""A rank that decodes many cases over its part of the keys: `decode.py cases.json`; the last line is its report."""

import json
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np

import ringattn as ra


def wanted(q, k, v, at, *, scale, window, sinks, softcap):
    """Attention in fp64 numpy of queries at positions `at` over all keys."""
    q, k, v = (np.array(x.astype(mx.float32)).astype(np.float64) for x in (q, k, v))
    group = q.shape[1] // k.shape[1]
    gap = at[:, None] - np.arange(k.shape[2])[None, :]
    seen = (gap >= 0) & (gap < (window or 2**31))
    scores = q @ np.repeat(k, group, axis=1).swapaxes(-1, -2) * scale
    scores = np.where(seen, scores if softcap is None else softcap * np.tanh(scores / softcap), -np.inf)
    if sinks is not None:
        extra = np.broadcast_to(np.array(sinks, np.float64)[None, :, None, None], (*scores.shape[:3], 1))
        scores = np.concatenate([scores, extra], axis=-1)
    p = np.exp(scores - scores.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    return p[..., : k.shape[2]] @ np.repeat(v, group, axis=1)


def run(case: dict, rank: int, size: int) -> float:
    """Return the largest error of a case, relative to the largest value where that is above 1."""
    rng = np.random.default_rng(case["seed"])
    dim, width, length, heads = case["dim"], case["width"], case["length"], case["kv_heads"] * case["gqa"]
    dtype = getattr(mx, case["dtype"])

    def draw(heads: int, length: int, dim: int) -> mx.array:
        return mx.array(rng.standard_normal((2, heads, length, dim), dtype=np.float32)).astype(dtype)

    q = draw(heads, case["queries"], dim)
    k, v = draw(case["kv_heads"], length, dim), draw(case["kv_heads"], length, width)
    sinks = mx.array(rng.standard_normal(heads, dtype=np.float32)) if case["sinks"] else None
    at = np.arange(length - case["queries"], length)
    # "one": a single rank holds all keys; "random": any share, in any order.
    owner = np.full(length, size - 1) if case["share"] == "one" else rng.integers(0, size, length)
    mine = rng.permutation(length)
    mine = mine[owner[mine] == rank]
    index = mx.array(mine.astype(np.int32))
    o = ra.decode_attention(
        q, k[:, :, index] if len(mine) else k[:, :, :0], v[:, :, index] if len(mine) else v[:, :, :0],
        scale=dim**-0.5, positions=at, key_positions=mine, window=case["window"], sinks=sinks,
        softcap=case["softcap"], kernel=case["kernel"],
    )  # fmt: skip
    truth = wanted(q, k, v, at, scale=dim**-0.5, window=case["window"], sinks=sinks, softcap=case["softcap"])
    return float(np.abs(np.array(o.astype(mx.float32)) - truth).max() / max(1.0, np.abs(truth).max()))


def refusal(rank: int, **changed: object) -> str:
    """Return the name of the error of a call whose arguments rank 1 changes; empty if there was none."""
    x = mx.ones((1, 2, 1, 8))
    arguments: dict = {"scale": 0.3, "positions": [9], "key_positions": [rank]} | (changed if rank == 1 else {})
    try:
        ra.decode_attention(x, x, x, **arguments)
    except ra.RingError as error:
        return type(error).__name__
    return ""


def main() -> None:
    group = ra.init()
    rank, size = group.rank(), group.size()
    cases = json.loads(Path(sys.argv[1]).read_text())
    errors = [run(case, rank, size) for case in cases]
    refused = [refusal(rank, window=0), refusal(rank, tag=3), refusal(rank, positions=[8]), refusal(rank)]
    print(json.dumps({"errors": errors, "refused": refused}))


main()
