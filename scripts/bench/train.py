"""Benchmark of training: seconds a step and memory a rank by ranks and context: `python -m scripts.bench.train run --data DIR --out FILE.jsonl`.

  run    trains a few steps on one piece of --hours hours, with 1, 2 and 4 local ranks, and appends a JSON line for each
  plot   draws docs/images/train_scaling.png from those lines alone

DIR needs a respondent with more hours than the longest context: `coordinator start --extract --respondents ERCO --data DIR` makes
61,368 synthetic ones. All ranks share this machine's cores, so more ranks can't be faster here; the memory of each rank decreases.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ringattn import launch
from ringattn.blas import loader as blas
from scripts.bench.common import IMAGES, ROOT, cores, drawn, emit, parser, read_lines

PROGRAM = (str(ROOT / "worker" / "train.py"),)


def train(
    options: argparse.Namespace,
    hours: int,
    ranks: int,
    threads: int,
    command: Sequence[str] = PROGRAM,
    timeout: float = 1800,
    environ: Mapping[str, str] | None = None,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Train on one piece of `hours` hours.

    Args:
        options: Data folder, respondent, last training year (`end`) and number of steps.
        hours: Hours of context in one sequence.
        ranks: Local ranks.
        threads: Threads of each rank.
        command: The training program.
        timeout: Seconds after which the training is stopped.
        environ: Variables of the ranks.

    Returns:
        The lines of its steps, as in metrics.jsonl, and its result.
    """
    with tempfile.TemporaryDirectory() as folder:
        flags = {
            "data": options.data,
            "run": folder,
            "respondents": options.respondent,
            "train": f"2019:{options.end}",
            "validate": f"{options.end + 1}-01",
            "context": hours,
            "piece-hours": hours,
            "pieces": 1,
            "steps": options.steps,
            "validate-every": options.steps,
            "checkpoint-every": options.steps,
        }
        env = {**(environ or {}), **dict.fromkeys(blas.THREADS, str(threads))}
        words = (word for key, value in flags.items() for word in (f"--{key}", str(value)))
        launch.run(ranks, [*command, *words], env=env, timeout=timeout)
        lines = read_lines(Path(folder) / "metrics.jsonl")
        return [line for line in lines if "loss" in line], json.loads((Path(folder) / "result.json").read_text())


def add_options(command: argparse.ArgumentParser, steps: int) -> None:
    """Add the options that `train` reads."""
    command.add_argument("--data", type=Path, required=True)
    command.add_argument("--out", type=Path, required=True, help="JSON lines, appended to")
    command.add_argument("--respondent", default="ERCO")
    command.add_argument("--end", type=int, default=2023, help="last training year; the year after validates")
    command.add_argument("--steps", type=int, default=steps)


def run(options: argparse.Namespace) -> None:
    """Measure and append. The first step, which loads and warms up, does not count."""
    for hours, ranks in ((hours, ranks) for hours in options.hours for ranks in options.ranks):
        lines, result = train(options, hours, ranks, max(1, cores() // ranks))
        line = {
            "hours": hours,
            "ranks": ranks,
            "cores": cores(),
            "seconds": [round(step["seconds"], 3) for step in lines[1:]],
            "attention_share": round(statistics.median(step["attention_share"] for step in lines[1:]), 3),
            "wait_share": round(statistics.median(step["wait_share"] for step in lines[1:]), 3),
            "peak_mb": result["peak_mb"],
            "blas": result["arithmetic"]["mlx"],
        }
        emit(line, options.out, progress=True)


def plot(options: argparse.Namespace) -> None:
    """Draw memory and time against context."""
    lines = read_lines(options.lines)
    with drawn(IMAGES / "train_scaling.png", columns=2, size=(10, 4)) as (left, right):
        for ranks in sorted({line["ranks"] for line in lines}):
            own = sorted((line for line in lines if line["ranks"] == ranks), key=lambda line: line["hours"])
            x = [line["hours"] for line in own]
            label = "one process" if ranks == 1 else f"ring of {ranks}"
            left.plot(x, [max(line["peak_mb"]) for line in own], marker="o", label=label)
            right.plot(x, [statistics.median(line["seconds"]) for line in own], marker="o", label=label)
        x_label = "hours of context in one sequence"
        left.set(xlabel=x_label, ylabel="peak memory of a rank, MB", ylim=(0, None))
        right.set(
            xlabel=x_label, ylabel=f"seconds per step (median), {lines[0]['cores']} cores for all ranks", ylim=(0, None)
        )


def main() -> None:
    """Run a command of the command line."""
    command = parser(__doc__)
    commands = command.add_subparsers(required=True)
    measuring = commands.add_parser("run", help="measure")
    add_options(measuring, steps=4)
    measuring.add_argument("--hours", type=int, nargs="+", default=[8760, 17520, 43800])
    measuring.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    measuring.set_defaults(call=run)
    plotting = commands.add_parser("plot", help="draw")
    plotting.add_argument("--in", dest="lines", type=Path, required=True)
    plotting.set_defaults(call=plot)
    options = command.parse_args()
    options.call(options)


if __name__ == "__main__":
    main()
