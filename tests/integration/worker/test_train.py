"""Training from outside: alone and on rings, stopped and resumed, and with users' mistakes."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import numpy as np
import pytest

from ingest.features import COLUMNS, CONDITION, FEATURES
from ringattn import LoadBalancer, launch, process_group
from ringattn.layout import Layout
from tests.support.training_data import ROOT, SMALL, TRAIN, environment, train
from tests.support.waiting import WAIT_S
from worker.forecast.model import checkpoint
from worker.forecast.model.network import Forecaster, ModelConfig
from worker.forecast.predict import hours_of_issue, load_model, predict
from worker.training.cli import main
from worker.training.config import parse
from worker.training.data import build_local_batch
from worker.training.segments import segment_of
from worker.training.tokens import TARGET, Period, Piece, open_token_store
from worker.training.validation import validate

Rejects = Callable[..., str]


@pytest.fixture
def rejects(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Rejects]:
    """Run the program in this process with settings that it refuses before the first step; return its stderr."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    monkeypatch.setattr(process_group, "_joined", None)
    monkeypatch.setenv("RINGATTN_TIMEOUT", "60")

    def run(*flags: str, data: Path = data, run: Path = tmp_path / "run") -> str:
        assert main(["--data", str(data), "--run", str(run), *SMALL, *flags]) == 2
        return capsys.readouterr().err

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


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


def test_run_leaves_result_heartbeats_and_checkpoints(alone: Path) -> None:
    result = json.loads((alone / "result.json").read_text())
    assert result["sha256"] == checkpoint.fingerprint(alone / result["checkpoint"])
    assert result["respondents"] == ["ERCO", "PACW"]
    assert json.loads((alone / "config.json").read_text())["steps"] == 8
    beats = [json.loads(line) for line in (alone.parent / "beats").read_text().splitlines()]
    assert beats[0]["phase"] == "start" and beats[-1]["phase"] == "end"
    assert [beat["step"] for beat in beats if beat["phase"] == "step"] == list(range(1, 9))
    kept = [path.name for path in checkpoint.steps(alone / "checkpoints")]
    assert kept[-2:] == ["000006", "000008"] and f"{result['best_step']:06d}" in kept


