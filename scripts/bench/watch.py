"""Measure what the live page costs a run, and how fast it opens: `python -m scripts.bench.watch [--rounds 3 | --docs]`.

Each round is one run of no-op leases over sockets with a journal, and beside it the page with an open page's events. The page's process is
stopped (SIGSTOP) and continued in turn, in windows of a second, so that the same run is measured with and without it. Each window with the
page is compared with the mean of the two without it around it, which takes a drift out; each one without it likewise with those around it,
which shows what the machine does by itself. Both ways count leases a second (records of the journal) and processor seconds of the run
(coordinator and workers) per lease. Medians over all windows of all rounds, with the 95 % interval of the median. The page's own processor
time is a share of that of the run: what it takes at most where every core is busy and its low priority counts for nothing.

A stopped page looks at the folder as soon as it goes on, so it looks once or twice in a window of a second: the cost is not understated.

During a run of 100,000 tasks its page and one of 100 tasks are opened in turn, and once from a server that has just started.
JSON lines to docs/benchmarks/watch.jsonl, and the newest as a table into docs/how-to/watch_a_run.md; `--docs` only writes the table. Three
rounds take about four minutes on a machine that does nothing else.
"""

import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import requests

from coordinator.watch.run import NICENESS
from scripts.bench.common import (
    BENCHMARKS,
    ROOT,
    emit,
    machine_line,
    markdown_table,
    parser,
    read_lines,
    rewrite_section,
)
from scripts.bench.leases import coordinator, free_endpoint, length_of, workers

LINES, DOCS = BENCHMARKS / "watch.jsonl", ROOT / "docs" / "how-to" / "watch_a_run.md"
BEGIN, END = "<!-- watch: begin (python -m scripts.bench.watch --docs) -->", "<!-- watch: end -->"
WINDOW_S, SETTLE_S = 1.0, 0.1
OPENINGS = 10  # of each page in a round
WINDOWS = 31  # of a round: every second one with the page, the first and the last without
RECORDS = 3  # of the journal for a lease: leased, done, committed


@dataclass(frozen=True)
class Window:
    """What was measured in a window."""

    page: bool  # whether the page ran
    rate: float  # leases a second
    per_lease: float  # processor seconds of the run
    run_s: float  # processor time of the run
    page_s: float  # of the page


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


def window(pid: int, run: Sequence[int], data: Path, on: bool) -> Window | None:
    """Measure a window with or without the page; None: the run has ended, or its journal was rewritten meanwhile."""
    os.kill(pid, signal.SIGCONT if on else signal.SIGSTOP)
    time.sleep(SETTLE_S)
    began, records = time.perf_counter(), length_of(data)
    before = processor_s(pid), processor_s(*run)
    time.sleep(WINDOW_S)
    leases, seconds = (length_of(data) - records) / RECORDS, time.perf_counter() - began
    page_s, run_s = processor_s(pid) - before[0], processor_s(*run) - before[1]
    return Window(on, leases / seconds, run_s / leases, run_s, page_s) if leases > 0 and run_s > 0 else None


def against_neighbours(windows: Sequence[Window], on: bool, value: Callable[[Window], float]) -> list[float]:
    """Return the value of each window with or without the page, divided by the mean of the nearest windows without it on both sides."""
    away = 1 if on else 2
    return [
        value(windows[i]) / statistics.fmean([value(windows[i - away]), value(windows[i + away])])
        for i in range(away, len(windows) - away)
        if windows[i].page == on
    ]


def median_of(values: Sequence[float]) -> dict[str, Any]:
    """Return the median with its 95 % interval by order statistics (David and Nagaraja, Order Statistics, 2003, 7.1)."""
    ordered, count = sorted(values), len(values)
    low = max(0, math.floor(count / 2 - 0.98 * math.sqrt(count)))
    ends = [round(ordered[i], 4) for i in (low, count - 1 - low)]
    return {"median": round(statistics.median(ordered), 4), "interval": ends, "windows": count}


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


@contextmanager
def run_with_page(tasks: int) -> Iterator[tuple[Path, list[int], int, str]]:
    """Run no-op leases beside a page that somebody looks at; the value: folder, processes of the run, process and address of the page.

    The leases begin when the page has read the plan.
    """
    with ExitStack() as stack:
        data = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=ROOT / "runs")))
        pid, url = stack.enter_context(page(data))
        follow(url)
        before = {process.pid for process in psutil.Process().children()}
        bind = free_endpoint()
        run = coordinator(data, bind, tasks)
        stack.callback(run.wait)
        stack.callback(run.kill)
        while sum(map(sum, requests.get(f"{url}status.json", timeout=60).json()["tasks"].values())) < tasks:
            time.sleep(0.5)
        stack.enter_context(workers(bind, data))
        yield data, [one.pid for one in psutil.Process().children() if one.pid not in before], pid, url


def cost(tasks: int) -> list[Window]:
    """Return the windows of one run."""
    windows: list[Window] = []
    with run_with_page(tasks) as (data, run, pid, _):
        time.sleep(2.0)  # until both workers have leases
        with suppress(psutil.NoSuchProcess):  # the run has ended
            while len(windows) < WINDOWS and (found := window(pid, run, data, len(windows) % 2 == 1)) is not None:
                windows.append(found)
        os.kill(pid, signal.SIGCONT)
    return windows


