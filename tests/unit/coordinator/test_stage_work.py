"""The work of extractions and trainings as parts, on traces of real runs: what was seen when, and when the run ended.

The traces were taken on two cores that other programs also used. Seconds are since the process began.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from coordinator.scheduling.progress import Part, ProgressMeter, StageProgress
from coordinator.scheduling.rate_limit import BudgetStatus
from coordinator.server.status import RunStatus, WorkerStatus
from coordinator.stages.extract.plan import BUCKET
from coordinator.stages.extract.work import ExtractWork
from coordinator.stages.run_log import RunLog, measured, with_costs
from coordinator.stages.train.ring_state import Rank
from coordinator.stages.train.work import STEP, VALIDATION, TrainingPlan, TrainingWork, like
from ingest.models import FileEntry, PageEntry, Shard, ShardResult

TRACES = Path(__file__).parent / "traces"
Moments = list[tuple[float, StageProgress]]  # seconds since the process began


def trace_of(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((TRACES / f"{name}.json").read_bytes())
    return found


def status_of(rows: int, requests: int, leased: int, rate: float | None) -> RunStatus:
    worker = WorkerStatus("w", "host", 1, True, leased, (), rows, requests, 0, 0.0)
    return RunStatus(
        tasks={"leased": leased},
        uncommitted=0,
        halt="",
        dropped_results=0,
        departed_rows=0,
        departed_requests=0,
        workers=(worker,),
        waits=(),
        budgets={} if rate is None else {BUCKET: BudgetStatus(rate, rate, requests, 0, 0.0, 1.0)},
        counters={},
        elapsed_s=0.0,
        quarantined=(),
    )


def result_of(shard: Shard, rows: int) -> ShardResult:
    entry = FileEntry("pieces/x.parquet", 1, "0" * 64)
    page = PageEntry(entry, 0, rows, rows, "2026-01-01T00:00:00", 0.1)
    return ShardResult(shard, "synthetic", rows, rows, 0, (), (page,), entry, "", 1, 0)


def extraction(name: str) -> tuple[float, Moments]:
    trace = trace_of(name)
    shards = {tuple(key[:3]): Shard("eia", *key) for key in trace["plan"]}
    work, moments = ExtractWork(shards.values(), trace["builds"], emulated=True), []
    meter: ProgressMeter | None = None
    for kind, *event in trace["events"]:
        if kind == "fetched":
            work.fetched(result_of(shards[tuple(event[:3])], event[3]))
        elif kind == "built":
            work.built += 1
        else:
            at, rows, requests, leased = event
            meter = meter or ProgressMeter(at)
            status = status_of(rows, requests, leased, trace["rate"])
            moments.append((at, meter.observe(at, work.parts(status))))
    return trace["end_s"], moments


def training(name: str) -> tuple[float, Moments, ProgressMeter]:
    trace = trace_of(name)
    years = {code: range(2019, 2019 + count) for code, count in trace["years"].items()}
    work, meter = (
        TrainingWork(TrainingPlan.of(trace["config"].encode(), years), 0),
        ProgressMeter(trace["events"][0][0]),
    )
    moments = [
        (at, meter.observe(at, work.parts([Rank(0, "w", 0.0, step=step, phase=phase)])))
        for at, step, phase in trace["events"]
    ]
    return trace["end_s"], moments, meter


def errors(end_s: float, moments: Moments, *shares: float) -> Iterator[float]:
    """Yield, at shares of a run's time, the time left that was stated over what was left, less 1."""
    for share in shares:
        at, found = next(one for one in moments if one[0] >= share * end_s)
        assert found.eta_s is not None
        yield found.eta_s / (end_s - at) - 1


def named(parts: tuple[Part, ...], name: str) -> Part:
    return next(part for part in parts if part.name == name)


@pytest.mark.parametrize("name", ["extract_5_regions", "extract_limited"])
def test_share_of_an_extraction_never_falls_and_is_not_whole_while_it_goes_on(name: str) -> None:
    _, moments = extraction(name)
    assert all(before.share <= after.share for (_, before), (_, after) in pairwise(moments))
    assert moments[-1][1].share < 1.0  # checksums and snapshot follow
    assert moments[-1][1].part == "finish"


def test_rows_of_an_extraction_are_known_before_its_larger_respondents_have_finished() -> None:
    """The first shards to finish are those of the smallest respondent; by them, a fifth of the rows was missed."""
    for name, within in (("extract_5_regions", 0.07), ("extract_limited", 0.1)):
        _, moments = extraction(name)
        truth = named(moments[-1][1].parts, "fetch").total
        totals = [named(found.parts, "fetch").total for _, found in moments]
        assert max(abs(total / truth - 1) for total in totals) < within


