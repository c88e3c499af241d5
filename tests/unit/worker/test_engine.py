"""An engine: what it is given, what follows its losses, and leases on a host without the data folder."""

from __future__ import annotations

import hashlib
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from coordinator.wire.engines import load_factory
from coordinator.wire.filesystem_id import filesystem_id
from coordinator.wire.lease_kinds import LeaseKind
from ingest.errors import Cancelled
from ingest.models import BuildJob, Piece
from tests.support.data_folder import commit, daily, shard
from worker.agent.handlers import EngineLostError
from worker.engine import engine as engines
from worker.engine.causes import own_version
from worker.engine.engine import BLAMELESS, MAX_LOSSES, Engine
from worker.engine.messages import (
    FilesNeeded,
    LeaseAnswer,
    LeaseFailure,
    LeaseRequest,
    PageRequest,
    decode_answer,
    encode,
)
from worker.engine.run import run


class Inline(Executor):
    """Runs a call at once, through pickle as an engine does; breaks when `breaks` says so."""

    def __init__(self, breaks: Callable[[bytes], bool] = lambda request: False) -> None:
        self.breaks, self.closed = breaks, False
        self.given: list[tuple[object, tuple[object, ...], dict[str, object]]] = []

    def submit(self, function, /, *arguments, **named):
        self.given.append((function, arguments, named))
        future: Future[bytes] = Future()
        if self.breaks(arguments[0]):
            future.set_exception(BrokenProcessPool("a process ended abruptly"))
        else:
            call = pickle.loads(pickle.dumps((function, arguments)))
            future.set_result(call[0](*call[1]))
        return future

    def shutdown(self, wait=True, *, cancel_futures=False) -> None:
        self.closed = True


def lease(kind: str = LeaseKind.NOOP, **more: object) -> LeaseRequest:
    fields = {
        "version": own_version(),
        "job": {"spin": 1},
        "data_dir": "/nowhere",
        "filesystem_id": "x",
        "files": {},
        "weights": {},
        **more,
    }
    return LeaseRequest(kind=kind, **fields)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "BACKOFF_S", (0.0, 0.0))
    monkeypatch.setattr(engines, "PATIENCE_S", 0.0)


def go_on() -> None:
    """Check nothing."""


def test_engine_is_given_a_function_by_name_and_bytes() -> None:
    executor = Inline()
    answer = Engine(lambda: executor).call(lease(), go_on)
    assert answer == LeaseAnswer({"spun": 1})
    ((function, arguments, named),) = executor.given
    assert function is run and [type(one) for one in arguments] == [bytes] and not named
    assert len(pickle.dumps(function)) < 60  # a module and a name


def test_error_of_the_work_is_an_answer() -> None:
    answer = decode_answer(run(encode(lease("unheard of"))))
    assert isinstance(answer, LeaseFailure)
    assert answer.failure.error == "UsageError" and "unheard of" in answer.failure.message


def test_lost_engine_is_made_again_and_the_lease_in_flight_released_without_blame() -> None:
    made = [Inline(lambda request: True), Inline()]
    waiting = iter(made)
    engine = Engine(lambda: next(waiting))
    with pytest.raises(EngineLostError, match="a process ended abruptly") as lost:
        engine.call(lease(), go_on)
    assert not lost.value.blame and not lost.value.final
    assert engine.call(lease(), go_on) == LeaseAnswer({"spun": 1})
    engine.close()
    assert [one.closed for one in made] == [True, True]


def test_engine_is_given_up_after_losses_without_an_answer() -> None:
    def refuse() -> Executor:
        raise OSError("no route to the scheduler")

    with pytest.raises(EngineLostError, match=r"no route to the scheduler.*without --engine") as lost:
        Engine(refuse).call(lease(), go_on)
    assert lost.value.final
    broken = Engine(lambda: Inline(lambda request: True))
    found = []
    for _ in range(MAX_LOSSES + 1):
        with pytest.raises(EngineLostError) as lost:
            broken.call(lease(), go_on)
        found.append(lost.value.final)
    assert found == [False] * (MAX_LOSSES - 1) + [True, True]


def test_lease_that_breaks_the_engine_each_time_is_blamed() -> None:
    bad = lease(job={"spin": 2})
    engine = Engine(lambda: Inline(lambda request: request == encode(bad)))
    blamed = []
    for _ in range(BLAMELESS + 2):
        with pytest.raises(EngineLostError) as lost:
            engine.call(bad, go_on)
        blamed.append(lost.value.blame)
        engine.call(lease(), go_on)  # others go on, so that the engine is not given up
    assert blamed == [False] * BLAMELESS + [True, True]


