"""Benchmark of training: seconds a step and memory a rank by ranks and context: `python -m scripts.bench.train run --data DIR --out FILE.jsonl`.

  run          trains a few steps on one piece of --hours hours, with 1, 2 and 4 local ranks, and appends a JSON line for each
  authorities  the same on hours of all respondents of DIR in one context (scope all), --tokens of them at least; the line also has each step's loss, the
               tokens of a validation, which is one forecast over that context and the validated hours, and its skill by respondent
  pair         takes the first --steps steps of the default settings in this checkout and in another one (--base), in turns, --rounds times: a line a
               run with the seconds, processor seconds and loss of each step
  plot         draws docs/images/train_scaling.png from those lines alone

`run` needs a respondent with more hours than the longest context: `coordinator start --extract --respondents ERCO --data DIR` makes
61,368 synthetic ones. All ranks share this machine's cores, so more ranks can't be faster here; the memory of each rank decreases.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ingest.features import DAY
from ingest.loader import respondents_on_disk
from ringattn import launch
from ringattn.blas import loader as blas
from scripts.bench.common import IMAGES, ROOT, cores, drawn, emit, parser, read_lines, run_json

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
    """Train on one piece of `hours` hours a respondent.

    Args:
        options: Data folder, respondent (empty: all), scope, first and last training year (`end`) and number of steps.
        hours: Hours of context in one sequence, of each respondent.
        ranks: Local ranks.
        threads: Threads of each rank.
        command: The training program.
        timeout: Seconds after which the training is stopped.
        environ: Variables of the ranks.

    Returns:
        The lines of its steps, as in metrics.jsonl, and its result, with the line of its validation as `validation`.
    """
    with tempfile.TemporaryDirectory() as folder:
        flags = {
            "data": options.data,
            "run": folder,
            "respondents": options.respondent,
            "scope": options.scope,
            "train": f"{options.first}:{options.end}",
            "validate": f"{options.end + 1}-01",
            "context": hours,
            "piece-hours": hours,
            "pieces": 1,
            "steps": options.steps,
            "validate-every": options.steps,
            "checkpoint-every": options.steps,
            "timeout": timeout,
        }
        env = {**(environ or {}), **dict.fromkeys(blas.THREADS, str(threads))}
        words = (word for key, value in flags.items() for word in (f"--{key}", str(value)))
        launch.run(ranks, [*command, *words], env=env, timeout=timeout)
        lines, result = (
            read_lines(Path(folder) / "metrics.jsonl"),
            json.loads((Path(folder) / "result.json").read_text()),
        )
        (validation,) = (line for line in lines if "skills" in line)
        return [line for line in lines if "loss" in line], {**result, "validation": validation}


def add_options(command: argparse.ArgumentParser, steps: int) -> None:
    """Add the options that `train` reads."""
    command.add_argument("--data", type=Path, required=True)
    command.add_argument("--out", type=Path, required=True, help="JSON lines, appended to")
    command.add_argument("--respondent", default="ERCO")
    command.add_argument("--first", type=int, default=2019, help="first training year")
    command.add_argument("--end", type=int, default=2023, help="last training year; the January after it validates")
    command.set_defaults(scope="own")
    command.add_argument("--steps", type=int, default=steps)


def run(options: argparse.Namespace) -> None:
    """Measure and append. The first step, which loads and warms up, does not count."""
    for hours, ranks in ((hours, ranks) for hours in options.hours for ranks in options.ranks):
        lines, result = train(options, hours, ranks, max(1, cores() // ranks))
        emit({"hours": hours, **_line(lines, result, ranks)}, options.out, progress=True)


def authorities(options: argparse.Namespace) -> None:
    """Measure one context of all respondents, and append."""
    options.respondent = options.respondent or ",".join(respondents_on_disk(options.data))
    names = options.respondent.split(",")
    days = -(-options.tokens // (DAY * len(names)))
    for ranks in options.ranks:
        lines, result = train(options, days * DAY, ranks, max(1, cores() // ranks))
        more = {
            "authorities": len(names),
            "loss": [line["loss"] for line in lines],
            "forecast_tokens": result["validation"]["validation_tokens"],
            "forecast_seconds": round(result["validation"]["validation_seconds"], 3),
            "skills": result["validation"]["skills"],
        }
        emit({"hours": lines[0]["tokens"], **_line(lines, result, ranks), **more}, options.out, progress=True)


def pair(options: argparse.Namespace) -> None:
    """Measure both checkouts in turns, on one thread, and append."""
    program = str(ROOT / "scripts" / "bench" / "step_times.py")
    flags = ["--data", str(options.data), "--respondents", options.respondent]
    env = {**os.environ, **dict.fromkeys(blas.THREADS, "1")}
    for _ in range(options.rounds):
        for checkout, root in (("base", options.base.resolve()), ("this", ROOT)):
            found = run_json([sys.executable, program, str(root), str(options.steps), *flags], env=env)
            emit({"checkout": checkout, "threads": 1, **found}, options.out, progress=True)


def _line(lines: Sequence[dict[str, Any]], result: dict[str, Any], ranks: int) -> dict[str, Any]:
    """Return what both measurements tell of a training."""
    return {
        "ranks": ranks,
        "cores": cores(),
        "seconds": [round(step["seconds"], 3) for step in lines[1:]],
        "attention_share": round(statistics.median(step["attention_share"] for step in lines[1:]), 3),
        "wait_share": round(statistics.median(step["wait_share"] for step in lines[1:]), 3),
        "peak_mb": result["peak_mb"],
        "blas": result["arithmetic"]["mlx"],
    }


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
        x_label = "hours in one context"
        left.set(xlabel=x_label, ylabel="peak memory of a rank, MB", xscale="log", yscale="log")
        right.set(
            xlabel=x_label,
            ylabel=f"seconds per step (median), {lines[0]['cores']} cores for all ranks",
            xscale="log",
            yscale="log",
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
    measuring = commands.add_parser("authorities", help="measure one context of all respondents")
    add_options(measuring, steps=3)
    measuring.add_argument("--tokens", type=int, default=262_144, help="hours of all respondents, at least")
    measuring.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    measuring.set_defaults(call=authorities, scope="all", respondent="")
    measuring = commands.add_parser("pair", help="compare the default step with that of another checkout")
    add_options(measuring, steps=8)
    measuring.add_argument("--base", type=Path, required=True, help="the other checkout, with its compiled kernel")
    measuring.add_argument("--rounds", type=int, default=2)
    measuring.set_defaults(call=pair)
    plotting = commands.add_parser("plot", help="draw")
    plotting.add_argument("--in", dest="lines", type=Path, required=True)
    plotting.set_defaults(call=plot)
    options = command.parse_args()
    options.call(options)


if __name__ == "__main__":
    main()
