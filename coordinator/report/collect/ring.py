"""Read the repository's measurements of ring attention and of a training step from docs/benchmarks."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from coordinator.report.collect.training import read_lines
from coordinator.report.model import Absent, Case, Ring, Scaling

BENCHMARKS = Path(__file__).resolve().parents[3] / "docs" / "benchmarks"
SPECIAL = ("layout", "kernel", "slow", "weights", "link_share")
CASE = ("what", "ranks", "length", "causal", "backward", "dtype", "setting", *SPECIAL)
MB = 1e6
CALM = 0.75  # of the best FMA peak


def ring(benchmarks: Path = BENCHMARKS) -> Ring | Absent:
    """Return time, memory, scaling, and predicted against measured time.

    A damaged file raises `VerificationError`.
    """
    lines = read_lines(benchmarks / "ring.jsonl")
    if not lines:
        return Absent(
            "the measurements are in the repository's docs/benchmarks, which this installation does not have",
            "python -m ringattn.planner",
        )
    best = max(one.get("fma_peak", 0.0) for one in lines)
    # Other work was running during the rest: their times are meaningless.
    calm = [one for one in lines if one.get("fma_peak", 0.0) >= CALM * best]
    plain = [one for one in calm if "seconds" in one and not one.get("tuning")]
    cases, throttled = pooled(plain)
    return Ring(
        cases=cases,
        throttled=throttled,
        scaling=tuple(_scaling(one) for one in read_lines(benchmarks / "train.jsonl")),
        machine=str(plain[0]["machine"]),
        when=f"{min(one['at'] for one in plain)} to {max(one['at'] for one in plain)}",
    )


def pooled(lines: Iterable[Mapping[str, Any]]) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """Return the plain float32 cases, forward and backward, and those over a slowed link, from lines of the ring benchmark.

    A peer is shown at its best setting.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        if line["backward"] and line["dtype"] == "float32":
            groups.setdefault(json.dumps([line.get(key) for key in CASE]), []).append(line)
    found, slowed = [], []
    for group in groups.values():
        first = group[0]
        seconds = [second for line in group for second in line["seconds"]]
        case = Case(
            name=_name(first),
            length=first["length"],
            causal=first["causal"],
            seconds=median(seconds),
            peak_mb=max(peak for line in group for peak in line["peak"]) / MB,
            predicted=first.get("predicted"),
        )
        if first.get("link_share"):
            slowed.append(case)
        elif not any(first.get(key) for key in SPECIAL):
            found.append(case)
    best: dict[tuple[str, int, bool], Case] = {}
    for case in sorted(found, key=_order, reverse=True):
        best[case.name, case.length, case.causal] = case
    return tuple(sorted(best.values(), key=_order)), tuple(sorted(slowed, key=lambda case: case.name))


def _order(case: Case) -> tuple[bool, int, float]:
    return not case.causal, case.length, case.seconds


def _name(line: Mapping[str, Any]) -> str:
    if line.get("link_share"):
        return f"link at {line['link_share']:.0%} of the computation"
    if line["what"] != "ring":
        return {"torch": "torch SDPA", "jax-ringattention": "JAX ringattention"}.get(line["what"], str(line["what"]))
    return f"ring of {line['ranks']}" if line["ranks"] > 1 else "one process"


def _scaling(line: Mapping[str, Any]) -> Scaling:
    return Scaling(int(line["hours"]), int(line["ranks"]), median(line["seconds"]), max(line["peak_mb"]))
