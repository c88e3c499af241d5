"""Shares that follow measured speeds: what is decided from which numbers, and whether it comes to rest where all ranks are busy alike."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringattn import Layout, LoadBalancer, weighted_zigzag
from ringattn.layout import lengths
from ringattn.load_balance import MIN_GAIN, MIN_SHARE, WARMUP_STEPS, WINDOW_STEPS, rebalance

TOKENS = 26_280
times = st.floats(0.05, 50.0)


def busy_of(layout: Layout, seconds_a_token: list[float], fixed: float = 0.0) -> list[float]:
    held = lengths(layout, TOKENS, len(seconds_a_token))
    return [fixed + tokens * cost for tokens, cost in zip(held, seconds_a_token, strict=True)]


def steps(shares: LoadBalancer, cost: list[float], count: int, fixed: float = 0.0) -> int:
    """That many steps; how often the shares changed."""
    return sum(shares.record_step(busy_of(shares.layout, cost, fixed)) for _ in range(count))


def test_what_is_decided_from_which_numbers() -> None:
    assert rebalance((1.0, 1.0), (3.0, 3.0)) == (1.0, 1.0)
    assert rebalance((1.0, 1.0), (1.0, 3.0)) == (1.5, 0.5)
    assert rebalance((1.5, 0.5), (2.0, 2.0)) == (1.5, 0.5)
    assert rebalance((1.5, 0.5), (3.0, 1.0)) == (1.0, 1.0)  # the slow one has recovered
    assert rebalance((1.0, 1.0), (1.0, 1.2)) == (1.0, 1.0)  # 10% is what it would win, and no more
    assert rebalance((1.0, 1.0), (1.0, 1.3)) == (1.13, 0.87)
    assert rebalance((1.0, 1.0, 1.0, 1.0), (2.0, 2.0, 2.0, 4.0)) == (1.14, 1.14, 1.14, 0.57)
    assert rebalance((1.0, 1.0), (1.0, 1000.0)) == (2.0, MIN_SHARE)


@given(st.lists(times, min_size=2, max_size=8))
def test_what_is_chosen_is_near_the_best_and_stays(cost: list[float]) -> None:
    """Under new shares the same speeds change nothing, so noise has to grow beyond the bound again."""
    new = rebalance((1.0,) * len(cost), cost)
    mean = sum(new) / len(new)
    after = [weight / mean * seconds for weight, seconds in zip(new, cost, strict=True)]
    assert rebalance(new, after) == new
    best = len(cost) / sum(1 / seconds for seconds in cost)
    if min(new) > MIN_SHARE:
        assert max(after) <= best * (1 + MIN_GAIN) * 1.12  # a share is rounded to 0.01, of MIN_SHARE at least
    assert max(after) <= max(cost) * 1.001


@settings(max_examples=200)
@given(st.lists(times, min_size=2, max_size=6), st.integers(0, 2**32 - 1))
def test_noise_below_the_bound_never_changes_equal_shares(cost: list[float], seed: int) -> None:
    draw = np.random.default_rng(seed)
    shares = LoadBalancer("zigzag", len(cost))
    for _ in range(10 * WINDOW_STEPS):
        assert not shares.record_step((1 + MIN_GAIN * draw.random(len(cost))).tolist())
    assert shares.layout == Layout("zigzag")


def test_one_odd_step_changes_nothing_and_a_lasting_difference_does() -> None:
    shares = LoadBalancer("zigzag", 2)
    for step in range(WARMUP_STEPS + 4 * WINDOW_STEPS):
        assert not shares.record_step([1.0, 30.0 if step % WINDOW_STEPS in (0, 1) else 1.0])
    assert steps(shares, [1.0, 3.0], WINDOW_STEPS) == 1
    assert shares.layout == weighted_zigzag((1.5, 0.5))


@pytest.mark.parametrize("fixed", [0.0, TOKENS / 2, TOKENS * 2])
def test_all_ranks_come_to_be_busy_alike_whatever_the_work_goes_into(fixed: float) -> None:
    """A part of a rank's time doesn't shrink with its tokens: one change falls short, more of them come to rest."""
    cost = [1.0, 1.4, 4.0]
    shares = LoadBalancer("zigzag", 3)
    changes = steps(shares, cost, 20 * (WARMUP_STEPS + WINDOW_STEPS), fixed)
    assert 1 <= changes <= 4
    busy = busy_of(shares.layout, cost, fixed)
    assert max(busy) <= np.mean(busy) * (1 + MIN_GAIN) * 1.05
    assert steps(shares, cost, 20 * (WARMUP_STEPS + WINDOW_STEPS), fixed) == 0
    steps(shares, [1.0, 1.0, 1.0], 20 * (WARMUP_STEPS + WINDOW_STEPS), fixed)  # the slow ones have recovered
    assert max(busy := busy_of(shares.layout, [1.0] * 3, fixed)) <= np.mean(busy) * (1 + MIN_GAIN) * 1.05


def test_who_has_the_numbers_decides_the_same() -> None:
    draw = np.random.default_rng(1)
    rows = (np.array([1.0, 2.5, 1.3]) * draw.uniform(0.9, 1.1, (60, 3))).astype(np.float32).tolist()
    one, other = LoadBalancer("zigzag", 3), LoadBalancer("zigzag", 3)
    assert [one.record_step(row) for row in rows] == [other.record_step(row) for row in rows]
    assert one.layout == other.layout != Layout("zigzag")


def test_other_layouts_and_one_rank_stay_as_they_are() -> None:
    for layout, size in (("striped", 2), ("contiguous", 2), ("zigzag", 1)):
        shares = LoadBalancer(layout, size)
        assert not any(shares.record_step([1.0, 9.0][:size]) for _ in range(50))
        assert shares.layout == Layout(layout)
