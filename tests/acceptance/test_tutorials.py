"""Run the tutorials as written: each command and snippet of a page, in order, in an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.dev import run_readme
from tests.support.pages import ROOT

TUTORIALS = ROOT / "docs" / "tutorials"
# The snippets of these two take a few processor seconds; everything else is left to `-m long`.
QUICK = ("first_policy", "first_ring")
FILE = re.compile(r"<!-- file: (\S+) -->\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run(text: str, folder: Path) -> str:
    """Run a command in `folder` with this interpreter's programs, without `uv run`. Returns its stdout."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("COORDINATOR_", "EIA_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", text.replace("uv run ", "")],
        cwd=folder,
        env={**kept, "PATH": path, "PYTHONPATH": str(ROOT)},
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


@pytest.mark.parametrize("name", QUICK)
def test_snippets_of_tutorial_run(name: str, tmp_path: Path) -> None:
    snippets = [step.text for step in run_readme.steps((TUTORIALS / f"{name}.md").read_text()) if step.kind == "python"]
    assert snippets
    for text in snippets:
        assert run_snippet(text, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", sorted(path.stem for path in TUTORIALS.glob("*.md")))
def test_tutorial_runs(name: str, tmp_path: Path) -> None:
    page = (TUTORIALS / f"{name}.md").read_text()
    for file, content in FILE.findall(page):
        (tmp_path / file).write_text(content)
    for step in run_readme.steps(page):
        if step.skip:
            continue
        output = run_snippet(step.text, tmp_path) if step.kind == "python" else run(step.text, tmp_path)
        missing = run_readme.missing_line(output, step.output)
        assert not missing, f"{step.text}: no line {missing!r} in {output}"
