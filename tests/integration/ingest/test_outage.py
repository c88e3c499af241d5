"""A source that does not serve, in every form: the same wait is reported, the same error ends it, and a cancel ends it at once."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from ingest import http, outage, page_request, transfer_limits
from ingest.errors import Cancelled, IngestError, SourceError, ThrottledError
from ingest.fetch import fetch_shard
from ingest.outage import OVER, OutageTimer, Wait, pause_s
from tests.support.hostile_server import Hostility, hostile, silent, slow_body
from tests.support.stub_server import Reply, Stub, bench, eia_job, serve
from tests.support.waiting import until

HANG_S = 20.0  # only a hang takes longer
HTML = b"<!DOCTYPE html><html><body>maintenance</body></html>"
NOWHERE = "no-such-host.invalid"


@contextmanager
def stub(status: int, body: bytes = b"", **headers: str) -> Iterator[str]:
    server = Stub()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    server.script = lambda query, nth: Reply(status, body, named)
    with serve(server) as url:
        yield url


def reset(peer: Hostility) -> None:
    """Close the connection without a response."""


# Form → the server, and what its waits say.
FORMS: dict[str, tuple[Callable[[], object], str]] = {
    "HTML under 200": (lambda: stub(200, HTML), "sent an HTML page"),
    "503": (lambda: stub(503), "sent 503"),
    "503 with Retry-After": (lambda: stub(503, Retry_After="30"), "sent 503 with Retry-After"),
    "429 with Retry-After": (lambda: stub(429, Retry_After="30"), "sent 429"),
    "403 suspension": (lambda: stub(403, b"over limit"), "sent 403"),
    "silent": (lambda: hostile(silent), "no response yet"),
    "trickle": (lambda: hostile(slow_body), "no response yet"),
    "reset": (lambda: hostile(reset), "connection lost"),
    "refused": (lambda: nullcontext("http://127.0.0.1:1"), "Connection refused"),
    "name": (lambda: nullcontext(f"http://{NOWHERE}"), "the name does not resolve"),
}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "PAUSE_S", (0.05, 0.1))
    monkeypatch.setattr(outage, "LIMIT_S", 0.5)
    monkeypatch.setattr(page_request, "REPORTED_S", 0.05)
    monkeypatch.setattr(http, "READ_TIMEOUT_S", 0.2)
    monkeypatch.setattr(transfer_limits, "SLICE_S", 0.02)
    monkeypatch.setattr("ingest.sources.eia.Eia.deadline_s", 0.6)
    known = socket.getaddrinfo

    def resolve(host: str, *rest: object, **options: object) -> object:
        if host == NOWHERE:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return known(host, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


@pytest.mark.parametrize("form", FORMS)
def test_outage_is_reported_and_ends_the_same_way_whatever_its_form(form: str, tmp_path: Path) -> None:
    server, says = FORMS[form]
    with server() as url, bench(tmp_path) as one:  # type: ignore[attr-defined]
        began = time.monotonic()
        with pytest.raises(SourceError, match=r"no usable response for 0\.5 s") as raised:
            fetch_shard(eia_job(url), one.context)
        ended = time.monotonic()
    assert raised.value.kind == OVER
    assert raised.value.exit_code == 75
    assert 0.5 <= ended - began < HANG_S
    waits = [wait for wait in one.waits if wait is not None]
    assert len(waits) == len(one.waits)  # no usable response came
    assert {wait.what for wait in waits} == {url.removeprefix("http://")}
    assert any(says in wait.reason for wait in waits), {wait.reason for wait in waits}
    assert all(began <= wait.since <= wait.next_try for wait in waits)
    assert len({wait.since for wait in waits if wait.attempt > 1}) <= 1, "a later failure is of the same outage"
    attempts = [wait.attempt for wait in waits]
    assert attempts == sorted(attempts)


def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no limit of time end a wait."""
    monkeypatch.setattr(outage, "LIMIT_S", 3600.0)
    monkeypatch.setattr(http, "READ_TIMEOUT_S", 3600.0)
    monkeypatch.setattr("ingest.sources.eia.Eia.deadline_s", 3600.0)


