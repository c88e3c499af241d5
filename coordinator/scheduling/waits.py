"""What tasks wait for outside the cluster, as heartbeats report it: since when, and when the next try is."""

from __future__ import annotations

import msgspec

from coordinator.wire.messages import Waiting

SAME_S = 3.0  # a wait that begins so soon after its lease continues the wait of the attempt before
MAX_SHOWN = 5  # lines of a status


class WaitStatus(msgspec.Struct, frozen=True):
    """A wait of one or more tasks for the same thing, at one moment."""

    what: str  # host of the source
    reason: str
    since_s: float  # seconds that it lasts
    next_s: float  # seconds until the next try
    attempt: int  # of the request
    tasks: int  # how many wait

    def __str__(self) -> str:
        """Return the wait as a part of a line."""
        tasks = "" if self.tasks == 1 else f", {self.tasks} tasks"
        again = f"next try in {self.next_s:.0f} s" if self.next_s >= 0.5 else "trying now"
        return (
            f"waiting for {self.what}: {self.reason}, since {self.since_s:.0f} s, {again} "
            f"(attempt {self.attempt}{tasks})"
        )


class _Wait(msgspec.Struct):
    attempt: int  # of the lease
    told: Waiting
    since: float  # seconds of the scheduler's clock, like the next
    next_try: float


class TaskWaits:
    """The waits by task. Forgotten at a restart; running workers report theirs again."""

    def __init__(self) -> None:
        """Start without waits."""
        self._waits: dict[str, _Wait] = {}

    def __contains__(self, task: str) -> bool:
        """Return whether a task waits."""
        return task in self._waits

    def heard(self, task: str, attempt: int, leased: float, told: Waiting | None, now: float) -> None:
        """Take a heartbeat that lists the lease of `task`, granted at `leased`, with or without a wait."""
        before = self._waits.get(task)
        if told is None:
            if before is not None and (before.attempt == attempt or now - leased > SAME_S):
                del self._waits[task]
            return
        since = now - told.since_s
        if before is not None and (before.attempt == attempt or since - leased < SAME_S):
            since = min(since, before.since) if before.attempt != attempt else before.since
        self._waits[task] = _Wait(attempt, told, since, now + told.next_s)

    def failed(self, task: str, attempt: int, next_try: float | None) -> None:
        """Take the failure of a lease; `next_try`: when the task may be leased again, None for never."""
        wait = self._waits.get(task)
        if wait is not None and wait.attempt == attempt and next_try is not None:
            wait.next_try = next_try
        else:
            self.ended(task)

    def ended(self, task: str) -> None:
        """Take the end of a task, or of a lease that says nothing about what the task waits for."""
        self._waits.pop(task, None)

    def status(self, now: float) -> tuple[WaitStatus, ...]:
        """Return the waits, one for each thing that is waited for: the longest, with the earliest next try."""
        by_what: dict[str, list[_Wait]] = {}
        for wait in self._waits.values():
            by_what.setdefault(wait.told.what, []).append(wait)
        shown = []
        for what, waits in by_what.items():
            oldest = min(waits, key=lambda wait: wait.since)
            shown.append(
                WaitStatus(
                    what,
                    oldest.told.reason,
                    round(now - oldest.since, 3),
                    round(max(0.0, min(wait.next_try for wait in waits) - now), 3),
                    max(wait.told.request for wait in waits),
                    len(waits),
                )
            )
        return tuple(sorted(shown, key=lambda wait: -wait.since_s)[:MAX_SHOWN])
