"""A rank that prints the bytes its forward and backward added at their peak: `memory.py length`. Windowed, so quick."""

import resource
import sys

import mlx.core as mx

import ringattn as ra


def peak() -> int:
    """Bytes; Linux counts ru_maxrss in KiB, macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    group = ra.init()

    def grad(length: int) -> None:
        x = mx.ones((1, 8, length // group.size(), 32))

        def loss(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
            return ra.ring_attention(q, k, v, scale=0.1, mask="causal", window=64, layout="contiguous").sum()

        mx.eval(mx.grad(loss, argnums=(0, 1, 2))(x, x + 1, x + 2))

    grad(64 * group.size())
    before = peak()
    grad(int(sys.argv[1]))
    print(peak() - before)


main()
