"""Overlap on a slow link, shares that follow the hosts' speeds, balance of the layouts, and memory: ratios, not seconds."""

import json
from pathlib import Path

import numpy as np
import pytest

from ringattn import launch, layout

SCRIPT = str(Path(__file__).parent / "ranks" / "pace.py")


def seen(what: str) -> list[dict]:
    return [json.loads(lines[-1]) for lines in launch.run(2, [SCRIPT, what], timeout=120)]


def test_communication_hides_behind_computation() -> None:
    for times in seen("overlap"):
        assert times["communication"] > 0.25 * times["compute"]
        assert times["total"] < 1.15 * max(times["compute"], times["communication"]), times


def test_weighted_shares_beat_equal_ones_on_ranks_of_unequal_speed() -> None:
    times = seen("weights")
    assert max(t["equal"] for t in times) > 1.3 * max(t["weighted"] for t in times), times


@pytest.mark.parametrize("kind", ["zigzag", "striped"])
@pytest.mark.parametrize("size", [2, 4, 8])
def test_causal_work_is_balanced_and_contiguous_is_not(kind: str, size: int) -> None:
    def busiest(kind: str) -> float:
        work = [(layout.local_positions(kind, 4096, size, rank).astype(np.float64) + 1).sum() for rank in range(size)]
        return max(work) / np.mean(work)

    assert busiest(kind) < 1.05
    assert busiest("contiguous") > 1.35


def test_memory_is_linear_and_split_over_ranks() -> None:
    script = str(Path(__file__).parent / "ranks" / "memory.py")

    def peak(ranks: int, length: int) -> float:
        return max(float(lines[-1]) for lines in launch.run(ranks, [script, str(length)], timeout=120))

    small, large, split = peak(2, 16_384), peak(2, 32_768), peak(4, 32_768)
    assert large < 2.1 * small
    assert split < 0.6 * large
