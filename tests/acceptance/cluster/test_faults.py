"""Thirty random faults of hosts and cables over the stages: each ends by itself, with the series, curve and policy of an undisturbed run."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path

import numpy as np
import pytest

from scripts.testbed.bed import Bed
from tests.support.cluster_faults import KINDS, ControlFaults, TrainingFaults
from tests.support.cluster_fleet import Fleet
from tests.support.program import PLAN, command, environment, series_digest

TRAINING, STEPS = 20, 700  # faults in the training, its steps
PLAYING, ITERATIONS = 10, 800  # the same of the control training, which knows DF alone


def alone(folder: Path, ranks: int, *stages: str | Path) -> Path:
    """The data folder of a run on this machine alone."""
    folder.mkdir(exist_ok=True)
    start = command("start", "--data", folder / "data", *stages, "--quiet", "--workers", str(ranks))
    subprocess.run(start, cwd=folder, env=environment(), check=True, timeout=1_200)
    return folder / "data"


def losses(data: Path) -> np.ndarray:
    lines = (data / "train" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines if '"loss"' in line]
    assert [step["step"] for step in steps] == list(range(1, STEPS + 1)), "a step is missing or occurs twice"
    return np.array([step["loss"] for step in steps])


@pytest.mark.long
@pytest.mark.timeout(3_600)
def test_twenty_host_faults_change_no_series_and_no_curve(bed: Bed, tmp_path: Path) -> None:
    fleet, draw = Fleet(bed), random.Random(3)
    stages = ("--extract", "--train", *PLAN, "--train-config", fleet.training(steps=STEPS, validate_every=STEPS // 2))
    two, one = alone(tmp_path / "two", 2, *stages), alone(tmp_path / "one", 1, *stages)
    fleet.start(*stages, "--retries", "50")
    watched = TrainingFaults(fleet)
    for _ in range(TRAINING):
        print(json.dumps(watched.inject(draw.choice(KINDS), draw.choice(bed.hosts[1:]), draw)), flush=True)
    code, summary = fleet.end()
    assert (code, summary["train"]["status"]) == (0, "done"), fleet.log_text()[-3_000:]
    assert series_digest(fleet.data) == series_digest(two)
    curve = losses(fleet.data)
    apart, between = (float(np.max(np.abs(other / losses(two) - 1))) for other in (curve, losses(one)))
    print(json.dumps({"faults / none": apart, "one rank / two": between}))
    # Rings of other sizes and shares add in another order: fp32 differences, which the optimiser carries on. Faults add none.
    assert apart < 5 * between


@pytest.mark.long
@pytest.mark.timeout(3_600)
def test_ten_host_faults_change_no_policy(bed: Bed, tmp_path: Path) -> None:
    fleet, draw = Fleet(bed), random.Random(4)
    stages = ("--extract", "--rollouts", *PLAN, "--control-config", fleet.control(ITERATIONS, steps=30))
    expected = alone(tmp_path / "two", 2, *stages)
    fleet.start(*stages, "--retries", "50")
    played = ControlFaults(fleet)
    for _ in range(PLAYING):
        print(json.dumps(played.inject(draw.choice(ControlFaults.KINDS), draw.choice(bed.hosts[1:]), draw)), flush=True)
    code, summary = fleet.end()
    assert (code, summary["rollouts"]["status"]) == (0, "done"), fleet.log_text()[-3_000:]
    assert series_digest(fleet.data) == series_digest(expected)
    for name in ("policy.npz", "metrics.jsonl", "tables.json"):
        assert (fleet.data / "control" / name).read_bytes() == (expected / "control" / name).read_bytes(), name
