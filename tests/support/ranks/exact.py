"""A rank that runs many cases against the oracle: `exact.py cases.json`; the last line of output is its report."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import oracle  # type: ignore[import-not-found]  # a rank's path starts at this folder

import ringattn as ra


def prepare(case: dict, size: int) -> Callable[[], list[float]]:
    """Draw a case's inputs and compute its oracle.

    Returns:
        A function that runs the ring and returns the largest errors of o, dq, dk, dv on this rank's tokens, relative to the
        largest value where that is above 1.
    """
    rng = np.random.default_rng(case["seed"])
    batch, kv_heads, dim, length = case.get("batch", 2), case.get("kv_heads", 1), case.get("dim", 8), case["length"]
    dtype = getattr(mx, case.get("dtype", "float32"))
    heads = kv_heads * case["gqa"]

    def draw(heads: int) -> mx.array:
        return mx.array(rng.standard_normal((batch, heads, length, dim), dtype=np.float32)).astype(dtype)

    q, k, v, do = draw(heads), draw(kv_heads), draw(kv_heads), draw(heads)
    segments = None
    if case["segments"]:
        shape = (length,) if case["segments"] == 1 else (batch, length)
        segments = np.sort(rng.integers(0, 4, shape), axis=-1).astype(np.int32)
    whole = [np.array(x.astype(mx.float32)) for x in (q, k, v, do)]
    rules = oracle.Rules(case["causal"], case["window"], segments)
    truth = oracle.gradients(*whole, rules, scale=dim**-0.5)
    wanted = [truth[name] for name in ("o", "dq", "dk", "dv")]

    layout = ra.weighted_zigzag(range(1, size + 1)) if case["layout"] == "weighted" else case["layout"]
    here = np.array(ra.positions(length, layout=layout))
    local = [ra.shard(x, 2, layout=layout) for x in (q, k, v, do)]

    def loss(q: mx.array, k: mx.array, v: mx.array) -> tuple[mx.array, mx.array]:
        o = ra.ring_attention(
            q,
            k,
            v,
            scale=dim**-0.5,
            mask="causal" if case["causal"] else None,
            window=case["window"],
            segments=None if segments is None else segments[..., here],
            layout=layout,
            kernel=case.get("kernel"),
        )
        return (o.astype(mx.float32) * local[3].astype(mx.float32)).sum(), o

    def run() -> list[float]:
        # The inputs are themselves results of a traced graph, as in a model.
        (_, o), grads = mx.value_and_grad(lambda *x: loss(*(y * 1 for y in x)), argnums=(0, 1, 2))(*local[:3])
        got = [np.array(x.astype(mx.float32)) for x in (o, *grads)]
        pairs = zip(got, (x[:, :, here] for x in wanted), strict=True)
        return [float(np.abs(g - w).max() / max(1.0, np.abs(w).max())) for g, w in pairs]

    return run


def main() -> None:
    group = ra.init()
    # All oracles come first: a rank that waits for another one's oracle keeps a core busy.
    runs = [prepare(case, group.size()) for case in json.loads(Path(sys.argv[1]).read_text())]
    print(json.dumps([run() for run in runs]))


main()
