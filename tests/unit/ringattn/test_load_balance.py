"""Load balancing: decisions by examples and properties, and convergence to equal busy seconds."""

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


def steps(balancer: LoadBalancer, cost: list[float], count: int, fixed: float = 0.0) -> int:
    """Record that many steps; return how often the shares changed."""
    return sum(balancer.record_step(busy_of(balancer.layout, cost, fixed)) for _ in range(count))


def test_rebalance_examples() -> None:
    assert rebalance((1.0, 1.0), (3.0, 3.0)) == (1.0, 1.0)
    assert rebalance((1.0, 1.0), (1.0, 3.0)) == (1.5, 0.5)
    assert rebalance((1.5, 0.5), (2.0, 2.0)) == (1.5, 0.5)
    assert rebalance((1.5, 0.5), (3.0, 1.0)) == (1.0, 1.0)  # the slow one has recovered
    assert rebalance((1.0, 1.0), (1.0, 1.2)) == (1.0, 1.0)  # a gain of 10% is not enough
    assert rebalance((1.0, 1.0), (1.0, 1.3)) == (1.13, 0.87)
    assert rebalance((1.0, 1.0, 1.0, 1.0), (2.0, 2.0, 2.0, 4.0)) == (1.14, 1.14, 1.14, 0.57)
    assert rebalance((1.0, 1.0), (1.0, 1000.0)) == (2.0, MIN_SHARE)


@given(st.lists(times, min_size=2, max_size=8))
def test_new_shares_are_near_optimal_and_stable(cost: list[float]) -> None:
    """Under new shares the same speeds change nothing, so only noise beyond the bound changes them again."""
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
    balancer = LoadBalancer("zigzag", len(cost))
    for _ in range(10 * WINDOW_STEPS):
        assert not balancer.record_step((1 + MIN_GAIN * draw.random(len(cost))).tolist())
    assert balancer.layout == Layout("zigzag")


def test_only_a_lasting_slowdown_changes_the_shares() -> None:
    balancer = LoadBalancer("zigzag", 2)
    for step in range(WARMUP_STEPS + 4 * WINDOW_STEPS):
        assert not balancer.record_step([1.0, 30.0 if step % WINDOW_STEPS in (0, 1) else 1.0])
    assert steps(balancer, [1.0, 3.0], WINDOW_STEPS) == 1
    assert balancer.layout == weighted_zigzag((1.5, 0.5))


@pytest.mark.parametrize("fixed", [0.0, TOKENS / 2, TOKENS * 2])
def test_busy_seconds_converge_even_with_a_fixed_part(fixed: float) -> None:
    """Part of a rank's time does not shrink with its tokens: one change falls short, several converge."""
    cost = [1.0, 1.4, 4.0]
    balancer = LoadBalancer("zigzag", 3)
    changes = steps(balancer, cost, 20 * (WARMUP_STEPS + WINDOW_STEPS), fixed)
    assert 1 <= changes <= 4
    busy = busy_of(balancer.layout, cost, fixed)
    assert max(busy) <= np.mean(busy) * (1 + MIN_GAIN) * 1.05
    assert steps(balancer, cost, 20 * (WARMUP_STEPS + WINDOW_STEPS), fixed) == 0
    steps(balancer, [1.0, 1.0, 1.0], 20 * (WARMUP_STEPS + WINDOW_STEPS), fixed)  # the slow ones have recovered
    assert max(busy := busy_of(balancer.layout, [1.0] * 3, fixed)) <= np.mean(busy) * (1 + MIN_GAIN) * 1.05


def test_decisions_are_deterministic() -> None:
    draw = np.random.default_rng(1)
    rows = (np.array([1.0, 2.5, 1.3]) * draw.uniform(0.9, 1.1, (60, 3))).astype(np.float32).tolist()
    one, other = LoadBalancer("zigzag", 3), LoadBalancer("zigzag", 3)
    assert [one.record_step(row) for row in rows] == [other.record_step(row) for row in rows]
    assert one.layout == other.layout != Layout("zigzag")


def test_other_layouts_and_one_rank_keep_their_shares() -> None:
    for layout, size in (("striped", 2), ("contiguous", 2), ("zigzag", 1)):
        balancer = LoadBalancer(layout, size)
        assert not any(balancer.record_step([1.0, 9.0][:size]) for _ in range(50))
        assert balancer.layout == Layout(layout)
