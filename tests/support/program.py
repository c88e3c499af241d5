"""The whole program from outside: `coordinator` as a process against an emulator as a process."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from ingest.emulator.process import Emulator

ROOT = Path(__file__).resolve().parents[2]
RECORDINGS = ROOT.parent / "shared" / "data"

# Two respondents, half a leap year, both routes: 4 shards, 2 builds, about 20 pages.
SMALL = ("--respondents", "PACW,ERCO", "--start", "2024-01", "--end", "2024-06")
# 3 respondents × 1 year × 2 routes: 6 shards, 3 builds, about 50 pages.
THREE = ("--respondents", "PACW,ERCO,MISO", "--start", "2024", "--end", "2024")
# One respondent, three years of synthetic hours: one to train, one to validate, one that is kept for tests.
PLAN = ("--respondents", "PACW", "--start", "2019", "--end", "2021")
TRAINING = {
    "context": 168,
    "pieces": 1,
    "piece_hours": 336,
    "layers": 1,
    "dim": 16,
    "hidden": 16,
    "head_dim": 16,
    "patience": 999,
}
Page = tuple[str, str, str, int]  # route, respondent, year, offset


@dataclass
class Run:
    """A finished `coordinator` process."""

    code: int
    stdout: str
    stderr: str

    @property
    def result(self) -> dict[str, Any]:
        return json.loads(self.stdout)


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "coordinator", *map(str, arguments)]


def environment(**extra: str) -> dict[str, str]:
    """Ours, without anything of the caller's that would change a run; any key but INVALID… is good for the emulator."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("COORDINATOR_", "EIA_"))}
    return {**kept, "EIA_API_KEY": "a-key-of-forty-characters-or-nearly-so", **extra}


@pytest.fixture
def coordinator(tmp_path: Path) -> Callable[..., Run]:
    """Run `coordinator …` to its end in an empty working folder, so that no cluster.toml is found."""

    def run(*arguments: str | Path, timeout: float = 150, **env: str) -> Run:
        done = subprocess.run(
            command(*arguments),
            cwd=tmp_path,
            env=environment(**env),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        return Run(done.returncode, done.stdout, done.stderr)

    return run


def series_digest(data: Path) -> dict[str, str]:
    """Every file of the series → sha256: two runs are identical when these are."""
    files = sorted((data / "series").rglob("*.parquet")) + sorted((data / "series").rglob("*.json"))
    return {str(f.relative_to(data)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def asked(log: list[dict]) -> list[Page]:
    """The page of each request in the emulator's log, in order."""
    pages = []
    for line in log:
        query = parse_qs(line["query"])
        route = line["path"].rstrip("/").split("/")[-2]
        pages.append((route, query["facets[respondent][]"][0], query["start"][0][:4], int(query["offset"][0])))
    return pages


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What an extraction of THREE that nothing disturbs leaves."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with Emulator() as emulator:
        arguments = command(
            "start", "--extract", "--quiet", "--source", emulator.url, "--data", folder / "data", *THREE
        )
        subprocess.run(arguments, cwd=folder, env=environment(), check=True, stdout=subprocess.DEVNULL, timeout=150)
    return series_digest(folder / "data")
