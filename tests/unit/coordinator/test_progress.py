"""The estimate of the time left: rates, expected times, parts that have not begun, and properties that hold for any run."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.scheduling.progress import (
    MAX_POINTS,
    Part,
    PartSeen,
    Point,
    ProgressMeter,
    StageProgress,
    add_point,
    estimate,
    planned_seconds,
    seconds_per_unit,
)
from coordinator.stages.display import approximate, clock, standing
from coordinator.stages.train.work import DEFAULTS, MIN_PIECES, TrainingPlan
from worker.training import loop
from worker.training.config import TrainConfig

STEPS = st.lists(st.tuples(st.floats(0.05, 20.0), st.just(0.0) | st.floats(1e-6, 500.0)), min_size=2, max_size=150)


def observed(
    meter: ProgressMeter, moments: list[tuple[float, float]], total: float, expected_s: float | None = None
) -> StageProgress:
    for at, done in moments:
        progress = meter.observe(at, [Part("fetch", "rows", done, total, expected_s)])
    return progress


def test_startup_does_not_count() -> None:
    meter = ProgressMeter(0.0)
    moments = [(20.0, 0.0), *((20.0 + k, 10.0 * k) for k in range(1, 11))]  # 20 s of nothing, then 10 rows a second
    assert observed(meter, moments, 1100.0).eta_s == pytest.approx(100.0)


def test_rate_follows_the_recent_half_and_not_the_beginning() -> None:
    slow = [Point(float(t), float(t)) for t in range(100)]  # 1 a second
    fast = [Point(100.0 + t, 100.0 + 10.0 * t) for t in range(1, 101)]  # 10 a second
    cost, over_s = seconds_per_unit([*slow, *fast], 200.0) or (0.0, 0.0)
    assert cost == pytest.approx(0.1, rel=0.05)
    assert over_s == pytest.approx(100.0, rel=0.05)


def test_part_that_stands_still_takes_longer_and_longer() -> None:
    points = [Point(float(t), 10.0 * t) for t in range(20)]
    left = [(seconds_per_unit(points, now) or (0.0, 0.0))[0] for now in (19.0, 21.0, 40.0, 80.0)]
    assert left[0] == left[1] < left[2] < left[3]


def test_part_that_has_not_begun_takes_what_it_took_before_scaled_by_the_speed_of_the_others() -> None:
    points = tuple(Point(float(t), 5.0 * t) for t in range(21))  # 5 a second, expected were 10
    parts = [Part("fetch", "rows", 100, 200, 0.1), Part("build", "series", 0, 10, 1.0)]
    found = estimate(parts, {"fetch": PartSeen(points)}, 20.0)
    assert found.eta_s == pytest.approx(20.0 + 10 * 2.0, rel=0.15)
    assert (found.part, round(found.share, 2)) == ("fetch", 0.35)  # 20 of 57 s of work


def test_request_budget_is_a_lower_bound() -> None:
    points = tuple(Point(float(t), 100.0 * t) for t in range(3))  # the burst at the beginning
    part = Part("fetch", "rows", 200, 1000, least_s=60.0)
    assert estimate([part], {"fetch": PartSeen(points)}, 2.0).eta_s == 60.0


def test_unknown_part_leaves_the_time_unknown_and_share_counts_work() -> None:
    parts = [Part("start", "", 1, 1, 2.0), Part("improve", "", 0, 8)]
    found = estimate(parts, {}, 0.0)
    assert (found.eta_s, found.share, found.part) == (None, 0.0, "improve")
    assert planned_seconds([Part("start", "", 0, 1, 2.0), Part("step", "steps", 0, 100, 0.5)]) == pytest.approx(52.0)


def test_plan_alone_states_no_time_and_a_start_that_lasts_is_no_share() -> None:
    def parts(started: float, rows: float) -> list[Part]:
        return [
            Part("start", "", started, 1, 2.5),
            Part("fetch", "rows", rows, 1500, 3.5e-6),
            Part("build", "series", 0, 1, 0.05),
        ]

    meter = ProgressMeter(0.0)
    for at in (0.0, 1.0, 2.0, 2.9):
        found = meter.observe(at, parts(0, 0))
        assert (found.eta_s, found.share, found.part) == (None, 0.0, "start")
        assert standing("extract", found, at) == ["extract", f"elapsed {clock(at)}", "start"]
    unplanned = [msgspec.structs.replace(part, expected_s=None) for part in parts(1, 300)]
    assert estimate(unplanned, meter.seen, 3.0).eta_s is None  # one point is no rate
    assert meter.observe(3.0, parts(1, 300)).eta_s is not None  # by the plan, at the speed of the start
    found = meter.observe(3.5, parts(1, 600))
    assert found.eta_s is not None
    assert 0.0 < found.share < 0.4  # 600 of 1500 rows, and the series
    last_run = [msgspec.structs.replace(part, measured=True) for part in parts(0, 0)]
    assert ProgressMeter(0.0).observe(0.0, last_run).eta_s == pytest.approx(2.5, rel=0.05)


def test_waiting_inside_a_part_without_steps_counts_against_it() -> None:
    meter = ProgressMeter(0.0)
    tables = [Part("tables", "", 0, 1, 100.0, measured=True)]
    left = [meter.observe(float(at), tables).eta_s for at in range(0, 200, 20)]
    assert left[:5] == [100.0, 80.0, 60.0, 40.0, 20.0]
    assert left[-1] == pytest.approx(19.0, abs=1.5)  # late: a tenth is left, however long it takes


def test_part_that_is_late_makes_the_plan_of_what_follows_slower() -> None:
    meter = ProgressMeter(0.0)
    parts = [Part("start", "", 1, 1, 2.0), Part("tables", "", 0, 1, 8.0), Part("improve", "", 0, 10, 1.0)]
    meter.observe(0.0, [Part("start", "", 0, 1, 2.0), *parts[1:]])
    meter.observe(2.0, [Part("start", "", 0, 1, 2.0), *parts[1:]])
    left = [meter.observe(at, parts).eta_s or 0.0 for at in (3.0, 9.0, 40.0)]
    assert left[0] == pytest.approx(17.0, abs=1.5)
    assert left[1] == pytest.approx(11.0, abs=1.5)
    assert left[2] > 30.0  # tables takes five times as long, and so may the ten others


def test_units_after_the_first_are_left_however_long_the_first_takes() -> None:
    meter = ProgressMeter(0.0)
    meter.observe(0.0, [Part("improve", "", 0, 4, 10.0, measured=True)])
    assert meter.observe(60.0, [Part("improve", "", 0, 4, 10.0, measured=True)]).eta_s == pytest.approx(36.0)
    for at in (61.0, 71.0, 81.0):
        meter.observe(at, [Part("improve", "", (at - 51) // 10, 4, 10.0)])
    assert meter.observe(86.0, [Part("improve", "", 3, 4, 10.0)]).eta_s == pytest.approx(5.0)  # half of the last one


def test_times_ahead_are_in_words() -> None:
    words = [approximate(seconds) for seconds in (0.2, 52.4, 89, 312, 5399, 7800)]
    assert words == ["1 s", "52 s", "89 s", "5 min", "90 min", "2 h 10 min"]


def test_lost_work_begins_anew() -> None:
    assert add_point((Point(1.0, 5.0), Point(2.0, 9.0)), Point(3.0, 4.0)) == (Point(3.0, 4.0),)


@given(STEPS)
def test_points_stay_few_and_keep_the_first_and_the_last(steps: list[tuple[float, float]]) -> None:
    points: tuple[Point, ...] = ()
    at = done = 0.0
    for seconds, units in steps * 4:
        at, done = at + seconds, done + units
        points = add_point(points, Point(at, done))
        assert len(points) <= MAX_POINTS
        assert points[-1].done == done
    assert all(a.at_s < b.at_s and a.done < b.done for a, b in pairwise(points))


@given(STEPS, st.floats(0.0, 1e6), st.none() | st.floats(1e-6, 1e3))
def test_estimate_is_deterministic_finite_and_never_negative(
    steps: list[tuple[float, float]], rest: float, expected: float | None
) -> None:
    at = done = 0.0
    moments = []
    for seconds, units in steps:
        at, done = at + seconds, done + units
        moments.append((at, done))
    total = done + rest
    first, second = (observed(ProgressMeter(0.0), moments, total, expected_s=expected) for _ in range(2))
    assert first == second
    assert 0.0 <= first.share <= 1.0
    assert first.eta_s is None or 0.0 <= first.eta_s < float("inf")
    if rest == 0.0:
        assert (first.eta_s, first.part) == (0.0, "")


@given(st.floats(0.1, 1e4), st.integers(20, 400), st.floats(0.05, 3.0), st.floats(0.0, 60.0))
def test_steady_work_is_estimated_to_a_tenth_after_a_tenth(
    rate: float, steps: int, tick_s: float, startup_s: float
) -> None:
    meter = ProgressMeter(0.0)
    ahead = max(steps // 10, 3)
    moments = [(startup_s + k * tick_s, k * tick_s * rate) for k in range(ahead + 1)]
    left = observed(meter, moments, steps * tick_s * rate).eta_s
    assert left == pytest.approx((steps - ahead) * tick_s, rel=0.1)


def test_plan_of_a_training_has_the_defaults_of_the_training() -> None:
    assert {name: getattr(TrainConfig(), name) for name in DEFAULTS} == DEFAULTS
    assert MIN_PIECES == loop.MIN_PIECES
    plan = TrainingPlan.of(b"steps = 45\nvalidate_every = 20\npieces = -1", {"PACW": {2019, 2020}})
    assert (plan.steps, plan.validations) == (45, 3)
    assert plan.validation_steps == pytest.approx(0.3 + 0.45 * 8760 / (6 * 4380))


def test_gust_of_some_seconds_hardly_changes_what_a_whole_run_has_measured() -> None:
    """The last run took 1 s a step; this one takes 0.7 s for its first seven seconds."""
    meter = ProgressMeter(0.0)
    for step in range(11):
        found = meter.observe(0.7 * step, [Part("step", "steps", step, 100, 1.0, measured=True)])
    assert found.eta_s == pytest.approx(90.0, rel=0.2)
