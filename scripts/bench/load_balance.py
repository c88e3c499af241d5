"""Measure a training whose second rank is slowed on purpose, under equal shares and under shares that follow the ranks' speeds.

    python -m scripts.bench.load_balance --data DIR --out docs/benchmarks/shares.jsonl

Two runs of the same training on two ranks of this machine, a core each: one unchanged, one with every attention block of rank 1 made
--factor times slower. The slowed ring begins with equal shares and rebalances itself (`ringattn.load_balance`): its last steps are compared
with its own first ones. DIR needs a respondent with more hours than --hours, as scripts/bench/train.py does.
"""

import argparse
import platform
import statistics
from typing import Any

from ringattn.load_balance import WARMUP_STEPS, WINDOW_STEPS
from scripts.bench.common import ROOT, emit, parser
from scripts.bench.train import add_options, train


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the line of both runs."""
    slow_rank = (str(ROOT / "scripts" / "bench" / "slow_rank.py"), "1", str(options.factor))
    plain, _ = train(options, options.hours, ranks=2, threads=1, timeout=600)
    slowed, _ = train(options, options.hours, ranks=2, threads=1, command=slow_rank, timeout=600)
    equal = [line for line in slowed if line["shares"] == slowed[0]["shares"]]

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
        "equal": seconds(equal[WARMUP_STEPS:]),
        "followed": seconds(slowed[-WINDOW_STEPS:]),
        "loss_differs_by": max(abs(a["loss"] / b["loss"] - 1) for a, b in zip(plain, slowed, strict=True)),
        "machine": f"{platform.platform(terse=True)}, 2 ranks with a core each",
    }


def main() -> None:
    """Measure and append a line."""
    command = parser(__doc__)
    add_options(command, steps=3 * (WARMUP_STEPS + WINDOW_STEPS))
    command.add_argument("--hours", type=int, default=17_520)
    command.add_argument("--factor", type=float, default=3.0)
    options = command.parse_args()
    emit(measure(options), options.out)


if __name__ == "__main__":
    main()
