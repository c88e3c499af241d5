"""A control training under faults: real coordinators, workers, learners and signals give the weights of an undisturbed run.

Each of the compared runs has its own processes, number of workers and faults. The weights of every evaluated version and every
figure of every iteration must agree to the last bit.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from rl.distributed.audit import EVERY
from tests.support import control_data
from tests.support.supervised import Supervised, hit
from tests.support.waiting import until

PROCESS = Path(__file__).resolve().parents[1] / "support" / "rollout_process.py"
SHORT = 24  # iterations
LONG = {"pathwise": 200, "vtrace": 500}
FAULTS = ("worker kill", "worker stop", "coordinator kill", "coordinator stop", "learner kill")

pytestmark = pytest.mark.skipif(not hasattr(psutil.Process, "children"), reason="needs process lists")


class ControlRun(Supervised):
    """A training in a copy of `data`."""

    def __init__(
        self,
        folder: Path,
        data: Path,
        workers: int = 2,
        iterations: int = SHORT,
        algorithm: str = "vtrace",
        **env: str,
    ) -> None:
        folder.mkdir()
        shutil.copytree(data, folder / "data")
        toml = control_data.config(folder / "control.toml", iterations, algorithm)
        command = [sys.executable, str(PROCESS), str(folder / "data"), str(workers), str(toml)]
        super().__init__(folder, command, "worker.control.learner", {**os.environ, **env})
        self.run = folder / "data" / "control"

    def version(self) -> int:
        path = self.run / "metrics.jsonl"
        return path.read_text().count("\n") if path.exists() else 0

    def learned(self) -> dict[str, bytes]:
        """Return the results that must not depend on which worker ran a job, and when."""
        files = [*sorted((self.run / "versions").glob("*.npz")), self.run / "metrics.jsonl", self.run / "policy.npz"]
        return {path.name: path.read_bytes() for path in files}

    def check_end(self) -> dict:
        code, summary = self.end()
        assert (code, summary.get("status")) == (0, "done"), self.log.read_text()
        return summary


def fault(training: ControlRun, kind: str, draw: random.Random, apart: int = 3) -> None:
    """One fault within `apart` iterations from now; returns when the training has recovered."""
    whom, _, how = kind.partition(" ")
    goal = training.version() + draw.randint(1, apart)
    training.until(lambda: training.version() >= goal, f"version {goal}")
    own = [psutil.Process(training.process.pid)]
    family = {"worker": training.workers, "learner": training.ranks, "coordinator": lambda: own}[whom]
    number = signal.SIGKILL if how == "kill" else signal.SIGSTOP
    victim = training.until(lambda: hit(family, number, draw), "somebody to fail")
    if whom == "coordinator" and how == "kill":
        training.process.communicate()
        training.gone()
        training.start()
    elif whom == "coordinator":
        victim.send_signal(signal.SIGCONT)
    first = training.version()
    over = training.process.poll
    until(lambda: training.version() > first or over() is not None, f"a version after {kind}", training.progress)
    if how == "stop":
        with suppress(psutil.NoSuchProcess):
            victim.send_signal(signal.SIGCONT)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return control_data.make(tmp_path_factory.mktemp("series") / "data")


@pytest.fixture
def played(tmp_path: Path, data: Path) -> Iterator[Callable[..., ControlRun]]:
    made: list[ControlRun] = []

    def make(
        name: str,
        workers: int = 2,
        iterations: int = SHORT,
        algorithm: str = "vtrace",
        source: Path = data,
        **env: str,
    ) -> ControlRun:
        made.append(ControlRun(tmp_path / name, source, workers, iterations, algorithm, **env))
        made[-1].start()
        return made[-1]

    yield make
    for one in made:
        one.kill_all()


@pytest.mark.timeout(600)  # about 30 s on an idle machine
def test_faults_and_wrong_workers_change_no_bit_of_the_weights(played: Callable[..., ControlRun]) -> None:
    undisturbed = played("undisturbed", workers=2)
    undisturbed.check_end()
    expected = undisturbed.learned()
    assert undisturbed.version() == SHORT and "0.npz" in expected and f"{SHORT}.npz" in expected
    # The progress ends with the score of the last version: it kept that of the one before.
    shown = json.loads((undisturbed.folder / "data" / "logs" / "status.json").read_text())["view"]["figures"]
    said = {
        int(version): pop for version, pop in re.findall(r"version (\d+): PoP (\S+) on", undisturbed.log.read_text())
    }
    assert f"{shown['pop']:.3f}" == said[SHORT] and f"{shown['best_pop']:.3f}" == max(said.values(), key=float)
    # All results of one of three workers are wrong: its first is audited, so none of them is used.
    # Two of the three do not share the coordinator's files: they download the datasets in chunks.
    lied_to = played("lied to", workers=3, LIES_FROM="1", ELSEWHERE="1")
    summary = lied_to.check_end()
    assert len(summary["put_out"]) == 1 and "numbers differ" in lied_to.log.read_text()
    brought = {path.name for path in lied_to.folder.glob("elsewhere-*/control/tables/*")}
    assert brought and brought <= {path.name for path in (lied_to.run / "tables").iterdir()}
    assert lied_to.learned() == expected
    faulty, draw = played("faulty", workers=1), random.Random(3)
    for kind in ("worker kill", "coordinator kill", "worker stop"):
        fault(faulty, kind, draw)
    faulty.check_end()
    assert faulty.learned() == expected


def test_folder_without_series_names_the_command(tmp_path: Path, played: Callable[..., ControlRun]) -> None:
    (tmp_path / "empty").mkdir()
    training = played("nothing", workers=1, source=tmp_path / "empty")
    code, summary = training.end()
    assert (code, summary["status"]) == (2, "usage"), training.log.read_text()
    assert "no series in" in summary["message"] and "coordinator start --extract" in summary["message"]


@pytest.mark.long
def test_faulty_worker_is_excluded_within_the_stated_number(
    played: Callable[..., ControlRun],
) -> None:
    # Two workers share 360 rollouts; the liar's part is above 4 + 2 · EVERY - 1.
    lied_to = played("late", workers=2, iterations=120, LIES_FROM="5")
    summary = lied_to.check_end()
    (worker,) = summary["put_out"]
    until(lambda: "Excluded worker" in lied_to.log.read_text(), "the line that names it")
    assert f"Excluded worker {worker}: wrong result for rollout" in lied_to.log.read_text()
    assert EVERY == 16


@pytest.mark.long
@pytest.mark.timeout(1_200)
@pytest.mark.parametrize("algorithm", ["pathwise", "vtrace"])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_twenty_faults_change_no_bit_of_the_weights(
    played: Callable[..., ControlRun], workers: int, algorithm: str
) -> None:
    undisturbed = played("undisturbed", workers=2, iterations=LONG[algorithm], algorithm=algorithm)
    undisturbed.check_end()
    faulty, draw = played("faulty", workers, LONG[algorithm], algorithm), random.Random(workers)
    kinds = [draw.choice(FAULTS) for _ in range(20)]
    for kind in kinds:
        fault(faulty, kind, draw, apart=LONG[algorithm] // 25)
    faulty.check_end()
    print(*kinds, sep=", ")
    assert faulty.learned() == undisturbed.learned()
