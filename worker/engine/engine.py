"""An engine and its losses: submit a request, wait for its answer; make the executor again when it is lost."""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from coordinator.wire.engines import Factory
from ingest.backoff import backoff_s
from worker.agent.handlers import EngineLostError
from worker.engine.causes import cause_of
from worker.engine.messages import EngineAnswer, EngineRequest, LeaseRequest, decode_answer, encode
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
QUIET_S = 120.0  # a request without an answer for this long, while nothing else is answered, is reported as a wait
OVERDUE_S = 900.0  # a request without an answer for this long, of an engine that has answered others, is given back …
OVERDUE_FACTOR = (
    10.0  # … if that is this many times the longest answer of its kind, its wait in the engine's queue included
)


class _Call:
    """One request, submitted to one executor."""

    def __init__(self, request: bytes, kind: str) -> None:
        self.request, self.kind, self.began = request, kind, time.monotonic()
        self.ended = threading.Event()
        self._future: Future[bytes] | None = None
        self._problem: BaseException | None = None  # that `submit` raised
        self._cancelled = False

    @property
    def submitted(self) -> bool:
        """Whether `submit` has returned."""
        return self._future is not None

    def submit_to(self, executor: Executor) -> None:
        """Submit the request, unless it was cancelled meanwhile."""
        if self._cancelled:
            return
        try:
            self._future = executor.submit(run, self.request)
            self._future.add_done_callback(lambda _: self.ended.set())
        except BaseException as error:  # whatever an engine's library raises, SystemExit included
            self._problem = error
            self.ended.set()
        if self._cancelled:
            self.cancel()

    def cancel(self) -> None:
        """Take the request back, if its executor can."""
        self._cancelled = True
        with suppress(Exception):
            if self._future is not None:
                self._future.cancel()

    def answer(self) -> EngineAnswer:
        """Return the answer, after `ended`. What is raised is the engine's own error."""
        if self._problem is not None or self._future is None:
            raise self._problem or RuntimeError("not submitted")
        found = self._future.result(timeout=0)
        if not isinstance(found, bytes):
            raise TypeError(f"it returned {type(found).__name__} in place of the bytes of an answer")
        try:
            return decode_answer(found)
        except msgspec.DecodeError as error:
            raise ValueError(f"it returned {len(found)} bytes that are no answer ({error})") from error


class _Running:
    """One executor. A thread of its own makes it and submits to it: neither may hold up a cancellation or the end of the worker."""

    def __init__(self, factory: Factory, number: int) -> None:
        self.number, self.began = number, time.monotonic()
        self.made = threading.Event()  # the factory has returned, or raised
        self.problem: BaseException | None = None  # that it raised
        self.answered: float | None = None  # when the last answer came
        self._factory = factory
        self._executor: Executor | None = None
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        threading.Thread(target=self._serve, name=f"engine-{number}", daemon=True).start()

    def _serve(self) -> None:
        try:
            executor = self._factory()
            if not isinstance(executor, Executor):
                raise TypeError(f"the factory returned {type(executor).__name__}, not a concurrent.futures.Executor")
            self._executor = executor
        except BaseException as error:  # whatever a user's factory does, sys.exit() included
            self.problem = error
        self.made.set()
        while self._executor is not None and (call := self._calls.get()) is not None:
            call.submit_to(self._executor)

    def submit(self, call: _Call) -> None:
        """Submit a request as soon as those before it are submitted."""
        self._calls.put(call)

    def end(self) -> threading.Thread:
        """End the executor in a thread of its own: one whose scheduler is gone may wait for it."""
        self._calls.put(None)

        def shut_down() -> None:
            with suppress(Exception):
                if self._executor is None:
                    return
                try:
                    self._executor.shutdown(wait=False, cancel_futures=True)
                except TypeError:  # some executors know no `cancel_futures`
                    self._executor.shutdown(wait=False)

        thread = threading.Thread(target=shut_down, name="engine-shutdown", daemon=True)
        thread.start()
        return thread


