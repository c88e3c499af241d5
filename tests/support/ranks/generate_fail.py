"""A rank of a ring in which one rank fails while it generates: `generate_fail.py victim how doing time`; prints what it saw as JSON.

The victim fails when it posts an exchange whose description begins with `doing` for the given time, counted from 0.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

import ringattn as ra
from ringattn.lm import generate_step, shard_model
from tests.support import language_models as models

victim, how, doing, times = int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
TIMEOUT = 4.0  # seconds


class Fails:
    """The ring's transport, until the moment at which this rank fails."""

    def __init__(self, inner: ra.Transport) -> None:
        self.inner, self.left = inner, times
        self.rank, self.size, self.all_sum = inner.rank, inner.size, inner.all_sum

    def shift(self, shift, what: str):
        self.maybe_fail(what)
        return self.inner.shift(shift, what)

    def all_gather(self, x, what: str):
        self.maybe_fail(what)
        return self.inner.all_gather(x, what)

    def maybe_fail(self, what: str) -> None:
        if self.rank() == victim and what.startswith(doing):
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL if how == "kill" else signal.SIGSTOP)
            self.left -= 1


def main() -> None:
    transport = Fails(ra.MlxTransport(ra.init()))
    model = shard_model(models.make("llama"), transport, timeout=TIMEOUT)
    start = time.monotonic()
    seen: dict = {"tokens": 0}
    try:
        for _ in generate_step(models.tokens(61, batch=1)[0], model, max_tokens=20, prefill_step_size=24):
            seen["tokens"] += 1
            start = time.monotonic()
    except ra.PeerError as error:
        seen |= {"error": type(error).__name__, "doing": error.doing, "seconds": time.monotonic() - start}
    print(json.dumps(seen))


main()
