"""The worker's side of the request budget: asks for permits as threads come to need them, and uses none before its time."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from coordinator.wire.messages import MAX_PERMITS
from ingest.errors import Cancelled, UsageError

ANSWER_S = 5.0  # without an answer for this long, a request for permits counts as lost
STALE_S = 2.0  # a permit this long past its time is dropped: kept ones would add up to a burst
LOOK_S = 0.25  # between looks at `cancelled`


@dataclass
class _Bucket:
    times: deque[float] = field(default_factory=deque)  # when each permit held may be used, ascending
    waiting: int = 0  # threads in `take`
    asked: int = 0  # permits asked for and not yet granted
    asked_at: float = 0.0
    unknown: bool = False  # the coordinator has no such budget


class Permits:
    """Thread-safe. `ask(bucket, count)` sends a request for permits; it must not block."""

    def __init__(self, ask: Callable[[str, int], None]) -> None:
        self._ask = ask
        self._buckets: dict[str, _Bucket] = {}
        self._changed = threading.Condition()

    def take(self, bucket: str, cancelled: threading.Event) -> None:
        """Block until one request may be sent. At once for bucket "". Cancelled when the lease is taken back meanwhile."""
        if not bucket:
            return
        with self._changed:
            held = self._buckets.setdefault(bucket, _Bucket())
            held.waiting += 1
            try:
                while not self._try(bucket, held):
                    if cancelled.is_set():
                        raise Cancelled(f"no permit of budget {bucket!r} is needed any more")
                    ahead = held.times[0] - time.monotonic() if held.times else LOOK_S
                    self._changed.wait(min(max(ahead, 0.0), LOOK_S))
            finally:
                held.waiting -= 1

    def _try(self, bucket: str, held: _Bucket) -> bool:
        if held.unknown:
            raise UsageError(
                f"the coordinator has no request budget {bucket!r}: coordinator and worker disagree on the job"
            )
        now = time.monotonic()
        while held.times and held.times[0] < now - STALE_S:
            held.times.popleft()
        if held.times and held.times[0] <= now:
            held.times.popleft()
            return True
        if held.asked and now - held.asked_at > ANSWER_S:
            held.asked = 0
        lacking = min(held.waiting - len(held.times) - held.asked, MAX_PERMITS)
        if lacking > 0:
            held.asked += lacking
            held.asked_at = now
            self._ask(bucket, lacking)
        return False

    def granted(self, bucket: str, delays: tuple[float, ...]) -> None:
        """Permits have come: delays in seconds from now. None at all: there is no such budget."""
        now = time.monotonic()
        with self._changed:
            held = self._buckets.setdefault(bucket, _Bucket())
            held.unknown = not delays
            held.asked = max(0, held.asked - len(delays))
            held.times.extend(now + delay for delay in delays)
            self._changed.notify_all()

    def void(self, bucket: str) -> None:
        """What is held of a bucket is void."""
        with self._changed:
            if bucket in self._buckets:
                self._buckets[bucket].times.clear()
                self._changed.notify_all()

    def reset(self) -> None:
        """Another coordinator: nothing is held, nothing is asked for."""
        with self._changed:
            for held in self._buckets.values():
                held.times.clear()
                held.asked = 0
            self._changed.notify_all()
