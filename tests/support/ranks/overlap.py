"""A rank of two with a kernel and a link of known speed: `pace.py overlap` or `pace.py weights`; prints its times as JSON.

The kernel sleeps as long as its visible pairs would take, so the times do not depend on how busy the machine is.
"""

import json
import sys
import time

import mlx.core as mx

import ringattn as ra
from ringattn import kernels

PAIRS_PER_SECOND = 2e6
LENGTH = 2048


class Paced:
    """The native kernel's seam with zeros for results, and with the time that the work would take."""

    name = "paced"

    def __init__(self, speed: float) -> None:
        self.speed = speed

    def _sleep(self, block: kernels.Block) -> None:
        seen = (
            (block.k_pos[None, :] <= block.q_pos[:, None]).sum()
            if block.causal
            else len(block.q_pos) * len(block.k_pos)
        )
        time.sleep(seen / PAIRS_PER_SECOND / self.speed)

    def forward(self, q, k, v, block, *, scale):
        self._sleep(block)
        return mx.zeros(q.shape), mx.zeros(q.shape[:3])

    def backward(self, q, k, v, do, lse, delta, block, *, scale):
        self._sleep(block)
        return mx.zeros(q.shape), mx.zeros(k.shape), mx.zeros(v.shape)


def timed(layout: str | ra.Layout, transport: ra.Transport, speed: float) -> list[ra.HopTime]:
    x = ra.shard(mx.zeros((1, 1, LENGTH, 4)), 2, layout=layout)

    def loss(x: mx.array) -> mx.array:
        o = ra.ring_attention(
            x, x, x, scale=1.0, mask="causal", layout=layout, group=transport, kernel=Paced(speed), timeout=60
        )
        return o.sum()

    with ra.trace() as hops:
        mx.eval(mx.grad(loss)(x))
    return hops


def total(hops: list[ra.HopTime]) -> float:
    """Seconds from the moment when both ranks were there."""
    return sum(hop.compute + hop.wait for hop in hops if hop.phase != "agree")


def main() -> None:
    group = ra.init()
    plain = ra.MlxTransport(group)
    if sys.argv[1] == "weights":
        speed = (1.0, 0.5)[group.rank()]
        equal, weighted = (total(timed(how, plain, speed)) for how in ("zigzag", ra.weighted_zigzag([1.0, 0.5])))
        print(json.dumps({"equal": equal, "weighted": weighted}))
        return
    compute = sum(hop.compute for hop in timed("zigzag", plain, 1.0))
    # The backward computes as long as the forward here, and sends K, V and then as much again of gradients: three
    # exchanges in all, of which this link lets each take 0.8 of a forward's own block.
    nbytes = 2 * LENGTH // 2 * 4 * 4
    exchange = 0.8 * compute / 4 / 2
    hops = timed("zigzag", ra.ThrottledTransport(plain, bandwidth=nbytes / exchange), 1.0)
    print(json.dumps({"compute": sum(h.compute for h in hops), "communication": 3 * exchange, "total": total(hops)}))


main()
