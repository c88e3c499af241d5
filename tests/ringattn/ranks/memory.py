"""A rank that prints the bytes of arrays alive at the peak of a forward and backward: `memory.py length`.

With a window, so that it is quick; every block still travels, as zigzag spreads neighbours over the ranks.
"""

import sys

import mlx.core as mx

import ringattn as ra


def main() -> None:
    group = ra.init()
    x = mx.ones((1, 8, int(sys.argv[1]) // group.size(), 32))

    def loss(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return ra.ring_attention(q, k, v, scale=0.1, mask="causal", window=64).sum()

    mx.eval(mx.grad(loss, argnums=(0, 1, 2))(x, x + 1, x + 2))
    print(mx.get_peak_memory())


main()
