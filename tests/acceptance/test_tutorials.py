"""Run the tutorials as written: each command and snippet of a page, in order, in an empty folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from ingest.emulator.process import Emulator
from scripts.dev import run_readme
from tests.support.recordings import DATA, needs_recordings
from tests.support.tutorials import TUTORIALS, run_page, run_snippet

# The snippets of these two take a few processor seconds; everything else is left to `-m long`.
QUICK = ("first_policy", "first_ring")
WITH_KEY = "first_real_run"
KEY = "key-of-the-tutorial"


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
