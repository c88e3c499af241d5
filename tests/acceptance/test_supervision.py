"""A supervised training under faults: real coordinators, workers and ranks, real signals; the ranks keep train.py's contract.

The curve of the losses is that of an undisturbed run to the last digit, whatever happened on the way.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from coordinator.cli import status as look
from tests.support.fake_rank import curve
from tests.support.supervised import KINDS, Supervised, fault

PROCESS = Path(__file__).resolve().parents[1] / "support" / "train_process.py"

pytestmark = pytest.mark.skipif(not hasattr(psutil.Process, "children"), reason="needs process lists")


class Fake(Supervised):
    """Ranks are `fake_rank.py`, times are shorter than a deployment's."""

    def __init__(self, folder: Path, ranks: int = 2, retries: int = 20, **config: Any) -> None:
        folder.mkdir()
        self.settings = {"steps": 40, "step_s": 0.04, "every": 5, **config}
        toml = folder / "fake.toml"
        toml.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in self.settings.items()))
        command = [sys.executable, str(PROCESS), str(folder / "data"), str(ranks), str(toml), str(retries)]
        super().__init__(folder, command, "fake_rank.py")

    @property
    def endless(self) -> Path:
        """While this file exists, the run does not end."""
        return self.run / "endless"

    def start_endless(self) -> subprocess.Popen[str]:
        self.run.mkdir(parents=True)
        self.endless.touch()
        return self.start()

    def check(self) -> None:
        """Each step's loss is in the metrics once, and is that of an undisturbed run."""
        lines = [json.loads(line) for line in (self.run / "metrics.jsonl").read_text().splitlines()]
        steps = json.loads((self.run / "result.json").read_text())["steps"]
        assert steps >= self.settings["steps"]
        assert [line["step"] for line in lines] == list(range(1, steps + 1))
        assert [line["loss"] for line in lines] == curve(steps)


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Callable[..., Fake]]:
    made: list[Fake] = []

    def make(name: str = "one", **more: Any) -> Fake:
        made.append(Fake(tmp_path / name, **more))
        return made[-1]

    yield make
    for one in made:
        one.kill_all()


def check_end(training: Fake, faults: list[float]) -> None:
    training.endless.unlink()
    code, summary = training.end()
    assert (code, summary["status"]) == (0, "done"), training.log.read_text()
    assert len(summary["rounds"]) > len(faults)
    print(f"seconds from fault to next step: {' '.join(f'{seconds:.1f}' for seconds in faults)}")
    training.check()


def test_each_fault_ends_a_round_and_leaves_the_loss_curve(supervised: Callable[..., Fake]) -> None:
    training = supervised()
    draw = random.Random(4)
    training.start_endless()
    took = [fault(training, "rank kill", draw)]
    while "ring of 1 of 2" not in training.log.read_text():  # a worker that is back in time is part of the next ring
        took.append(fault(training, "worker stop", draw))
    training.until(lambda: "a worker is available" in training.log.read_text(), "the ring to grow again")
    took += [fault(training, "rank stop", draw), fault(training, "worker kill", draw)]
    check_end(training, took)


@pytest.mark.long
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_twenty_faults_leave_the_loss_curve(supervised: Callable[..., Fake], ranks: int) -> None:
    draw = random.Random(ranks)
    training = supervised(ranks=ranks)
    training.start_endless()
    check_end(training, [fault(training, draw.choice(KINDS), draw) for _ in range(20)])


def test_killed_and_interrupted_coordinators_are_resumed(
    supervised: Callable[..., Fake],
) -> None:
    training = supervised()
    process = training.start_endless()
    training.until(lambda: training.step() >= 12 and len(training.ranks()) == 2, "step 12")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    training.gone()
    killed_at = training.step()
    process = training.start()
    training.until(lambda: training.step() > killed_at + 2 and len(training.ranks()) == 2, "further steps")
    seen = look.fetch_status(training.data, training.data / "keys")
    assert seen["running"] and "2 of 2 ranks" in look.describe(seen)
    process.send_signal(signal.SIGINT)
    code, summary = training.end()
    assert (code, summary["status"]) == (130, "drain"), training.log.read_text()
    assert summary["rounds"][0]["round"] == 2  # numbers go on: no old lease is taken for a new one
    saved = max(int(path.name) for path in (training.run / "checkpoints").iterdir() if path.name.isdigit())
    assert saved == training.step()  # Ctrl-C loses nothing
    training.endless.unlink()
    training.start()
    code, summary = training.end()
    assert (code, summary["status"], summary["restarts"]) == (0, "done", 0)
    training.check()
    training.start()
    code, summary = training.end()
    assert (code, summary["message"], summary["rounds"]) == (0, "nothing was left to do", [])


def test_failed_runs_report_their_reason(supervised: Callable[..., Fake]) -> None:
    usage = supervised("usage", usage="series of ERCO are missing: extract them first")
    failing = supervised("failing", ranks=1, retries=2, exit_step=3, exit_code=1)
    empty = supervised("empty", ranks=1, exit_step=3, exit_code=0)
    for training in (usage, failing, empty):
        training.start()
    code, summary = usage.end()
    assert (code, summary["status"], summary["result"]) == (2, "usage", None)
    assert "series of ERCO are missing: extract them first" in summary["message"]
    code, summary = failing.end()
    assert (code, summary["status"], len(summary["rounds"])) == (1, "failed", 3)
    assert "this rank was told to fail" in summary["message"]
    code, summary = empty.end()
    assert (code, summary["status"], summary["result"]) == (1, "failed", None)
    assert "could not be verified" in summary["message"]
    assert "result.json does not exist" in summary["message"]
