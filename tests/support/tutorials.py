"""Run the tutorials as written: each command and snippet of a page, in order, in an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ingest.emulator.process import Emulator
from scripts.dev import run_readme
from tests.support.pages import ROOT
from tests.support.recordings import DATA

TUTORIALS = ROOT / "docs" / "tutorials"
WITH_KEY = "first_real_run"
KEY = "key-of-the-tutorial"
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
    if "ringattn.lm" in page:
        pytest.importorskip("mlx_lm", reason="mlx-lm is not installed: uv sync --extra lm")
    for file, content in FILE.findall(page):
        (folder / file).write_text(content)
    for step in run_readme.steps(page):
        if step.skip:
            continue
        output = (run_snippet if step.kind == "python" else run)(step.text, folder, **variables)
        missing = run_readme.missing_line(output, step.output)
        assert not missing, f"{step.text}: no line {missing!r} in {output}"


@contextmanager
def recorded_answers() -> Iterator[dict[str, str]]:
    """Serve recorded answers of EIA's API, and yield the variables of the environment with which the page `WITH_KEY` asks it.

    The variable COORDINATOR_SOURCE comes before `source` in the page's cluster.toml, so that its commands run as they are.
    """
    demand = [str(DATA / "eia-demand" / "2019_Oct" / f"{code}.csv") for code in ("PACW", "ERCO")]
    generation = str(DATA / "eia-2019" / "eia_2019_60d.parquet")
    with Emulator("--world", "recordings", "--recordings", generation, *demand, "--keys", KEY, keyless=False) as eia:
        yield {"COORDINATOR_SOURCE": eia.url, "EIA_API_KEY": KEY}
