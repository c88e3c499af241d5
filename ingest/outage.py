"""Outages of a source: which failed requests belong to one, when the next try is, when a fetch gives up, what is reported.

A source that does not serve is waited for in one way, whatever form that takes: a 429 or 403, an HTML notice under 200, a 5xx with
or without Retry-After, a connection that is lost or refused, a name that does not resolve, silence.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from ingest.errors import IngestError, SourceError, ThrottledError
from ingest.http import jittered_backoff_s

LIMIT_S = 120.0  # a fetch without a usable response for this long goes back to the scheduler, which may retry it
PAUSE_S = (0.5, 30.0)  # first and longest pause where the server names none
REPORTED_S = 1.0  # a wait is reported when it is this old
OVER = "outage"  # kind of the SourceError that ends the fetch
KINDS = (
    "5xx",
    "reset",
    "timeout",
)  # of a SourceError: the source does not serve. Any other kind is a fault of its content


@dataclass(frozen=True)
class Wait:
    """What a fetch waits for. Times are seconds of the monotonic clock."""

    what: str  # the source's host
    reason: str
    since: float  # the start of the first request without a usable response
    next_try: float
    attempt: int  # the request that failed last, or that is open


def is_outage(error: IngestError) -> bool:
    """Return whether a failed request means that the source does not serve for now."""
    return isinstance(error, ThrottledError) or (isinstance(error, SourceError) and error.kind in KINDS)


def pause_s(error: IngestError, attempt: int, since: float, now: float) -> float | None:
    """Return the seconds until the next try, or None where the outage has lasted for `LIMIT_S`.

    The last try is at the limit, even where the server asks for a longer pause.

    Args:
        error: the failure of the request.
        attempt: 1, 2, … of this request.
        since: the start of the outage.
        now: the time, of the same clock.
    """
    left = since + LIMIT_S - now
    if left <= 0:
        return None
    named = error.retry_after if isinstance(error, ThrottledError) else None
    return min(named or jittered_backoff_s(attempt, *PAUSE_S), left)


class OutageTimer:
    """The outage of one fetch: from its first failed request to its next usable response. Thread-safe."""

    def __init__(self, what: str, report: Callable[[Wait | None], None]) -> None:
        """Take the source's host, and what takes each change of the wait: None when there is none."""
        self._what, self._report = what, report
        self._since: float | None = None
        self._reason = ""
        self._lock = threading.Lock()

    def usable(self) -> None:
        """Take a usable response: an outage is over."""
        with self._lock:
            self._since = None
        self._report(None)

    def failed(self, error: IngestError, attempt: int, started: float, now: float) -> float:
        """Take a failed request that was sent at `started`; return the seconds until the next try.

        Raises:
            SourceError: kind `OVER`: it has lasted for `LIMIT_S`.
        """
        reason = str(error)
        for subject in (self._what, self._what.rpartition(":")[0]):  # the line begins with it
            reason = reason.removeprefix(subject) if subject else reason
        reason = reason.lstrip(": ")
        with self._lock:
            since = self._begin(started)
            self._reason = reason
        pause = pause_s(error, attempt, since, now)
        if pause is None:
            raise SourceError(f"no usable response for {LIMIT_S:g} s; the last: {error}", OVER) from error
        self._report(Wait(self._what, reason, since, now + pause, attempt))
        return pause

    def silent(self, attempt: int, since: float, next_try: float) -> None:
        """Take a request that has no usable response yet and receives nothing since `since`."""
        with self._lock:
            since = since if self._since is None else min(self._since, since)
        self._report(Wait(self._what, "no response yet", since, next_try, attempt))

    def held_back(self, attempt: int, started: float, now: float, next_s: float) -> None:
        """Take a request that waits since `started` for a throttled budget, which admits it in `next_s`.

        Raises:
            SourceError: kind `OVER`: it has lasted for `LIMIT_S`.
        """
        with self._lock:
            since = started if self._since is None else self._since
            reason = self._reason if self._since is not None else "the request budget pauses after a throttle"
        if now - since >= LIMIT_S:
            raise SourceError(f"no usable response for {LIMIT_S:g} s; the last: {reason}", OVER)
        self._report(Wait(self._what, reason, since, now + next_s, attempt))

    def _begin(self, started: float) -> float:
        self._since = started if self._since is None else min(self._since, started)
        return self._since
