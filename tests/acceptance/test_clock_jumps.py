"""Wall clocks that jump by hours, in coordinator, workers and ranks: nothing is lost, requested twice or different."""

from __future__ import annotations

import json
import platform
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from coordinator.scheduling.records import Failed, Released
from coordinator.server.journal import Journal
from ingest.emulator.process import Emulator
from tests.support.program import PLAN, SMALL, TRAINING, command, environment, series_digest
from tests.support.waiting import until

JUMPS_S = (3 * 3600, -3 * 3600, 0)


class Clocks:
    """The wall clocks of processes that run under `environ`."""

    def __init__(self, folder: Path) -> None:
        if platform.system() != "Linux" or shutil.which("cc") is None:
            pytest.skip("needs Linux and a C compiler (cc)")
        self._folder, self._draw, self.moved = folder, random.Random(3), 0
        library = folder / "clock.so"
        source = Path(__file__).resolve().parents[1] / "support" / "clock.c"
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
        self.environ = environment(CLOCKS=str(folder), LD_PRELOAD=str(library))

    def set(self, pid: int, seconds: int) -> None:
        part = self._folder / "part"
        part.write_text(str(seconds))
        part.replace(self._folder / str(pid))

    def jump(self, process: subprocess.Popen) -> None:
        """Shift the clocks of the coordinator and of each process that it started, separately."""
        with suppress(psutil.NoSuchProcess):
            for one in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
                self.set(one.pid, self._draw.choice(JUMPS_S))
                self.moved += 1


@pytest.fixture
def clocks(tmp_path: Path) -> Clocks:
    (tmp_path / "clocks").mkdir()
    return Clocks(tmp_path / "clocks")


def run(arguments: list[str], folder: Path, clocks: Clocks, look: Callable[[], int]) -> None:
    """Run a command, which must exit with 0. Clocks jump each time the count that `look` returns has grown."""
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(arguments, cwd=folder, env=clocks.environ, stdout=subprocess.DEVNULL, stderr=log)
        seen = [0]
        try:
            while until(lambda: process.poll() is not None or look() > seen[0], "the run to go on"):
                if process.poll() is not None:
                    break
                seen[0] = look()
                clocks.jump(process)
        finally:
            process.kill()
    assert process.wait() == 0, (folder / "log").read_text()


def test_clock_shim_shifts_the_wall_clock_only(clocks: Clocks) -> None:
    words = "import time\nwhile input():\n print(time.time(), time.monotonic(), flush=True)"
    process = subprocess.Popen(
        [sys.executable, "-c", words], env=clocks.environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    with process:
        for seconds in JUMPS_S:
            clocks.set(process.pid, seconds)
            print("?", file=process.stdin, flush=True)
            wall, monotonic = map(float, process.stdout.readline().split())
            assert abs(wall - time.time() - seconds) < 600 and abs(monotonic - time.monotonic()) < 600
        process.kill()


def test_clock_jumps_leave_the_same_series(tmp_path: Path, clocks: Clocks, undisturbed: dict[str, str]) -> None:
    with Emulator("--latency-ms", "120") as emulator:
        arguments = command(
            "start", "--extract", "--quiet", "--source", emulator.url, "--data", tmp_path / "data", *SMALL
        )
        run(arguments, tmp_path, clocks, lambda: emulator.stats()["requests"] // 3)
    assert clocks.moved > 3
    lost = [
        record
        for record in Journal(tmp_path / "data" / "journal.sqlite").load()
        if isinstance(record, Released | Failed)
    ]
    assert not lost, "a lease was cancelled, or failed"
    assert series_digest(tmp_path / "data") == undisturbed


@pytest.mark.long
def test_clock_jumps_leave_the_same_loss_curve(tmp_path: Path, clocks: Clocks) -> None:
    steps = 60
    config = TRAINING | {"steps": steps, "validate_every": 20, "checkpoint_every": 10}
    curves: list[list[float]] = []
    for name in ("plain", "jumps"):
        folder = tmp_path / name
        metrics = folder / "data" / "train" / "metrics.jsonl"
        folder.mkdir()
        (folder / "small.toml").write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in config.items()))
        arguments = command("start", "--extract", "--train", "--quiet", "--train-config", folder / "small.toml", *PLAN)

        def look(metrics: Path = metrics) -> int:
            return len(metrics.read_text().splitlines()) if metrics.exists() else 0

        if name == "plain":
            subprocess.run(arguments, cwd=folder, env=environment(), check=True, stdout=subprocess.DEVNULL, timeout=170)
        else:
            run(arguments, folder, clocks, look)
        lines = [json.loads(line) for line in metrics.read_text().splitlines()]
        curves.append([line["loss"] for line in lines if "loss" in line])
    assert clocks.moved > 10 and len(curves[0]) == steps
    np.testing.assert_allclose(curves[0], curves[1], rtol=1e-4)
