"""Extract the whole synthetic grid: every authority and region on four routes. Rate, memory a process, linearity, and kills.

    uv run --group bench-extract python -m scripts.bench.grid [--start 2019] [--end 2025] [--rounds 1] [--kills 10]

Every run uses one emulator, which has rendered the pages in a first run: *five* are the respondents and routes of the default, *grid*
all respondents and routes, *one year* the last year of the grid. gridstatus runs the five beside them where it is installed; the grid is too large for it,
because it keeps its rows in memory. Peaks are the kernel's (VmHWM) of the coordinator and of its largest worker. A killed run
(coordinator and workers, SIGKILL, at random moments) must have the series of the reference run, byte for byte.

Writes JSON lines to docs/benchmarks/grid.jsonl and docs/internals/grid_benchmark.md from these lines alone.
"""

import hashlib
import importlib.util
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from ingest.emulator.process import Emulator
from scripts.bench.common import BENCHMARKS, ROOT, emit, machine_line, markdown_table, parser, read_lines
from scripts.bench.extract import KEY, RUNS, gridstatus

LINES = BENCHMARKS / "grid.jsonl"
DOCS = ROOT / "docs" / "internals" / "grid_benchmark.md"
GRID = ("--respondents", "all", "--routes", "all")
CACHE_MB = 4_000  # holds the pages of seven years of the grid, compressed
SAMPLE_S = 0.5  # between two looks at the processes' peaks


