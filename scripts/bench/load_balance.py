"""Benchmark of load balancing: seconds a step of a training with one slowed rank, under equal shares and under adapted ones.

    python -m scripts.bench.load_balance --data DIR --out docs/benchmarks/shares.jsonl

Two runs of the same training on two ranks of this machine, a core each: one unchanged, one with every attention block of rank 1 made
--factor times slower. The slowed ring begins with equal shares and adapts them (`ringattn.load_balance`): its last steps are compared
with its own first ones. DIR needs a respondent with more hours than --hours, as for scripts/bench/train.py.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
from pathlib import Path
from typing import Any

from ringattn.load_balance import WARMUP_STEPS, WINDOW_STEPS
from scripts.bench.train import run_training

ROOT = Path(__file__).resolve().parents[2]


def steps_of(options: argparse.Namespace, *command: str) -> list[dict[str, Any]]:
    """Run one training; return its steps, as metrics.jsonl has them."""
    with tempfile.TemporaryDirectory() as run:
        flags: dict[str, object] = {
            "data": options.data,
            "run": run,
            "respondents": options.respondent,
            "train": f"2019:{options.end}",
            "validate": f"{options.end + 1}-01",
            "context": options.hours,
            "piece-hours": options.hours,
            "pieces": 1,
            "steps": options.steps,
            "validate-every": options.steps,
            "checkpoint-every": options.steps,
        }
        return run_training(2, command, flags, threads=1)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    plain = steps_of(options, str(ROOT / "worker" / "train.py"))
    slowed = steps_of(options, str(ROOT / "scripts" / "bench" / "slow_rank.py"), "1", str(options.factor))
    first = slowed[0]["shares"]
    equal = [line for line in slowed if line["shares"] == first][WARMUP_STEPS:]

    def seconds(lines: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "shares": lines[-1]["shares"],
            "seconds": [round(line["seconds"], 3) for line in lines],
            "busy": [round(statistics.median(of_rank), 3) for of_rank in zip(*(x["busy"] for x in lines), strict=True)],
        }

    return {
        "hours": options.hours,
        "factor": options.factor,
        "attention_share": round(statistics.median(line["attention_share"] for line in plain[WARMUP_STEPS:]), 3),
        "plain": seconds(plain[WARMUP_STEPS:]),
        "equal": seconds(equal),
        "followed": seconds(slowed[-WINDOW_STEPS:]),
        "loss_differs_by": max(abs(a["loss"] / b["loss"] - 1) for a, b in zip(plain, slowed, strict=True)),
        "machine": f"{platform.platform(terse=True)}, 2 ranks with a core each",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--respondent", default="ERCO")
    parser.add_argument("--end", type=int, default=2023, help="last training year; the year after validates")
    parser.add_argument("--hours", type=int, default=17_520)
    parser.add_argument("--factor", type=float, default=3.0)
    parser.add_argument("--steps", type=int, default=3 * (WARMUP_STEPS + WINDOW_STEPS))
    line = json.dumps(measure(parser.parse_args()))
    print(line)
    with parser.parse_args().out.open("a") as file:
        file.write(line + "\n")


if __name__ == "__main__":
    main()
