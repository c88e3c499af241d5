"""Measure what the live page costs a run, and how fast it opens: `python -m scripts.bench.watch [--tasks 100000]`.

One run of no-op leases over sockets with a journal, and beside it the page with an open page's events. The page's process is stopped
(SIGSTOP) and continued in turn, so that the same run is measured with and without it: leases a second by the run's status, and the
median of the ratios of neighbouring windows. On a machine that is not idle these vary, so the page's processor time is also given as a share of
that of the run (coordinator and workers): what it can cost at most where every core is busy. Meanwhile a page of 100 tasks and the page of this run are opened in turn.
JSON lines to docs/benchmarks/watch.jsonl.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import requests

from coordinator.stages.run_log import STATUS
from coordinator.watch.run import NICENESS
from scripts.bench.common import BENCHMARKS, ROOT, emit, machine_line, parser
from scripts.bench.leases import coordinator, free_endpoint, workers

LINES = BENCHMARKS / "watch.jsonl"
WINDOW_S = 3.0
OPENINGS = 10
PAIRS = 12  # of windows


@contextmanager
def page(data: Path) -> Iterator[tuple[int, str]]:
    """Serve the page of a folder as a run does: a process of its own with a low priority. The value is its id and address."""
    command = [
        sys.executable,
        "-m",
        "coordinator",
        "watch",
        "--data",
        str(data),
        "--http",
        "127.0.0.1:0",
        "--with-stdin",
    ]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    os.setpriority(os.PRIO_PROCESS, process.pid, NICENESS)
    try:
        assert process.stderr is not None
        yield process.pid, process.stderr.readline().split()[1]
    finally:
        process.kill()
        process.wait()


def follow(url: str) -> None:
    """Read the events of a page, as an open browser does, until its server ends."""

    def read() -> None:
        try:
            with requests.get(f"{url}events", stream=True, timeout=600) as events:
                for _ in events.iter_content(65_536):
                    pass
        except requests.RequestException:
            return

    threading.Thread(target=read, daemon=True).start()


def leases(data: Path) -> tuple[float, int]:
    """Return when the newest status was written, and the leases that were committed until then."""
    status = json.loads((data / STATUS).read_bytes())
    return float(status["at"]), int(status["run"]["tasks"]["done"])


def rate(data: Path, seconds: float) -> float:
    """Return leases a second over about this time, between two statuses."""
    began, done = leases(data)
    time.sleep(seconds)
    ended, later = leases(data)
    return (later - done) / (ended - began)


def opening(url: str) -> float:
    """Return the seconds until the page and its first events are here."""
    began = time.perf_counter()
    requests.get(url, timeout=60).raise_for_status()
    with requests.get(f"{url}events", stream=True, timeout=60) as events:
        for line in events.iter_lines():
            if line.startswith(b"data:"):
                break
    return time.perf_counter() - began


def processor_s(*pids: int) -> float:
    """Return the processor time of processes and of their children that run, in seconds."""
    total = 0.0
    for pid in pids:
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            used = process.cpu_times()
            total += used.user + used.system
    return total


def measure(tasks: int) -> list[dict[str, Any]]:
    """Return the lines of one run: the cost in leases a second, and the time to open."""
    with ExitStack() as stack:
        folders = [Path(stack.enter_context(tempfile.TemporaryDirectory(dir=ROOT / "runs"))) for _ in range(2)]
        few, many = folders
        bind = free_endpoint()
        small = coordinator(few, bind, 100)
        with workers(bind, few):
            small.communicate(timeout=60)
        bind = free_endpoint()
        run = coordinator(many, bind, tasks)
        stack.callback(run.kill)
        stack.enter_context(workers(bind, many))
        own = psutil.Process().children()
        pid, url = stack.enter_context(page(many))
        _, other = stack.enter_context(page(few))
        time.sleep(2.0)
        opened: dict[int, list[float]] = {100: [], tasks: []}
        follow(other)
        follow(url)
        for _ in range(OPENINGS):
            opened[100].append(opening(other))
            opened[tasks].append(opening(url))
        ratios: list[float] = []
        rates: dict[str, list[float]] = {"with": [], "without": []}
        parts = [process.pid for process in own]
        shares: list[float] = []
        while run.poll() is None and len(ratios) < PAIRS:
            without_first = len(ratios) % 2 == 0
            pair = {}
            for name in ("without", "with") if without_first else ("with", "without"):
                os.kill(pid, signal.SIGSTOP if name == "without" else signal.SIGCONT)
                time.sleep(0.2)
                try:
                    before = processor_s(pid), processor_s(*parts)
                    pair[name] = rate(many, WINDOW_S)
                    used = processor_s(pid) - before[0], processor_s(*parts) - before[1]
                except (OSError, ZeroDivisionError, psutil.Error):
                    break
                if name == "with" and used[1] > 0:
                    shares.append(used[0] / used[1])
            os.kill(pid, signal.SIGCONT)
            if len(pair) == 2 and run.poll() is None:
                ratios.append(pair["with"] / pair["without"])
                for name, value in pair.items():
                    rates[name].append(value)
        medians = {name: statistics.median(values) for name, values in opened.items()}
    return [
        {
            "event": "cost",
            "tasks": tasks,
            "pairs": len(ratios),
            "leases_per_s": {name: round(statistics.median(values)) for name, values in rates.items()},
            "with_over_without": round(statistics.median(ratios), 4),
            "page_processor_share": round(statistics.median(shares), 4),
            "ratios": [round(one, 3) for one in ratios],
        },
        {
            "event": "open",
            "tasks": tasks,
            "seconds": {str(name): round(value, 4) for name, value in medians.items()},
            "ratio": round(medians[tasks] / medians[100], 3),
        },
    ]


def main() -> None:
    """Measure one run."""
    options = parser(__doc__)
    options.add_argument("--tasks", type=int, default=100_000)
    options.add_argument("--out", type=Path, default=LINES)
    given = options.parse_args()
    (ROOT / "runs").mkdir(exist_ok=True)
    emit(machine_line(), given.out)
    for line in measure(given.tasks):
        emit(line, given.out)


if __name__ == "__main__":
    main()
