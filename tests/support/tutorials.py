"""Run the tutorials as written: each command and snippet of a page, in order, in an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from scripts.dev import run_readme
from tests.support.pages import ROOT

TUTORIALS = ROOT / "docs" / "tutorials"
FILE = re.compile(r"<!-- file: (\S+) -->\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run(text: str, folder: Path, **variables: str) -> str:
    """Run a command in `folder` with this interpreter's programs and the clone's code, unless `variables` has others. Returns its stdout."""
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


def run_snippet(text: str, folder: Path, **variables: str) -> str:
    (folder / "program.py").write_text(text)
    start = re.search(r"start with: (.*)", text)
    return run(start[1] if start else "python program.py", folder, **variables)


def run_page(name: str, folder: Path, **variables: str) -> None:
    """Write a page's files, and run its commands and snippets in order."""
    page = (TUTORIALS / f"{name}.md").read_text()
    for file, content in FILE.findall(page):
        (folder / file).write_text(content)
    for step in run_readme.steps(page):
        if step.skip:
            continue
        output = (run_snippet if step.kind == "python" else run)(step.text, folder, **variables)
        missing = run_readme.missing_line(output, step.output)
        assert not missing, f"{step.text}: no line {missing!r} in {output}"
