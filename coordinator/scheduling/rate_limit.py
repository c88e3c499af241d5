"""The rate limit of one API key: permits by GCRA (the virtual scheduling form of a leaky bucket), pace by AIMD.

Deterministic, no I/O (sans-I/O). GCRA: ITU-T I.371, annex A. With rate r and burst b, no more than r·t + b permits fall into any
window of t seconds. The pace halves when the server throttles, recovers quickly to just under the pace at which that happened,
and probes above it slowly, more slowly each time that it meets the same limit: it settles under a limit that is lower than the
ceiling, as when another client spends the same key. `docs/decisions/0003-adaptive-rate-limit.md` compares alternatives.
"""

from dataclasses import dataclass, field

import msgspec


class BudgetStatus(msgspec.Struct, frozen=True):
    """A budget at one moment. Rates are requests a second."""

    rate: float  # the ceiling
    pace: float
    granted: int  # permits
    throttles: int
    paused_s: float  # seconds that are left of a pause
    share: float  # used of the permits that the ceiling and one burst allow since the first one, at most 1


@dataclass
class RequestBudget:
    """Grant permits and adapt the pace. Times are seconds of one monotonic clock; rates are requests a second."""

    rate: float  # the ceiling: never exceeded
    burst: int = 1  # requests at once after an idle time
    decrease: float = 0.5  # factor of the pace at a throttle
    margin: float = 0.95  # settled pace / throttled pace; to the power of n at the n-th throttle in a row
    climb_s: float = 10.0  # from nothing to the settled pace
    # From nothing to the ceiling, above the settled pace; doubles when the same limit is met again.
    probe_s: float = 600.0
    probe_max_s: float = 38_400.0
    pause_s: float = 5.0  # after a throttle without Retry-After; doubles while throttles follow one another
    pause_max_s: float = 300.0
    granted: int = 0
    throttles: int = 0
    _pace: float = field(default=0.0, init=False)
    _settled: float = field(default=0.0, init=False)  # no quick recovery above this
    _arrival: float | None = field(default=None, init=False)  # GCRA's theoretical arrival time
    _updated: float = field(default=0.0, init=False)
    _paused_until: float = field(default=float("-inf"), init=False)
    _streak: int = field(default=0, init=False)  # throttles, one soon after the other
    _meetings: int = field(default=0, init=False)  # with the same limit
    _started: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if not self.rate > 0 or self.burst < 1:
            raise ValueError(f"a budget needs a rate over 0 and a burst of 1 or more, not {self.rate} and {self.burst}")
        self._pace = self._settled = self.rate

    def grant(self, now: float, count: int) -> tuple[float, ...]:
        """Grant `count` permits: return for each the delay in seconds after which it may be used."""
        self._recover(now)
        if self._started is None:
            self._started = now
        interval, tolerance = 1.0 / self._pace, (self.burst - 1) / self.rate
        arrival = now if self._arrival is None else self._arrival
        delays = []
        for _ in range(count):
            at = max(now, self._paused_until, arrival - tolerance)
            arrival = max(arrival, at) + interval
            delays.append(at - now)
        self._arrival = arrival
        self.granted += count
        return tuple(delays)

    def throttled(self, now: float, retry_after: float | None = None) -> None:
        """Pause all workers after a throttle, then continue at a lower pace. Reports during a pause belong to the same throttle."""
        self._recover(now)
        self.throttles += 1
        if now < self._paused_until:
            if retry_after is not None:
                self._paused_until = max(self._paused_until, now + retry_after)
            return
        self._streak = self._streak + 1 if now - self._paused_until < 2 * self.climb_s else 1
        pause = retry_after if retry_after is not None else self.pause_s * 2.0 ** min(self._streak - 1, 16)
        self._paused_until = now + min(pause, self.pause_max_s)
        self._meetings = self._meetings + 1 if self._pace >= self._settled < self.rate else 0
        self._settled = max(self._pace * self.margin**self._streak, self.rate * 1e-3)
        self._pace = max(self._pace * self.decrease, self.rate * 1e-3)
        # The burst is spent: after the pause the requests come one by one.
        rested = self._paused_until + (self.burst - 1) / self.rate
        self._arrival = rested if self._arrival is None else max(self._arrival, rested)
        self._updated = self._paused_until

    def _recover(self, now: float) -> None:
        """Raise the pace linearly: quickly up to the settled pace, slowly above it."""
        elapsed = now - self._updated
        if elapsed <= 0:
            return
        self._updated = now
        if self._pace < self._settled:
            slope = self._settled / self.climb_s
            quick = min(elapsed, (self._settled - self._pace) / slope)
            self._pace += quick * slope
            elapsed -= quick
        if elapsed > 0 and self._pace >= self._settled:
            probe_s = min(self.probe_s * 2.0**self._meetings, self.probe_max_s)
            self._pace = min(self.rate, self._pace + elapsed * self.rate / probe_s)

    def status(self, now: float) -> BudgetStatus:
        """Return the pace, the permits granted so far and the pause that is left."""
        elapsed = 0.0 if self._started is None else now - self._started
        return BudgetStatus(
            rate=self.rate,
            pace=self._pace,
            granted=self.granted,
            throttles=self.throttles,
            paused_s=max(0.0, self._paused_until - now),
            share=min(
                1.0, self.granted / (self.rate * elapsed + self.burst)
            ),  # granted counts those of the next seconds too
        )
