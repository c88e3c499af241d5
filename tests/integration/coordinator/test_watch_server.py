"""The page's server over real sockets: headers, token, events, the bound on open pages."""

from __future__ import annotations

import json
import platform
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import msgspec
import psutil
import pytest
import requests
from msgspec.structs import replace

from coordinator.stages.run_log import RunLog, RunState
from coordinator.stages.stage import OutputMode
from coordinator.watch import app as watch_app
from coordinator.watch.access import Address
from coordinator.watch.folder import FolderReader, View
from coordinator.watch.run import listen, page_process
from ingest.errors import UsageError
from tests.support.program import command, environment
from tests.support.waiting import until
from tests.unit.coordinator.test_hostile_text import STATUS

WAIT_S = 30.0
SLOW_S = 2.5  # for which a process gets no processor time


@contextmanager
def served(data: Path, token: str = "", every_s: float = 0.05) -> Iterator[str]:
    """Serve the page of a folder in a thread; the value is its address."""
    listening, address = listen(Address("127.0.0.1", 0))
    server = watch_app.PageServer(watch_app.create_app(FolderReader(data), address, token, every_s))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    until(lambda: server.started, "the server")
    try:
        yield address.url
    finally:
        server.should_exit = True
        thread.join(WAIT_S)


def next_panels(lines: Iterator[str]) -> dict[str, str]:
    return dict(json.loads(next(line for line in lines if line.startswith("data: ")).removeprefix("data: ")))


def test_events_bring_only_the_panels_that_changed(tmp_path: Path) -> None:
    with served(tmp_path) as url:
        page = requests.get(url, timeout=WAIT_S)
        policy = page.headers["Content-Security-Policy"]
        assert (page.status_code, "default-src 'none'" in policy, "unsafe" in policy) == (200, True, False)
        for path, kind in (("watch.css", "text/css"), ("watch.js", "text/javascript"), ("metrics", "text/plain")):
            found = requests.get(url + path, timeout=WAIT_S)
            assert (found.status_code, found.headers["Content-Type"].split(";")[0]) == (200, kind)
        assert requests.get(url + "status.json", timeout=WAIT_S).json()["running"] is False
        assert requests.post(url, timeout=WAIT_S).status_code == 405
        assert requests.get(url, headers={"Host": "evil.example"}, timeout=WAIT_S).status_code == 403
        with requests.get(url + "events", stream=True, timeout=WAIT_S) as events:
            assert events.headers["Content-Type"].startswith("text/event-stream")
            lines = events.iter_lines(1 << 16, decode_unicode=True)
            assert "stages" in next_panels(lines)
            RunLog(tmp_path).add("note", stage="extract", text="worker 7 died")
            changed = next_panels(lines)
            assert set(changed) == {"log"} and "worker 7 died" in changed["log"]
    with served(tmp_path) as url:
        events = requests.get(url + "events", stream=True, timeout=WAIT_S)
        lines = events.iter_lines(1 << 16, decode_unicode=True)
        next_panels(lines)
    assert "event: end" in list(lines)  # and the stream is complete: no error in the browser


def test_page_opens_with_the_panels_as_they_were_drawn_last_also_where_one_is_empty(tmp_path: Path) -> None:
    quiet = replace(STATUS, waits=(), quarantined=())
    run = RunState(at=time.time() + 1000, pid=1, stage="extract", began=1.0, restarts=0, run=quiet, view={})
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "status.json").write_bytes(msgspec.json.encode(run))
    with served(tmp_path) as url, requests.get(url + "events", stream=True, timeout=WAIT_S) as events:
        panels = next_panels(events.iter_lines(1 << 16, decode_unicode=True))
        assert panels["advice"].strip() == ""
        page = requests.get(url, timeout=WAIT_S)
        assert page.status_code == 200 and panels["workers"] in page.text


def test_token_is_asked_for_and_leaves_the_address(tmp_path: Path) -> None:
    with served(tmp_path, token="secret") as url:
        assert requests.get(url, timeout=WAIT_S).status_code == 403
        assert requests.get(f"{url}events?token=wrong", timeout=WAIT_S).status_code == 403
        assert requests.get(f"{url}metrics", headers={"Authorization": "Bearer secret"}, timeout=WAIT_S).ok
        session = requests.Session()
        first = session.get(f"{url}?token=secret", timeout=WAIT_S, allow_redirects=False)
        assert (first.status_code, first.headers["Location"]) == (303, "/")
        assert {"httponly", "samesite=strict"} <= {
            part.strip().lower() for part in first.headers["Set-Cookie"].split(";")
        }
        assert session.get(url, timeout=WAIT_S).ok


def test_open_pages_are_bounded_and_a_closed_one_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_app, "MAX_SUBSCRIBERS", 2)
    with served(tmp_path) as url, ExitStack() as stack:
        first = requests.get(url + "events", stream=True, timeout=WAIT_S)
        stack.enter_context(requests.get(url + "events", stream=True, timeout=WAIT_S))
        until(lambda: requests.get(url + "events", stream=True, timeout=WAIT_S).status_code == 503, "the bound")
        first.close()
        RunLog(tmp_path).add("note", stage="extract", text="something to send")  # so that the closed one is noticed
        until(
            lambda: requests.get(url + "events", stream=True, timeout=WAIT_S).status_code == 200,
            "room for another page",
        )


def test_address_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UsageError, match="--http another HOST:PORT"):
        listen(Address("127.0.0.1", taken.getsockname()[1]))


