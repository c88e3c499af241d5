"""Extractions that cannot start or continue: a wrong key or respondent, a folder in use, a damaged journal, a full disk, garbage."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import zmq

from ingest.emulator.process import Emulator
from tests.support.program import MONTH, SMALL, Coordinator, command, environment, run_here, series_digest
from tests.support.waiting import end_of, until

KEY = "Kq7vTESTKEYneverwrittenZ2"
# About 40 pages: a run that lasts long enough to be observed.
LASTING = ("--respondents", "PACW,ERCO", "--start", "2024", "--end", "2024")


@pytest.fixture(scope="module")
def month(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of MONTH whose server echoes the key in every body; `output` holds what it printed."""
    folder = tmp_path_factory.mktemp("month")
    with Emulator("--echo-header-key") as emulator:
        run = run_here(folder, "start", "--extract", "--source", emulator.url, *MONTH, EIA_API_KEY=KEY)
    assert run.code == 0, run.stderr
    (folder / "output").write_text(run.stdout + run.stderr)
    return folder


def test_wrong_key_is_an_authentication_error(coordinator: Coordinator, emulator: Emulator) -> None:
    wrong = "INVALID-key-of-forty-characters-or-so"
    run = coordinator("start", "--extract", "--source", emulator.url, *MONTH, EIA_API_KEY=wrong)
    assert run.code == 4
    assert "EIA_API_KEY" in run.stderr + run.stdout


def test_unknown_respondent_is_named_before_any_request(coordinator: Coordinator, emulator: Emulator) -> None:
    before = len(emulator.requests())
    run = coordinator("start", "--extract", "--source", emulator.url, "--respondents", "PACX")
    assert run.code == 2
    assert "PACW" in run.stderr  # a near match
    assert len(emulator.requests()) == before


def test_running_extraction_refuses_a_second_and_drops_garbage(coordinator: Coordinator, tmp_path: Path) -> None:
    """Random, oversized and half-valid frames that arrive during a run do not change how it ends."""
    with Emulator("--latency-ms", "150") as emulator:
        arguments = command("start", "--extract", "--json", "--quiet", "--source", emulator.url, *LASTING)
        process = subprocess.Popen(arguments, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True)
        try:
            endpoint = tmp_path / "data" / ".endpoint"
            until(lambda: endpoint.exists() and endpoint.read_text(), "the endpoint")
            second = coordinator("start", "--extract", "--source", emulator.url, *SMALL)
            context = zmq.Context()
            socket = context.socket(zmq.DEALER)
            socket.connect(endpoint.read_text())
            draw = random.Random(7)
            for size in (0, 1, 17, 1000, 100_000):
                for _ in range(20):
                    socket.send_multipart([draw.randbytes(size)] * draw.randint(1, 4))
            socket.send(draw.randbytes(9 << 20))  # over the limit: the connection is closed, not the service
            status = coordinator("status", "--json")
            socket.close(linger=0)
            context.term()
            output, _ = end_of(process, "the end of the run")
        finally:
            process.kill()
            process.wait()
    assert second.code == 2
    assert str(process.pid) in second.stderr
    assert status.code == 0
    assert status.result["running"] is True
    assert status.result["counters"]["bad"] >= 90
    assert process.returncode == 0
    assert json.loads(output)["rows"] == json.loads(output)["total"]


def test_damaged_journal_is_rebuilt_from_the_manifests(
    coordinator: Coordinator, emulator: Emulator, month: Path, tmp_path: Path
) -> None:
    shutil.copytree(month / "data", tmp_path / "data")
    before = series_digest(tmp_path / "data")
    (tmp_path / "data" / "journal.sqlite").write_bytes(b"not a journal" * 1000)
    small = ("--source", emulator.url, *MONTH)
    refused = coordinator("start", "--extract", *small, "--end", "2024-04")
    assert refused.code == 1
    assert "--rebuild" in refused.stderr
    rebuilt = coordinator("start", "--extract", "--rebuild", "--json", *small)
    assert rebuilt.code == 0, rebuilt.stderr
    assert rebuilt.result["requests"] == 0
    assert series_digest(tmp_path / "data") == before


def test_api_key_is_written_nowhere(month: Path) -> None:
    assert KEY not in (month / "output").read_text()
    files = [path for path in (month / "data").rglob("*") if path.is_file()]
    for path in files:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        assert KEY.encode() not in content, path
    assert any(path.suffix == ".gz" for path in files)


def test_full_disk_is_resumable(coordinator: Coordinator, emulator: Emulator, tmp_path: Path) -> None:
    """A small tmpfs: exit code 75 with the path and the next command; with room, the same command completes."""
    if os.geteuid() != 0 or sys.platform != "linux":
        pytest.skip("mounting a small tmpfs needs root on Linux")
    data = tmp_path / "data"
    data.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(data)], check=False).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        small = ("--source", emulator.url, *SMALL)
        full = coordinator("start", "--extract", *small)
        assert full.code == 75, full.stderr
        assert "space" in full.stdout + full.stderr
        subprocess.run(["mount", "-o", "remount,size=200m", str(data)], check=True)
        resumed = coordinator("start", "--extract", "--json", *small)
        assert resumed.code == 0, resumed.stderr
        assert resumed.result["proved"] == resumed.result["shards"] == 4
    finally:
        subprocess.run(["umount", "-l", str(data)], check=True)