class Engine:
    """One executor at a time, made by the user's factory at the first request and after each loss. Thread-safe.

    A function that runs on the engine never raises for an error of its work. So what a future raises is the engine's own: a broken
    pool, a scheduler that is gone, a host without our packages. So is a result that is no answer.
    """

    def __init__(self, factory: Factory) -> None:
        self._factory = factory
        self._lock = threading.Lock()  # never held while anything of the user's runs
        self._running: _Running | None = None
        self._made = 0  # executors so far
        self._losses = 0  # since the last answer
        self._lost_at = 0.0  # the first of them
        self._answered: float | None = None  # when the last answer came, or the first request
        self._closed = False
        self._not_before = 0.0
        self._last = ""  # why the last executor was lost
        self._losses_of: Counter[bytes] = Counter()  # by the digest of a request
        self._longest: dict[str, float] = {}  # seconds of the longest answer, by kind

    def call(
        self,
        request: EngineRequest,
        check: Callable[[], None],
        on_wait: Callable[[Wait | None], None] = lambda wait: None,
    ) -> EngineAnswer:
        """Return the answer to a request.

        Args:
            request: What a host of the engine runs.
            check: Called several times a second; what it raises cancels the request.
            on_wait: Receives what is waited for, if the engine is lost or does not answer, and None at the end of the wait.

        Raises:
            EngineLostError: The engine was lost meanwhile, is given up, or does not answer.
        """
        waited = False

        def report(wait: Wait | None) -> None:
            nonlocal waited
            if wait is not None or waited:
                on_wait(wait)
            waited = wait is not None

        call: _Call | None = None
        try:
            running = self._awaited(check, report)
            report(None)
            call = _Call(encode(request), request.kind if isinstance(request, LeaseRequest) else "page")
            running.submit(call)
            while not call.ended.wait(POLL_S):
                check()
                self._check_running(running, call)
                self._check_overdue(running, call)
                report(self._quiet(running, call))
            return self._answer(running, call)
        except BaseException:
            if call is not None:
                call.cancel()
            raise
        finally:
            report(None)

    # -- an executor that runs ---------------------------------------------------------------------------------------------

    def _awaited(self, check: Callable[[], None], report: Callable[[Wait], None]) -> _Running:
        """Return the executor; have it made where there is none, after the pause that follows a loss."""
        while True:
            running = self._current()
            if running is not None and running.made.is_set() and running.problem is None:
                return running
            check()
            report(self._wait(running))
            if running is not None:
                running.made.wait(POLL_S)
            else:
                time.sleep(min(POLL_S, max(0.0, self._not_before - time.monotonic())))

    def _current(self) -> _Running | None:
        """Return the executor that runs or is being made; None during the pause after a loss.

        Raises:
            EngineLostError: the engine is given up.
        """
        with self._lock:
            while True:
                if self._is_given_up():
                    raise self._given_up()
                if self._running is None:
                    if time.monotonic() < self._not_before:
                        return None
                    self._made += 1
                    self._running = _Running(self._factory, self._made)
                if self._running.problem is None:
                    return self._running
                self._note(self._running.problem)
                self._running = None

    def _check_running(self, running: _Running, call: _Call) -> None:
        """Check that another request has not lost the executor meanwhile: some never end what was submitted just before.

        Raises:
            EngineLostError: it has.
        """
        with self._lock:
            runs = self._running is running
        if not runs:
            raise self._lost(running, call, RuntimeError("another request lost it"))

    def _check_overdue(self, running: _Running, call: _Call) -> None:
        """Check that a request has waited no longer than `OVERDUE_S` and `OVERDUE_FACTOR` say.

        Before its first answer an engine may wait in the queue of a cluster for hours, so nothing is overdue.

        Raises:
            EngineLostError: it has: it goes back to the coordinator, which leases it again. An engine that has answered nothing since is lost.
        """
        with self._lock:
            answered, age = running.answered, time.monotonic() - call.began
            limit = max(OVERDUE_S, OVERDUE_FACTOR * self._longest.get(call.kind, 0.0))
        if answered is None or age <= limit:
            return
        cause = TimeoutError(f"no answer for {age:.0f} s")
        if answered < call.began:
            raise self._lost(running, call, cause)
        log.warning("a %s has had no answer for %.0f s, others have: it is given back", call.kind, age)
        with self._lock:
            raise self._released(call, f"the engine has not answered a {call.kind} for {age:.0f} s: it is sent again")

    def _quiet(self, running: _Running, call: _Call) -> Wait | None:
        """Return the wait of a request that has had no answer for long, while no other had one."""
        from ingest.outage import Wait

        now = time.monotonic()
        with self._lock:
            since = call.began if running.answered is None else max(call.began, running.answered)
            limit = max(QUIET_S, 2 * self._longest.get(call.kind, 0.0))
        if now - since <= limit:
            return None
        reason = "it has answered nothing that is out" if call.submitted else "its submit() has not returned"
        return Wait("the engine", reason, since, now, 1)

    def _answer(self, running: _Running, call: _Call) -> EngineAnswer:
        try:
            answer = call.answer()
        except BaseException as error:  # some libraries cancel with asyncio's exception
            raise self._lost(running, call, error) from error
        now = time.monotonic()
        with self._lock:
            self._losses, self._answered, running.answered = 0, now, now
            self._longest[call.kind] = max(self._longest.get(call.kind, 0.0), now - call.began)
            self._losses_of.pop(_digest(call), None)
        return answer

    # -- losses ------------------------------------------------------------------------------------------------------------

    def _lost(self, running: _Running, call: _Call, error: BaseException) -> EngineLostError:
        """Take the loss of an executor: the first of its requests to notice ends it."""
        with self._lock:
            first = self._running is running
            if first:
                self._note(error)
                self._running = None
            if self._is_given_up():
                lost = self._given_up()
            else:  # the cause of the first request to notice: the others' futures may say less
                lost = self._released(
                    call, f"engine {running.number} of this run was lost and is made again: {self._last}"
                )
        if first:
            running.end()
        return lost

    def _released(self, call: _Call, message: str) -> EngineLostError:
        """Return the error that gives a request back; it is blamed if that happens to it again and again."""
        digest = _digest(call)
        self._losses_of[digest] += 1
        return EngineLostError(message, blame=self._losses_of[digest] > BLAMELESS, final=False)

    def _wait(self, running: _Running | None) -> Wait:
        from ingest.outage import Wait

        now = time.monotonic()
        if running is not None:
            since = self._lost_at if self._losses else running.began
            reason = "its factory has not returned" + (f"; it was lost before: {self._last}" if self._losses else "")
            return Wait("the engine", reason, since, now, self._losses + 1)
        return Wait("the engine", self._last, self._lost_at, self._not_before, self._losses)

    def _note(self, error: BaseException) -> None:
        now = time.monotonic()
        self._lost_at = now if self._losses == 0 else self._lost_at
        self._losses += 1
        self._last = cause_of(error)
        self._not_before = now + backoff_s(self._losses, *BACKOFF_S)
        log.warning("the engine was lost (%d times without an answer): %s", self._losses, self._last, exc_info=error)

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
            running, self._running = self._running, None
            self._closed = True
        if running is not None:
            running.end().join(CLOSE_S)


def _digest(call: _Call) -> bytes:
    return hashlib.sha256(call.request).digest()
