"""Ranks that a launcher starts, without a coordinator: rank 0 alone writes what trackers report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from coordinator.stages import trackers
from ringattn import launch
from tests.support.training_data import SMALL, TRAIN


@pytest.mark.long
def test_figures_of_a_ring_of_two_are_reported_once(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[tuple[int, dict[str, float]]] = []

    class Kept:
        run_id = ""

        def __init__(self, *arguments: Any) -> None:
            pass

        def log(self, step: int, values: dict[str, float]) -> None:
            logged.append((step, values))

        def close(self) -> None:
            pass

    monkeypatch.setattr(trackers, "TRACKERS", {"kept": Kept})
    run = tmp_path / "run"
    with trackers.reporting(run, ["kept"], {}, pytest.fail):
        launch.run(2, [TRAIN, "--data", str(data), "--run", str(run), *SMALL, "--steps", "4"], timeout=120)
    assert [step for step, values in logged if "loss" in values] == [1, 2, 3, 4]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [values["loss"] for _, values in logged if "loss" in values] == [
        line["loss"] for line in lines if "loss" in line
    ]