def test_cancelled_lease_leaves_the_engine() -> None:
    future: Future[bytes] = Future()
    submitted = threading.Event()

    class Slow(Inline):
        def submit(self, function, /, *arguments, **named):
            submitted.set()
            return future

    def stop() -> None:
        if submitted.is_set():
            raise Cancelled("the lease was cancelled")

    with pytest.raises(Cancelled):
        Engine(Slow).call(lease(), stop)
    assert future.cancelled()


def test_request_on_an_engine_that_another_request_lost_is_released_too() -> None:
    """Dask never ends a future that was submitted to a client whose scheduler had gone just before."""
    first = lease(job={"spin": 2})
    submitted, lost_by_another = threading.Event(), threading.Event()

    class Half(Inline):
        def submit(self, function, /, *arguments, **named):
            if arguments[0] != encode(first):
                return super().submit(function, *arguments, **named)
            submitted.set()
            return Future()

    engine = Engine(lambda: Half(lambda request: True))

    def lose_it() -> None:
        if submitted.is_set() and not lost_by_another.is_set():
            lost_by_another.set()
            with pytest.raises(EngineLostError):
                engine.call(lease(), go_on)

    with pytest.raises(EngineLostError, match="a process ended abruptly") as lost:
        engine.call(first, lose_it)
    assert not lost.value.blame


def test_host_without_the_data_folder_asks_for_files_and_returns_files(tmp_path: Path) -> None:
    data = tmp_path / "data"
    one = shard("PACW", "2024-01-01T00", "2024-01-31T23")
    result = commit(data, one, {"D": daily(one.hours)})
    job = encode_job(BuildJob("PACW", 2024, result.origin, (Piece(result.piece, one),)))
    far = lease(LeaseKind.BUILD, job=job, data_dir=str(tmp_path / "absent"), filesystem_id="elsewhere")
    assert decode_answer(run(encode(far))) == FilesNeeded((result.piece.path,))
    content = (data / result.piece.path).read_bytes()
    answer = decode_answer(run(encode(with_files(far, {result.piece.path: content}))))
    near = lease(LeaseKind.BUILD, job=job, data_dir=str(data), filesystem_id=filesystem_id(data))
    here = decode_answer(run(encode(near)))
    assert isinstance(answer, LeaseAnswer) and isinstance(here, LeaseAnswer)
    assert answer.output == here.output and not here.files
    assert answer.files == {path: (data / path).read_bytes() for path in answer.files}
    assert {Path(path).name for path in answer.files} == {"long.parquet", "wide.parquet", "series.json"}
    spoilt = decode_answer(run(encode(with_files(far, {result.piece.path: content[:-1] + b"?"}))))
    assert isinstance(spoilt, LeaseFailure) and "another content" in spoilt.failure.message


def test_no_request_holds_the_api_key_and_a_host_with_another_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EIA_API_KEY", "another-key-of-this-host")
    request = PageRequest(
        own_version(), "http://127.0.0.1:9/", {}, hashlib.sha256(b"ours").hexdigest(), 1.0, 1 << 20, False, False
    )
    answer = decode_answer(run(encode(request)))
    assert isinstance(answer, LeaseFailure) and answer.failure.final
    assert "has another EIA_API_KEY" in answer.failure.message and "another-key" not in answer.failure.message


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("dask", "MODULE:FACTORY"),
        ("no_such_module_here:dask", "ModuleNotFoundError"),
        ("json:dask", "json has no function dask"),
        ("./my.py:threads", "write my:threads, the module's name"),
        ("engines/my.py:threads", "write engines.my:threads"),
        ("my.py:threads", "write my:threads"),
    ],
)
def test_wrong_name_of_an_engine_says_what_is_wrong(name: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        load_factory(name)
    assert load_factory("threading:Lock") is threading.Lock


def encode_job(job: BuildJob) -> dict[str, object]:
    import msgspec

    plain: dict[str, object] = msgspec.to_builtins(job)
    return plain


def with_files(request: LeaseRequest, files: dict[str, bytes]) -> LeaseRequest:
    import msgspec

    return msgspec.structs.replace(request, files=files)
