"""A deadline counts silence: ranks that are slow are waited for, ranks that are stopped or out of step are named within it."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from ringattn import launch
from ringattn.launch import LocalRing
from tests.support.waiting import until

SCRIPT = str(Path(__file__).parents[2] / "support" / "ranks" / "slow.py")
HANG = 60.0  # seconds that only a wait without an end exceeds


def reports(ring: LocalRing, ranks: Sequence[int]) -> list[dict]:
    """The first report of each rank."""

    def first(rank: int) -> str | None:
        return next((line for line in ring.output(rank) if line.startswith("{")), None)

    until(lambda: all(map(first, ranks)), "reports of the ranks", progress=lambda: list(map(ring.output, ranks)))
    return [json.loads(first(rank) or "") for rank in ranks]


def failures(ranks: int, case: str, timeout: float) -> list[dict]:
    """The reports of the ranks that fail: all, or all but the stopped one."""
    with LocalRing(ranks, [SCRIPT, case, str(timeout), "0"]) as ring:
        return reports(ring, [r for r in range(ranks) if r != 1 or case not in ("stops", "in flight")])


@pytest.mark.parametrize(
    ("ranks", "cases", "timeout", "seconds"),
    [
        (2, "async,sleeps", 1, 2.5),
        pytest.param(3, "async,sleeps,computes", 2, 6, marks=pytest.mark.long),
        pytest.param(2, "computes", 2, 6, marks=pytest.mark.long),
    ],
)
def test_rank_that_is_slower_than_the_deadline_is_waited_for(
    ranks: int, cases: str, timeout: float, seconds: float
) -> None:
    for lines in launch.run(ranks, [SCRIPT, cases, str(timeout), str(seconds)], timeout=HANG):
        seen = [json.loads(line) for line in lines if line.startswith("{")]
        assert [report["case"] for report in seen] == cases.split(",")
        assert all(report.get("difference") == 0 for report in seen), seen
        assert all(report["seconds"] >= seconds - 0.5 for report in seen if report["case"] != "async"), seen


@pytest.mark.long
@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize(
    ("case", "doing"), [("stops", "agreeing on ring_attention"), ("in flight", "the program's own collectives")]
)
def test_stopped_rank_is_named(ranks: int, case: str, doing: str) -> None:
    seen = failures(ranks, case, 2)
    assert {report["error"] for report in seen} <= {"PeerStalled", "PeerLost"}
    assert any(doing in r["message"] and "rank 1 gave no sign of life for 2." in r["message"] for r in seen), seen
    assert max(report["seconds"] for report in seen) < HANG


@pytest.mark.long
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_that_all_wait_for_each_other_fail_at_their_deadline(ranks: int) -> None:
    seen = failures(ranks, "unlike", 2)
    assert {report["error"] for report in seen} <= {"PeerStalled", "PeerLost", "MismatchError"}
    assert max(report["seconds"] for report in seen) < HANG
