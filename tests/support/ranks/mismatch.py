"""A rank of two that are called differently, case after case on one group; prints the errors by case as JSON."""

import json
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

import ringattn as ra


def attend(*, heads: int = 2, length: int = 8, dim: int = 4, dtype: mx.Dtype = mx.float32, **options: Any) -> mx.array:
    x = mx.zeros((1, heads, length, dim), dtype)
    kv = options.pop("kv", x)
    return ra.ring_attention(x, kv, options.pop("v", kv), **({"scale": 0.5, "timeout": 20.0} | options))


def unshard(*, x: Any = None, axis: Any = 1, **options: Any) -> mx.array:
    return ra.unshard(mx.zeros((2, 4, 3)) if x is None else x, axis, timeout=20.0, **options)


def cases(other: bool) -> dict[str, Callable[[], mx.array]]:
    """Return the calls of this rank; those of the `other` one differ, in what the name's words say."""

    def given(**options: Any) -> Callable[[], mx.array]:
        return lambda: attend(**options)

    def wrong(**options: Any) -> Callable[[], mx.array]:
        return lambda: attend(**(options if other else {}))

    return {
        "good before": given(),
        "query heads": given(heads=4 if other else 2, kv=mx.zeros((1, 2, 8, 4))),
        "dtype": given(dtype=mx.bfloat16 if other else mx.float32),
        "head dimension": given(dim=8 if other else 4),
        "mask": given(mask="causal" if other else None),
        "window": given(window=3 if other else 4),
        "scale": given(scale=0.25 if other else 0.5),
        "layout": given(layout="striped" if other else "zigzag"),
        "segments": given(segments=mx.zeros((8,), mx.int32) if other else None),
        "zigzag tokens": given(length=11 if other else 8),
        "value dimension": given(v=mx.zeros((1, 2, 8, 3 if other else 4))),
        "sinks": given(sinks=mx.zeros((2,)) if other else None),
        "positions": given(positions=mx.arange(8) if other else None),
        "positions= keys": given(kv=mx.zeros((1, 2, 9 if other else 8, 4)), mask="causal"),
        "refused agree": given(kv=mx.zeros((2 if other else 1, 2, 8, 4))),
        "refused kernel": wrong(kernel="none such"),
        "refused forward backward name": wrong(kernel=7),
        "refused max dimension 512": given(dim=512, kernel="native" if other else "mlx"),
        "refused mask array window= segments=": wrong(mask=mx.zeros((8, 8))),
        "refused numpy ndarray window=": wrong(mask=np.ones((8, 8), bool)),
        "refused scale None": wrong(scale=None),
        "refused segments ragged": wrong(segments=[[1, 2], [3]]),
        "refused timeout text": wrong(timeout="6"),
        "refused timeout -1": wrong(timeout=-1),
        "refused window 2.5": wrong(window=2.5),
        "refused tag True": wrong(tag=True),
        "refused evaluated": wrong(kv=mx.linalg.inv(mx.zeros((1, 2, 8, 8)), stream=mx.cpu)[..., :4]),
        "tag 2 3": given(tag=3 if other else 2),
        "call unshard": unshard if other else given(),
        "unshard good": unshard,
        "unshard axis": lambda: unshard(x=mx.zeros((2, 4, 4)), axis=1 if other else 2),
        "unshard dtype": lambda: unshard(x=mx.zeros((2, 4, 3), mx.int32 if other else mx.float32)),
        "unshard size": lambda: unshard(x=mx.zeros((2, 4, 5 if other else 3))),
        "unshard refused axis": lambda: unshard(axis=7 if other else 1),
        "unshard refused array": lambda: unshard(x=[1.0] if other else None),
        "good integers of numpy": given(window=np.int64(5), tag=np.uint8(3), timeout=np.float32(20)),
        "good 512 by the mlx kernel": given(dim=512),
        "good after": given(),
    }


def main() -> None:
    seen: dict[str, object] = {}
    for name, work in cases(ra.init().rank() == 1).items():
        try:
            with ra.trace() as hops:
                mx.eval(work())
            seen[name] = ("none", sorted({hop.kernel for hop in hops if hop.kernel}))
        except ra.RingError as error:
            seen[name] = (type(error).__name__, str(error))
    print(json.dumps(seen))


main()
