"""What the fetches of this worker wait for, as its heartbeats report it."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from coordinator.wire.messages import MAX_LINE, MAX_PAUSE, Waiting
from ingest.console import redact

if TYPE_CHECKING:  # imported by the first fetch: see `worker.agent.lease`
    from ingest.outage import Wait

REPORTED_S = 1.0  # a wait is reported when it is this old
Key = tuple[str, int]  # task, attempt


@dataclass
class _Fetch:
    changed: float  # its start, or its last usable response
    wait: Wait | None = None


class Waits:
    """The waits of the worker's fetches. Thread-safe; times are of the monotonic clock."""

    def __init__(self, secret: str | None) -> None:
        """Take a text that is removed from every reason; None for none."""
        self._secret = secret
        self._fetches: dict[Key, _Fetch] = {}
        self._lock = threading.Lock()

    def begin(self, key: Key, now: float) -> None:
        """Take the start of a fetch, or of a lease on an engine."""
        with self._lock:
            self._fetches[key] = _Fetch(now)

    def report(self, key: Key, wait: Wait | None, now: float) -> None:
        """Take what a lease waits for; None after a usable response."""
        with self._lock:
            if (fetch := self._fetches.get(key)) is not None:
                fetch.wait = wait
                if wait is None:
                    fetch.changed = now

    def end(self, key: Key) -> None:
        """Take the end of a lease, whether it fetched or not."""
        with self._lock:
            self._fetches.pop(key, None)

    def current(self, now: float) -> tuple[Waiting, ...]:
        """Return the waits older than `REPORTED_S`, by lease.

        A fetch whose requests queue behind those of a waiting one waits for the same.
        """
        with self._lock:
            fetches = dict(self._fetches)
        waits = [fetch.wait for fetch in fetches.values() if fetch.wait and now - fetch.wait.since >= REPORTED_S]
        if not waits:
            return ()
        oldest = min(waits, key=lambda wait: wait.since)
        return tuple(
            self._message(key, fetch.wait or oldest, fetch.wait.since if fetch.wait else fetch.changed, now)
            for key, fetch in fetches.items()
            if now - (fetch.wait.since if fetch.wait else fetch.changed) >= REPORTED_S
        )

    def _message(self, key: Key, wait: Wait, since: float, now: float) -> Waiting:
        reason = redact(wait.reason, [self._secret])
        return Waiting(
            *key,
            _line(wait.what),
            _line(reason),
            now - since,
            min(max(0.0, wait.next_try - now), MAX_PAUSE),
            wait.attempt,
        )


def _line(text: str) -> str:
    """Return a text in the alphabet of `Line`."""
    return ascii(text)[1:-1][:MAX_LINE] or "?"
