"""Run the tutorials as written: each command and snippet of a page, in order, in an empty folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.dev import run_readme
from tests.support.recordings import needs_recordings
from tests.support.tutorials import KEY, TUTORIALS, WITH_KEY, recorded_answers, run_page, run_snippet

# The snippets of these two take a few processor seconds; everything else is left to `-m long`.
QUICK = ("first_policy", "first_ring")


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
    with recorded_answers() as variables:
        run_page(WITH_KEY, tmp_path, **variables)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