def start(url: str, folder: Path, arguments: tuple[str, ...]) -> subprocess.Popen[str]:
    """Start an extraction into a folder, in a session of its own."""
    command = [sys.executable, "-m", "coordinator", "start", "--extract", "--json", "--quiet", "--source", url]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("COORDINATOR_")}
    return subprocess.Popen(
        [*command, "--data", str(folder), "--retries", "1000", *arguments],
        env={**kept, "EIA_API_KEY": KEY},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def peak_mb(pid: int) -> float:
    """Return the largest resident size of a process so far, MB; 0 where it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM")), 0.0)


def descendants(pid: int) -> list[psutil.Process]:
    """Return the living descendants of a process."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def extraction(url: str, arguments: tuple[str, ...], folder: Path | None = None) -> dict[str, Any]:
    """Run one extraction to its end, in an empty folder that is removed unless it is named.

    Raises:
        RuntimeError: it did not end well.
    """
    data = folder or Path(tempfile.mkdtemp(dir=RUNS))
    began, coordinator_mb, worker_mb = time.perf_counter(), 0.0, 0.0
    process = start(url, data, arguments)
    while True:
        coordinator_mb = max(coordinator_mb, peak_mb(process.pid))
        worker_mb = max([worker_mb, *(peak_mb(child.pid) for child in descendants(process.pid))])
        try:
            output, _ = process.communicate(timeout=SAMPLE_S)
            break
        except subprocess.TimeoutExpired:
            continue
    wall = time.perf_counter() - began
    if process.returncode:
        raise RuntimeError(f"the extraction ended with {process.returncode}; its folder is {data}")
    result = json.loads(output)
    if folder is None:
        shutil.rmtree(data)
    assert result["rows"] == result["total"]
    return {
        "rows": result["new_rows"],
        "requests": result["requests"],
        "s": result["seconds"],
        "wall_s": wall,
        "coordinator_mb": coordinator_mb,
        "worker_mb": worker_mb,
    }


def digest(folder: Path) -> str:
    """Return one sha256 over the names and contents of all series."""
    whole = hashlib.sha256()
    for path in sorted((folder / "series").rglob("*")):
        if path.is_file():
            whole.update(path.relative_to(folder).as_posix().encode() + hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


def kills(url: str, arguments: tuple[str, ...], count: int, reference_s: float, folder: Path) -> int:
    """Kill an extraction into `folder` `count` times, at random moments of what is left of it, and let it end.

    Returns:
        The kills that met a running extraction: the others came after its end.
    """
    draw, met = random.Random(0), 0
    for number in range(count):
        process = start(url, folder, arguments)
        try:
            process.communicate(timeout=draw.uniform(0.1, 2 / (count - number)) * reference_s)
        except subprocess.TimeoutExpired:
            met += 1
        for one in [*descendants(process.pid), psutil.Process(process.pid)] if process.poll() is None else []:
            one.kill()
        process.wait()
    extraction(url, arguments, folder)
    return met


def measure(options: Any) -> None:
    """Measure all parts against one emulator."""
    span = ("--start", options.start, "--end", options.end)
    grid, one_year = (*GRID, *span), (*GRID, "--start", options.end, "--end", options.end)
    with (
        Emulator("--quirks", "none", "--cache-mb", str(CACHE_MB)) as emulator,
        tempfile.TemporaryDirectory(dir=RUNS) as held,
    ):
        reference = Path(held) / "reference"
        extraction(emulator.url, span)
        emit({"event": "first", **extraction(emulator.url, grid, reference)}, LINES, progress=True)
        peer = bool(importlib.util.find_spec("gridstatus"))
        for number in range(options.rounds):
            for name, arguments in (("five", span), ("grid", grid), ("one year", one_year)):
                emit({"event": name, "round": number, **extraction(emulator.url, arguments)}, LINES, progress=True)
            if peer:
                line = gridstatus(emulator.url, (options.start, options.end), 2)
                emit({"event": "gridstatus", "round": number, **line}, LINES, progress=True)
        if options.kills:
            seconds = statistics.median(line["wall_s"] for line in read_lines(LINES) if line["event"] == "grid")
            killed = Path(held) / "killed"
            met = kills(emulator.url, grid, options.kills, seconds, killed)
            same = digest(killed) == digest(reference)
            emit({"event": "kills", "kills": met, "same": same}, LINES, progress=True)


def write_docs() -> None:
    """Write the page from the JSON lines alone."""
    lines = read_lines(LINES)
    machine = lines[0]
    text = [
        "# The whole grid\n",
        "`uv run --group bench-extract python -m scripts.bench.grid` made all figures; the lines are in `../benchmarks/grid.jsonl`.\n",
        f"Machine: {machine['cores']} cores, {machine['platform']}, Python {machine['python']}, {machine['date']}, shared with the emulator and other "
        f"work: read the ratios. {machine['start']} to {machine['end']}.\n",
    ]
    rates: dict[str, float] = {}
    rows = []
    for name in ("five", "grid", "one year", "gridstatus"):
        if not (own := [line for line in lines if line["event"] == name]):
            continue
        seconds = statistics.median(line["s"] for line in own)
        rates[name] = own[0]["rows"] / seconds
        peaks = [max(line.get(key, 0.0) for line in own) for key in ("coordinator_mb", "worker_mb")]
        cells = [f"{peak:.0f}" if peak else "" for peak in peaks]
        rows.append([name, f"{own[0]['rows']:,}", f"{seconds:.1f}", f"{rates[name]:,.0f}", *cells])
    text.append(markdown_table(["run", "rows", "s", "rows/s in the run", "coordinator, MB", "worker, MB"], rows))
    text.append(f"\n- the grid's rate is {rates['grid'] / rates['five']:.2f} of the five respondents'")
    text.append(f"- all years at {rates['grid'] / rates['one year']:.2f} of the rate of one year: 1 would be linear")
    if "gridstatus" in rates:
        text.append(
            f"- the grid's rate is {rates['grid'] / rates['gridstatus']:.2f} of gridstatus' on the five respondents"
        )
    for line in lines:
        if line["event"] == "kills":
            outcome = (
                "byte for byte the series of the undisturbed run"
                if line["same"]
                else "OTHER series than the undisturbed run"
            )
            text.append(f"- killed {line['kills']} times at random moments: {outcome}")
    DOCS.write_text("\n".join(text) + "\n")


def main() -> None:
    """Run the benchmark and write its page."""
    command = parser(__doc__)
    command.add_argument("--start", default="2019")
    command.add_argument("--end", default="2025")
    command.add_argument("--rounds", type=int, default=1)
    command.add_argument("--kills", type=int, default=10)
    command.add_argument("--docs", action="store_true", help="only write the page from existing lines")
    options = command.parse_args()
    if not options.docs:
        RUNS.mkdir(exist_ok=True)
        LINES.unlink(missing_ok=True)
        emit(machine_line(start=options.start, end=options.end), LINES, progress=True)
        measure(options)
    write_docs()


if __name__ == "__main__":
    main()
