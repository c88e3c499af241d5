"""A rank that runs cases of `ring_attention`'s options against the oracle: `features.py cases.json`; the last line is its report."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import oracle  # type: ignore[import-not-found]  # a rank's path starts at this folder

import ringattn as ra
from ringattn.layout import local_positions


def places(case: dict, size: int, rng: np.random.Generator) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return which queries and which keys each rank holds, by index into the whole arrays."""
    q_len, k_len, place = case["q_len"], case["k_len"], case["place"]
    if place == "layout":
        whole = [local_positions(case["layout"], q_len, size, r) for r in range(size)]
        return whole, whole
    if place == "prefill":  # queries are the last chunk; the keys of each chunk are spread by the layout
        chunks = [range(at, min(at + q_len, k_len)) for at in range(k_len % q_len, k_len, q_len)]
        chunks = [range(chunks[0].start), *chunks] if chunks[0].start else chunks
        held: list[list[np.ndarray]] = [
            [np.array(c)[local_positions("zigzag", len(c), size, r)] for c in chunks if len(c) >= size]
            for r in range(size)
        ]
        for rest in (c for c in chunks if len(c) < size):
            held[0].append(np.array(rest))
        return [of_rank[-1] - (k_len - q_len) for of_rank in held], [np.concatenate(of_rank) for of_rank in held]
    # Any division, also one that leaves a rank with nothing.
    cut = [np.split(rng.permutation(n), np.sort(rng.integers(0, n + 1, size - 1))) for n in (q_len, k_len)]
    return cut[0], cut[1]


def prepare(case: dict, rank: int, size: int) -> Callable[[], dict[str, float]]:
    """Draw a case's inputs and compute its oracle.

    Returns:
        A function that runs the ring and returns the largest errors on this rank's tokens, relative to the largest value where
        that is above 1.
    """
    rng = np.random.default_rng(case["seed"])
    batch, dim, q_len, k_len = 2, case.get("dim", 8), case["q_len"], case["k_len"]
    heads, kv_heads, v_dim, dtype = (
        case["gqa"] * 2,
        2,
        case.get("v_dim", dim),
        getattr(mx, case.get("dtype", "float32")),
    )

    def draw(heads: int, length: int, dim: int) -> mx.array:
        return mx.array(rng.standard_normal((batch, heads, length, dim), dtype=np.float32)).astype(dtype)

    q, k, v, do = (
        draw(heads, q_len, dim),
        draw(kv_heads, k_len, dim),
        draw(kv_heads, k_len, v_dim),
        draw(heads, q_len, v_dim),
    )
    dlse = mx.array(rng.standard_normal((batch, heads, q_len), dtype=np.float32)) if case.get("lse") else None
    sinks = mx.array(rng.standard_normal(heads, dtype=np.float32)) if case.get("sinks") else None
    q_at, k_at = places(case, size, rng)
    mine, my_keys = q_at[rank], k_at[rank]
    start = k_len - q_len if case["place"] == "prefill" else 0
    at, keys_at = np.arange(q_len, dtype=np.int32) + start, np.arange(k_len, dtype=np.int32)
    ids = (
        [np.sort(rng.integers(0, 3, (batch, n))).astype(np.int32) for n in (q_len, k_len)]
        if case.get("segments")
        else [None] * 2
    )
    whole = [np.array(x.astype(mx.float32)) for x in (q, k, v, do)]
    rules = oracle.Rules(case["causal"], case["window"], ids[0], ids[1], at, keys_at)
    extra = {"scale": case.get("scale", dim**-0.5), "softcap": case.get("softcap")}
    truth = oracle.gradients(*whole, rules, **extra, sinks=sinks, dlse=dlse)
    options: dict[str, Any] = {name: value for name, value in extra.items() if value is not None} | {
        "mask": "causal" if case["causal"] else None, "window": case["window"], "kernel": case["kernel"],
        "return_lse": dlse is not None,
    }  # fmt: skip
    if case["place"] == "layout":
        options["layout"] = case["layout"]
    elif case["place"] != "free":
        options |= {"positions": at[mine], "key_positions": mx.array(keys_at[my_keys])}
    if ids[0] is not None and ids[1] is not None:
        options |= {"segments": ids[0][:, mine], "key_segments": ids[1][:, my_keys]}

    def local(x: mx.array, rows: np.ndarray) -> mx.array:
        return mx.take(x, mx.array(rows.astype(np.int32)), axis=2)

    inputs = [local(q, mine), local(k, my_keys), local(v, my_keys)] + ([] if sinks is None else [sinks])
    cotangents = [local(do, mine)] + ([] if dlse is None else [local(dlse, mine)])

    def attend(q: mx.array, k: mx.array, v: mx.array, sinks: mx.array | None = None) -> list[mx.array]:
        found = ra.ring_attention(q * 1, k * 1, v * 1, sinks=sinks, **options)
        return list(found) if dlse is not None else [found]

    def run() -> dict[str, float]:
        outputs, grads = mx.vjp(attend, inputs, cotangents)
        names = ["o", *([] if dlse is None else ["lse"]), "dq", "dk", "dv", *([] if sinks is None else ["dsinks"])]
        got = dict(zip(names, [*outputs, *grads], strict=True))
        if sinks is not None:
            got["dsinks"] = mx.distributed.all_sum(got["dsinks"], stream=mx.cpu)
        rows = {"o": mine, "lse": mine, "dq": mine, "dk": my_keys, "dv": my_keys, "dsinks": ...}
        return {name: distance(np.array(x.astype(mx.float32)), truth[name], rows[name]) for name, x in got.items()}

    return run


def distance(got: np.ndarray, whole: np.ndarray, rows: Any) -> float:
    wanted = whole if rows is ... else whole[:, :, rows]
    assert got.shape == wanted.shape, (got.shape, wanted.shape)
    finite = np.isfinite(wanted)
    if not np.array_equal(got[~finite], wanted[~finite]):
        return float("inf")
    top = np.abs(whole[np.isfinite(whole)]).max(initial=1.0)
    return float(np.abs(got[finite] - wanted[finite]).max(initial=0.0) / top)


def main() -> None:
    group = ra.init()
    # All oracles come first: a rank that waits for another one's oracle keeps a core busy.
    runs = [prepare(case, group.rank(), group.size()) for case in json.loads(Path(sys.argv[1]).read_text())]
    print(json.dumps([run() for run in runs]))


main()
