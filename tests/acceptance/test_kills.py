"""kill -9 at random moments, of workers and of the coordinator: the result is the same, and nothing committed is requested again."""

from __future__ import annotations

import random
import re
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from ingest.emulator.process import Emulator
from tests.support.program import SMALL, Page, asked, command, environment, series_digest

LATENCY_MS = "120"  # a run lasts long enough to be hit anywhere, and a kill finds requests under way

pytestmark = pytest.mark.skipif(not hasattr(psutil.Process, "children"), reason="needs process lists")


def committed(data: Path) -> set[Page]:
    """Pages under their final names."""
    pages = set()
    for path in (data / "raw" / "eia").rglob("*.json.gz"):
        if re.fullmatch(r"\d{8}-[0-9a-f]{16}\.json\.gz", path.name):
            route, respondent, year, _ = path.parts[-5:-1]
            pages.add((route, respondent, year, int(path.name[:8])))
    return pages


def wait_for_requests(emulator: Emulator, count: int, process: subprocess.Popen[bytes]) -> bool:
    """Wait until the emulator has received `count` requests. Returns False if the run ended before."""
    while process.poll() is None:
        if emulator.stats()["requests"] >= count:
            return True
        time.sleep(0.005)  # the interval of polling
    return False


def workers_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Return the coordinator's living workers, without those that end meanwhile."""
    found = []
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children():
            with suppress(psutil.NoSuchProcess):  # ZombieProcess is one
                if "worker" in child.cmdline():
                    found.append(child)
    return found


def run_with_kills(folder: Path, kills: int, seed: int) -> dict[str, int]:
    """Kill `kills` times, then let the run end. Asserts that no committed page is requested again. Returns counts of events."""
    draw = random.Random(seed)
    data = folder / "data"
    counts = {"coordinator": 0, "worker": 0, "runs": 0}
    with Emulator("--latency-ms", LATENCY_MS) as emulator:
        arguments = command(
            "start", "--extract", "--quiet", "--retries", "1000", "--source", emulator.url, "--data", data, *SMALL
        )

        def start() -> subprocess.Popen[bytes]:
            counts["runs"] += 1
            return subprocess.Popen(arguments, cwd=folder, env=environment(), stdout=subprocess.DEVNULL)

        process = start()
        frozen: list[tuple[int, set[Page]]] = []  # (requests seen, pages committed) right after each kill
        seen = 0
        while counts["coordinator"] + counts["worker"] < kills:
            if not wait_for_requests(emulator, seen + draw.randint(0, 4), process):
                assert process.wait() == 0
                break  # all was done before the kills were used up
            workers = workers_of(process)
            if draw.random() < 0.5 or not workers:
                process.kill()
                process.wait()
                psutil.wait_procs(workers, timeout=10)  # they die with it
                assert not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers)
                counts["coordinator"] += 1
            else:
                victim = draw.choice(workers)
                victim.kill()
                counts["worker"] += 1
            held = committed(data)
            seen = len(emulator.requests())
            frozen.append((seen, held))
            if process.poll() is not None:
                process = start()
        if process.poll() is None:
            assert process.wait(120) == 0
        elif process.returncode != 0:
            assert start().wait(120) == 0
        log = asked(emulator.requests())
    for requests, held in frozen:
        again = held.intersection(log[requests:])
        assert not again, f"asked for again after it was committed: {sorted(again)}"
    return counts


def test_kills_leave_the_same_series(tmp_path: Path, undisturbed: dict[str, str]) -> None:
    counts = run_with_kills(tmp_path, kills=6, seed=1)
    assert counts["coordinator"] + counts["worker"] >= 3
    assert series_digest(tmp_path / "data") == undisturbed


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_fifty_kills_leave_the_same_series(tmp_path: Path, undisturbed: dict[str, str]) -> None:
    """50 kills over as many runs as it takes: each run ends by its kills or by being done."""
    done = 0
    seed = 0
    while done < 50:
        folder = tmp_path / str(seed)
        folder.mkdir()
        counts = run_with_kills(folder, kills=50 - done, seed=seed)
        done += counts["coordinator"] + counts["worker"]
        seed += 1
        assert series_digest(folder / "data") == undisturbed
