"""Predict what decode over a sharded KV cache takes: memory a host, and seconds of attention a token. Part of `ringattn.planner`."""

from collections.abc import Mapping, Sequence

import mlx.core as mx
import numpy as np

from ringattn import kernels
from ringattn.decode import HEADER, KeyBlock, Rules, local_attention
from ringattn.hosts import CHIPS, Link
from ringattn.planner import HOSTS, Shape, seconds_of

CACHE_GROWTH, READ_ROWS = 256, 8192  # rows: growth of a cache's last page, and a page, as in ringattn.lm.cache


def cache_bytes(shape: Shape, layers: int, hosts: int) -> int:
    """Return the bytes of a host's part of a model's KV cache: its tokens, one more than others at most, and a page's growth."""
    rows = -(-shape.length // hosts)
    rows = -(-rows // CACHE_GROWTH) * CACHE_GROWTH
    return layers * 2 * shape.batch * shape.kv_heads * rows * shape.dim * shape.itemsize


def decode_seconds(shape: Shape, layers: int, read: float, link: Link, hosts: int) -> float:
    """Predict the seconds that attention takes of a token, over `shape.length` tokens of context, as `ringattn.decode` computes it.

    Each host reads its keys and values; then one all_gather a layer takes hosts - 1 hops. The weights, which each host reads whole,
    are not in it.

    Args:
        shape: the attention call.
        layers: number of layers.
        read: bytes/s at which a host's kernel reads keys and values.
        link: between neighbours.
        hosts: number of hosts.
    """
    share = 2 * shape.batch * shape.kv_heads * shape.length / hosts * shape.dim * shape.itemsize
    message = 4 * (shape.batch * shape.heads * (shape.dim + 1) + HEADER)  # float32; the header's integers
    return layers * (share / read + (hosts - 1) * (link.latency + message / link.bandwidth))


def measure_read(shape: Shape, *, repeats: int = 5) -> float:
    """Measure the bytes/s at which this machine's kernel reads keys and values for one query, best of `repeats`."""
    dtype = mx.float32 if shape.itemsize == 4 else mx.bfloat16
    q = mx.random.normal((1, shape.heads, 1, shape.dim)).astype(dtype)
    k, v = (mx.random.normal((1, shape.kv_heads, READ_ROWS, shape.dim)).astype(dtype) for _ in range(2))
    mx.eval(q, k, v)
    block, at = KeyBlock(k, v, np.arange(READ_ROWS, dtype=np.int32)), np.array([READ_ROWS], np.int32)
    kernel, rules = kernels.select_for(None, shape.dim), Rules(shape.dim**-0.5)
    seconds = min(
        seconds_of(lambda: local_attention(q, [block], at, rules, kernel, width=shape.dim)) for _ in range(repeats)
    )
    return (k.nbytes + v.nbytes) / seconds


def decode_report(shape: Shape, layers: int, read: float, links: Sequence[Link]) -> dict:
    """Return what decode takes, as plain data: bytes of the KV cache a host, and seconds of a token's attention by link.

    Args:
        shape: the attention call.
        layers: number of layers.
        read: this machine's, of `measure_read`.
        links: the links to predict for.
    """
    return {
        "layers": layers,
        "read": read,
        "cache_bytes": {n: cache_bytes(shape, layers, n) for n in HOSTS},
        "seconds": {
            link.name: {n: decode_seconds(shape, layers, read, link, n) for n in HOSTS} for link in links
        },
        "paper": {
            chip.name: {
                n: decode_seconds(shape, layers, chip.memory, chip.links[-1], n) for n in HOSTS
            }
            for chip in CHIPS
        },
    }  # fmt: skip


def decode_text(found: dict) -> str:
    """Format the report of decode for a terminal."""

    def row(name: str, values: Mapping[int, float], form: str) -> str:
        return f"{name:<22}" + "".join(f"{format(values[n], form):>10}" for n in HOSTS)

    gigabytes = {n: size / 1e9 for n, size in found["cache_bytes"].items()}
    return "\n".join(
        [
            "",
            f"Decode, {found['layers']} layers; keys and values are read at {found['read'] / 1e9:.2f} GB/s here:",
            f"{'':<22}" + "".join(f"{f'n={n}':>10}" for n in HOSTS),
            row("GB of cache a host", gigabytes, ".2f"),
            "seconds of attention a token, hosts like this one:",
            *(row(name, values, ".4f") for name, values in found["seconds"].items()),
            "on paper, as fast as the chip's memory, over its last link; not measured:",
            *(row(name, values, ".4f") for name, values in found["paper"].items()),
        ]
    )