def test_extraction_states_what_is_left_of_fetch_build_and_finish() -> None:
    """The trace is of a busy machine, 2.4 times slower than what the first run in a folder expects."""
    assert all(abs(error) < 0.27 for error in errors(*extraction("extract_5_regions"), 0.4, 0.5, 0.75, 0.9))


def test_limited_extraction_states_what_the_request_budget_allows() -> None:
    end_s, moments = extraction("extract_limited")
    assert all(abs(error) < 0.2 for error in errors(end_s, moments, 0.4, 0.5, 0.75))
    for _, found in moments:
        fetch = named(found.parts, "fetch")
        assert found.eta_s is None or found.eta_s >= fetch.least_s


def test_extraction_that_only_builds_is_estimated_by_what_it_holds() -> None:
    work = ExtractWork((), 20, emulated=True)
    work.held = 1e6
    meter, quiet = ProgressMeter(0.0), status_of(0, 0, 0, None)
    for at in range(12):
        work.built = at
        found = meter.observe(float(at), work.parts(quiet))
    assert found.eta_s == pytest.approx(9.0, rel=0.4)


def test_training_counts_its_validations_and_its_end() -> None:
    end_s, moments, _ = training("train_120_steps")
    assert all(abs(error) < 0.15 for error in errors(end_s, moments, 0.25, 0.5, 0.75, 0.9))
    assert all(before.share <= after.share for (_, before), (_, after) in pairwise(moments))
    assert moments[-1][1].share < 1.0


def test_time_of_validations_is_none_of_the_steps() -> None:
    """Steps of 1 s, and after each tenth one a validation of 8 s, which the plan expects to take 2 s."""
    work, meter = TrainingWork(TrainingPlan(100, 10, 2.0), 0), ProgressMeter(0.0)
    at, left = 0.0, {}
    for step in range(1, 101):
        for phase, seconds in (("step", 1), *([("validate", 8), ("checkpoint", 0)] if step % 10 == 0 else [])):
            parts = work.parts([Rank(0, "w", 0.0, step=step, phase=phase)])
            for _ in range(max(4 * seconds, 1)):
                found = meter.observe(at, parts)
                at += 0.25 if seconds else 0.0
        left[step] = (found.eta_s, at)
    assert left[5][0] == pytest.approx(95 + 10 * 2 + 3, rel=0.05)  # as planned
    for step in (20, 40, 60):
        assert left[step][0] == pytest.approx(at - left[step][1] + 3, rel=0.1)  # as measured
    assert (measured(named(found.parts, VALIDATION), meter.seen[VALIDATION]))[1] == pytest.approx(9 * 8, abs=3)


def test_training_that_ends_before_its_last_step_has_no_steps_left() -> None:
    work = TrainingWork(TrainingPlan(100, 10, 2.0), 0)
    work.parts([Rank(0, "w", 0.0, step=50, phase="checkpoint")])
    parts = work.parts([Rank(0, "w", 0.0, step=50, phase="end")])
    assert [(part.name, part.left) for part in parts if part.left] == [("finish", 1.0)]


def test_training_goes_on_from_its_checkpoint() -> None:
    parts = TrainingWork(TrainingPlan(100, 10, 2.0), 40).parts()
    assert [named(parts, name).left for name in (STEP, VALIDATION)] == [60.0, 6.0]


def test_steps_of_another_training_are_compared_where_they_take_as_long(tmp_path: Path) -> None:
    few, many, wide = b"steps = 40", b"steps = 400\npatience = 9", b"steps = 40\ndim = 128"
    years = {"PACW": {2019, 2020}}
    assert like(few, 2, years) == like(many, 2, years)
    assert len({like(few, 2, years), like(wide, 2, years), like(few, 1, years), like(few, 2, {"PACW": {2019}})}) == 4
    log = RunLog(tmp_path)
    log.add_part("train", "a", (STEP, "steps"), 10, 5.0)
    log.add("part", stage="train", like="a", name=VALIDATION, units=1, seconds=9.0)  # by a version that named no unit
    costs = log.costs("train", "a")
    assert costs == {STEP: 0.5}
    assert named(with_costs(TrainingWork(TrainingPlan(100, 10, 2.0), 0).parts(), costs), STEP).measured
