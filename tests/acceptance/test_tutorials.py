"""Run the tutorials as written: each command and snippet of a page, in order, in an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ingest.emulator.process import Emulator
from scripts.dev import run_readme
from tests.support.pages import ROOT
from tests.support.recordings import DATA, needs_recordings

TUTORIALS = ROOT / "docs" / "tutorials"
# The snippets of these two take a few processor seconds; everything else is left to `-m long`.
QUICK = ("first_policy", "first_ring")
WITH_KEY = "first_real_run"
KEY = "key-of-the-tutorial"
FILE = re.compile(r"<!-- file: (\S+) -->\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run(text: str, folder: Path, **variables: str) -> str:
    """Run a command in `folder` with this interpreter's programs, without `uv run`. Returns its stdout."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("COORDINATOR_", "EIA_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", text.replace("uv run ", "")],
        cwd=folder,
        env={**kept, "PATH": path, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"{text}: {done.stderr[-2000:]}"
    return done.stdout


def run_snippet(text: str, folder: Path) -> str:
    (folder / "program.py").write_text(text)
    start = re.search(r"start with: (.*)", text)
    return run(start[1] if start else "python program.py", folder)


def run_page(name: str, folder: Path, **variables: str) -> None:
    """Write a page's files, and run its commands and snippets in order."""
    page = (TUTORIALS / f"{name}.md").read_text()
    for file, content in FILE.findall(page):
        (folder / file).write_text(content)
    for step in run_readme.steps(page):
        if step.skip:
            continue
        output = run_snippet(step.text, folder) if step.kind == "python" else run(step.text, folder, **variables)
        missing = run_readme.missing_line(output, step.output)
        assert not missing, f"{step.text}: no line {missing!r} in {output}"


@pytest.mark.parametrize("name", QUICK)
def test_snippets_of_tutorial_run(name: str, tmp_path: Path) -> None:
    snippets = [step.text for step in run_readme.steps((TUTORIALS / f"{name}.md").read_text()) if step.kind == "python"]
    assert snippets
    for text in snippets:
        assert run_snippet(text, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", sorted({path.stem for path in TUTORIALS.glob("*.md")} - {WITH_KEY}))
def test_tutorial_runs(name: str, tmp_path: Path) -> None:
    run_page(name, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(600)
@needs_recordings
def test_tutorial_with_a_key_runs_on_recorded_answers(tmp_path: Path) -> None:
    """The variable COORDINATOR_SOURCE comes before `source` in the page's cluster.toml, so that its commands run as they are."""
    demand = [str(DATA / "eia-demand" / "2019_Oct" / f"{code}.csv") for code in ("PACW", "ERCO")]
    generation = str(DATA / "eia-2019" / "eia_2019_60d.parquet")
    with Emulator("--world", "recordings", "--recordings", generation, *demand, "--keys", KEY, keyless=False) as eia:
        run_page(WITH_KEY, tmp_path, COORDINATOR_SOURCE=eia.url, EIA_API_KEY=KEY)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
