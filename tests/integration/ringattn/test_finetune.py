"""Fine-tuning over real rank processes: one loss curve at any number of ranks, mlx-lm's own, checkpoints and the command."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mlx_lm", reason="mlx-lm is not installed (extra lm)")

import mlx.core as mx
import numpy as np

from ringattn import launch
from tests.support import language_models as models
from tests.support.waiting import until

RANK = Path(__file__).parents[2] / "support" / "ranks" / "finetune.py"
CURVE = 1e-5  # of the loss
Curves = list[list]  # a case's losses, and the digest of its weights


def run(n: int, cases: list[dict], folder: Path) -> Curves:
    """Run the cases; every rank must have the same losses and weights, bit for bit."""
    for number, case in enumerate(cases):
        case["folder"] = str(folder / f"{n}-{number}")
        Path(case["folder"]).mkdir()
    (folder / "cases.json").write_text(json.dumps(cases))
    outputs = launch.run(n, [str(RANK), str(folder / "cases.json")], timeout=560)
    reports = [json.loads(lines[-1]) for lines in outputs]
    assert all(report == reports[0] for report in reports)
    return reports[0]


def furthest(curve: list, other: list) -> float:
    assert len(curve) == len(other) == 21
    return max(abs(a - b) / b for a, b in zip(curve[:-1], other[:-1], strict=True))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Curves:
    """LoRA on all tokens and everything on the answers' four: by this trainer, then by mlx-lm's."""
    kinds = [{"type": "lora", "answers": False}, {"type": "full", "answers": True}]
    return run(1, [*kinds, *(kind | {"plain": True} for kind in kinds)], tmp_path_factory.mktemp("alone"))


@pytest.mark.long
def test_the_losses_are_those_of_mlx_lm(alone: Curves):
    lora, full, plain_lora, plain_full = alone
    assert furthest(lora, plain_lora) <= CURVE
    assert furthest(full, plain_full) <= CURVE
    assert full[-2] < 0.7 * full[0]


@pytest.mark.long
@pytest.mark.parametrize("n", [2, 4])
def test_the_loss_curve_does_not_depend_on_the_number_of_ranks(n: int, alone: Curves, tmp_path: Path):
    """With answers alone as labels, rank 0 holds them all: it has the end of a sequence."""
    curves = run(n, [{"type": "lora", "answers": False}, {"type": "full", "answers": True}], tmp_path)
    for curve, other in zip(curves, alone[:2], strict=True):
        print(f"{n} ranks: {furthest(curve, other):.1e}")
        assert furthest(curve, other) <= CURVE


@pytest.mark.long
def test_a_resumed_training_goes_on_bit_for_bit(tmp_path: Path):
    through, resumed = run(
        2, [{"type": "lora", "answers": False}, {"type": "lora", "answers": False, "stop": 10}], tmp_path
    )
    assert resumed == through


def command(model: Path, data: Path, adapters: Path, *options: str, n: int = 2) -> subprocess.CompletedProcess[str]:
    argv = ["-m", "ringattn.lm.finetune", "--model", str(model), "--data", str(data), "--adapter-path", str(adapters)]
    small = ["--num-layers", "2", "--batch-size", "2", "--steps-per-report", "1", "--learning-rate", "1e-3"]
    return subprocess.run(
        [sys.executable, "-m", "ringattn.launch", "-n", str(n), *argv, *small, *options],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    models.write(tmp_path / "model", "llama")
    rng = np.random.default_rng(0)
    rows = [{"text": " ".join(map(str, rng.integers(2, models.VOCABULARY, 40)))} for _ in range(6)]
    (tmp_path / "data").mkdir()
    for name in ("train", "valid"):
        (tmp_path / "data" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.mark.long
def test_the_command_writes_what_mlx_lm_reads_and_resumes(folder: Path):
    from mlx_lm import load

    model, data = folder / "model", folder / "data"
    base = load(str(model))[0]
    for kind, options in {"lora": [], "full": ["--fine-tune-type", "full", "--grad-checkpoint"]}.items():
        adapters = folder / kind
        first = command(model, data, adapters, "--iters", "2", "--save-every", "2", "--val-batches", "1", *options)
        assert first.returncode == 0, first.stdout + first.stderr
        assert "Iter 1: Val loss" in first.stdout
        again = command(model, data, adapters, "--iters", "4", "--resume", *options)
        assert "resuming after batch 2" in again.stdout, again.stdout + again.stderr
        assert "Iter 4: Train loss" in again.stdout
        assert "Iter 2:" not in again.stdout
        trained = load(str(model), adapter_path=str(adapters))[0]
        tokens = models.tokens(20)
        assert float(abs(trained(tokens) - base(tokens)).max()) > 1e-4
    whole = load(str(folder / "full"))[0]
    assert mx.array_equal(whole(tokens), trained(tokens))
    assert dict(models.flat(whole.parameters())).keys() == dict(models.flat(base.parameters())).keys()


@pytest.mark.long
def test_wrong_arguments_are_named(folder: Path):
    model, data = folder / "model", folder / "data"
    for options, message in (
        (["--num-layers", "9"], "num_layers is 9, but the model has 3"),
        (["--batch-size", "7"], "the data has 6 sequences, fewer than a batch of 7"),
        (["--resume"], "holds no training_state.json"),
        (["--iters", "0"], "--iters must be 1 or more"),
    ):
        ended = command(model, data, folder / "none", *options, n=1)
        assert ended.returncode == 1
        assert message in ended.stdout + ended.stderr


@pytest.mark.long
def test_a_rank_that_is_killed_ends_the_others_with_an_error(folder: Path):
    hosts = folder / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in launch.free_ports(2)]))
    argv = [sys.executable, "-u", "-m", "ringattn.lm.finetune", "--model", str(folder / "model"), "--timeout", "20"]
    argv += [
        "--data",
        str(folder / "data" / "train.jsonl"),
        "--adapter-path",
        str(folder / "lost"),
        "--num-layers",
        "2",
    ]
    argv += ["--batch-size", "2", "--iters", "100000", "--steps-per-report", "1"]
    log = folder / "log"
    with log.open("w") as out:
        ranks = [
            subprocess.Popen(argv, env={**os.environ, **launch.rank_environment(r, 2, hosts)}, stdout=out, stderr=out)
            for r in range(2)
        ]
    try:
        until(lambda: "Iter 2:" in log.read_text(), "the second batch")
        os.kill(ranks[1].pid, signal.SIGKILL)
        assert ranks[0].wait(60) == 75
        assert "PeerLost: rank 0 of 2" in log.read_text()
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
