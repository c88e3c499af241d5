"""worker/train.py from outside: alone and on rings, stopped and resumed, and with what users do wrong."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from ringattn import LoadBalancer, launch
from tests.support.training_data import ROOT, SMALL, TRAIN, environment, train
from worker.forecast.model import checkpoint


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = [line for line in lines if "loss" in line]
    assert [line["step"] for line in found] == list(range(1, len(found) + 1))
    return [line["loss"] for line in found]


def weights(run: Path, step: int) -> dict[str, Any]:
    from mlx.utils import tree_flatten

    found = checkpoint.load(run / "checkpoints" / f"{step:06d}")
    flat = cast(list[tuple[str, Any]], tree_flatten({"w": found.weights, "a": found.average, "o": found.optimizer}))
    return {name: np.array(x) for name, x in flat}


def test_a_run_leaves_what_it_says(alone: Path) -> None:
    result = json.loads((alone / "result.json").read_text())
    assert result["sha256"] == checkpoint.fingerprint(alone / result["checkpoint"])
    assert result["respondents"] == ["ERCO", "PACW"]
    beats = [json.loads(line) for line in (alone.parent / "beats").read_text().splitlines()]
    assert beats[0]["phase"] == "start" and beats[-1]["phase"] == "end"
    assert [beat["step"] for beat in beats if beat["phase"] == "step"] == list(range(1, 9))
    kept = [path.name for path in checkpoint.steps(alone / "checkpoints")]
    assert kept[-2:] == ["000006", "000008"] and f"{result['best_step']:06d}" in kept


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_ring_has_the_same_loss_curve(data: Path, alone: Path, tmp_path: Path, ranks: int) -> None:
    run = tmp_path / "run"
    command = [TRAIN, "--data", str(data), "--run", str(run), *SMALL, "--steps", "8"]
    launch.run(ranks, command, timeout=120)
    np.testing.assert_allclose(losses(run), losses(alone), rtol=1e-4)


def test_a_slow_rank_gets_fewer_tokens_and_the_loss_curve_stays(data: Path, alone: Path, tmp_path: Path) -> None:
    """Whoever reads metrics.jsonl can say why: the shares follow from the busy seconds that stand beside them."""
    run = tmp_path / "run"
    command = [
        str(ROOT / "scripts" / "bench" / "slow_rank.py"),
        "1",
        "30",
        "--data",
        str(data),
        "--run",
        str(run),
        *SMALL,
    ]
    said, _ = launch.run(2, [*command, "--steps", "8"], timeout=120)
    lines, plain = ([json.loads(line) for line in (x / "metrics.jsonl").read_text().splitlines()] for x in (run, alone))
    shares = LoadBalancer("zigzag", 2)
    for line in (line for line in lines if "loss" in line):
        assert line["shares"] == list(shares.weights)
        shares.record_step(line["busy"])
    first, last = (line["shares"] for line in (lines[0], lines[-2]))
    assert first == [1.0, 1.0] and last[0] > 1.2 and last[1] < 0.8
    assert any(line.startswith("step 7: rebalanced the sequence by rank speed: ") for line in said), said
    np.testing.assert_allclose(losses(run), losses(alone), rtol=1e-4)
    assert lines[-1]["skill"] == pytest.approx(plain[-1]["skill"], abs=1e-4)


def test_a_run_that_is_stopped_goes_on_as_if_it_had_not_been(data: Path, alone: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [TRAIN, "--data", str(data), "--run", str(run), *SMALL, "--steps", "8"]
    process = subprocess.Popen(
        command, env=environment(), cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:  # the first step's line comes at once
        if line.startswith("step 1:"):
            process.send_signal(signal.SIGINT)
            break
    rest = process.stderr.read()
    code = process.wait(60)
    if code == 0:
        pytest.skip("it had ended before the signal came")
    assert code == 130 and "Press Ctrl-C again" in rest and "Run the same command to resume" in rest
    done = train(data, run, "--steps", "8")
    assert done.returncode == 0 and "resuming from step" in done.stderr
    assert losses(run) == losses(alone)
    one, two = weights(run, 8), weights(alone, 8)
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


def test_a_damaged_checkpoint_is_passed_over_and_said(data: Path, alone: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(data, run, "--steps", "6").returncode == 0
    newest = run / "checkpoints" / "000006" / "weights.safetensors"
    newest.write_bytes(newest.read_bytes()[:-8])
    done = train(data, run, "--steps", "8")
    assert done.returncode == 0, done.stderr
    assert "skipped a checkpoint" in done.stderr and "resuming from step 4" in done.stderr


def test_mlx_launch_with_a_hostfile(data: Path, alone: Path, tmp_path: Path) -> None:
    """`mlx.launch --hostfile hostfiles/local2.json worker/train.py` as a user writes it, with flags behind it."""
    run = tmp_path / "run"
    program = (
        str(Path(sys.executable).parent / "mlx.launch"),
        "--hostfile",
        "hostfiles/local2.json",
        "worker/train.py",
    )
    done = train(data, run, "--steps", "8", program=program)
    assert (run / "result.json").exists(), done.stderr  # mlx.launch's exit code says nothing
    np.testing.assert_allclose(losses(run), losses(alone), rtol=1e-4)


def test_missing_series_name_the_command_that_makes_them(tmp_path: Path) -> None:
    done = train(tmp_path / "nothing", tmp_path / "run")
    assert done.returncode == 2 and "coordinator start --extract" in done.stderr


def test_a_respondent_that_is_not_there(data: Path, tmp_path: Path) -> None:
    done = train(data, tmp_path / "run", "--respondents", "ERCO,MISO")
    assert done.returncode == 2 and "MISO" in done.stderr and "coordinator start --extract" in done.stderr


def test_a_checkpoint_of_another_shape(data: Path, alone: Path) -> None:
    done = train(data, alone, "--steps", "9", "--dim", "32")
    assert done.returncode == 2 and "another model" in done.stderr and "--run" in done.stderr
    assert len(losses(alone)) == 8


def test_a_wrong_hostfile_and_a_busy_port(data: Path, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts.json"
    hosts.write_text("{}")
    done = train(data, tmp_path / "run", MLX_RANK="0", MLX_HOSTFILE=str(hosts))
    assert done.returncode == 2 and "MLX_RANK is 0 but the file lists 0 hosts" in done.stderr
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        hosts.write_text(json.dumps([[f"127.0.0.1:{port}"], ["127.0.0.1:1"]]))
        done = train(data, tmp_path / "run", MLX_RANK="0", MLX_HOSTFILE=str(hosts))
    assert done.returncode == 2 and f"cannot listen on 127.0.0.1:{port}" in done.stderr


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--train", "2022:2021"), "validation"),
        (("--validate", "2022-13"), "YYYY"),
        (("--steps", "many"), "expected an integer"),
        (("--reference", "guess"), "choose DF or week"),
        (("--config", "nowhere.toml"), "nowhere.toml"),
    ],
)
def test_wrong_settings_say_what_would_be_right(data: Path, tmp_path: Path, flags: tuple[str, ...], words: str) -> None:
    done = train(data, tmp_path / "run", *flags)
    assert done.returncode == 2 and words in done.stderr, done.stderr


def test_settings_come_from_a_file_and_flags_win(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "train.toml"
    file.write_text('steps = 2\nrespondents = ["PACW"]\nlearning_rate = 1e-4\nseed = 7\n')
    done = train(data, tmp_path / "run", "--config", str(file), "--seed", "8")
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["steps"], config["respondents"], config["learning_rate"], config["seed"]) == (2, ["PACW"], 1e-4, 8)
    file.write_text("stepps = 2\n")
    assert "unknown setting 'stepps'" in train(data, tmp_path / "other", "--config", str(file)).stderr
