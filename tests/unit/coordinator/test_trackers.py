"""Experiment trackers: which figures are reported, that none is reported twice, and what follows when one fails or is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from coordinator.cli.settings import resolve
from coordinator.stages import trackers
from coordinator.stages.trackers import METRICS, Reporter, check_installed, reporting, scalars
from ingest.errors import UsageError


class Kept:
    """Keeps what is logged; fails at the step `fails_at`."""

    logged: list[tuple[int, dict[str, float]]]
    fails_at = -1

    def __init__(self, run: Path, name: str, run_id: str, config: Any) -> None:
        self.run_id = run_id or "first"

    def log(self, step: int, values: dict[str, float]) -> None:
        if step == self.fails_at:
            raise ConnectionError("no answer from the server")
        self.logged.append((step, values))

    def close(self) -> None:
        self.logged.append((-1, {}))


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> type[Kept]:
    kind = type("One", (Kept,), {"logged": []})
    monkeypatch.setattr(trackers, "TRACKERS", {"one": kind})
    return kind


def write(run: Path, *lines: dict[str, Any]) -> None:
    run.mkdir(exist_ok=True)
    with (run / METRICS).open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def test_numbers_in_lists_and_maps_have_their_own_names() -> None:
    line = {"step": 3, "loss": 0.5, "busy": [1, 2.5], "skills": {"PACW": 0.1}, "known": "DF", "best": True, "no": None}
    assert scalars(json.dumps(line).encode()) == (3, {"loss": 0.5, "busy/0": 1.0, "busy/1": 2.5, "skills/PACW": 0.1})
    assert scalars(b'{"version": 7, "pop": 0.25}') == (7, {"pop": 0.25})
    assert scalars(b'{"loss": 1}') is None and scalars(b"half a li") is None


def test_resumed_training_repeats_no_figure(tmp_path: Path, kept: type[Kept]) -> None:
    write(tmp_path, {"step": 1, "loss": 4.0}, {"step": 2, "loss": 3.0}, {"step": 2, "skill": 0.1})
    with reporting(tmp_path, ["one"], {}, pytest.fail):
        pass
    assert kept.logged == [(1, {"loss": 4.0}), (2, {"loss": 3.0}), (2, {"skill": 0.1}), (-1, {})]
    (tmp_path / METRICS).unlink()  # it resumes from step 1: the file is replaced, step 2 is made again
    write(tmp_path, {"step": 1, "loss": 4.0}, {"step": 2, "loss": 3.0}, {"step": 3, "loss": 2.0})
    again = Reporter(tmp_path, ["one"], {}, pytest.fail)
    again.poll()
    assert kept.logged[4:] == [(3, {"loss": 2.0})]
    assert json.loads((tmp_path / trackers.STATE).read_bytes())["one"]["run"] == "first"


def test_tracker_that_fails_is_named_and_left_out(tmp_path: Path, kept: type[Kept]) -> None:
    kept.fails_at = 2
    notes: list[str] = []
    reporter = Reporter(tmp_path, ["one"], {}, notes.append)
    for step in (1, 2, 3):
        write(tmp_path, {"step": step, "loss": 1.0})
        reporter.poll()
    assert kept.logged == [(1, {"loss": 1.0})]
    assert len(notes) == 1 and "report-to one failed" in notes[0] and "no answer from the server" in notes[0]


def test_tracker_that_cannot_be_opened_ends_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> Any:
        raise ConnectionError("no answer from the server")

    monkeypatch.setattr(trackers, "TRACKERS", {"one": refuse})
    with pytest.raises(UsageError, match="report-to one: it cannot be opened"):
        Reporter(tmp_path, ["one"], {}, pytest.fail)


def test_missing_package_is_named_before_the_run_with_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"not installed: mlflow, wandb\. `uv pip install mlflow wandb`"):
        check_installed(("mlflow", "wandb"))
    assert resolve({"report-to": ["mlflow,wandb"]}, {}, tmp_path)["report-to"].value == ("mlflow", "wandb")
    with pytest.raises(UsageError, match="comet is unknown; choose of tensorboard, mlflow, wandb"):
        resolve({"report-to": ["comet"]}, {}, tmp_path)
