"""kill -9 at random moments, of workers and of the coordinator: the result is the same, and nothing committed is requested again.

Does a run hang at its exit? It was not seen to. A run once had not ended 120 s after the last kill, with all files written, at a load of 25 on
two cores. In 101 extractions beside four busy loops on two cores (load 5 to 22; 83 with a kill of the coordinator, of a worker, or right after
the picture), each coordinator ended by itself: its interpreter began to exit within 0.1 s of the last file, and the process was gone at most 4.8 s
later. At that time it has no Python thread but the main one. The slow parts are computation: imports, and matplotlib for the picture (up to 20 s at
load 15 without a bytecode cache). So the waits here count progress, and a process that they give up on prints the stack of each thread.
"""

from __future__ import annotations

import random
import re
import subprocess
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from ingest.emulator.process import Emulator
from ingest.verify import verify
from tests.support.program import SMALL, Page, asked, command, environment, series_digest
from tests.support.waiting import await_gone, end_of, footprint, until

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


def workers_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Return the coordinator's living workers, without those that end meanwhile."""
    found = []
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children():
            with suppress(psutil.NoSuchProcess):  # ZombieProcess is one
                if "worker" in child.cmdline():
                    found.append(child)
    return found


class KilledRun:
    """One extraction in `folder`, started again after each kill of its coordinator."""

    def __init__(self, folder: Path, emulator: Emulator, *more: str) -> None:
        self.folder, self.data, self.emulator = folder, folder / "data", emulator
        source = ("--retries", "1000", "--source", emulator.url)
        self.command = command("start", "--extract", "--quiet", *source, "--data", self.data, *SMALL, *more)
        self.start()

    def start(self) -> None:
        with (self.folder / "coordinator.log").open("a") as log:
            env = environment(PYTHONFAULTHANDLER="1")  # see `end_of`
            self.process = subprocess.Popen(
                self.command, cwd=self.folder, env=env, stdout=subprocess.DEVNULL, stderr=log
            )

    def progress(self) -> object:
        return footprint(self.data)

    def requests(self) -> int:
        """Return the number of requests that the emulator has answered."""
        return len(self.emulator.requests())

    def await_requests(self, count: int) -> bool:
        """Wait until the emulator has answered `count` requests. Returns False if the run ended before."""
        until(lambda: self.requests() >= count or self.process.poll() is not None, f"request {count}", self.progress)
        return self.process.poll() is None

    def kill(self, draw: random.Random) -> str:
        """Kill the coordinator or one of its workers. Returns whom."""
        workers = workers_of(self.process)
        if draw.random() < 0.5 or not workers:
            self.process.kill()
            self.process.wait()
            await_gone(workers, "the end of the killed coordinator's workers")
            return "coordinator"
        draw.choice(workers).kill()
        return "worker"

    def end(self) -> None:
        """Wait for the end, and check that all was done."""
        end_of(self.process, f"the end of the run: see {self.folder}/coordinator.log", self.progress)
        assert self.process.returncode == 0, (self.folder / "coordinator.log").read_text()


def run_with_kills(folder: Path, kills: int, seed: int) -> dict[str, int]:
    """Kill `kills` times, or until all is done, and let the run end. Asserts that no committed page is requested again."""
    draw = random.Random(seed)
    counts = {"coordinator": 0, "worker": 0}
    frozen: list[tuple[int, set[Page]]] = []  # (requests seen, pages committed) right after each kill
    with Emulator("--latency-ms", LATENCY_MS) as emulator:
        run = KilledRun(folder, emulator)
        seen = 0
        while sum(counts.values()) < kills and run.await_requests(seen + draw.randint(0, 4)):
            counts[run.kill(draw)] += 1
            held = committed(run.data)
            seen = run.requests()
            frozen.append((seen, held))
            if run.process.poll() is not None:
                run.start()
        run.end()
        log = asked(emulator.requests())
    for requests, held in frozen:
        again = held.intersection(log[requests:])
        assert not again, f"asked for again after it was committed: {sorted(again)}"
    return counts


def kill_over_runs(folder: Path, kills: int, undisturbed: dict[str, str]) -> None:
    """`kills` kills over as many runs as it takes: each run ends by its kills or by being done, with the undisturbed series."""
    done, seed = 0, 1
    while done < kills:
        one = folder / str(seed)
        one.mkdir()
        counts = run_with_kills(one, kills=kills - done, seed=seed)
        print(f"run {seed}: {counts}", flush=True)
        done += sum(counts.values())
        seed += 1
        assert series_digest(one / "data") == undisturbed


def test_kills_leave_the_same_series(tmp_path: Path, undisturbed: dict[str, str]) -> None:
    kill_over_runs(tmp_path, 6, undisturbed)


@pytest.mark.long
@pytest.mark.timeout(3_600)
def test_fifty_kills_leave_the_same_series(tmp_path: Path, undisturbed: dict[str, str]) -> None:
    kill_over_runs(tmp_path, 50, undisturbed)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_kills_leave_the_same_daily_values(tmp_path: Path) -> None:
    """The coordinator itself builds them, when the fetches have ended."""
    contents: list[dict[str, bytes]] = []
    for kills in (0, 8):
        folder = tmp_path / str(kills)
        folder.mkdir()
        draw = random.Random(kills)
        with Emulator("--latency-ms", LATENCY_MS) as emulator:
            run = KilledRun(folder, emulator, "--routes", "region-data,daily")
            for _ in range(kills):
                if run.await_requests(run.requests() + draw.randint(0, 3)):
                    run.kill(draw)
                    if run.process.poll() is not None:
                        run.start()
            run.end()
        contents.append({path.name: path.read_bytes() for path in (run.data / "daily").iterdir()})
        assert verify(run.data).whole
    assert contents[0] == contents[1] and contents[0].keys() == {"ERCO.parquet", "PACW.parquet"}
