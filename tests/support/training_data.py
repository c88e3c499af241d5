"""A data folder small enough to train on in seconds (two respondents, three winters), and `worker/train.py` as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.support.data_folder import build_all, commit, shard

ROOT = Path(__file__).resolve().parents[2]
TRAIN = str(ROOT / "worker" / "train.py")
FLAGS = ("--train", "2021:2022", "--validate", "2023-01", "--piece-hours", "700", "--pieces", "2", "--context", "400")
SMALL = (
    *FLAGS,
    "--dim",
    "16",
    "--hidden",
    "16",
    "--head-dim",
    "16",
    "--validate-every",
    "4",
    "--checkpoint-every",
    "2",
)


def make(data_dir: Path) -> Path:
    """PACW and ERCO, November to February of three winters: demand, and a forecast whose error repeats every day."""
    spans = [("2021-11-01T00", "2021-12-31T23"), ("2022-01-01T00", "2022-02-28T23"), ("2022-11-01T00", "2022-12-31T23")]
    spans.append(("2023-01-01T00", "2023-02-28T23"))
    for seed, respondent in enumerate(("PACW", "ERCO")):
        draw = np.random.default_rng(seed)
        for start, end in spans:
            one = shard(respondent, start, end)
            t = np.arange(one.hours)
            demand = (
                3000
                + 500 * np.sin(2 * np.pi * t / 24)
                + np.convolve(draw.normal(0, 60, one.hours), np.ones(8) / 3, "same")
            )
            error = 90 * np.sin(2 * np.pi * t / 24 + 1) + draw.normal(0, 40, one.hours)
            commit(data_dir, one, {"D": np.round(demand), "DF": np.round(demand + error)})
    build_all(data_dir)
    return data_dir


def environment(**extra: str) -> dict[str, str]:
    """The caller's, with this interpreter first on the path: train.py asks for `python3`."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", **extra}


def train(
    data: Path, run: Path, *flags: str, program: tuple[str, ...] = (TRAIN,), **env: str
) -> subprocess.CompletedProcess[str]:
    """Run `worker/train.py` with small settings to its end."""
    return subprocess.run(
        [*program, "--data", str(data), "--run", str(run), *SMALL, *flags],
        env=environment(**env),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        stdin=subprocess.DEVNULL,
    )
