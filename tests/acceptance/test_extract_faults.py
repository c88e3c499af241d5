"""Extractions from a source that fails: the series equal those of an undisturbed run, or missing shards are quarantined."""

from __future__ import annotations

from pathlib import Path

import pytest

from ingest.emulator.process import Emulator
from tests.support.program import SMALL, Coordinator, series_digest

# Every form in which the API's answers are known to fail; each spoils the first answer of some pages, drawn by the seed.
FAULTS: dict[str, dict[str, object]] = {
    "429": {"kind": "429"},
    "403-suspend": {"kind": "403-suspend", "params": {"seconds": 1}},
    "403-invalid": {"kind": "403-invalid"},
    "500-404": {"kind": "500-404"},
    "502": {"kind": "502"},
    "html": {"kind": "html"},
    "truncated": {"kind": "truncated"},
    "cut": {"kind": "cut"},
    "short": {"kind": "short"},
    "repeated": {"kind": "repeated"},
    "total-high": {"kind": "total", "params": {"delta": 100}},
    "total-low": {"kind": "total", "params": {"delta": -100}},
    "case": {"kind": "case"},
    "nulls": {"kind": "nulls"},
    "reset": {"kind": "reset"},
    "slow": {"kind": "slow", "params": {"seconds": 0.5}},
    "dribble": {"kind": "dribble", "params": {"seconds": 0.5}},
}


def plan_of(*names: str, probability: float) -> list[dict[str, object]]:
    return [{**FAULTS[name], "match": {"probability": probability}, "times": 1} for name in names]


@pytest.mark.long
@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_leaves_the_series_unchanged(
    program: Coordinator, undisturbed: dict[str, str], tmp_path: Path, fault: str
) -> None:
    with Emulator(faults=plan_of(fault, probability=0.25)) as emulator:
        run = program("start", "--extract", "--json", "--source", emulator.url, *SMALL)
        hit = emulator.stats()["faults"]
    assert run.code == 0, run.stderr
    assert hit, "the plan spoilt no answer: this test shows nothing"
    assert run.result["rows"] == run.result["total"]
    assert series_digest(tmp_path / "data") == undisturbed


def test_all_faults_together_leave_the_series_unchanged(
    program: Coordinator, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    with Emulator(faults=plan_of(*FAULTS, probability=0.1)) as emulator:
        run = program("start", "--extract", "--json", "--source", emulator.url, *SMALL)
        hit = emulator.stats()["faults"]
    assert run.code == 0, run.stderr
    assert len(hit) >= 6
    assert series_digest(tmp_path / "data") == undisturbed


def test_persistent_fault_is_quarantined_and_other_shards_complete(coordinator: Coordinator) -> None:
    """Every page of one shard is always short: the run does not count as a success."""
    forever = {"kind": "short", "match": {"route": "region-data", "respondent": "ERCO"}, "times": None}
    with Emulator(faults=[forever]) as emulator:
        month = ("--start", "2024-03", "--end", "2024-03", "--respondents", "PACW,ERCO")
        small = ("--source", emulator.url, "--retries", "2", *month)
        run = coordinator("start", "--extract", "--json", *small)
        assert run.code == 75, run.stderr
        result = run.result
        assert [task for task, _, _ in result["quarantined"]] == ["eia/region-data/ERCO/20240301T00-20240331T23/g000"]
        assert result["proved"] == 3
        assert result["series"] == 1
        emulator.set_faults([])
        resumed = coordinator("start", "--extract", "--json", *small)
    assert resumed.code == 0, resumed.stderr
    assert resumed.result["new_shards"] == 1
    assert resumed.result["series"] == 2