def openings(tasks: int) -> dict[str, list[float]]:
    """Return the seconds that opening took during one run: a page of 100 tasks and its own, and each from a new server."""
    with ExitStack() as stack:
        few = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=ROOT / "runs")))
        bind = free_endpoint()
        small = coordinator(few, bind, 100)
        with workers(bind, few):
            small.communicate(timeout=60)
        _, other = stack.enter_context(page(few))
        follow(other)
        many, _, _, url = stack.enter_context(run_with_page(tasks))
        opened: dict[str, list[float]] = {name: [] for name in ("few", "many", "few, new", "many, new")}
        for _ in range(OPENINGS):
            opened["few"].append(opening(other))
            opened["many"].append(opening(url))
        for name, data in (("few, new", few), ("many, new", many)):
            with page(data) as (_, fresh):
                opened[name].append(opening(fresh))
    return opened


def cost_line(tasks: int, rounds: Sequence[Sequence[Window]]) -> dict[str, Any]:
    """Return the line of what the page costs."""

    def compared(on: bool, value: Callable[[Window], float]) -> dict[str, Any]:
        return median_of([ratio for windows in rounds for ratio in against_neighbours(windows, on, value)])

    every = [one for windows in rounds for one in windows]
    rates = {on: statistics.median(one.rate for one in every if one.page == on) for on in (True, False)}
    return {
        "event": "cost",
        "tasks": tasks,
        "rounds": len(rounds),
        "leases_per_s": {"with": round(rates[True]), "without": round(rates[False])},
        "rate_ratio": compared(True, lambda one: one.rate),
        "rate_ratio_of_nothing": compared(False, lambda one: one.rate),
        "processor_per_lease_ratio": compared(True, lambda one: one.per_lease),
        "processor_per_lease_ratio_of_nothing": compared(False, lambda one: one.per_lease),
        "page_processor_share": round(
            sum(one.page_s for one in every if one.page) / sum(one.run_s for one in every if one.page), 4
        ),
    }


def open_line(tasks: int, rounds: Sequence[dict[str, list[float]]]) -> dict[str, Any]:
    """Return the line of the time to open."""
    seconds = {name: statistics.median(one for found in rounds for one in found[name]) for name in rounds[0]}
    return {
        "event": "open",
        "tasks": {"few": 100, "many": tasks},
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "ratio": round(seconds["many"] / seconds["few"], 3),
        "ratio_new": round(seconds["many, new"] / seconds["few, new"], 3),
    }


def write_table() -> None:
    """Write the newest lines into the generated section of the page."""
    if not LINES.exists():
        rewrite_section(DOCS, BEGIN, END, "Not measured yet.")
        return
    newest = {line["event"]: line for line in read_lines(LINES)}
    machine, cost, opened = (newest[name] for name in ("machine", "cost", "open"))

    def ratio(name: str) -> list[str]:
        found = cost[name]
        return [f"{found['median']:.3f}", f"{found['interval'][0]:.3f} to {found['interval'][1]:.3f}"]

    milliseconds = [f"{1000 * opened['seconds'][name]:.1f} ms" for name in ("many", "few")]
    parts = [
        f"On {machine['cores']} cores ({machine['date']}), for two workers and {cost['leases_per_s']['without']:,} leases a second, "
        f"{cost['rate_ratio']['windows']} windows of a second with the page, each against those without it around it:",
        markdown_table(
            ["with the page, over without it", "median", "95 % interval of the median"],
            [
                ["leases a second", *ratio("rate_ratio")],
                ["the same, without the page both times", *ratio("rate_ratio_of_nothing")],
                ["processor time of the run per lease", *ratio("processor_per_lease_ratio")],
            ],
        ),
        f"The page's own processor time is {cost['page_processor_share']:.1%} of the run's. A page of {opened['tasks']['many']:,} tasks opens in "
        f"{milliseconds[0]} during the run, one of {opened['tasks']['few']} in {milliseconds[1]}: {opened['ratio']:.2f} times as long.",
    ]
    rewrite_section(DOCS, BEGIN, END, "\n\n".join(parts))


def main() -> None:
    """Measure some runs."""
    options = parser(__doc__)
    options.add_argument("--tasks", type=int, default=100_000, help="of the run during which pages are opened")
    options.add_argument("--cost-tasks", type=int, default=300_000, help="of the runs whose leases are counted")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--out", type=Path, default=LINES)
    options.add_argument("--docs", action="store_true", help="only write the table, from docs/benchmarks/watch.jsonl")
    given = options.parse_args()
    if given.docs:
        write_table()
        return
    (ROOT / "runs").mkdir(exist_ok=True)
    emit(machine_line(), given.out)
    emit(open_line(given.tasks, [openings(given.tasks) for _ in range(given.rounds)]), given.out)
    emit(cost_line(given.cost_tasks, [cost(given.cost_tasks) for _ in range(given.rounds)]), given.out)
    if given.out == LINES:
        write_table()


if __name__ == "__main__":
    main()
