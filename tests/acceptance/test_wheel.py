"""Without a clone: a wheel, installed alone in an environment, runs what the pages promise, in an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.pages import ROOT
from tests.support.recordings import needs_recordings
from tests.support.registry import uv
from tests.support.tutorials import TUTORIALS, WITH_KEY, recorded_answers, run_page

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
SMALL = "steps = 2\ncontext = 168\npieces = 1\npiece_hours = 336\nlayers = 1\ndim = 16\nhidden = 16\nhead_dim = 16\nvalidate_every = 2\n"
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def checked(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{words}: {done.stderr[-2000:]}"
    return done


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from tracked files and install it; return the folder of its programs. Its dependencies come from this environment, its code from the wheel alone."""
    place = tmp_path_factory.mktemp("wheel")
    source, environment = place / "source", place / "environment"
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", "HEAD"], capture_output=True, check=True).stdout
    source.mkdir()
    subprocess.run(["tar", "-x", "-C", str(source)], input=archive, check=True)
    built = uv("build", "--wheel", "-o", str(place), str(source))
    assert built.returncode == 0, built.stderr[-2000:]
    (wheel,) = place.glob("*.whl")
    checked("uv", "venv", "-p", sys.executable, str(environment))
    (packages,) = environment.glob("lib/python3*/site-packages")
    # A folder that a .pth file adds has no .pth files of its own, so that the editable installation there is not found.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    checked("uv", "pip", "install", "-p", str(environment), "--no-deps", str(wheel))
    return environment / "bin"


@pytest.fixture(scope="module")
def installed(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a function that runs a command with the wheel's programs in an empty folder."""
    empty = tmp_path_factory.mktemp("empty")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("COORDINATOR_", "PYTHON"))}
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    return lambda *words: checked(*words, cwd=empty, env={**kept, "PATH": path})


def test_code_is_the_wheels(installed: Run) -> None:
    found = installed("python", "-c", "import coordinator, rl; print(coordinator.__file__, rl.__file__)").stdout.split()
    assert not [path for path in found if path.startswith(str(ROOT))], found


def test_a_run_needs_no_clone(installed: Run) -> None:
    """`init`, an extraction, and a training by `python -m worker.train`, alone and on two ranks."""
    assert "Next: `coordinator start --extract`" in installed("coordinator", "init").stdout
    few = ("--respondents", "PACW", "--start", "2019", "--end", "2021")
    assert "verified for this request" in installed("coordinator", "start", "--extract", *few).stdout
    installed("bash", "-c", f"printf '%s' '{SMALL}' > small.toml")
    train = ("worker.train", "--config", "small.toml", "--respondents", "PACW")
    installed("python", "-m", *train, "--run", "alone")
    installed("python", "-m", "ringattn.launch", "-n", "2", "-m", *train, "--run", "two")
    lines = installed("bash", "-c", "ls alone/result.json two/result.json").stdout.split()
    assert lines == ["alone/result.json", "two/result.json"]


@pytest.mark.parametrize("name", sorted({path.stem for path in TUTORIALS.glob("*.md")} - {WITH_KEY}))
def test_tutorial_runs_from_the_wheel(name: str, programs: Path, tmp_path: Path) -> None:
    run_page(name, tmp_path, PATH=f"{programs}{os.pathsep}{os.environ['PATH']}", PYTHONPATH="")


@needs_recordings
def test_tutorial_with_a_key_runs_from_the_wheel(programs: Path, tmp_path: Path) -> None:
    with recorded_answers() as variables:
        run_page(WITH_KEY, tmp_path, PATH=f"{programs}{os.pathsep}{os.environ['PATH']}", PYTHONPATH="", **variables)
