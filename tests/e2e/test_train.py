"""The train stage from outside, with the real worker/train.py: both stages in one command, and twenty faults over a run."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.e2e.conftest import command, environment
from tests.worker.supervised import FAULT_S, KINDS, Supervised, fault

# One respondent, three years of synthetic hours: one to train, one to validate, one that is kept for tests.
PLAN = ("--respondents", "PACW", "--start", "2019", "--end", "2021")
SMALL = {"context": 168, "pieces": 1, "piece_hours": 336, "layers": 1, "warmup": 5, "patience": 1_000}

pytestmark = pytest.mark.skipif(not hasattr(psutil.Process, "children"), reason="needs process lists")


class Trained(Supervised):
    """`coordinator start … --train` in a folder."""

    def __init__(self, folder: Path, *stages: str, retries: int = 20, **config: int) -> None:
        self.steps_wanted = config["steps"]
        toml = folder / "small.toml"
        toml.write_text("".join(f"{name} = {value}\n" for name, value in (SMALL | config).items()))
        arguments = command("start", *stages, "--json", "--train-config", toml, "--retries", str(retries))
        super().__init__(folder, arguments, "worker/train.py", environment())

    def losses(self) -> np.ndarray:
        """The loss of every step. Asserts that each stands there once."""
        lines = [json.loads(line) for line in (self.run / "metrics.jsonl").read_text().splitlines()]
        steps = [line for line in lines if "loss" in line]
        assert [line["step"] for line in steps] == list(range(1, self.steps_wanted + 1))
        return np.array([line["loss"] for line in steps])


@pytest.fixture
def trained() -> Iterator[list[Trained]]:
    made: list[Trained] = []
    yield made
    for one in made:
        one.kill_all()


def test_both_stages_in_one_command_and_a_rank_killed_on_the_way(tmp_path: Path, trained: list[Trained]) -> None:
    config = {"steps": 30, "validate_every": 15, "checkpoint_every": 5}
    training = Trained(tmp_path, "--extract", "--train", *PLAN, **config)
    trained.append(training)
    training.start()
    took = fault(training, "rank kill", random.Random(0))
    code, summary = training.end()
    assert code == 0, training.log.read_text()
    assert summary["extract"]["rows"] == summary["extract"]["total"] > 0
    result = summary["train"]["result"]
    assert (summary["train"]["status"], result["steps"], summary["train"]["restarts"]) == ("done", 30, 1)
    assert took < FAULT_S
    training.losses()
    training.start()
    code, summary = training.end()
    assert (code, summary["extract"]["new_shards"], summary["train"]["message"]) == (0, 0, "nothing was left to do")


@pytest.mark.long
@pytest.mark.timeout(1_500)
def test_twenty_faults_leave_the_curve_of_an_undisturbed_run(tmp_path: Path, trained: list[Trained]) -> None:
    config = {"steps": 1_500, "validate_every": 250, "checkpoint_every": 10}
    extracted = command("start", "--extract", "--quiet", *PLAN)
    runs = []
    for name in ("undisturbed", "disturbed"):
        (tmp_path / name).mkdir()
        subprocess.run(extracted, cwd=tmp_path / name, env=environment(), check=True, timeout=150, capture_output=True)
        runs.append(Trained(tmp_path / name, "--train", **config))
    trained += runs
    runs[0].start()
    assert runs[0].end()[0] == 0, runs[0].log.read_text()
    draw = random.Random(7)
    runs[1].start()
    took = [(kind, fault(runs[1], kind, draw)) for kind in (draw.choice(KINDS) for _ in range(20))]
    code, summary = runs[1].end()
    print(took, summary["rounds"])
    assert code == 0, runs[1].log.read_text()
    assert max(seconds for _, seconds in took) < FAULT_S
    # Rings of other sizes add in another order: fp32 differences, which the optimiser carries on.
    np.testing.assert_allclose(runs[1].losses(), runs[0].losses(), rtol=1e-3)
