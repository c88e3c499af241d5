"""Check that the generated sections of the pages are those that their scripts make from docs/benchmarks, and the generated pages those of the code."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from gymnasium.spaces import Box

from rl.env.grid import Grid
from rl.gym import GridControl
from scripts.bench import extract, faults, links, ring_report, watch
from scripts.dev import generate_docs
from scripts.evaluate import control_baselines, forecast_report
from tests.support.pages import ROOT

LINES = ROOT / "docs" / "benchmarks"


def write_control() -> None:
    lines = [json.loads(line) for line in (LINES / "control.jsonl").read_text().splitlines()]
    before, rest = control_baselines.DOCS.read_text().split(control_baselines.BEGIN)
    after = rest.split(control_baselines.END)[1]
    section = f"{control_baselines.BEGIN}\n\n{control_baselines.docs(lines)}\n\n{control_baselines.END}"
    control_baselines.DOCS.write_text(before + section + after)


def options(name: str) -> argparse.Namespace:
    return argparse.Namespace(lines=LINES / name)


# Module with the page in `DOCS`, and what writes the page.
WRITERS: tuple[tuple[ModuleType, Callable[[], object]], ...] = (
    (faults, lambda: faults.write_table()),
    (links, lambda: links.docs()),
    (ring_report, lambda: ring_report.docs(options("ring.jsonl"))),
    (forecast_report, lambda: forecast_report.docs(options("forecast.jsonl"))),
    (control_baselines, write_control),
    (extract, lambda: extract.write_docs()),
    (watch, lambda: watch.write_table()),
)


@pytest.mark.parametrize(("module", "write"), WRITERS, ids=lambda x: getattr(x, "__name__", "").rpartition(".")[2])
def test_generated_sections_are_current(
    module: ModuleType, write: Callable[[], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page: Path = module.DOCS
    copy = tmp_path / page.name
    copy.write_text(page.read_text())
    monkeypatch.setattr(module, "DOCS", copy)
    monkeypatch.setattr(links, "draw", lambda path: None)
    monkeypatch.setattr(extract, "plot", lambda speeds: None)
    write()
    assert copy.read_text() == page.read_text()


def test_generated_pages_are_current() -> None:
    """After a change of an option, a setting or a public docstring: `uv run python scripts/dev/generate_docs.py`."""
    assert generate_docs.CLI.read_text() == generate_docs.cli_page()
    assert generate_docs.API.read_text() == generate_docs.api_page()


def test_environment_page_has_the_spaces_and_defaults() -> None:
    env = GridControl()
    page = (ROOT / "docs" / "reference" / "environment.md").read_text()
    assert f"`{env.action_space}`" in page
    actions = [*(store.name for store in Grid().stores), "shed"]
    assert re.findall(r"^\| \d \| `([^`]+)` \| -1 \| 1 \| share", page, re.MULTILINE) == [actions[0], actions[-1]]
    assert [
        name for name in re.findall(r"^\| \d \| `(\w+)` \| -1 \| 1 \|", page, re.MULTILINE) if name in actions
    ] == actions
    names, space = env.env.observation_names, env.observation_space
    assert f"gives {len(names)} values" in page
    section = page.partition("## Observation space")[2].partition("\n## ")[0]
    rows = re.findall(
        r"^\| (\d+)(?:–(\d+))? \| `([^`]+)`(?: … `([^`]+)`)? \| (\S+) \| (\S+) \| \w", section, re.MULTILINE
    )
    indices: list[int] = []
    assert isinstance(space, Box)
    for first, last, name, final, low, high in rows:
        covered = range(int(first), int(last or first) + 1)
        indices += covered
        assert (names[covered[0]], names[covered[-1]]) == (name, final or name)
        for bound, shown in ((space.low, low), (space.high, high)):
            assert {f"{bound[index]:.2f}" for index in covered} == {f"{float(shown):.2f}"}, name
    assert indices == list(range(len(names)))
