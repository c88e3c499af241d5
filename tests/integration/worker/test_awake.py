"""A worker started over ssh holds its Mac awake: `caffeinate` is a stub on PATH that writes its arguments down."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.program import ROOT
from tests.support.waiting import until
from worker.process.awake import stay_awake

# As caffeinate does with -w, the stub ends when the process that it was given ends.
STUB = """#!/bin/sh
echo "$@" > "$CAFFEINATED.part" && mv "$CAFFEINATED.part" "$CAFFEINATED"
while kill -0 "$4" 2>/dev/null; do sleep 0.05; done
rm "$CAFFEINATED"
"""


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    stub = tmp_path / "bin" / "caffeinate"
    stub.parent.mkdir()
    stub.write_text(STUB)
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stub.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("CAFFEINATED", str(tmp_path / "said"))
    return tmp_path / "said"


def test_remote_worker_holds_its_mac_awake_until_it_ends(said: Path, tmp_path: Path) -> None:
    """The real bootstrap, with only the system's name changed; it is killed, so that nothing of its own can end the stub."""
    program = "import sys; sys.platform = 'darwin'; from worker.process.remote_main import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    )
    try:
        assert process.stdin is not None
        config = {"environment": {}, "data": str(tmp_path / "data"), "host": "m2-0", "patience_s": 60.0, "key": None}
        config |= {"endpoint": "tcp://127.0.0.1:1", "connections": 1, "address": ""}
        process.stdin.write(json.dumps(config).encode() + b"\n")
        process.stdin.flush()
        until(said.exists, "caffeinate")
        assert said.read_text().split() == ["-i", "-s", "-w", str(process.pid)]
        process.kill()
        process.wait()
        until(lambda: not said.exists(), "caffeinate's end")
    finally:
        process.kill()
        process.communicate()


def test_other_systems_and_a_mac_without_caffeinate(
    said: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stay_awake("linux") is None and not said.exists()
    monkeypatch.setenv("PATH", "/nowhere")
    assert stay_awake("darwin") is None
    assert "this Mac may fall asleep" in capsys.readouterr().err
