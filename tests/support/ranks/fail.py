"""A rank of a ring in which one rank fails on purpose: `fail.py victim how phase hop timeout join`; prints what it saw as JSON.

how: kill or stop. The victim fails when it posts the exchange of keys and values or of gradients at that hop.
"""

import json
import os
import signal
import sys
import time

import mlx.core as mx

import ringattn as ra

victim, how, phase, hop = int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
timeout, join = float(sys.argv[5]), float(sys.argv[6])


class Fails:
    """The ring's transport, until the moment at which this rank fails."""

    def __init__(self, inner: ra.Transport) -> None:
        self.inner = inner
        self.rank, self.size = inner.rank, inner.size
        self.all_gather, self.all_sum = inner.all_gather, inner.all_sum

    def shift(self, shift, doing: str):
        if self.rank() == victim and doing.startswith(f"{phase} hop {hop} "):
            os.kill(os.getpid(), signal.SIGKILL if how == "kill" else signal.SIGSTOP)
        return self.inner.shift(shift, doing)


def main() -> None:
    try:
        group = ra.init(join)
    except ra.PeerError as error:
        print(json.dumps({"error": type(error).__name__, "doing": error.doing, "again": None}))
        return
    transport = Fails(ra.MlxTransport(group))
    x = mx.random.normal((1, 2, 64, 8))
    mx.eval(x)

    def attend(x: mx.array) -> mx.array:
        return ra.ring_attention(x, x, x, scale=0.3, mask="causal", group=transport, timeout=timeout).sum()

    start = time.monotonic()
    seen = {}
    try:
        # A rank that needs nothing more from the victim completes this step and detects the failure in the next.
        for _ in range(2):
            mx.eval(mx.grad(attend)(x))
    except ra.PeerError as error:
        seen = {"error": type(error).__name__, "doing": error.doing, "seconds": time.monotonic() - start}
        try:
            attend(x)
        except ra.PeerError as again:
            seen["again"] = type(again).__name__
    print(json.dumps(seen))


main()
