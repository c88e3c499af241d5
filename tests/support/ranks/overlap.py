"""A rank of two that shows overlap: `overlap.py events`, `overlap.py times` or `overlap.py weights`; prints JSON.

events: a kernel that returns only when all posted exchanges are complete. times, weights: a kernel and a link of known speed; the kernel
sleeps as long as its visible pairs would take, so the times do not depend on how busy the machine is.
"""

import json
import sys
import time
from typing import Any

import mlx.core as mx

import ringattn as ra
from ringattn import kernels

PAIRS_PER_SECOND = 2e6
LENGTH = 2048


class Recorder:
    """The ring's transport, with a list of the exchanges that were posted."""

    def __init__(self, inner: ra.MlxTransport) -> None:
        self.inner, self.posted = inner, list[Any]()
        self.rank, self.size = inner.rank, inner.size
        self.all_gather, self.all_sum = inner.all_gather, inner.all_sum

    def shift(self, shift, doing: str):
        self.posted.append(self.inner.shift(shift, doing))
        return self.posted[-1]


class Patient:
    """A kernel with zeros for results, whose computation ends only when all posted exchanges are complete."""

    name = "patient"

    def __init__(self, transport: Recorder) -> None:
        self.transport, self.overlapped = transport, set[int]()

    def _await_exchanges(self) -> None:
        for index, ticket in enumerate(self.transport.posted):
            if index not in self.overlapped:
                assert ticket.done.wait(30), f"exchange {index} makes no progress during computation"
                self.overlapped.add(index)

    def forward(self, q, k, v, block, *, scale, softcap=None):
        self._await_exchanges()
        return mx.zeros(q.shape), mx.zeros(q.shape[:3])

    def backward(self, q, k, v, do, lse, delta, block, *, scale, softcap=None):
        self._await_exchanges()
        return mx.zeros(q.shape), mx.zeros(k.shape), mx.zeros(v.shape)


class Paced:
    """A kernel with zeros for results, which takes the time that the work would take."""

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

    def forward(self, q, k, v, block, *, scale, softcap=None):
        self._sleep(block)
        return mx.zeros(q.shape), mx.zeros(q.shape[:3])

    def backward(self, q, k, v, do, lse, delta, block, *, scale, softcap=None):
        self._sleep(block)
        return mx.zeros(q.shape), mx.zeros(k.shape), mx.zeros(v.shape)


def step(layout: str | ra.Layout, transport: ra.Transport, kernel: kernels.Kernel) -> list[ra.HopTime]:
    """Run one forward and backward pass; return its hops."""
    x = ra.shard(mx.zeros((1, 1, LENGTH, 4)), 2, layout=layout)

    def loss(x: mx.array) -> mx.array:
        o = ra.ring_attention(
            x, x, x, scale=1.0, mask="causal", layout=layout, group=transport, kernel=kernel, timeout=60
        )
        return o.sum()

    with ra.trace() as hops:
        mx.eval(mx.grad(loss)(x))
    return hops


def total(hops: list[ra.HopTime]) -> float:
    """Return the seconds from the moment at which both ranks take part."""
    return sum(hop.compute + hop.wait for hop in hops if hop.phase != "agree")


def main() -> None:
    group = ra.init()
    plain = ra.MlxTransport(group)
    if sys.argv[1] == "events":
        recorder = Recorder(plain)
        kernel = Patient(recorder)
        step("zigzag", recorder, kernel)
        print(json.dumps({"exchanges": len(recorder.posted), "overlapped": len(kernel.overlapped)}))
        return
    if sys.argv[1] == "weights":
        slowed = Paced((1.0, 0.5)[group.rank()])
        equal, weighted = (total(step(how, plain, slowed)) for how in ("zigzag", ra.weighted_zigzag([1.0, 0.5])))
        print(json.dumps({"equal": equal, "weighted": weighted}))
        return
    compute = sum(hop.compute for hop in step("zigzag", plain, Paced(1.0)))
    # The backward computes as long as the forward here, and sends K, V and then as much again of gradients: three
    # exchanges in all, of which this link lets each take 0.8 of a forward's own block.
    nbytes = 2 * LENGTH // 2 * 4 * 4
    exchange = 0.8 * compute / 4 / 2
    hops = step("zigzag", ra.ThrottledTransport(plain, bandwidth=nbytes / exchange), Paced(1.0))
    print(json.dumps({"compute": sum(h.compute for h in hops), "communication": 3 * exchange, "total": total(hops)}))


main()
