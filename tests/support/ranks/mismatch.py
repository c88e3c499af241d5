"""A rank of two that are called differently, case after case on one group; prints the errors by case as JSON."""

import json

import mlx.core as mx

import ringattn as ra


def call(rank: int, *, heads: int = 2, length: int = 8, dim: int = 4, dtype: mx.Dtype = mx.float32, **options) -> None:
    x = mx.zeros((1, heads, length, dim), dtype)
    kv = x if "kv" not in options else options.pop("kv")
    v = options.pop("v", kv)
    mx.eval(ra.ring_attention(x, kv, v, **({"scale": 0.5, "timeout": 20.0} | options)))


def main() -> None:
    rank = ra.init().rank()
    other = rank == 1
    cases: dict[str, dict] = {
        "good before": {},
        "query heads": {"heads": 4 if other else 2, "kv": mx.zeros((1, 2, 8, 4))},
        "dtype": {"dtype": mx.bfloat16 if other else mx.float32},
        "head dimension": {"dim": 8 if other else 4},
        "mask": {"mask": "causal" if other else None},
        "window": {"window": 3 if other else 4},
        "scale": {"scale": 0.25 if other else 0.5},
        "layout": {"layout": "striped" if other else "zigzag"},
        "segments": {"segments": mx.zeros((8,), mx.int32) if other else None},
        "zigzag tokens": {"length": 11 if other else 8},
        "value dimension": {"v": mx.zeros((1, 2, 8, 3 if other else 4))},
        "sinks": {"sinks": mx.zeros((2,)) if other else None},
        "positions": {"positions": mx.arange(8) if other else None},
        "positions= keys": {"kv": mx.zeros((1, 2, 9 if other else 8, 4)), "mask": "causal"},
        "refused agree": {"kv": mx.zeros((2 if other else 1, 2, 8, 4))},
        "refused kernel": {"kernel": "none such"} if other else {},
        "good after": {},
    }
    seen: dict[str, object] = {}
    for name, options in cases.items():
        try:
            call(rank, **options)
            seen[name] = "none"
        except ra.RingError as error:
            seen[name] = (type(error).__name__, str(error))
    print(json.dumps(seen))


main()
