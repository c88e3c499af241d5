"""An engine and its losses: submit a request, wait for its answer; make the executor again when it is lost."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from typing import TYPE_CHECKING

from coordinator.wire.engines import Factory
from ingest.backoff import backoff_s
from worker.agent.handlers import EngineLostError
from worker.engine.run import run

if TYPE_CHECKING:  # requests takes a while to load, and only a loss needs it
    from ingest.outage import Wait

log = logging.getLogger(__name__)

MAX_LOSSES = 5  # one after the other, without an answer between …
PATIENCE_S = 120.0  # … and without an answer for this long, as of a source: then the engine is given up
BACKOFF_S = (1.0, 15.0)  # first and longest pause before an engine is made again
BLAMELESS = 3  # losses during a request that do not count against it: the next ones may be its doing
CLOSE_S = 3.0  # for the executor to end, at the end of the worker
POLL_S = 0.25  # between checks of the cancellation


class Engine:
    """One executor at a time, made by the user's factory at the first request and after each loss. Thread-safe.

    A function that runs on the engine never raises for an error of its work. So what a future raises is the engine's own: a broken
    pool, a scheduler that is gone, a host without our packages.
    """

    def __init__(self, factory: Factory) -> None:
        self._factory = factory
        self._lock = threading.Lock()  # held while the engine is made: no request can be submitted meanwhile
        self._executor: Executor | None = None
        self._made = 0  # engines so far
        self._losses = 0  # since the last answer
        self._lost_at = 0.0  # the first of them
        self._answered: float | None = None  # when the last answer came, or the first request
        self._closed = False
        self._not_before = 0.0
        self._last = ""  # why the last engine was lost
        self._losses_of: Counter[bytes] = Counter()  # by the digest of a request

    def call(
        self, request: bytes, check: Callable[[], None], on_wait: Callable[[Wait | None], None] = lambda wait: None
    ) -> bytes:
        """Return the answer to a request.

        Args:
            request: Encoded message of `worker.engine.messages`.
            check: Called several times a second; what it raises cancels the request.
            on_wait: Receives the wait for an engine that is lost, and None at its end.

        Raises:
            EngineLostError: The engine was lost meanwhile, or is given up.
        """
        executor, number = self._running(check, on_wait)
        try:
            future = executor.submit(run, request)
        except Exception as error:
            raise self._lost(number, request, _text(error)) from error
        ended = threading.Event()
        future.add_done_callback(lambda _: ended.set())
        try:
            while not ended.wait(POLL_S):
                check()
                self._check_running(number, request)
        except BaseException:
            future.cancel()
            raise
        return self._answer(future, number, request)

    def _check_running(self, number: int, request: bytes) -> None:
        """Check that another request has not lost engine `number` meanwhile: some never end what was submitted just before.

        Raises:
            EngineLostError: it has.
        """
        with self._lock:
            running = self._executor is not None and number == self._made
            cause = self._last
        if not running:
            raise self._lost(number, request, cause)

    def _answer(self, future: Future[bytes], number: int, request: bytes) -> bytes:
        try:
            answer = future.result(timeout=0)
        except Exception as error:
            raise self._lost(number, request, _text(error)) from error
        with self._lock:
            self._losses, self._answered = 0, time.monotonic()
            self._losses_of.pop(_digest(request), None)
        return answer

    def _running(self, check: Callable[[], None], on_wait: Callable[[Wait | None], None]) -> tuple[Executor, int]:
        """Return the executor and its number; make it where there is none, after the pause that follows a loss."""
        try:
            return self._awaited(check, on_wait)
        finally:
            if self._last:
                on_wait(None)

    def _awaited(self, check: Callable[[], None], on_wait: Callable[[Wait | None], None]) -> tuple[Executor, int]:
        while True:
            with self._lock:
                if self._is_given_up():
                    raise self._given_up()
                if self._executor is not None:
                    return self._executor, self._made
                if time.monotonic() >= self._not_before:
                    self._made += 1
                    try:
                        self._executor = self._factory()
                        return self._executor, self._made
                    except Exception as error:
                        self._note(_text(error))
                        if self._is_given_up():
                            raise self._given_up() from error
            check()
            on_wait(self._wait())
            time.sleep(min(POLL_S, max(0.0, self._not_before - time.monotonic())))

    def _lost(self, number: int, request: bytes, cause: str) -> EngineLostError:
        """Take the loss of engine `number`: the first of its requests to notice ends it."""
        with self._lock:
            executor = None
            if number == self._made and self._executor is not None:
                executor, self._executor = self._executor, None
                self._note(cause)
            cause = self._last  # of the first request to notice: the others' futures may say less
            self._losses_of[_digest(request)] += 1
            if self._is_given_up():
                lost = self._given_up()
            else:
                blame = self._losses_of[_digest(request)] > BLAMELESS
                lost = EngineLostError(
                    f"engine {number} of this run was lost and is made again: {cause}", blame=blame, final=False
                )
        if executor is not None:
            _shut_down(executor)
        return lost

    def _wait(self) -> Wait:
        from ingest.outage import Wait

        return Wait("the engine", self._last, self._lost_at, self._not_before, self._losses)

    def _note(self, cause: str) -> None:
        self._lost_at = time.monotonic() if self._losses == 0 else self._lost_at
        self._losses += 1
        self._last = cause
        self._not_before = time.monotonic() + backoff_s(self._losses, *BACKOFF_S)
        log.warning("the engine was lost (%d times without an answer): %s", self._losses, self._last)

    def _is_given_up(self) -> bool:
        now = time.monotonic()
        self._answered = now if self._answered is None else self._answered
        return self._closed or (self._losses >= MAX_LOSSES and now - self._answered >= PATIENCE_S)

    def _given_up(self) -> EngineLostError:
        message = (
            f"the engine is given up: no answer for {PATIENCE_S:.0f} s, lost {self._losses} times; the last: {self._last}. Correct the engine, or "
            "start without --engine: the same command goes on where this one ended"
        )
        return EngineLostError(message, blame=True, final=True)

    def close(self) -> None:
        """End the executor, without waiting for what it runs, and wait up to `CLOSE_S` for its end."""
        with self._lock:
            executor, self._executor = self._executor, None
            self._closed = True
        if executor is not None:
            _shut_down(executor).join(CLOSE_S)


def _shut_down(executor: Executor) -> threading.Thread:
    """End an executor in a thread of its own: one whose scheduler is gone may wait for it."""

    def end() -> None:
        with suppress(Exception):
            try:
                executor.shutdown(wait=False, cancel_futures=True)
            except TypeError:  # some executors know no `cancel_futures`
                executor.shutdown(wait=False)

    thread = threading.Thread(target=end, name="engine-shutdown", daemon=True)
    thread.start()
    return thread


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:1000] if str(error) else type(error).__name__


def _digest(request: bytes) -> bytes:
    return hashlib.sha256(request).digest()
