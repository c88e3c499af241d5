"""A source that does not serve, from outside: the run says what it waits for, Ctrl-C ends the wait, every form ends alike."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from coordinator.cli.status import describe, fetch_status
from tests.support.hostile_server import Hostility, hostile
from tests.support.program import MONTH, command, environment
from tests.support.waiting import until

HANG_S = 20.0  # an undisturbed wait lasts 30 s or longer


def reply(head: bytes, body: bytes = b"") -> AbstractContextManager[str]:
    def act(peer: Hostility) -> None:
        peer.send(b"HTTP/1.1 %sConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (head, len(body), body))

    return hostile(act)


FORMS: dict[str, Callable[[], AbstractContextManager[str]]] = {
    "HTML under 200": lambda: reply(
        b"200 OK\r\nContent-Type: text/html\r\n", b"<!DOCTYPE html><html>maintenance</html>"
    ),
    "503": lambda: reply(b"503 Service Unavailable\r\n"),
    "503 with Retry-After": lambda: reply(b"503 Service Unavailable\r\nRetry-After: 30\r\n"),
    "429 with Retry-After": lambda: reply(b"429 Too Many Requests\r\nRetry-After: 30\r\n"),
    "silent": lambda: hostile(lambda peer: peer.silence()),
    "lost": lambda: hostile(lambda peer: None),
}


class Extraction:
    """A run with one worker, its lines, and how it ended."""

    def __init__(self, folder: Path, url: str, *options: str) -> None:
        self.data, self.lines = folder / "data", list[str]()
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            command("start", "--extract", "--source", url, "--workers", "1", *MONTH, *options),
            cwd=folder,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip())

    def says(self, text: str) -> bool:
        return any(text in line for line in list(self.lines))

    def end(self, timeout_s: float) -> int:
        code = self.process.wait(timeout_s)
        self._reader.join(HANG_S)
        return code


def interrupt_in_a_wait(form: str, folder: Path) -> float:
    """Return the seconds from the first Ctrl-C in a wait to the end of the run."""
    with FORMS[form]() as url:
        run = Extraction(folder, url)
        try:
            until(lambda: run.says("waiting for "), "a line that reports the wait")
            status = describe(fetch_status(run.data, folder / "keys"))
            assert f"waiting for {url.removeprefix('http://')}: " in status
            run.process.send_signal(signal.SIGINT)
            began = time.monotonic()
            assert run.end(HANG_S) == 130
            return time.monotonic() - began
        finally:
            run.process.kill()
            run.process.wait()


def test_wait_is_reported_and_first_interrupt_ends_it(tmp_path: Path) -> None:
    assert interrupt_in_a_wait("503 with Retry-After", tmp_path) < HANG_S


@pytest.mark.long
@pytest.mark.parametrize("form", FORMS)
def test_first_interrupt_ends_every_form_of_wait(form: str, tmp_path: Path) -> None:
    seconds = interrupt_in_a_wait(form, tmp_path)
    print(f"{form}: {seconds:.2f} s from Ctrl-C to the end")


@pytest.mark.long
def test_every_form_of_outage_ends_in_the_same_way(tmp_path: Path) -> None:
    """All forms at once; each with two shards of one attempt."""

    def run(form: str) -> tuple[int, float, list[str]]:
        folder = tmp_path / form.replace(" ", "-")
        folder.mkdir()
        with FORMS[form]() as url:
            one = Extraction(folder, url, "--retries", "1")
            try:
                code = one.end(400)
            finally:
                one.process.kill()
                one.process.wait()
        return code, time.monotonic() - one.began, one.lines

    with ThreadPoolExecutor(len(FORMS)) as pool:
        ends = dict(zip(FORMS, pool.map(run, FORMS), strict=True))
    for form, (code, seconds, lines) in ends.items():
        print(f"{form}: exit code {code} after {seconds:.0f} s")
        assert code == 75, (form, lines[-3:])
        quarantined = [line for line in lines if line.startswith("quarantined ")]
        assert len(quarantined) == 2
        assert all(
            "SourceError: " in line and "no usable response for 120 s; the last: " in line for line in quarantined
        )
    times = [seconds for _, seconds, _ in ends.values()]
    assert max(times) - min(times) < 60  # the silence of one request is 30 s
