"""The emulator as a process: it starts, reports why it can't start, and never outlives its parent."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from ingest.emulator import process as emulators
from ingest.emulator.process import Emulator, EmulatorError
from tests.support.eia_client import FEW
from tests.support.waiting import WAIT_S, until

_PARENT = """
import sys, time
from ingest.emulator.process import Emulator
running = Emulator().start()
print(running.pid, running.url, flush=True)
time.sleep(600)
"""


def ended(pid: int, url: str) -> bool:
    """Return whether the emulator's port refuses connections and the process has ended."""
    host, port = url.removeprefix("http://").split(":")
    with socket.socket() as probe:
        probe.settimeout(1)
        if probe.connect_ex((host, int(port))) == 0:
            return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"


def accepts(url: str) -> bool:
    """Return whether the emulator's port takes connections."""
    host, port = url.removeprefix("http://").split(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def wait_until_ended(pid: int, url: str) -> None:
    """Poll until the emulator has ended; the test's time limit is the bound."""
    pause = socket.socketpair()[0]
    pause.settimeout(0.05)
    while not ended(pid, url):
        try:
            pause.recv(1)
        except TimeoutError:
            continue


@pytest.mark.timeout(30)
def test_emulator_ends_when_its_parent_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", _PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid, url = parent.stdout.readline().split()
    assert requests.get(f"{url}/_emulator/stats", timeout=WAIT_S).status_code == 200
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    wait_until_ended(int(pid), url)
    parent.stdout.close()


def test_emulator_reports_its_url_and_stops() -> None:
    with Emulator("--port", "0") as emulator:
        assert emulator.world == "synthetic"
        assert emulator.url.startswith("http://127.0.0.1:")
        assert emulator.stats()["requests"] == 0
        pid, url = emulator.pid, emulator.url
    assert ended(pid, url)
    with pytest.raises(EmulatorError, match="not running"):
        emulator.stats()


def test_emulator_that_was_killed_is_started_again_at_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulators, "MAX_RESTARTS", 1)
    with Emulator(*FEW) as emulator:
        before, url = emulator.pid, emulator.url
        assert emulator.revive() == ""
        os.kill(before, signal.SIGKILL)
        told = until(emulator.revive, "the end of the emulator")
        assert told == "the emulator ended with signal 9: restarted"
        until(lambda: accepts(url), "the emulator's answer")
        assert (emulator.url, emulator.stats()["requests"]) == (url, 0) and emulator.pid != before
        again = emulator.pid
        os.kill(again, signal.SIGKILL)

        def given_up() -> str:
            try:
                return emulator.revive()
            except EmulatorError as error:
                assert error.exit_code == 75
                return str(error)

        assert (
            until(given_up, "the end of the emulator") == "the emulator ended with signal 9; run the same command again"
        )
    assert ended(again, url)


def test_command_line_requires_a_key_and_ends_on_sigterm(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "ingest.emulator", *FEW, "--log", str(log)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    hello = json.loads(process.stdout.readline())
    data = f"{hello['url']}/v2/electricity/rto/region-data/data/?start=2024-01-01T00&end=2024-01-01T05"
    assert hello["pid"] == process.pid
    assert requests.get(data, timeout=WAIT_S).status_code == 403
    assert requests.get(f"{data}&api_key=INVALID-1", timeout=WAIT_S).json()["error"]["code"] == "API_KEY_INVALID"
    assert requests.get(f"{data}&api_key=any", timeout=WAIT_S).status_code == 200
    process.terminate()
    assert process.wait(WAIT_S) == 0
    process.stdout.close()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["status"] for line in lines] == [403, 403, 200]
    assert "api_key" not in log.read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--world", "recordings", "--recordings", "/nowhere"), "/nowhere"),
        (("--now", "soon"), "soon"),
        (("--respondents", "PACW,XX"), "XX"),
        (("--faults", "/nowhere.json"), "/nowhere.json"),
    ],
)
def test_failed_start_names_the_reason(options: tuple[str, ...], message: str) -> None:
    with pytest.raises(EmulatorError, match=message):
        Emulator(*options).start()


def test_malformed_request_is_refused_and_service_continues(emulator: Emulator) -> None:
    host, port = emulator.url.removeprefix("http://").split(":")
    for garbage in (b"\x16\x03\x01 nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nX: " + b"a" * (2 << 20)):
        with socket.create_connection((host, int(port)), timeout=WAIT_S) as client:
            try:
                client.sendall(garbage)
                assert client.recv(100).startswith(b"HTTP/1.1 400")
            except (ConnectionResetError, BrokenPipeError):
                pass  # refused while the client was still sending
    assert requests.get(f"{emulator.url}/nothing", timeout=WAIT_S).status_code == 404
    assert requests.post(f"{emulator.url}/v2/electricity/rto/region-data/data/", timeout=WAIT_S).status_code == 405


def test_pipelined_requests_get_ordered_responses(emulator: Emulator) -> None:
    host, port = emulator.url.removeprefix("http://").split(":")
    path = (
        b"/v2/electricity/rto/region-data/data/?facets[respondent][]=PACW&start=2024-01-01T00&end=2024-01-01T00&length="
    )
    with socket.create_connection((host, int(port)), timeout=WAIT_S) as client:
        client.sendall(b"".join(b"GET " + path + b"%d HTTP/1.1\r\nHost: x\r\n\r\n" % n for n in (1, 2, 3)))
        received = b""
        while received.count(b'"ExcelAddInVersion"') < 3:
            received += client.recv(65536)
    bodies = [json.loads(part[part.index(b"{") :]) for part in received.split(b"HTTP/1.1 200 OK")[1:]]
    assert [body["request"]["params"]["length"] for body in bodies] == ["1", "2", "3"]


def test_ipv6_address_is_in_brackets_in_the_url() -> None:
    with Emulator("--host", "::1") as emulator:
        assert emulator.url.startswith("http://[::1]:")
        assert emulator.stats() is not None
