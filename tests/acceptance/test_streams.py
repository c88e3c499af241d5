"""Programs whose stdout or stderr is ASCII, full, closed or a broken pipe: finished work keeps its exit code, a result that is lost does not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.program import MONTH, ROOT, environment
from tests.unit.ingest.test_console import ASCII

HELP = {
    "coordinator": ("-m", "coordinator", "--help"),
    "worker": ("-m", "worker", "--help"),
    "emulator": ("-m", "ingest.emulator", "--help"),
    "launch": ("-m", "ringattn.launch", "--help"),
    "planner": ("-m", "ringattn.planner", "--help"),
    "bench": ("-m", "ringattn.kernels.bench", "--help"),
    "train": ("worker/train.py", "--help"),
    "forecast": ("-m", "worker.forecast", "--help"),
}
EXPENSIVE = ("worker", "emulator", "train", "forecast")  # half a second of processor time or more


def shell(words: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """Run `python arguments` with the redirections `words`."""
    return subprocess.run(
        ["bash", "-c", f'"$0" "$@" {words}', sys.executable, *arguments],
        cwd=ROOT,
        env={**environment(), **variables},
        capture_output=True,
        timeout=120,
    )


def folder(parent: Path) -> str:
    """Return a path that is not ASCII, as the system spells it in this locale."""
    return os.fsdecode(os.fsencode(parent) + b"/d\xc3\xa9")


@pytest.mark.parametrize(
    "program", [pytest.param(name, marks=[pytest.mark.long] * (name in EXPENSIVE)) for name in HELP]
)
def test_every_program_survives_a_full_stdout(program: str) -> None:
    ended = shell(">/dev/full", *HELP[program], **ASCII)
    assert ended.returncode == (program == "coordinator"), ended.stderr  # 1 where what is printed is the result
    assert b"some of the output is lost" in ended.stderr and b"Traceback" not in ended.stderr


def test_run_ends_well_without_streams(tmp_path: Path) -> None:
    """The folder's name is no ASCII, as the locale is; stderr breaks while the run goes on, stdout is full at its end."""
    data = folder(tmp_path)
    options = ("-m", "coordinator", "start", "--extract", "--data", data, *MONTH, "--workers", "1")
    ended = shell("2>&1 >/dev/full | head -c 1; exit ${PIPESTATUS[0]}", *options, **ASCII)
    assert (ended.returncode, len(ended.stdout)) == (0, 1)
    assert Path(data, "series", "PACW", "2024", "series.json").exists()


def test_result_that_a_full_disk_refuses_is_an_error(tmp_path: Path) -> None:
    """`coordinator status --json > /dev/full` ended with 0; a reader that has gone has what it wanted."""
    (tmp_path / "manifests").mkdir()
    arguments = ("-m", "coordinator", "status", "--data", str(tmp_path), "--json")
    ended = shell(">/dev/full", *arguments)
    assert (ended.returncode, json.loads(ended.stderr)["event"]) == (1, "note")
    assert shell("| true; exit ${PIPESTATUS[0]}", *arguments).returncode == 0


@pytest.mark.long
def test_report_of_a_folder_that_the_locale_cannot_spell(tmp_path: Path, extracted: Path) -> None:
    data = folder(tmp_path)
    shutil.copytree(extracted, data)
    ended = shell("2>&-", "-m", "coordinator", "report", "--data", data, **ASCII)
    assert ended.returncode == 0
    assert rb"d\udcc3\udca9/report.html" in ended.stdout
    page = Path(data, "report.html").read_text("utf-8")
    assert all(line.isprintable() for line in page.split("\n"))


@pytest.mark.long
@pytest.mark.parametrize("command", ["status", "verify", "doctor", "report"])
@pytest.mark.parametrize(
    "streams", [">/dev/full", ">&-", "2>&-", "2>/dev/full", ">&- 2>&-", "2>&1 | head -1; exit ${PIPESTATUS[0]}"]
)
def test_commands_end_as_with_whole_streams(command: str, streams: str, extracted: Path) -> None:
    arguments = ("-m", "coordinator", command, "--data", str(extracted))
    whole = shell("", *arguments)
    for variables in ({}, ASCII, {"PYTHONIOENCODING": "latin-1"}):
        lost = streams == ">/dev/full"
        assert shell(streams, *arguments, **variables).returncode == (1 if lost else whole.returncode)


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("data")
    ended = shell("", "-m", "coordinator", "start", "--extract", "--data", str(data), *MONTH, "--json")
    assert json.loads(ended.stdout)["exit_code"] == 0
    return data
