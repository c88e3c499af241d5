"""The emulated clock: starts at a given hour, runs `scale` times as fast as real time, and can be moved forward."""

import time
from collections.abc import Callable
from datetime import UTC, datetime


class Clock:
    """Count seconds since 1970-01-01T00 UTC in the emulated world."""

    def __init__(self, start: float, scale: float = 1.0, real: Callable[[], float] = time.monotonic) -> None:
        """Start the clock.

        Args:
            start: The first emulated time, seconds since 1970-01-01T00 UTC.
            scale: Emulated seconds a real second.
            real: The monotonic source of real seconds, a parameter for tests.
        """
        self._start = start
        self._scale = scale
        self._real = real
        self._origin = real()

    def now(self) -> float:
        """Return the emulated seconds since 1970."""
        return self._start + (self._real() - self._origin) * self._scale

    def hour(self) -> int:
        """Return the whole hours since 1970-01-01T00 UTC: the latest hour-ending period that is over."""
        return int(self.now() // 3600)

    def advance(self, seconds: float) -> None:
        """Move forward by emulated seconds.

        Raises:
            ValueError: `seconds` is negative; the clock never goes back.
        """
        if seconds < 0:
            raise ValueError(f"the emulated clock can't go back ({seconds} s)")
        self._start += seconds

    def text(self) -> str:
        """Return the emulated time, ISO 8601, UTC."""
        return datetime.fromtimestamp(self.now(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