def stuck(url: str) -> socket.socket:
    """Ask for the events and read nothing of them."""
    asking = socket.socket()
    asking.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    host, port = url.removeprefix("http://").rstrip("/").split(":")
    asking.connect((host, int(port)))
    asking.sendall(f"GET /events HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    return asking


def test_client_that_reads_nothing_costs_no_memory_and_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_app, "STUCK_S", 0.5)
    monkeypatch.setattr(watch_app, "MAX_SUBSCRIBERS", 3)
    log = RunLog(tmp_path)
    for number in range(300):
        log.add("note", stage="extract", text=f"{number} " + "x" * 1_500)
    with served(tmp_path) as url, ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(stuck(url))
        events = stack.enter_context(requests.get(url + "events", stream=True, timeout=WAIT_S))
        lines = events.iter_lines(1 << 16, decode_unicode=True)
        next_panels(lines)

        def dropped() -> bool:
            """Go on with changes of half a megabyte each, and look whether there is room for two more pages."""
            log.add("note", stage="extract", text="y" * 1_500)
            next_panels(lines)
            with ExitStack() as tries:
                got = [requests.get(url + "events", stream=True, timeout=WAIT_S) for _ in range(2)]
                for one in got:
                    tries.enter_context(one)
                return all(one.status_code == 200 for one in got)

        until(dropped, "the stuck clients to be dropped")


def test_page_goes_on_after_a_reading_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = threading.Event()
    read = FolderReader.read

    def reading(reader: FolderReader) -> View:
        if broken.is_set():
            raise PermissionError(13, "<Permission> denied", "logs")
        return read(reader)

    monkeypatch.setattr(FolderReader, "read", reading)
    with served(tmp_path) as url, requests.get(url + "events", stream=True, timeout=WAIT_S) as events:
        lines = events.iter_lines(1 << 16, decode_unicode=True)
        next_panels(lines)
        broken.set()
        assert "&lt;Permission&gt; denied" in next_panels(lines)["problem"]
        status = requests.get(url + "status.json", timeout=WAIT_S)
        assert status.status_code == 500 and status.text.startswith("The data folder cannot be shown: PermissionError")
        broken.clear()
        assert next_panels(lines)["problem"] == ""


def test_hundred_pages_are_open_at_once_and_each_gets_what_changes(tmp_path: Path) -> None:
    with served(tmp_path, every_s=0.5) as url, ExitStack() as stack:
        opened = [stack.enter_context(requests.get(url + "events", stream=True, timeout=WAIT_S)) for _ in range(100)]
        streams = [one.iter_lines(1 << 16, decode_unicode=True) for one in opened]
        for lines in streams:
            next_panels(lines)
        RunLog(tmp_path).add("note", stage="extract", text="for all")
        assert all("for all" in next_panels(lines)["log"] for lines in streams)


def test_page_of_a_run_says_that_it_ended_also_when_its_process_is_slow(tmp_path: Path) -> None:
    listening, address = listen(Address("127.0.0.1", 0))
    listening.close()
    with ExitStack() as stack:
        with page_process(tmp_path, address, OutputMode(quiet=True)):
            page = next(one for one in psutil.Process().children() if "--with-stdin" in one.cmdline())
            until(lambda: answers(address.url), "the page")
            events = stack.enter_context(requests.get(address.url + "events", stream=True, timeout=WAIT_S))
            lines = events.iter_lines(1 << 16, decode_unicode=True)
            next_panels(lines)
            page.suspend()  # as on a machine whose processors are all taken
            threading.Timer(SLOW_S, page.resume).start()
        assert "event: end" in list(lines)


def answers(url: str) -> bool:
    with suppress(requests.ConnectionError):
        return requests.get(url, timeout=WAIT_S).ok
    return False


def test_http_without_a_value_is_the_usual_address_and_a_taken_port_is_told_before_the_run(tmp_path: Path) -> None:
    told = "http 127.0.0.1:8787: cannot listen there (Address already in use)"
    with ExitStack() as stack:
        with suppress(OSError):  # it may be taken already
            stack.enter_context(socket.create_server(("127.0.0.1", 8787)))
        words = ("start", "--extract", "--http", "--data", str(tmp_path))
        done = subprocess.run(
            command(*words), cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
        )
    assert (done.returncode, told in done.stderr, "--http another" in done.stderr) == (2, True, True), done.stderr


@pytest.mark.parametrize("as_json", [False, True])
def test_page_says_its_address_and_what_it_waits_for_and_ctrl_c_is_its_end(as_json: bool, tmp_path: Path) -> None:
    """With --json the address was no JSON line; at its end it said that completed work is saved, and how to resume."""
    arguments = command("watch", "--data", "nothere", "--http", "0.0.0.0:0", *(["--json"] if as_json else []))
    process = subprocess.Popen(arguments, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        opened, waits = process.stderr.readline(), process.stderr.readline()
        if as_json:
            page, note = json.loads(opened), json.loads(waits)
            assert (page["event"], note["event"]) == ("page", "note")
            opened, waits = f"page: {page['url']}", f"{note['text']}\n"
        assert opened.startswith(f"page: http://{platform.node()}:")
        assert waits == "nothere: there is no such folder yet; the page waits for it\n"
        process.send_signal(signal.SIGINT)
        assert (process.wait(WAIT_S), process.stderr.read()) == (0, "")
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    assert not (tmp_path / "nothere").exists()


def test_page_of_a_run_says_its_address_in_the_form_of_the_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The line was plain text among the JSON lines of `start --json`."""
    with page_process(tmp_path, Address("127.0.0.1", 0), OutputMode(as_json=True)):
        line = until(lambda: capfd.readouterr().err, "the address")
    assert json.loads(line)["url"].startswith("http://127.0.0.1:")
