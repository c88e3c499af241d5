"""Engines that fail or hang: what is said of them, that nothing waits for them without end, and what a check finds before a run."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import NoReturn

import msgspec
import pytest

from coordinator.wire.lease_kinds import LeaseKind
from ingest.errors import Cancelled
from ingest.outage import Wait
from worker.agent.handlers import EngineLostError
from worker.engine import engine as engines
from worker.engine.causes import cause_of, own_version
from worker.engine.check import problem_of
from worker.engine.engine import Engine
from worker.engine.messages import LeaseAnswer, LeaseFailure, LeaseRequest, decode_answer, encode
from worker.engine.run import run


def lease(spin: int = 1) -> LeaseRequest:
    return LeaseRequest(own_version(), LeaseKind.NOOP, {"spin": spin}, "/nowhere", "x", {}, {})


class Scripted(Executor):
    """Answers a request with what `answers` returns for it; None: never."""

    def __init__(self, answers: Callable[[bytes], object]) -> None:
        self._answers = answers

    def submit(self, function, /, *arguments, **named):
        future: Future[object] = Future()
        if (answer := self._answers(arguments[0])) is not None:
            future.set_result(answer)
        return future

    def shutdown(self, wait=True, *, cancel_futures=False) -> None:
        pass


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "BACKOFF_S", (0.0, 0.0))
    monkeypatch.setattr(engines, "PATIENCE_S", 0.0)
    monkeypatch.setattr(engines, "POLL_S", 0.01)


@pytest.fixture
def hang() -> Iterator[threading.Event]:
    """What hangs waits for this; the end of a test ends it."""
    over = threading.Event()
    yield over
    over.set()


def cancelled_in_wait(engine: Engine, request: LeaseRequest, monkeypatch: pytest.MonkeyPatch) -> Wait:
    """Call an engine that hangs; return the wait that it reported before the call was cancelled."""
    monkeypatch.setattr(engines, "QUIET_S", 0.0)
    waits: list[Wait | None] = []

    def check() -> None:
        if waits:
            raise Cancelled("the lease was cancelled")

    with pytest.raises(Cancelled):
        engine.call(request, check, waits.append)
    assert waits[0] is not None and waits[-1] is None  # the wait ends with the call
    return waits[0]


def test_factory_that_hangs_is_told_and_holds_up_nothing(
    hang: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    def factory() -> Executor:
        hang.wait()
        return Scripted(run)

    engine = Engine(factory)
    for _ in range(2):  # another lease waits for the same call of the factory
        wait = cancelled_in_wait(engine, lease(), monkeypatch)
        assert (wait.what, wait.reason) == ("the engine", "its factory has not returned")
    engine.close()


def test_submit_that_blocks_is_told_and_holds_up_nothing(
    hang: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answers(request: bytes) -> bytes:
        hang.wait()
        return run(request)

    engine = Engine(lambda: Scripted(answers))
    for _ in range(2):
        assert cancelled_in_wait(engine, lease(), monkeypatch).reason == "its submit() has not returned"
    engine.close()


def test_engine_that_answers_nothing_at_first_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "OVERDUE_S", 0.0)
    engine = Engine(lambda: Scripted(lambda request: None))
    assert cancelled_in_wait(engine, lease(), monkeypatch).reason == "it has answered nothing that is out"


def test_request_that_is_never_answered_is_given_back_and_a_silent_engine_made_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engines, "OVERDUE_S", 0.0)
    made: list[int] = []

    def factory() -> Executor:
        made.append(len(made))
        return Scripted(lambda request: None if request == encode(lease(2)) else run(request))

    engine = Engine(factory)

    def others_are_answered() -> None:
        engine.call(lease(), lambda: None)

    def nothing_is_answered() -> None:
        pass

    others_are_answered()
    found = [overdue(engine, others_are_answered) for _ in range(engines.BLAMELESS + 1)]
    assert [error.blame for error in found] == [False] * engines.BLAMELESS + [True]
    assert not any(error.final for error in found) and "it is sent again" in str(found[0])
    assert made == [0]
    assert "lost and is made again: TimeoutError: no answer for" in str(overdue(engine, nothing_is_answered))
    others_are_answered()
    assert made == [0, 1]


def overdue(engine: Engine, meanwhile: Callable[[], None]) -> EngineLostError:
    with pytest.raises(EngineLostError) as lost:
        engine.call(lease(2), meanwhile)
    return lost.value


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (42, "it returned int in place of the bytes of an answer"),
        (b"\xff\xfe", "it returned 2 bytes that are no answer"),
    ],
)
def test_result_that_is_no_answer_is_a_loss_of_the_engine(answer: object, told: str) -> None:
    waiting: Iterator[Executor] = iter([Scripted(lambda request: answer), Scripted(run)])
    engine = Engine(lambda: next(waiting))
    with pytest.raises(EngineLostError, match=told) as lost:
        engine.call(lease(), lambda: None)
    assert not lost.value.blame
    assert engine.call(lease(), lambda: None) == LeaseAnswer({"spun": 1})


def leaves() -> NoReturn:
    sys.exit("a factory that ends the program")


def number() -> int:
    return 42


def shut() -> Executor:
    executor = ThreadPoolExecutor(1)
    executor.shutdown()
    return executor


def without_packages() -> Executor:
    def refuse(request: bytes) -> object:
        raise ModuleNotFoundError("No module named 'worker'")

    return Scripted(refuse)


def of_another_version() -> Executor:
    def old(request: bytes) -> bytes:
        fields = msgspec.msgpack.decode(request)
        return run(msgspec.msgpack.encode({**fields, "version": "0.0.1"}))

    return Scripted(old)


def garbage() -> Executor:
    return Scripted(lambda request: "text")


def threads() -> Executor:
    return ThreadPoolExecutor(1)


@pytest.mark.parametrize(
    ("factory", "told"),
    [
        (leaves, "raised SystemExit: a factory that ends the program"),
        (number, "returned int, not a concurrent.futures.Executor"),
        (shut, "takes no task: RuntimeError: cannot schedule new futures after shutdown"),
        (without_packages, f"install ring-attention-energy {own_version()} on the engine's hosts"),
        (of_another_version, f"has ring-attention-energy {own_version()}, not 0.0.1 where this task comes from"),
        (garbage, "answers with str of its own"),
    ],
)
def test_engine_that_cannot_run_a_task_is_found_before_a_run(factory: Callable[[], object], told: str) -> None:
    assert told in problem_of(f"{__name__}:{factory.__name__}")


def test_engine_that_runs_a_task_passes_the_check() -> None:
    assert problem_of(f"{__name__}:threads") == ""


@pytest.mark.parametrize("factory", [leaves, number])
def test_factory_that_fails_during_a_run_gives_the_engine_up(factory: Callable[[], Executor]) -> None:
    with pytest.raises(EngineLostError, match=r"SystemExit: a factory|the factory returned int") as lost:
        Engine(factory).call(lease(), lambda: None)
    assert lost.value.final


def test_request_of_another_form_is_refused_by_name_of_the_host_and_version() -> None:
    answer = decode_answer(run(msgspec.msgpack.encode({"t": "a later kind"})))
    assert isinstance(answer, LeaseFailure) and answer.failure.final
    assert f"has ring-attention-energy {own_version()}, not the one that sent this task" in answer.failure.message


def test_cause_is_one_short_line_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLUSTER_TOKEN", "s3cret-of-a-cluster")
    told = cause_of(OSError("no answer of tls://ann:hunter2@scheduler:8786 (token s3cret-of-a-cluster)\nwithin 5 s."))
    assert told == "OSError: no answer of tls://[key]@scheduler:8786 (token [key]) within 5 s"
    remote = "Traceback (most recent call last):\n  File ...\nValueError: the last line tells"
    assert cause_of(RuntimeError(remote)) == "RuntimeError: ValueError: the last line tells"
    wrapped = RuntimeError("Error during deserialization of the task graph.")
    wrapped.__cause__ = ModuleNotFoundError("No module named 'worker'")
    assert cause_of(wrapped).startswith("ModuleNotFoundError: No module named 'worker': install ring-attention-energy")
    assert len(cause_of(RuntimeError("x" * 5_000))) == 300
