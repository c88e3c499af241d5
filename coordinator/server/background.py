"""Run work on files in a thread, so that the server loop goes on.

A hash, a sync or the check of a piece may take longer than the loop may wait for one batch of messages.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TypeVar

from coordinator.scheduling.events import Event

T = TypeVar("T")
Outcome = Callable[[], T]  # returns what the work returned, or raises what it raised
Continuation = Callable[[], Event | None]


class BackgroundThread:
    """Does one piece of work after another, in the order of `submit`. It ends with the process, or after `stop`."""

    def __init__(self, post: Callable[[Continuation], None]) -> None:
        """Start the thread; `post` hands a continuation to the server loop."""
        self._post = post
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="server-background", daemon=True).start()

    def submit(self, work: Callable[[], T], then: Callable[[Outcome[T]], Event | None]) -> None:
        """Do `work` in the thread; then have the server loop call `then` with its outcome, and decide the event that it returns."""

        def job() -> None:
            try:
                result = work()
            except Exception as error:
                failure = error  # the name in the except clause ends with it

                def outcome() -> T:
                    raise failure

            else:

                def outcome() -> T:
                    return result

            self._post(lambda: then(outcome))

        self._work.put(job)

    def stop(self) -> None:
        """End the thread after the work that it does now; what waits is dropped."""
        while not self._work.empty():
            self._work.get()
        self._work.put(None)

    def _run(self) -> None:
        while (job := self._work.get()) is not None:
            job()
