"""Ranks of which one is late: `slow.py CASES TIMEOUT SECONDS`, cases separated by commas, one after the other on one group.

Prints a line of JSON a case: the largest difference from the same call before, or the error; a rank that lost the group stays, so that
only what the ranks tell each other ends their waits.
"""

import json
import os
import signal
import sys
import time

import mlx.core as mx

import ringattn as ra

timeout, seconds = float(sys.argv[2]), float(sys.argv[3])


def attend(x: mx.array) -> mx.array:
    return ra.ring_attention(x, x, x, scale=0.3, mask="causal", timeout=timeout)


def summed(x: mx.array, before: mx.array) -> None:
    """Calls while a collective of the program, as mlx's usual loop leaves it, is in flight."""
    for step in range(6):
        total = mx.distributed.all_sum(mx.full((500_000,), float(step)))
        mx.async_eval(total)
        assert mx.abs(attend(x) - before).max().item() == 0
        assert total[0].item() == step * ra.init().size()


def prepare(case: str, x: mx.array, before: mx.array) -> None:
    """Do what comes before a case's call; rank 1 is the late one."""
    late = ra.init().rank() == 1
    until = time.monotonic() + seconds
    if case == "async":
        summed(x, before)
    elif case == "unlike" and not late:  # every rank waits: in a backward pass, and in the header of a call
        mx.eval(mx.grad(lambda y: attend(y).sum())(x))
    elif case == "unlike":
        attend(x)
    elif case == "in flight" and not late:  # a collective of the program that rank 1 never joins
        mx.async_eval(mx.distributed.all_sum(mx.ones((2_000_000,))))
    elif case == "sleeps" and late:
        time.sleep(seconds)
    while case == "computes" and late and time.monotonic() < until:
        a = mx.random.normal((512, 512))
        mx.eval(a @ a)
        sum(range(10**6))
    if case in ("stops", "in flight") and late:
        os.kill(os.getpid(), signal.SIGSTOP)


def main() -> None:
    ra.init()
    x = mx.random.normal((1, 2, 64, 8))
    before = attend(x)
    for case in sys.argv[1].split(","):
        began = time.monotonic()
        try:
            prepare(case, x, before)
            report: dict[str, object] = {"difference": mx.abs(attend(x) - before).max().item()}
        except ra.RingError as error:
            report = {"error": type(error).__name__, "message": str(error)}
        print(json.dumps(report | {"case": case, "seconds": time.monotonic() - began}), flush=True)
    while "error" in report:
        time.sleep(1)


main()
