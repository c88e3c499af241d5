"""The whole program from outside: `coordinator` as a process against an emulator as a process."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import parse_qs

import pytest

from ingest.emulator.process import Emulator

ROOT = Path(__file__).resolve().parents[2]
RECORDINGS = ROOT.parent / "shared" / "data"

# Two respondents, half a leap year, both routes: 4 shards, 2 builds, about 20 pages.
SMALL = ("--respondents", "PACW,ERCO", "--start", "2024-01", "--end", "2024-06")
# One respondent, one month, both routes: 2 shards, 1 build.
MONTH = ("--respondents", "PACW", "--start", "2024-03", "--end", "2024-03")
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


Coordinator = Callable[..., Run]


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "coordinator", *map(str, arguments)]


def environment(**extra: str) -> dict[str, str]:
    """Return our environment without variables that would change a run. The emulator accepts any key but INVALID…."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("COORDINATOR_", "EIA_"))}
    return {**kept, "EIA_API_KEY": "a-key-of-forty-characters-or-nearly-so", **extra}


@pytest.fixture
def program(tmp_path: Path) -> Coordinator:
    """Run `coordinator …` as a process, to its end, in an empty working folder, so that no cluster.toml is found."""

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


@pytest.fixture
def coordinator(tmp_path: Path) -> Coordinator:
    """Run `coordinator …` in this process, with one worker: a third of the processor time of `program`."""

    def run(*arguments: str | Path, **env: str) -> Run:
        return run_here(tmp_path, *arguments, **env)

    return run


def run_here(folder: Path, *arguments: str | Path, **env: str) -> Run:
    """Run a command line of the coordinator in this process, with `folder` as the working folder."""
    from coordinator.cli.app import app
    from coordinator.cli.errors import run

    out, err = io.StringIO(), io.StringIO()
    variables = environment(COORDINATOR_WORKERS="1", **env)
    with patch.dict(os.environ, variables, clear=True), chdir(folder), redirect_stdout(out), redirect_stderr(err):
        code = run(app, list(map(str, arguments)))
    return Run(code, out.getvalue(), err.getvalue())


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
    """The digests of the series that an extraction of SMALL without any fault makes."""

    def make() -> dict[str, str]:
        folder = tmp_path_factory.mktemp("undisturbed")
        with Emulator() as emulator:
            done = run_here(folder, "start", "--extract", "--quiet", "--source", emulator.url, *SMALL)
        assert done.code == 0, done.stderr
        return series_digest(folder / "data")

    return once(tmp_path_factory, "undisturbed", make)


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[], dict[str, str]]) -> dict[str, str]:
    """Return what `make` returns, which the first of pytest-xdist's workers computes for all of them."""
    base = factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    path = shared / f"{name}.json"
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            path.write_text(json.dumps(make()))
    return dict(json.loads(path.read_text()))
