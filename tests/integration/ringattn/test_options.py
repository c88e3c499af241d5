"""Options of ring_attention against fp64 numpy on real rank processes: log-sum-exp, unlike lengths, positions, sinks, softcap, widths."""

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest

from ringattn import launch

SCRIPT = Path(__file__).parents[2] / "support" / "ranks" / "features.py"
BOUNDS = {"float32": 2e-5, "bfloat16": 2e-2}
MASKS: tuple[dict[str, Any], ...] = (
    {"causal": False, "window": None},
    {"causal": True, "window": None},
    {"causal": True, "window": 9},
    {"causal": False, "window": 9},
)
PLACES: tuple[dict[str, Any], ...] = (
    {"place": "layout", "layout": "zigzag", "q_len": 37, "k_len": 37},
    {"place": "layout", "layout": "striped", "q_len": 40, "k_len": 40},
    {"place": "prefill", "q_len": 12, "k_len": 43},  # chunks that begin and end anywhere
    {"place": "scatter", "q_len": 29, "k_len": 50},  # a division of one's own; a rank may hold nothing
    {"place": "scatter", "q_len": 5, "k_len": 3},
    {"place": "free", "q_len": 31, "k_len": 17},  # cross attention, no positions
)


def cases() -> list[dict[str, Any]]:
    """Every pair of place and mask, with each option in turn; cross attention without positions has no masks."""
    pairs = [(p, m) for p in PLACES for m in MASKS if p["place"] != "free" or m == MASKS[0]]
    found = []
    for seed, (place, mask) in enumerate(pairs):
        options = {
            "lse": seed % 2 == 0, "sinks": seed % 3 == 0, "segments": seed % 5 == 0, "gqa": (1, 3)[seed % 2],
            "kernel": ("native", "mlx", "reference")[seed % 3], "v_dim": (8, 5, 11, 8)[seed % 4], "softcap": (None, 1.5, None)[seed % 3],
        }  # fmt: skip
        found.append({**place, **mask, **options, "seed": seed})
    return found


def every() -> list[dict[str, Any]]:
    found = [
        {
            **place,
            **mask,
            "lse": lse,
            "sinks": sinks,
            "segments": segments,
            "v_dim": v_dim,
            "softcap": softcap,
            "gqa": 2,
            "kernel": kernel,
        }
        for place in PLACES
        for mask in MASKS
        for lse, sinks, segments in itertools.product((False, True), repeat=3)
        for v_dim, kernel, softcap in ((8, "native", None), (5, "native", 1.5), (5, "mlx", 1.5))
        if place["place"] != "free" or mask == MASKS[0]
    ]
    random.Random(1).shuffle(found)
    return [case | {"seed": seed} for seed, case in enumerate(found)]


def check(n: int, cases: list[dict[str, Any]], folder: Path, timeout: float = 150.0) -> None:
    path = folder / "cases.json"
    path.write_text(json.dumps(cases))
    for rank, lines in enumerate(launch.run(n, [str(SCRIPT), str(path)], timeout=timeout)):
        for case, errors in zip(cases, json.loads(lines[-1]), strict=True):
            assert max(errors.values()) < BOUNDS[case.get("dtype", "float32")], (n, rank, case, errors)


# Waiting ranks keep cores busy, so that larger rings have fewer cases; the long test has all.
@pytest.mark.parametrize(("n", "step"), [(1, 1), (2, 2), (3, 4)])
def test_options_match_fp64_on_every_place(n: int, step: int, tmp_path: Path) -> None:
    """In bfloat16 to its rounding."""
    exact, rounded = cases()[n % step :: step], [case | {"dtype": "bfloat16"} for case in cases()[:: 4 * step]]
    check(n, exact + rounded, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_options_match_fp64_in_every_combination(n: int, tmp_path: Path) -> None:
    check(n, every(), tmp_path, timeout=1700)