def test_ring_of_three_has_the_same_loss_curve(data: Path, alone: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    launch.run(3, [TRAIN, "--data", str(data), "--run", str(run), *SMALL, "--steps", "8"], timeout=120)
    np.testing.assert_allclose(losses(run), losses(alone), rtol=1e-4)
    one, three = (checkpoint.load(path / "checkpoints" / "000008").state["widths"] for path in (alone, run))
    for name, widths in one.items():  # log factors; an outcome at an interval's edge may count on the other side
        np.testing.assert_allclose(three[name], widths, atol=0.05)


@pytest.fixture(scope="module")
def linear(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of 4 steps on one rank that correct the linear forecast of all authorities."""
    run = tmp_path_factory.mktemp("linear") / "run"
    done = train(data, run, "--steps", "4", "--reference", "linear", "--heartbeat", str(run.parent / "beats"))
    assert done.returncode == 0, done.stderr
    return run


def test_long_fits_before_the_first_step_are_progress(linear: Path) -> None:
    """A supervisor restarts a rank that is silent for minutes; the fits of many authorities take that long."""
    beats = [json.loads(line)["phase"] for line in (linear.parent / "beats").read_text().splitlines()]
    assert beats.index("step") >= 5  # two respondents' tokens with each reference, and the fits


def test_training_starts_where_the_linear_forecast_ends(data: Path, linear: Path, alone: Path) -> None:
    """Its skill is over DF, whose error the linear forecast has already reduced; DF alone is hardly corrected in 4 steps."""
    skills = [
        next(
            line["skill"]
            for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
            if "skill" in line
        )
        for run in (linear, alone)
    ]
    assert skills[0] > 0.3 > skills[1]
    trained = load_model(linear)
    store = open_token_store(data, trained.respondents, trained.reference)
    assert trained.reference == "linear"
    forecast = predict(trained, store, "PACW", hours_of_issue("PACW", "2023-02-01T10"))
    error, own = (np.abs(x - forecast.demand).mean() for x in (forecast.median, forecast.operator))
    assert error < 0.8 * own


@pytest.mark.long
def test_ring_corrects_the_linear_forecast_with_the_same_loss_curve(data: Path, linear: Path, tmp_path: Path) -> None:
    for ranks in (2, 4):
        run = tmp_path / str(ranks)
        flags = ["--data", str(data), "--run", str(run), *SMALL, "--steps", "4", "--reference", "linear"]
        launch.run(ranks, [TRAIN, *flags], timeout=180)
        np.testing.assert_allclose(losses(run), losses(linear), rtol=1e-4)


@pytest.mark.long
def test_one_context_of_all_respondents_has_the_same_loss_and_forecast_on_any_ring(data: Path, tmp_path: Path) -> None:
    """8,208 hours of authority × time at each step, and as a forecast those of the validation."""
    found = {}
    for ranks in (1, 2, 4):
        run = tmp_path / str(ranks)
        flags = ["--data", str(data), "--run", str(run), *SMALL, "--steps", "3", "--validate-every", "3"]
        flags += ["--scope", "all", "--piece-hours", "4104", "--context", "4104"]
        launch.run(ranks, [TRAIN, *flags], timeout=180)
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert all(line["tokens"] >= 8192 for line in lines[:-1]) and lines[-1]["validation_tokens"] >= 8192
        found[ranks] = losses(run), list(lines[-1]["skills"].values())
    for ranks in (2, 4):
        np.testing.assert_allclose(found[ranks][0], found[1][0], rtol=1e-4)
        np.testing.assert_allclose(found[ranks][1], found[1][1], atol=1e-4)


def test_respondents_without_hours_to_validate_are_left_out_of_the_mean(data: Path) -> None:
    """ERCO has no target in the validated month, so that PACW alone is scored."""
    store = open_token_store(data, ["PACW", "ERCO"])
    period = Period.parse("2023-01", "validate")
    first, rows = store.maps[1]
    spoilt = np.array(rows)
    spoilt[period.first - first :, TARGET] = np.nan
    bare = dataclasses.replace(store, maps=(store.maps[0], (first, spoilt)))
    model = Forecaster(ModelConfig(len(FEATURES), len(CONDITION), 2, context=400, dim=16, hidden=16))
    norm = bare.fit(Period.parse("2021:2022", "train"))
    segments = [segment_of(bare, [Piece(i, period.first, 744)]) for i in range(2)]
    local = build_local_batch(
        bare, segments, norm, layout=Layout("zigzag"), size=1, rank=0, scored=period, only_scored=True
    )
    found = validate(model, [local], bare, period, mx.distributed.init())
    assert list(found.skills) == ["PACW"] and found.tokens >= 2 * 744


def test_hours_without_df_leave_a_skill_over_the_linear_forecast(data: Path) -> None:
    """Demand is there and DF is not in half of the validated month: the linear forecast starts from own history there."""
    store = open_token_store(data, ["PACW", "ERCO"], "linear")
    period = Period.parse("2023-01", "validate")
    first, rows = store.maps[0]
    spoilt = np.array(rows)
    spoilt[period.first - first : period.first - first + 372, TARGET + COLUMNS.index("operator")] = np.nan
    bare = dataclasses.replace(store, maps=((first, spoilt), store.maps[1]))
    model = Forecaster(ModelConfig(len(FEATURES), len(CONDITION), 2, context=400, dim=16, hidden=16))
    segments = [segment_of(bare, [Piece(i, period.first, 744)]) for i in range(2)]
    norm = bare.fit(Period.parse("2021:2022", "train"))
    local = build_local_batch(
        bare, segments, norm, layout=Layout("zigzag"), size=1, rank=0, scored=period, only_scored=True
    )
    skills = validate(model, [local], bare, period, mx.distributed.init()).skills
    assert set(skills) == {"PACW", "ERCO"} and np.isfinite(list(skills.values())).all()


def test_slow_rank_gets_fewer_tokens_and_loss_curve_is_unchanged(data: Path, alone: Path, tmp_path: Path) -> None:
    """metrics.jsonl explains the shares: they follow from the busy seconds in the same lines."""
    run = tmp_path / "run"
    slow_rank = [str(ROOT / "scripts" / "bench" / "slow_rank.py"), "1", "30"]
    stderr, _ = launch.run(2, [*slow_rank, "--data", str(data), "--run", str(run), *SMALL, "--steps", "8"], timeout=120)
    lines, plain = ([json.loads(line) for line in (x / "metrics.jsonl").read_text().splitlines()] for x in (run, alone))
    balancer = LoadBalancer("zigzag", 2)
    for line in (line for line in lines if "loss" in line):
        assert line["shares"] == list(balancer.weights)
        balancer.record_step(line["busy"])
    first, last = (line["shares"] for line in (lines[0], lines[-2]))
    assert first == [1.0, 1.0] and last[0] > 1.2 and last[1] < 0.8
    assert any(line.startswith("step 7: rebalanced the sequence by rank speed: ") for line in stderr), stderr
    np.testing.assert_allclose(losses(run), losses(alone), rtol=1e-4)
    assert lines[-1]["skill"] == pytest.approx(plain[-1]["skill"], abs=1e-4)


def test_interrupted_run_resumes_with_the_same_bits(data: Path, alone: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [TRAIN, "--data", str(data), "--run", str(run), *SMALL, "--steps", "8"]
    process = subprocess.Popen(
        command, env=environment(), cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step 1:"):  # printed without delay
            process.send_signal(signal.SIGINT)
            break
    rest = process.stderr.read()
    code = process.wait(WAIT_S)
    if code == 0:
        pytest.skip("the run ended before the signal arrived")
    assert code == 130 and "Press Ctrl-C again" in rest and "Run the same command to resume" in rest
    done = train(data, run, "--steps", "8")
    assert done.returncode == 0 and "resuming from step" in done.stderr
    assert losses(run) == losses(alone)
    assert_same_weights(run, alone)


def assert_same_weights(run: Path, alone: Path) -> None:
    one, two = weights(run, 8), weights(alone, 8)
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


def test_damaged_checkpoint_is_skipped_and_reported(data: Path, alone: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(alone, run)
    newest = run / "checkpoints" / "000008" / "weights.safetensors"
    newest.write_bytes(newest.read_bytes()[:-8])
    done = train(data, run, "--steps", "8")
    assert done.returncode == 0, done.stderr
    assert "skipped a checkpoint" in done.stderr and "resuming from step 6" in done.stderr
    assert_same_weights(run, alone)


def test_mlx_launch_with_a_hostfile(data: Path, alone: Path, tmp_path: Path) -> None:
    """`mlx.launch --hostfile hostfiles/local2.json worker/train.py`, as a user writes it, followed by flags."""
    run = tmp_path / "run"
    launcher = str(Path(sys.executable).parent / "mlx.launch")
    program = (launcher, "--hostfile", "hostfiles/local2.json", "worker/train.py")
    done = train(data, run, "--steps", "1", program=program)
    assert (run / "result.json").exists(), done.stderr  # mlx.launch exits with 0 also when ranks fail
    np.testing.assert_allclose(losses(run), losses(alone)[:1], rtol=1e-4)


def test_missing_series_name_the_command_that_makes_them(rejects: Rejects, tmp_path: Path) -> None:
    assert "coordinator start --extract" in rejects(data=tmp_path / "nothing")
    error = rejects("--respondents", "ERCO,MISO")
    assert "MISO" in error and "coordinator start --extract" in error


def test_checkpoint_of_another_shape_is_refused(rejects: Rejects, alone: Path) -> None:
    error = rejects("--steps", "9", "--dim", "32", run=alone)
    assert "another model" in error and "--run" in error
    assert len(losses(alone)) == 8


def test_wrong_hostfile_and_busy_port_are_named(
    rejects: Rejects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = tmp_path / "hosts.json"
    hosts.write_text("{}")
    monkeypatch.setenv("MLX_RANK", "0")
    monkeypatch.setenv("MLX_HOSTFILE", str(hosts))
    assert "MLX_RANK is 0 but the file lists 0 hosts" in rejects()
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        hosts.write_text(json.dumps([[f"127.0.0.1:{port}"], ["127.0.0.1:1"]]))
        assert f"cannot listen on 127.0.0.1:{port}" in rejects()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--train", "2022:2021"), "ends before it begins"),
        (("--validate", "2022-13"), "YYYY"),
        (("--steps", "many"), "expected an integer"),
        (("--reference", "guess"), "choose DF or week"),
        (("--config", "nowhere.toml"), "nowhere.toml"),
    ],
)
def test_wrong_setting_names_what_is_valid(rejects: Rejects, flags: tuple[str, ...], words: str) -> None:
    assert words in rejects(*flags)


def test_wrong_setting_exits_with_usage_code(data: Path, tmp_path: Path) -> None:
    done = train(data, tmp_path / "run", "--steps", "many")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr


def test_flags_override_the_settings_file(tmp_path: Path) -> None:
    file = tmp_path / "train.toml"
    file.write_text('steps = 2\nrespondents = ["PACW"]\nlearning_rate = 1e-4\nseed = 7\n')
    config = parse(["--config", str(file), "--seed", "8"])
    assert (config.steps, config.respondents, config.learning_rate, config.seed) == (2, ("PACW",), 1e-4, 8)


def test_unknown_setting_is_named(rejects: Rejects, tmp_path: Path) -> None:
    file = tmp_path / "train.toml"
    file.write_text("stepps = 2\n")
    assert "unknown setting 'stepps'" in rejects("--config", str(file))
