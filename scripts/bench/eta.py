"""Compare the time left that a stage states after a tenth of its time with what was left: `python -m scripts.bench.eta`.

    python -m scripts.bench.eta                          extraction, training and control training, three runs each: about 10 minutes
    python -m scripts.bench.eta --stages train --runs 1 --out /tmp/eta.jsonl

Each run is `coordinator start STAGE … --json` in a process of its own; the lines on its stderr hold the estimates. A stage's time begins
with the first of them and ends with the process. The first run of a stage is the first one in its data folder; later ones find
there what the parts of the run before took. An extraction begins in a new folder each time, a training without an earlier run.
Lines go to docs/benchmarks/eta.jsonl, which then holds these runs alone, and the table to docs/benchmarks.md. `--docs` writes the
table from the lines that are there.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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

LINES, PAGE = BENCHMARKS / "eta.jsonl", ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- eta: begin (scripts/bench/eta.py) -->", "<!-- eta: end -->"
SHARES = (0.1, 0.25, 0.5)  # of a run's time, at which its estimate is compared
GOAL = 0.25  # error after a tenth
# The stages: folder of results that a new run must not find, and options. Each takes about a minute of two cores.
STAGES = {
    "extract": ("", "--respondents", "bas", "--start", "2022", "--end", "2024"),
    "train": ("train", "--train-config", "train.toml"),
    "rollouts": ("control", "--control-config", "control.toml"),
}
SERIES = ("--respondents", "PACW", "--start", "2019", "--end", "2021")  # that are trained on
TRAIN = """\
steps = 500
validate_every = 30
patience = 99
context = 720
pieces = 4
piece_hours = 4000
"""
CONTROL = """\
every = 8
baselines = "hour rule"
[pathwise]
members = 2
iterations = 30
steps = 20
"""


def start(stage: str, data: Path, *options: str) -> subprocess.Popen[str]:
    """Start a stage on a data folder."""
    command = [sys.executable, "-m", "coordinator", "start", f"--{stage}", "--data", str(data), "--json", *options]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def stated_times(process: subprocess.Popen[str]) -> Iterator[tuple[float, float | None]]:
    """Yield, as they come, the time and the seconds that are left as a process states them; None: it states none yet."""
    assert process.stderr is not None
    for line in process.stderr:
        event = json.loads(line) if line.startswith("{") else {}
        if event.get("event") == "progress":
            yield time.monotonic(), event.get("eta_s")


def measure(stage: str, data: Path, *options: str) -> dict[str, Any]:
    """Run a stage once; return at each share of its time the estimate, what was left, in seconds, and the error."""
    load = os.getloadavg()[0]
    process = start(stage, data, *options)
    lines = list(stated_times(process))
    code, ended = process.wait(), time.monotonic()
    began = lines[0][0] if lines else ended  # of the stage: the command's modules and the emulator are loaded
    whole, stated = ended - began, [(at - began, left) for at, left in lines if left is not None]
    line: dict[str, Any] = {"event": "eta", "stage": stage, "seconds": round(whole, 1), "exit_code": code}
    line |= {"load": round(load, 1), "first_stated": round(stated[0][0] / whole, 3) if stated else None}
    for share in SHARES:
        # The newest one, as a user sees it; there is one each two seconds.
        at, left = next(((at, left) for at, left in reversed(stated) if at <= share * whole), (None, None))
        truth = whole - (share * whole if at is None else at)
        line[f"at_{share:.0%}"] = {
            "left": round(truth, 1),
            "stated": None if left is None else round(left, 1),
            "error": None if left is None else round(left / truth - 1, 3),
        }
    return line


def prepare(folder: Path) -> Path:
    """Write the configurations and return a data folder with series to train on."""
    (folder / "train.toml").write_text(TRAIN)
    (folder / "control.toml").write_text(CONTROL)
    process = start("extract", folder / "series", *SERIES)
    process.communicate()
    if process.returncode:
        raise SystemExit(f"the extraction of the series ended with exit code {process.returncode}")
    return folder / "series"


def runs(stage: str, folder: Path, series: Path, count: int) -> Iterator[dict[str, Any]]:
    """Run a stage `count` times; yield a line for each."""
    results, *options = STAGES[stage]
    options = [str(folder / word) if word.endswith(".toml") else word for word in options]
    data = series if results else folder / stage
    kept = data / "logs" / "run.jsonl"
    for number in range(count):
        if results:
            shutil.rmtree(data / results, ignore_errors=True)
        else:
            before = kept.read_bytes() if kept.exists() else b""
            shutil.rmtree(data, ignore_errors=True)
            kept.parent.mkdir(parents=True)
            kept.write_bytes(before)
        yield {**measure(stage, data, *options), "run": number + 1}


def table(lines: list[dict[str, Any]]) -> str:
    """Return the section of the page."""

    def cell(found: dict[str, Any]) -> str:
        return "none" if found["error"] is None else f"{100 * found['error']:+.0f} %"

    header = ["stage", "run", "seconds", *(f"after {share:.0%}" for share in SHARES)]
    rows = [
        [
            line["stage"],
            str(line["run"]),
            f"{line['seconds']:.0f}",
            *(cell(line[f"at_{share:.0%}"]) for share in SHARES),
        ]
        for line in lines
        if line["event"] == "eta"
    ]
    machine = next((line for line in lines if line["event"] == "machine"), None)
    where = "" if machine is None else f" on {machine['cores']} cores, {machine['date']}"
    return (
        f"The time left that was stated, over what was left, less 1{where}. Run 1 is the first one in its folder.\n\n"
        + markdown_table(header, rows)
    )


def main() -> None:
    """Measure runs of each stage."""
    options = parser(__doc__)
    options.add_argument("--stages", default=",".join(STAGES), help="of them, comma-separated")
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--out", type=Path, help="file for the lines, in place of docs/benchmarks; the page stays")
    options.add_argument("--docs", action="store_true", help="write the page from the lines, and measure nothing")
    asked = options.parse_args()
    if not asked.docs:
        out = asked.out or LINES
        out.unlink(missing_ok=True)
        emit(machine_line(), out)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            series = prepare(folder)
            found = [
                emit(line, out) for stage in asked.stages.split(",") for line in runs(stage, folder, series, asked.runs)
            ]
        first = [line["at_10%"]["error"] for line in found]
        met = sum(error is not None and abs(error) <= GOAL for error in first)
        print(f"within {GOAL:.0%} after a tenth: {met} of {len(first)} runs", file=sys.stderr)
    if asked.out is None:
        rewrite_section(PAGE, BEGIN, END, table(read_lines(LINES)))


if __name__ == "__main__":
    main()