@pytest.mark.parametrize("form", ["HTML under 200", "503 with Retry-After", "silent", "name"])
def test_cancel_ends_a_wait(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patient(monkeypatch)
    monkeypatch.setattr(outage, "PAUSE_S", (3600.0, 3600.0))
    with FORMS[form][0]() as url, bench(tmp_path) as one:  # type: ignore[attr-defined]
        assert_cancel_ends(url, one, lambda: bool(one.waits))


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_cancel_ends_a_connection_that_is_not_yet_made(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name server that does not answer, or a TLS handshake."""
    patient(monkeypatch)
    reached, over = threading.Event(), threading.Event()

    def resolve(*arguments: object, **options: object) -> object:
        reached.set()
        over.wait(HANG_S)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    def handshake(peer: Hostility) -> None:
        reached.set()
        peer.silence()

    if scheme == "http":
        monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with hostile(handshake) as url, bench(tmp_path) as one:
        assert_cancel_ends(url.replace("http:", f"{scheme}:"), one, reached.is_set)
        over.set()


def assert_cancel_ends(url: str, one: object, when: Callable[[], bool]) -> None:
    ended: list[BaseException] = []
    context = one.context  # type: ignore[attr-defined]

    def run() -> None:
        try:
            fetch_shard(eia_job(url), context)
        except Cancelled as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    until(when, "the wait")
    context.cancelled.set()
    began = time.monotonic()
    thread.join(HANG_S)
    assert ended
    assert time.monotonic() - began < HANG_S / 2


def test_usable_response_ends_the_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patient(monkeypatch)
    server = Stub()
    server.script = lambda query, nth: Reply(503) if nth == 0 else None
    with serve(server) as url, bench(tmp_path) as one:
        fetch_shard(eia_job(url), one.context)
    assert any(isinstance(wait, Wait) for wait in one.waits)
    assert one.waits[-1] is None


def test_throttled_budget_is_a_wait_that_ends_at_the_limit(tmp_path: Path) -> None:
    def never(bucket: str, check: Callable[[float], None]) -> None:
        while True:
            check(30.0)
            time.sleep(0.02)

    with bench(tmp_path) as one, pytest.raises(SourceError, match="budget pauses after a throttle") as raised:
        one.context.acquire_permit = never
        fetch_shard(eia_job("http://127.0.0.1:1"), one.context)
    assert raised.value.kind == OVER
    assert one.waits[0] is not None
    assert one.waits[0].next_try - one.waits[0].since >= 30.0


@pytest.mark.parametrize(
    "error",
    [
        ThrottledError("429", "429"),
        ThrottledError("html", "html", 0.0),
        SourceError("503", "5xx"),
        SourceError("lost", "reset"),
        SourceError("silent", "timeout"),
    ],
    ids=lambda error: error.kind,
)
def test_one_rule_decides_pause_and_end(error: IngestError, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "LIMIT_S", 120.0)
    monkeypatch.setattr(outage, "PAUSE_S", (0.5, 30.0))
    assert outage.is_outage(error)
    assert 0.25 <= (pause_s(error, 1, since=0.0, now=1.0) or 0.0) <= 0.75
    assert 15.0 <= (pause_s(error, 20, since=0.0, now=1.0) or 0.0) <= 45.0
    assert pause_s(error, 20, since=0.0, now=119.9) == pytest.approx(0.1)
    assert pause_s(error, 20, since=0.0, now=120.0) is None


def test_named_pause_is_kept_up_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "LIMIT_S", 120.0)
    assert pause_s(ThrottledError("429", "429", 30.0), 1, since=0.0, now=1.0) == 30.0
    assert pause_s(ThrottledError("429", "429", 3600.0), 1, since=0.0, now=20.0) == 100.0


@pytest.mark.parametrize("kind", ["short", "total", "json", "status", "refused", "size"])
def test_fault_of_the_content_is_no_outage(kind: str) -> None:
    assert not outage.is_outage(SourceError("", kind))


def test_outage_begins_with_its_first_request_and_ends_with_a_usable_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "LIMIT_S", 120.0)
    reports: list[Wait | None] = []
    timer, down = OutageTimer("host:80", reports.append), SourceError("host sent 503", "5xx")
    timer.failed(down, 1, started=10.0, now=11.0)
    timer.failed(down, 2, started=15.0, now=16.0)
    timer.silent(3, since=20.0, next_try=50.0)
    assert [(wait.since, wait.reason) for wait in reports if wait] == [
        (10.0, "sent 503"),
        (10.0, "sent 503"),
        (10.0, "no response yet"),
    ]
    timer.usable()
    timer.failed(down, 1, started=200.0, now=201.0)
    assert reports[-1] is not None
    assert reports[-1].since == 200.0
    with pytest.raises(SourceError, match="host sent 503"):
        timer.failed(down, 9, started=330.0, now=331.0)
