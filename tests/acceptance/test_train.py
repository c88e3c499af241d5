"""The train stage from outside, with the real worker/train.py: both stages in one command, and twenty faults over a run."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from coordinator.wire.exit_codes import ExitCode
from tests.support.program import PLAN, TRAINING, command, environment
from tests.support.supervised import KINDS, Supervised, fault
from tests.support.training_data import make

pytestmark = pytest.mark.skipif(not hasattr(psutil.Process, "children"), reason="needs process lists")

ENDLESS = 1_000_000  # steps: those of a day


class Trained(Supervised):
    """`coordinator start … --train` in a folder."""

    def __init__(self, folder: Path, *stages: str, **config: int | str) -> None:
        self.toml, self.config = folder / "small.toml", {**TRAINING, **config}
        self.configure()
        arguments = command("start", *stages, "--json", "--train-config", self.toml, "--retries", "20")
        super().__init__(folder, arguments, "worker/train.py", environment())

    def configure(self, **changes: int | str) -> None:
        """Write the configuration, with `changes` from now on."""
        self.config |= changes
        self.toml.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in self.config.items()))

    def stop_after(self, step: int) -> np.ndarray:
        """Wait for a step, and interrupt the run. Returns the losses of all steps that it has made."""
        self.until(lambda: self.step() >= step, f"step {step}")
        self.process.send_signal(signal.SIGINT)
        code, _ = self.end()
        assert code == ExitCode.INTERRUPTED, self.log.read_text()
        return self.losses()

    def steps_made(self) -> list[dict[str, Any]]:
        """Return the metrics of every step. Asserts that each step occurs once."""
        lines = [json.loads(line) for line in (self.run / "metrics.jsonl").read_text().splitlines()]
        steps = [line for line in lines if "loss" in line]
        assert [line["step"] for line in steps] == list(range(1, len(steps) + 1))
        return steps

    def losses(self) -> np.ndarray:
        return np.array([line["loss"] for line in self.steps_made()])

    def ring_sizes(self) -> list[int]:
        return [line["ranks"] for line in self.steps_made()]


@pytest.fixture
def trained() -> Iterator[list[Trained]]:
    made: list[Trained] = []
    yield made
    for one in made:
        one.kill_all()


def test_one_command_extracts_and_trains_once(tmp_path: Path, trained: list[Trained]) -> None:
    config = {"steps": 8, "validate_every": 4, "checkpoint_every": 4}
    training = Trained(tmp_path, "--extract", "--train", *PLAN, **config)
    trained.append(training)
    training.start()
    code, summary = training.end()
    assert code == 0, training.log.read_text()
    assert summary["extract"]["rows"] == summary["extract"]["total"] > 0
    result = summary["train"]["result"]
    assert (summary["train"]["status"], result["steps"], len(training.losses())) == ("done", 8, 8)
    training.start()
    code, summary = training.end()
    assert (code, summary["extract"]["new_shards"], summary["train"]["message"]) == (0, 0, "nothing was left to do")


@pytest.mark.long
@pytest.mark.timeout(7_200)
def test_twenty_faults_leave_the_undisturbed_loss_curve(tmp_path: Path, trained: list[Trained]) -> None:
    """The runs have more steps than any machine makes: one lasts as long as its faults need, the others until they are as far."""
    # Pieces so long that the ring of a stopped worker does not make many steps before its watchdog ends it.
    config: dict[str, int | str] = {"steps": ENDLESS, "validate_every": 50, "checkpoint_every": 10}
    # Striped shares stay equal; those of zigzag follow measured speeds, and would add in another order.
    config |= {"pieces": 2, "piece_hours": 1_400, "layout": "striped"}

    def begun(name: str, ranks: int) -> Trained:
        make(tmp_path / name / "data")
        stage = ("--train", "--workers", str(ranks))
        trained.append(Trained(tmp_path / name, *stage, train="2021:2022", validate="2023-01", **config))
        trained[-1].start()
        return trained[-1]

    draw, faulty = random.Random(7), begun("faults", 2)
    took = [(kind, fault(faulty, kind, draw)) for kind in (draw.choice(KINDS) for _ in range(20))]
    curve = faulty.stop_after(51)  # a validation has chosen a checkpoint
    faulty.configure(steps=len(curve))
    faulty.start()
    code, summary = faulty.end()
    assert code == 0, faulty.log.read_text()
    assert (summary["result"]["steps"], summary["status"]) == (len(curve), "done")
    two, one = (begun(name, ranks).stop_after(len(curve)) for name, ranks in (("two", 2), ("one", 1)))
    two, one = two[: len(curve)], one[: len(curve)]
    apart, between = np.max(np.abs(curve / two - 1)), np.max(np.abs(one / two - 1))
    print(*took, *summary["rounds"], f"faults / none {apart:.2g}, one rank / two {between:.2g}", sep="\n")
    # Rings of other sizes add in another order: fp32 differences, which the optimiser carries on. Faults add none.
    other_size = next((n for n, size in enumerate(faulty.ring_sizes()) if size != 2), len(curve))
    assert np.array_equal(curve[:other_size], two[:other_size])
    assert apart < 5 * between
