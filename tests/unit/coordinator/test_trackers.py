"""Experiment trackers: which figures are reported, that none is reported twice, and what follows when one fails or is missing."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from coordinator.cli.settings import resolve
from coordinator.stages import trackers
from coordinator.stages.trackers import METRICS, Reporter, check_installed, reporting, scalars
from ingest.errors import UsageError
from tests.support.waiting import until


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
    again = Reporter(tmp_path, "one", {}, pytest.fail)
    assert again.open() and again.poll()
    assert kept.logged[4:] == [(3, {"loss": 2.0})]
    assert json.loads((tmp_path / trackers.STATE).read_bytes())["one"]["run"] == "first"


def test_tracker_that_fails_is_named_and_left_out(tmp_path: Path, kept: type[Kept]) -> None:
    kept.fails_at = 2
    notes: list[str] = []
    reporter = Reporter(tmp_path, "one", {}, notes.append)
    assert reporter.open()
    for step, usable in ((1, True), (2, False)):
        write(tmp_path, {"step": step, "loss": 1.0})
        assert reporter.poll() is usable
    assert json.loads((tmp_path / trackers.STATE).read_bytes())["one"] == {"run": "first", "last": {"loss": 1}}
    assert kept.logged == [(1, {"loss": 1.0})]
    assert len(notes) == 1 and "report-to one failed" in notes[0] and "no answer from the server" in notes[0]


@pytest.mark.parametrize(
    "error", [ConnectionError("no answer from the server"), SystemExit("no answer from the server")]
)
def test_tracker_that_cannot_be_opened_is_named_and_the_training_goes_on(
    error: BaseException, tmp_path: Path, kept: type[Kept], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> Any:
        raise error

    monkeypatch.setattr(trackers, "TRACKERS", {"one": kept, "two": refuse})
    notes: list[str] = []
    with reporting(tmp_path, ["two", "one"], {}, notes.append):
        write(tmp_path, {"step": 1, "loss": 4.0})
    assert kept.logged == [(1, {"loss": 4.0}), (-1, {})]
    assert len(notes) == 1 and "report-to two cannot be opened and is left out" in notes[0]


@pytest.mark.parametrize("where", ["open", "log", "close"])
def test_tracker_that_hangs_delays_neither_a_training_nor_another_tracker(
    where: str, tmp_path: Path, kept: type[Kept], monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()

    class Hangs(Kept):
        def __init__(self, *arguments: Any) -> None:
            self.run_id = ""
            self.hang("open")

        def hang(self, here: str) -> None:
            if here == where:
                over.wait()

        def log(self, step: int, values: dict[str, float]) -> None:
            self.hang("log")

        def close(self) -> None:
            self.hang("close")

    monkeypatch.setattr(trackers, "TRACKERS", {"one": kept, "two": Hangs})
    monkeypatch.setattr(trackers, "OPEN_S", 0.0)
    monkeypatch.setattr(trackers, "END_S", 0.5)
    monkeypatch.setattr(trackers, "POLL_S", 0.01)
    notes: list[str] = []
    with reporting(tmp_path, ["two", "one"], {}, notes.append):
        write(tmp_path, {"step": 1, "loss": 4.0})
        until(lambda: kept.logged, "the other tracker's figures")
        if where == "open":
            late = "report-to two has not answered for 0 s; the training goes on, its figures follow"
            until(lambda: late in notes, "the line about the tracker that is late")
    over.set()
    assert kept.logged == [(1, {"loss": 4.0}), (-1, {})]
    assert "report-to two has not ended after" in notes[-1] and "has all figures" in notes[-1]


def test_missing_package_is_named_before_the_run_with_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"not installed: mlflow, wandb\. `uv pip install mlflow wandb`"):
        check_installed(("mlflow", "wandb"))
    assert resolve({"report-to": ["mlflow,wandb"]}, {}, tmp_path)["report-to"].value == ("mlflow", "wandb")
    with pytest.raises(UsageError, match="comet is unknown; choose of tensorboard, mlflow, wandb"):
        resolve({"report-to": ["comet"]}, {}, tmp_path)
