"""Thirty random faults of hosts and cables over one run: it ends by itself, with the same series and the curve of an undisturbed run."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.cluster.bed import Bed
from tests.cluster.faults import KINDS, Watched
from tests.cluster.fleet import Fleet
from tests.e2e.conftest import PLAN, command, environment, series_digest

FAULTS, STEPS = 30, 700


def undisturbed(folder: Path, ranks: int, toml: Path) -> np.ndarray:
    """Losses of a run on this machine alone."""
    folder.mkdir()
    start = command(
        "start", "--extract", "--train", "--data", folder / "data", *PLAN, "--train-config", toml, "--quiet"
    )
    subprocess.run([*start, "--workers", str(ranks)], cwd=folder, env=environment(), check=True, timeout=1_200)
    return losses(folder / "data" / "train" / "metrics.jsonl")


def losses(path: Path) -> np.ndarray:
    lines = [json.loads(line) for line in path.read_text().splitlines() if '"loss"' in line]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1)), "a step is missing, or stands there twice"
    return np.array([line["loss"] for line in lines])


@pytest.mark.long
@pytest.mark.timeout(7_200)
def test_thirty_faults_of_hosts_leave_series_and_curve_as_they_were(bed: Bed, tmp_path: Path) -> None:
    fleet, draw = Fleet(bed), random.Random(3)
    toml = fleet.training(steps=STEPS, validate_every=350)
    two, one = undisturbed(tmp_path / "two", 2, toml), undisturbed(tmp_path / "one", 1, toml)
    fleet.start("--extract", "--train", *PLAN, "--train-config", toml, "--retries", "50")
    watched = Watched(fleet)
    for _ in range(FAULTS):
        print(watched.suffer(draw.choice(KINDS), draw.choice(bed.hosts[1:]), draw), flush=True)
    code, summary = fleet.end()
    assert (code, summary["train"]["status"]) == (0, "done"), fleet.narration()[-3_000:]
    assert series_digest(fleet.data) == series_digest(tmp_path / "two" / "data")
    curve = losses(fleet.data / "train" / "metrics.jsonl")
    apart, between = np.max(np.abs(curve / two - 1)), np.max(np.abs(one / two - 1))
    print(f"faults / none {apart:.2g}, one rank / two {between:.2g}")
    # Rings of other sizes add in another order: fp32 differences, which the optimiser carries on. Faults add none.
    assert apart < 5 * between
