"""Client side of the rate limiter: requests permits as threads need them, and uses none before its time."""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from coordinator.wire.messages import MAX_PERMITS
from ingest.errors import Cancelled, UsageError

ANSWER_S = 5.0  # a request for permits without an answer for this long counts as lost
STALE_S = 2.0  # a permit this long past its time is dropped: unused permits would add up to a burst
POLL_S = 0.25  # between checks of `cancelled`


@dataclass
class _Bucket:
    times: deque[float] = field(default_factory=deque)  # when each permit held may be used, ascending
    waiting: int = 0  # threads in `acquire`
    requested: int = 0  # permits requested and not granted yet
    requested_at: float = 0.0
    unknown: bool = False  # the coordinator has no such budget
    throttled: bool = False  # its permits were revoked, and none was used since


class Permits:
    """Request permits of this worker, by bucket. Thread-safe.

    Args:
        request: Sends a request for a number of permits of a bucket; must not block.
    """

    def __init__(self, request: Callable[[str, int], None]) -> None:
        self._request = request
        self._buckets: dict[str, _Bucket] = {}
        self._changed = threading.Condition()

    def acquire(self, bucket: str, cancelled: threading.Event, check: Callable[[float], None]) -> None:
        """Block until one request may be sent. Returns at once for the bucket "", which has no limit.

        While the bucket pauses after a throttle, `check` is called with the seconds until the next permit; it may raise.

        Raises:
            Cancelled: The lease was cancelled while it waited.
        """
        if not bucket:
            return
        with self._changed:
            held = self._buckets.setdefault(bucket, _Bucket())
            held.waiting += 1
            try:
                while not self._try_acquire(bucket, held):
                    if cancelled.is_set():
                        raise Cancelled(f"the lease was cancelled while it waited for a permit of budget {bucket!r}")
                    ahead = max(held.times[0] - time.monotonic(), 0.0) if held.times else POLL_S
                    if held.throttled:
                        check(ahead)
                    self._changed.wait(min(ahead, POLL_S))
            finally:
                held.waiting -= 1

    def _try_acquire(self, bucket: str, held: _Bucket) -> bool:
        if held.unknown:
            raise UsageError(
                f"the coordinator has no request budget {bucket!r}: coordinator and worker disagree on the job; "
                "install the same version on both"
            )
        now = time.monotonic()
        while held.times and held.times[0] < now - STALE_S:
            held.times.popleft()
        if held.times and held.times[0] <= now:
            held.times.popleft()
            held.throttled = False
            return True
        if held.requested and now - held.requested_at > ANSWER_S:
            held.requested = 0
        missing = min(held.waiting - len(held.times) - held.requested, MAX_PERMITS)
        if missing > 0:
            held.requested += missing
            held.requested_at = now
            self._request(bucket, missing)
        return False

    def granted(self, bucket: str, delays: tuple[float, ...]) -> None:
        """Add granted permits.

        Args:
            bucket: Name of the budget.
            delays: Seconds from now until each permit may be used. Empty: the coordinator has no such budget.
        """
        now = time.monotonic()
        with self._changed:
            held = self._buckets.setdefault(bucket, _Bucket())
            held.unknown = not delays
            held.requested = max(0, held.requested - len(delays))
            held.times.extend(now + delay for delay in delays)
            self._changed.notify_all()

    def revoke(self, bucket: str) -> None:
        """Drop all permits of a bucket."""
        with self._changed:
            if bucket in self._buckets:
                self._buckets[bucket].times.clear()
                self._buckets[bucket].throttled = True
                self._changed.notify_all()

    def reset(self) -> None:
        """Drop all permits and open requests, for a new connection to a coordinator."""
        with self._changed:
            for held in self._buckets.values():
                held.times.clear()
                held.requested = 0
                held.throttled = False
            self._changed.notify_all()
