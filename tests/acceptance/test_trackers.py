"""A training reported to experiment trackers, read back by their own libraries."""

from __future__ import annotations

import json
import socket
import sqlite3
import struct
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.support import control_data
from tests.support.program import PLAN, TRAINING, command, environment
from tests.support.waiting import end_of, footprint

pytestmark = pytest.mark.long
BLOCK, FULL, LAST = 32 * 1024, 1, 4  # bytes of a block, and kinds of the parts of a record, in LevelDB's log format


def start(folder: Path, *arguments: str | Path, **variables: str) -> str:
    """Run `coordinator start` to its end; return its stderr."""
    process = subprocess.Popen(
        command("start", "--json", *arguments),
        cwd=folder,
        env=environment(**variables),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    _, err = end_of(process, "a training with trackers", lambda: footprint(folder / "data"))
    assert process.returncode == 0, err.decode()
    return err.decode()


def figures(run: Path, name: str, step: str = "step") -> list[tuple[int, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line[step], pytest.approx(line[name], rel=1e-6)) for line in lines if name in line]


def tensorboard_scalars(run: Path, name: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def wandb_history(path: Path) -> list[dict[str, Any]]:
    """Return the figures in a file of wandb's offline mode: LevelDB's log format, whose records are wandb's protocol buffers."""
    from wandb.proto import wandb_internal_pb2 as messages

    content, records, at, part = path.read_bytes(), [], 7, b""
    while at + 7 <= len(content):
        left = BLOCK - at % BLOCK
        size, kind = struct.unpack_from("<HB", content, at + 4)
        if left < 7 or kind == 0:  # the rest of a block is padding
            at += left
            continue
        part += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (FULL, LAST):
            records.append(messages.Record.FromString(part))  # type: ignore[attr-defined, unused-ignore]
            part = b""
    history = [record.history for record in records if record.WhichOneof("record_type") == "history"]
    return [{item.key or item.nested_key[0]: json.loads(item.value_json) for item in one.item} for one in history]


@pytest.mark.timeout(900)
def test_training_of_two_ranks_is_read_back_from_tensorboard_mlflow_and_wandb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("tensorboard", "mlflow", "sqlalchemy", "wandb"):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed: uv run --group trackers pytest")
    database = f"sqlite:///{tmp_path / 'mlflow.db'}"
    toml = tmp_path / "small.toml"
    config = {**TRAINING, "steps": 12, "validate_every": 6, "checkpoint_every": 6}
    toml.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in config.items()))
    more = ("--ranks", "2", "--workers", "2", "--train-config", toml, "--report-to", "tensorboard,mlflow,wandb")
    variables = {"MLFLOW_TRACKING_URI": database, "WANDB_MODE": "offline"}
    err = start(tmp_path, "--extract", "--train", *PLAN, *more, **variables)
    assert not [line for line in err.splitlines() if "and is left" in line]
    run = tmp_path / "data" / "train"
    loss, skill = figures(run, "loss"), figures(run, "skill")
    assert [step for step, _ in loss] == list(range(1, 13)) and len(skill) == 2
    assert tensorboard_scalars(run, "loss") == loss and tensorboard_scalars(run, "skill") == skill

    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("ring-attention-energy")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED" and found.data.params["steps"] == "12"
    assert [(one.step, one.value) for one in client.get_metric_history(found.info.run_id, "loss")] == loss
    (offline,) = (run / "wandb").glob("offline-run-*/*.wandb")
    told = wandb_history(offline)
    assert [(line["step"], line["loss"]) for line in told if "loss" in line] == loss
    assert sqlite3.connect(tmp_path / "mlflow.db").execute("select count(*) from runs").fetchone() == (1,)


@pytest.mark.timeout(900)
def test_control_training_is_read_back_from_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="not installed: uv run --group trackers pytest")
    control_data.make(tmp_path / "data")
    config = control_data.config(tmp_path / "control.toml", 4)
    start(tmp_path, "--rollouts", "--control-config", config, "--report-to", "tensorboard")
    run = tmp_path / "data" / "control"
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    name = next(name for name, value in line.items() if name != "version" and isinstance(value, float))
    assert tensorboard_scalars(run, name) == figures(run, name, "version")


@pytest.mark.timeout(900)
def test_server_that_never_answers_neither_ends_nor_delays_a_training(tmp_path: Path) -> None:
    for package in ("tensorboard", "mlflow"):
        pytest.importorskip(package, reason="not installed: uv run --group trackers pytest")
    control_data.make(tmp_path / "data")
    config = control_data.config(tmp_path / "control.toml", 4)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        arguments = ("--rollouts", "--control-config", config, "--report-to", "mlflow,tensorboard")
        err = start(tmp_path, *arguments, MLFLOW_TRACKING_URI=uri)
    assert "report-to mlflow has not ended after 30 s and is left" in err
    run = tmp_path / "data" / "control"
    versions = [json.loads(line)["version"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    name = next(name for name, value in line.items() if name != "version" and isinstance(value, float))
    assert tensorboard_scalars(run, name)[-1][0] == versions[-1]
