"""The run folder of a training: when its result counts, and how its metrics are followed and shown."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from rich.console import Console

from coordinator.scheduling.progress import Part, StageProgress
from coordinator.stages import run_folder
from coordinator.stages.display import clock
from coordinator.stages.train.artifacts import MetricsFollower, TrainingResult
from coordinator.stages.train.elastic import ElasticRing
from coordinator.stages.train.ring_state import Rank
from coordinator.stages.train.view import describe_rebalance, headline, render, train_view
from ingest.errors import VerificationError
from ingest.metrics import keep_until


def finished(run: Path, body: bytes = b"weights") -> Path:
    """A run folder as train.py leaves it."""
    weights = run / "checkpoints" / "000020" / "average.safetensors"
    weights.parent.mkdir(parents=True, exist_ok=True)
    weights.write_bytes(body)
    digest = hashlib.sha256(body).hexdigest()
    result = {"steps": 40, "validation_skill": 0.2, "checkpoint": "checkpoints/000020", "sha256": digest, "more": [1]}
    (run / "result.json").write_text(json.dumps(result))
    return weights


def test_result_answers_only_the_request_it_was_recorded_for(tmp_path: Path) -> None:
    finished(tmp_path)
    assert run_folder.completed_result(tmp_path, TrainingResult, "a") is None
    assert run_folder.mark_complete(tmp_path, TrainingResult, "a").steps == 40
    assert run_folder.completed_result(tmp_path, TrainingResult, "a") is not None
    assert run_folder.completed_result(tmp_path, TrainingResult, "b") is None
    finished(tmp_path, b"trained further")
    assert run_folder.completed_result(tmp_path, TrainingResult, "a") is None


@pytest.mark.parametrize("harm", ["changed", "gone", "no result", "not json", "fields"])
def test_damaged_result_is_not_accepted(tmp_path: Path, harm: str) -> None:
    weights = finished(tmp_path)
    run_folder.mark_complete(tmp_path, TrainingResult, "a")
    result = tmp_path / "result.json"
    if harm == "changed":
        weights.write_bytes(b"other")
    elif harm == "gone":
        weights.unlink()
    elif harm == "no result":
        result.unlink()
    else:
        result.write_text("{" if harm == "not json" else "{}")
    assert run_folder.completed_result(tmp_path, TrainingResult, "a") is None
    with pytest.raises(VerificationError):
        run_folder.mark_complete(tmp_path, TrainingResult, "a")


def test_request_digest_covers_configuration_and_series(tmp_path: Path) -> None:
    assert run_folder.request_digest(tmp_path, b"steps = 1") == run_folder.request_digest(tmp_path, b"steps = 1")
    assert run_folder.request_digest(tmp_path, b"steps = 1") != run_folder.request_digest(tmp_path, b"steps = 2")


def test_metrics_are_followed_across_a_replaced_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFollower(path)
    metrics.poll()
    assert metrics.number("step") is None
    path.write_text(
        '{"step": 1, "loss": 0.5}\nno json\n{"step": 2, "skill": 0.3}\n{"step": 2, "skill": 0.1}\n{"step": 3, "lo'
    )
    metrics.poll()
    assert (metrics.number("step"), metrics.number("loss"), metrics.number("skill"), metrics.best_skill) == (
        2,
        0.5,
        0.1,
        0.3,
    )
    with path.open("a") as file:
        file.write('ss": 0.4}\n')
    metrics.poll()
    assert (metrics.number("step"), metrics.number("loss")) == (3, 0.4)
    fresh = tmp_path / "part"
    fresh.write_text('{"step": 1, "loss": 0.5}\n' * 40)
    fresh.replace(path)
    metrics.poll()
    assert (metrics.number("step"), metrics.best_skill) == (1, None)


def test_lines_without_a_step_change_no_figure_and_do_not_stop_a_training_that_resumes(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    good = b'{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.4}\n'
    path.write_bytes(
        b'\xc0\xc1\n{"step": "x", "loss": 7}\n' + good + b'null\n{"loss": 9}\n{"step": 3, "loss": 0.3}\n{"st'
    )
    metrics = MetricsFollower(path)
    metrics.poll()
    assert (metrics.number("step"), metrics.number("loss")) == (3, 0.3)
    keep_until(path, "step", 2)
    assert path.read_bytes() == good


def test_rebalancing_is_printed_once_and_equal_shares_are_not(tmp_path: Path) -> None:
    metrics = MetricsFollower(tmp_path / "metrics.jsonl")
    assert metrics.numbers("shares") == []
    metrics.path.write_text('{"step": 1, "shares": [1.5, 0.5]}\n')
    metrics.poll()
    slow = metrics.numbers("shares")
    assert describe_rebalance([], slow) == ["Rebalanced the sequence by rank speed: 150%, 50% of an equal share"]
    assert describe_rebalance(slow, [1.0, 1.0]) == [
        "Rebalanced the sequence by rank speed: 100%, 100% of an equal share"
    ]
    assert not any(map(describe_rebalance, ([], [1.0, 1.0], slow), ([1.0, 1.0], [1.0], slow)))


def test_headline_shows_known_figures(tmp_path: Path) -> None:
    ring = ElasticRing(2, "train")
    metrics = MetricsFollower(tmp_path / "metrics.jsonl")
    line = headline(train_view(ring, metrics, 0.0, 5.0))
    assert line == f"train · elapsed {clock(5)} · step 0 · waiting for workers"
    figures = {
        "step": 7,
        "loss": 0.25,
        "skill": 0.1,
        "tokens_per_s": 12_345.6,
        "attention_share": 0.5,
        "wait_share": 0.05,
    }
    metrics.path.write_text(json.dumps(figures) + "\n")
    metrics.poll()
    ring.stage, ring.ranks = "running", [Rank(0, "here-1", 10.0, step=8, phase="step")]
    progress = StageProgress(65.0, 0.05, "step", (Part("start", "", 1, 1), Part("step", "steps", 8, 160)))
    what = render(train_view(ring, metrics, 12.0, 65.0, 160, progress))
    assert what.line == "train 5% · 1:05 left · 8/160 steps · 1 of 2 ranks · loss 0.25 · skill +0.100"
    assert len(what.line) <= 80
    assert (what.plain["eta_s"], what.plain["steps"]) == (65.0, 160)
    console = Console(width=80)
    with console.capture() as capture:
        console.print(what.picture())
    assert "attention 50% of a step, waiting 5%" in capture.get()
    assert what.plain["ranks"][0] == {"rank": 0, "worker": "here-1", "step": 8, "phase": "step", "silent_s": 2.0}
