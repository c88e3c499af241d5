"""A rank that prints its peak bytes in a forward and backward, of arrays and of the process: `memory.py length dim`.

With a window, so that it is quick; every block still travels, as zigzag spreads neighbours over the ranks.
"""

import json
import resource
import sys

import mlx.core as mx

import ringattn as ra


def main() -> None:
    group = ra.init()
    x = mx.ones((1, 8, int(sys.argv[1]) // group.size(), int(sys.argv[2])))

    def loss(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return ra.ring_attention(q, k, v, scale=0.1, mask="causal", window=64).sum()

    mx.eval(mx.grad(loss, argnums=(0, 1, 2))(x, x + 1, x + 2))
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(json.dumps({"arrays": mx.get_peak_memory(), "process": resident}))


main()
