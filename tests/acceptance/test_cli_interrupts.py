"""Commands while they run: progress, and Ctrl-C, which ends each with one line and exit code 130."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from ingest.emulator.process import Emulator
from tests.support.data_folder import one_month
from tests.support.program import SMALL, Coordinator, command, environment
from tests.support.waiting import end_of, until


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return one_month(tmp_path / "data")


@contextmanager
def held_up(data: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], Callable[[], None]]]:
    """Run `coordinator verify` until it waits for a page, which is a pipe. The yielded function closes the pipe, so that it continues."""
    page = next((data / "raw").rglob("*.json.gz"))
    with blocked(data.parent, page, "verify", *words) as (process, writer):
        yield process, lambda: os.close(writer)


@contextmanager
def blocked(folder: Path, path: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run a command that reads a pipe in place of the file `path`, and waits. Yields the process and the pipe's other end."""
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)
    process = subprocess.Popen(
        command(*words), cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )

    def reader() -> int | None:
        assert process.poll() is None, process.communicate()
        with suppress(OSError):  # no process reads yet
            return os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        return None

    def reads() -> bool:
        """Whether the command waits in its read: Python handles a signal between open and read only after the data has arrived."""
        family = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
        tasks = [task for pid in family for task in Path(f"/proc/{pid}/task").glob("*/wchan")]
        waits = []
        for task in tasks:
            with suppress(OSError):  # it has ended meanwhile
                waits.append(task.read_text())
        return all(wait in ("0", "") for wait in waits) or any("pipe_read" in wait for wait in waits)

    try:
        writer = until(reader, f"a reader of {path}")
        until(reads, f"the read of {path}")
        yield process, writer
    finally:
        process.kill()
        process.communicate()


def test_progress_appears_in_slow_commands_and_not_with_quiet(coordinator: Coordinator, data: Path) -> None:
    """While `verify` waits for a page, it prints progress; then its result."""
    with held_up(data) as (process, release):
        assert process.stderr is not None
        line = process.stderr.readline()
        assert re.search(r"verifying manifests 0/2|verifying manifests ·", line), line
        release()
        out, err = end_of(process, "the end of verify")
    assert process.returncode == 1 and "NOT WHOLE" in out, err
    for page in data.rglob("*.json.gz"):
        page.unlink()
    done = coordinator("verify", "--quiet")
    assert (done.code, done.stderr) == (1, "") and "mismatches" in done.stdout


def interrupted(process: subprocess.Popen[str]) -> str:
    """Send Ctrl-C. Asserts exit code 130; returns stderr."""
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = end_of(process, "the end after Ctrl-C")
    print(f"{process.args!r}: ended {time.monotonic() - began:.2f} s after Ctrl-C")
    assert process.returncode == 130, err
    assert not out and "Traceback" not in err
    return err


@pytest.mark.parametrize(
    ("words", "file"),
    [
        (("verify",), ""),
        (("report",), "train/metrics.jsonl"),
        (("forecast", "--region", "PACW", "--issue", "2024-01-10T10"), "train/result.json"),
        (("start", "--train"), "manifest.json"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_ctrl_c_ends_a_command_with_one_line(data: Path, words: tuple[str, ...], file: str) -> None:
    path = data / file if file else next((data / "raw").rglob("*.json.gz"))
    if words[0] == "start":
        path = next((data / "manifests" / "build").rglob("*.json"))
    with blocked(data.parent, path, *words) as (process, _):
        said = [line for line in interrupted(process).splitlines() if "Interrupted" in line]
    assert len(said) == 1 and "the same command" in said[0]


def test_ctrl_c_ends_the_doctor_and_its_ssh_sessions(data: Path) -> None:
    folder = data.parent
    stub = folder / "bin" / "ssh"
    stub.parent.mkdir()
    stub.write_text('#!/bin/sh\necho $$ > "$0.pid"\nexec cat > /dev/null\n')
    stub.chmod(0o755)
    (folder / "hosts.json").write_text(json.dumps({"hosts": [{"ssh": "m2-1", "ips": ["127.0.0.2"]}]}))
    process = subprocess.Popen(
        command("doctor", "--hostfile", "hosts.json"),
        cwd=folder,
        env=environment(PATH=f"{stub.parent}{os.pathsep}{os.environ['PATH']}"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    pid = int(until(lambda: (folder / "bin" / "ssh.pid").exists() and (folder / "bin" / "ssh.pid").read_text(), "ssh"))
    assert "Interrupted" in interrupted(process)
    until(lambda: not Path(f"/proc/{pid}/comm").exists(), "the end of ssh")


@contextmanager
def requesting(folder: Path, latency_ms: int) -> Iterator[subprocess.Popen[str]]:
    """Run an extraction until its source has a request."""
    with Emulator("--latency-ms", str(latency_ms)) as emulator:
        process = subprocess.Popen(
            command("start", "--extract", "--source", emulator.url, *SMALL),
            cwd=folder,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            until(emulator.requests, "a request")
            yield process
        finally:
            process.kill()
            process.wait()


def test_first_signal_drains_a_run_and_the_second_stops_it(tmp_path: Path) -> None:
    """Ctrl-C finishes the running tasks; SIGTERM after it does not wait for them."""
    with requesting(tmp_path, 20_000) as process:
        assert process.stderr is not None
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        answer = next(line for line in process.stderr if "Ctrl-C again" in line)
        print(f"start --extract: answered {time.monotonic() - began:.2f} s after Ctrl-C")
        assert "resumed" in answer
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, err = end_of(process, "the end after SIGTERM")
        print(f"start --extract: ended {time.monotonic() - began:.2f} s after the second signal")
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "extract was stopped before it was complete; start again to resume" in err


def test_ctrl_c_of_a_run_is_told_without_the_name_of_a_state(tmp_path: Path) -> None:
    """It said `extract is not complete (drain): drained; start again to resume`."""
    with requesting(tmp_path, 300) as process:
        process.send_signal(signal.SIGINT)
        _, err = end_of(process, "the end after Ctrl-C")
    assert process.returncode == 130, err
    assert err.splitlines()[-1].endswith("extract was stopped before it was complete; start again to resume")
    assert "(drain)" not in err and "drained" not in err
