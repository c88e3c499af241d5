"""A supervised training under faults: real coordinators, workers and ranks, real signals; the ranks keep train.py's contract.

The curve of the losses is that of an undisturbed run to the last digit, whatever happened on the way.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.worker.fake_rank import curve

PROCESS = Path(__file__).with_name("train_process.py")
WAIT_S = 90.0  # bound of every wait: reached only when something is broken
FAULT_S = 30.0  # from a fault to the next step, on one host: issue 4's bound

pytestmark = pytest.mark.skipif(not hasattr(psutil.Process, "children"), reason="needs process lists")


def until(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + WAIT_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.01)
    return found


class Supervised:
    """A training in a folder, and the coordinator's process that runs it now."""

    def __init__(self, folder: Path, ranks: int = 2, retries: int = 20, **config: Any) -> None:
        self.data, self.run = folder / "data", folder / "data" / "train"
        self.config = folder / "fake.toml"
        self.settings = {"steps": 40, "step_s": 0.04, "every": 5, **config}
        folder.mkdir(exist_ok=True)
        self.config.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in self.settings.items()))
        self.command = [sys.executable, str(PROCESS), str(self.data), str(ranks), str(self.config), str(retries)]
        self.log = folder / "coordinator.log"
        self.started: list[subprocess.Popen[str]] = []
        self.known: dict[int, psutil.Process] = {}  # every process of this training that was ever seen

    def start(self) -> subprocess.Popen[str]:
        with self.log.open("a") as log:
            self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=log, text=True)
        self.started.append(self.process)
        return self.process

    def family(self, word: str) -> list[psutil.Process]:
        """Living processes below the coordinator with `word` on their command line."""
        found = []
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    self.known[child.pid] = child
                    if word in " ".join(child.cmdline()):
                        found.append(child)
        return found

    def ranks(self) -> list[psutil.Process]:
        return self.family("fake_rank.py")

    def workers(self) -> list[psutil.Process]:
        return self.family("--coordinator")

    def steps(self) -> list[int]:
        """Steps in metrics.jsonl, as they stand there."""
        path = self.run / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line)["step"] for line in lines if line.endswith("}")]

    def step(self) -> int:
        return max(self.steps(), default=0)

    def rounds(self) -> int:
        """Rounds whose rank 0 was started."""
        path = self.run / "logs" / "rank-0.log"
        return path.read_text().count("== round") if path.exists() else 0

    def end(self) -> tuple[int, dict[str, Any]]:
        """Exit code and summary. Asserts that nothing of the training is left."""
        out, _ = self.process.communicate(timeout=WAIT_S)
        self.gone()
        return self.process.returncode, json.loads(out.splitlines()[-1]) if out.strip() else {}

    def gone(self) -> None:
        _, left = psutil.wait_procs(list(self.known.values()), timeout=FAULT_S)
        assert not left, f"left behind: {left}"

    def check(self) -> None:
        """Each step's loss stands in the metrics once, and is that of an undisturbed run."""
        lines = [json.loads(line) for line in (self.run / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == list(range(1, self.settings["steps"] + 1))
        assert [line["loss"] for line in lines] == curve(self.settings["steps"])


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Callable[..., Supervised]]:
    made: list[Supervised] = []

    def make(name: str = "one", **more: Any) -> Supervised:
        made.append(Supervised(tmp_path / name, **more))
        return made[-1]

    yield make
    for one in made:
        for process in one.started:
            process.kill()
            process.wait()
        for child in one.known.values():
            with suppress(psutil.NoSuchProcess):
                child.kill()


def fault(training: Supervised, kind: str, draw: random.Random) -> float:
    """One fault, at a random moment; the seconds until a step beyond it. What was stopped may go on afterwards."""
    whom, _, how = kind.partition(" ")
    goal = training.step() + draw.randint(1, 8)
    until(lambda: training.step() >= goal and len(training.ranks()) >= 1, f"step {goal}")
    victim = draw.choice(training.ranks() if whom == "rank" else training.workers())
    rounds, began = training.rounds(), time.monotonic()
    victim.send_signal(signal.SIGKILL if how == "kill" else signal.SIGSTOP)
    until(lambda: training.rounds() > rounds, f"a round after {kind}")
    first = training.step()
    until(lambda: training.step() > first, f"a step after {kind}")
    seconds = time.monotonic() - began
    if how == "stop":
        with suppress(psutil.NoSuchProcess):
            victim.send_signal(signal.SIGCONT)
    return seconds


def run_with_faults(training: Supervised, kinds: list[str], seed: int) -> None:
    draw = random.Random(seed)
    training.start()
    took = [(kind, fault(training, kind, draw)) for kind in kinds]
    code, summary = training.end()
    assert (code, summary["status"]) == (0, "done"), training.log.read_text()
    assert all(seconds < FAULT_S for _, seconds in took), took
    assert len(summary["rounds"]) > len(kinds)
    training.check()


def test_each_kind_of_fault_ends_a_round_and_none_is_seen_in_the_curve(supervised: Callable[..., Supervised]) -> None:
    kinds = ["rank kill", "worker kill", "worker stop", "rank stop"]
    training = supervised(steps=120)
    run_with_faults(training, random.Random(4).sample(kinds, 4), seed=4)
    said = training.log.read_text()
    assert "ring of 1 of 2" in said, "a stopped worker leaves a smaller ring"
    assert "a worker is back" in said, "it grows when the worker is back"


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_twenty_faults_over_a_run(supervised: Callable[..., Supervised], ranks: int) -> None:
    draw = random.Random(ranks)
    kinds = [draw.choice(["rank kill", "rank stop", "worker kill", "worker stop"]) for _ in range(20)]
    run_with_faults(supervised(ranks=ranks, steps=900), kinds, seed=ranks)


def test_a_killed_coordinator_leaves_no_process_and_the_next_one_goes_on(supervised: Callable[..., Supervised]) -> None:
    training = supervised()
    process = training.start()
    until(lambda: training.step() >= 12 and len(training.ranks()) == 2, "step 12")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    training.gone()
    training.start()
    code, summary = training.end()
    assert (code, summary["rounds"][0]["round"]) == (0, 2)  # numbers go on: no old lease is taken for a new one
    training.check()
    assert "goes on from step 10" in (training.run / "logs" / "rank-0.log").read_text()


def test_ctrl_c_saves_what_was_done_and_the_same_command_ends_it(supervised: Callable[..., Supervised]) -> None:
    training = supervised(every=1_000)  # no checkpoint but the one that it is asked for
    process = training.start()
    until(lambda: training.step() >= 7 and len(training.ranks()) == 2, "step 7")
    process.send_signal(signal.SIGINT)
    code, summary = training.end()
    assert (code, summary["status"]) == (130, "drain"), training.log.read_text()
    done = training.step()
    assert [int(path.name) for path in (training.run / "checkpoints").iterdir()] == [done]
    training.start()
    code, summary = training.end()
    assert (code, summary["status"], summary["restarts"]) == (0, "done", 0)
    training.check()
    training.start()
    code, summary = training.end()
    assert (code, summary["message"], summary["rounds"]) == (0, "nothing was left to do", [])


def test_a_run_that_can_not_end_well_says_why(supervised: Callable[..., Supervised]) -> None:
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
    assert "proved nothing" in summary["message"]
    assert "result.json is not there" in summary["message"]
