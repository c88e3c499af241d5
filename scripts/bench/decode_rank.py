"""A rank of scripts/bench/decode.py: `decode_rank.py SPEC`; its last line is what it measured.

Fills its part of a KV cache with random keys and values, then times the attention of a token: one step of decode through the cache's own code,
in every layer.
"""

import json
import resource
import sys
import time

import mlx.core as mx
import numpy as np

import ringattn
from ringattn.decode_planner import measure_read
from ringattn.lm.cache import PAGE, ShardedCache
from ringattn.planner import Shape


def filled(shape: Shape, layers: int) -> ShardedCache:
    """Return a cache of `shape.length` tokens, of which this rank keeps each n-th."""
    cache = ShardedCache([None] * layers)
    cache.owner = (np.arange(shape.length) % cache.size).astype(np.uint8)
    mine = np.flatnonzero(cache.owner == cache.rank).astype(np.int32)
    page = mx.random.normal((1, shape.kv_heads, PAGE, shape.dim)).astype(mx.bfloat16)
    for layer in cache:
        layer.width, layer.offset = shape.dim, shape.length
        for start in range(0, len(mine), PAGE):
            at = mine[start : start + PAGE]
            # A new array for each page: MLX takes whole pages over as they are, so that the same one would be one memory.
            k = page[:, :, : len(at)] * (1 + start / shape.length)
            layer.append(k, k * 0.5, at)
    return cache


def main() -> None:
    """Print the measurement as JSON."""
    group = ringattn.init(120)
    spec = json.loads(sys.argv[1])
    shape, layers, tokens = Shape(**spec["shape"]), spec["layers"], spec["tokens"]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    cache = filled(shape, layers)
    mx.clear_cache()
    kept = cache.nbytes
    q = mx.random.normal((1, shape.heads, 1, shape.dim), key=mx.random.key(0)).astype(mx.bfloat16)
    new = mx.random.normal((1, shape.kv_heads, 1, shape.dim), key=mx.random.key(1)).astype(mx.bfloat16)
    mx.eval(q, new)

    def together() -> None:
        if group.size() > 1:
            cache.transport.all_gather(mx.array([0]), "beginning together").wait(300)

    reads, gathers, seconds = [], [], []
    message = mx.zeros((1, shape.heads * (shape.dim + 1) + 4))
    mx.eval(message)
    for _ in range(tokens + 1):
        # Speeds beside each token: other programs may use the machine meanwhile.
        together()
        reads.append(measure_read(shape, repeats=3))
        for _ in range(5):
            together()
            began = time.perf_counter()
            if group.size() > 1:
                cache.transport.all_gather(message, "timing a gather").wait(300)
            gathers.append(time.perf_counter() - began)
        together()
        began = time.perf_counter()
        with cache.step(1):
            for layer in cache:
                k, v = layer.update_and_fetch(new, new)
                layer.attend(q, k, v, scale=shape.dim**-0.5, window=None)
        seconds.append(time.perf_counter() - began)
    print(
        json.dumps(
            {
                "tokens": sum(cache.owner == cache.rank).item(),
                "cache_bytes": kept,
                "mlx_peak_bytes": mx.get_peak_memory(),
                "rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                "rss_before_bytes": before,
                "read": float(np.median(reads)),
                "gather": float(np.median(gathers)),
                "seconds": seconds[1:],  # the first one warms up
            }
        )
    )


main()
