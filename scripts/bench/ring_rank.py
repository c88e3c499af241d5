"""One rank of one measurement of ringattn or mx.fast, started by scripts/bench/ring.py: `ring_rank.py '{…}'`.

Prints one JSON line: seconds per repeat, peak bytes, seconds of computation and waiting by repeat, bytes sent.
"""

import json
import os
import resource
import sys
import time
from importlib.metadata import version

if __name__ == "__main__" and json.loads(sys.argv[1]).get("openblas"):
    from ringattn.blas import loader as blas

    blas.prepare()  # before mlx loads

import mlx.core as mx
import numpy as np

import ringattn as ra
from ringattn import kernels


def peak_bytes() -> int:
    """Return the peak memory of this process in bytes; Linux counts in KiB, macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Slowed:
    """The best kernel, made `factor` times slower, for the measurement of weighted shares."""

    name = "slowed"

    def __init__(self, factor: float) -> None:
        self.inner, self.factor = kernels.select(), factor

    def _call(self, method, *args, **options):
        start = time.perf_counter()
        out = method(*args, **options)
        mx.eval(out)
        time.sleep((self.factor - 1) * (time.perf_counter() - start))
        return out

    def forward(self, *args, **options):
        return self._call(self.inner.forward, *args, **options)

    def backward(self, *args, **options):
        return self._call(self.inner.backward, *args, **options)


def main() -> None:
    spec = json.loads(sys.argv[1])
    group = ra.init()
    rank, size = group.rank(), group.size()
    layout = ra.weighted_zigzag(spec["weights"]) if spec.get("weights") else spec.get("layout", "zigzag")
    mask = "causal" if spec["causal"] else None
    dtype, scale = getattr(mx, spec["dtype"]), spec["dim"] ** -0.5
    # Never the whole sequence on one rank: its memory is a result.
    lengths = ra.layout.lengths(layout, spec["length"], size)
    rng = np.random.default_rng(rank)

    def draw() -> mx.array:
        shape = (1, spec["heads"], lengths[rank], spec["dim"])
        x = mx.array(rng.standard_normal(shape, dtype=np.float32)).astype(dtype)
        mx.eval(x)
        return x

    q, k, v = draw(), draw(), draw()
    do = draw() if spec["backward"] else None
    transport: ra.Transport | None = None
    if size > 1:
        transport = ra.MlxTransport(group)
        if spec.get("bandwidth"):
            transport = ra.ThrottledTransport(transport, bandwidth=spec["bandwidth"])
    kernel = Slowed(spec["slow"][rank]) if spec.get("slow") else spec.get("kernel")

    def attend(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        if spec["what"] == "mx.fast":
            return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)
        return ra.ring_attention(
            q, k, v, scale=scale, mask=mask, layout=layout, group=transport, kernel=kernel, timeout=spec["limit"]
        )

    def step() -> None:
        if do is None:
            mx.eval(attend(q, k, v))
        else:
            _, grads = mx.vjp(attend, [q, k, v], [do])
            mx.eval(grads)

    if spec["warm"]:
        step()
    seconds, compute, wait, sent = [], [], [], 0
    for _ in range(spec["repeats"]):
        if transport is not None:
            transport.all_gather(mx.array([rank]), "starting together").wait(spec["limit"])
        start = time.perf_counter()
        with ra.trace() as hops:
            step()
        seconds.append(time.perf_counter() - start)
        compute.append(sum(hop.compute for hop in hops))
        wait.append(sum(hop.wait for hop in hops))
        sent = sum(hop.sent for hop in hops)
    print(
        json.dumps(
            {
                "seconds": seconds,
                "compute": compute,
                "wait": wait,
                "sent": sent,
                "peak": peak_bytes(),
                "active": mx.get_peak_memory(),
                "threads": os.environ.get("RINGATTN_THREADS"),
                "version": version("mlx"),
            }
        )
    )


if __name__ == "__main__":
    main()
