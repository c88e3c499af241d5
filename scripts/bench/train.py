"""Benchmark of training: seconds a step and memory a rank by ranks and context: `python scripts/bench/train.py run --data DIR --out FILE.jsonl`.

  run    trains a few steps on one piece of --hours hours, with 1, 2 and 4 local ranks, and appends a JSON line each
  plot   draws docs/images/train_scaling.png from those lines

DIR needs a respondent with more hours than the longest context: `coordinator start --extract --respondents ERCO --data DIR` makes
61,368 synthetic ones. All ranks share this machine's cores, so more ranks are not faster here; the memory of each falls.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ringattn import launch
from worker.process import blas_env

ROOT = Path(__file__).resolve().parents[2]
IMAGE = ROOT / "docs" / "images" / "train_scaling.png"


def run_training(ranks: int, command: Sequence[str], flags: dict[str, object], threads: int) -> list[dict[str, Any]]:
    """Run a training on local ranks; return its steps, as metrics.jsonl has them.

    Args:
        ranks: number of ranks.
        command: program and its first arguments.
        flags: settings of the training.
        threads: of each rank.
    """
    library = blas_env.openblas()
    env = {} if library is None else {"LD_PRELOAD": str(library)}
    env |= dict.fromkeys(blas_env.THREADS, str(threads))
    launch.run(
        ranks, [*command, *(word for k, v in flags.items() for word in (f"--{k}", str(v)))], env=env, timeout=1800
    )
    lines = (Path(str(flags["run"])) / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if "loss" in line]


def measure(data: Path, respondent: str, hours: int, ranks: int, steps: int, end: str) -> dict[str, object]:
    """Measure one training of `steps` steps; the first, which loads and warms up, does not count."""
    with tempfile.TemporaryDirectory() as folder:
        flags: dict[str, object] = {
            "data": data,
            "run": folder,
            "respondents": respondent,
            "train": f"2019:{end}",
            "validate": f"{int(end) + 1}-01",
            "context": hours,
            "piece-hours": hours,
            "pieces": 1,
            "steps": steps,
            "validate-every": steps,
            "checkpoint-every": steps,
        }
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        steps_done = run_training(ranks, [str(ROOT / "worker" / "train.py")], flags, max(1, cores // ranks))[1:]
        library = blas_env.openblas()
        return {
            "hours": hours,
            "ranks": ranks,
            "cores": cores,
            "seconds": [round(line["seconds"], 3) for line in steps_done],
            "attention_share": round(statistics.median(line["attention_share"] for line in steps_done), 3),
            "wait_share": round(statistics.median(line["wait_share"] for line in steps_done), 3),
            "peak_mb": json.loads((Path(folder) / "result.json").read_text())["peak_mb"],
            "blas": blas_env.describe({} if library is None else {"LD_PRELOAD": str(library)}),
        }


def run(options: argparse.Namespace) -> int:
    """Measure each setting and append a line."""
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("a") as out:
        for hours in options.hours:
            for ranks in options.ranks:
                line = measure(options.data, options.respondent, hours, ranks, options.steps, options.end)
                out.write(json.dumps(line) + "\n")
                out.flush()
                print(line, file=sys.stderr)
    return 0


def plot(options: argparse.Namespace) -> int:
    """Draw the picture of the docs."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = [json.loads(text) for text in options.lines.read_text().splitlines()]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for ranks in sorted({line["ranks"] for line in lines}):
        mine = sorted((line for line in lines if line["ranks"] == ranks), key=lambda line: line["hours"])
        x = [line["hours"] for line in mine]
        label = "one process" if ranks == 1 else f"ring of {ranks}"
        left.plot(x, [max(line["peak_mb"]) for line in mine], marker="o", label=label)
        right.plot(x, [statistics.median(line["seconds"]) for line in mine], marker="o", label=label)
    left.set(ylabel="peak memory of a rank, MB", ylim=(0, None))
    right.set(ylabel=f"seconds a step (median), {lines[0]['cores']} cores for all ranks", ylim=(0, None))
    for axes in (left, right):
        axes.set(xlabel="hours of context in one sequence")
        axes.grid(alpha=0.3)
        axes.legend()
    IMAGE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(IMAGE, dpi=120)
    plt.close(figure)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Scaling of training.")
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("run")
    command.add_argument("--data", type=Path, required=True)
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--respondent", default="ERCO")
    command.add_argument("--end", default="2023", help="last training year; the year after validates")
    command.add_argument("--hours", type=int, nargs="+", default=[8760, 17520, 43800])
    command.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    command.add_argument("--steps", type=int, default=4)
    command.set_defaults(call=run)
    command = commands.add_parser("plot")
    command.add_argument("--in", dest="lines", type=Path, required=True)
    command.set_defaults(call=plot)
    options = parser.parse_args(argv)
    return int(options.call(options))


if __name__ == "__main__":
    sys.exit(main())
