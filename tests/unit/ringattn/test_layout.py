"""Layouts partition the sequence, shard and unshard invert each other, and zigzag's shares are proportional to its work."""

import hypothesis.strategies as st
import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given

import ringattn as ra
from ringattn import layout


@st.composite
def spread(draw: st.DrawFn) -> tuple[ra.Layout, int, int]:
    size = draw(st.integers(1, 9))
    kind = draw(st.sampled_from(layout.KINDS))
    weights = None
    if kind == "zigzag" and draw(st.booleans()):
        weights = tuple(draw(st.lists(st.floats(0.5, 8), min_size=size, max_size=size)))
    return ra.Layout(kind, weights), draw(st.integers(size if weights is None else 16 * size, 400 + 16 * size)), size


@given(spread())
def test_every_position_is_held_once(case: tuple[ra.Layout, int, int]) -> None:
    how, total, size = case
    assert sorted(layout.order(how, total, size)) == list(range(total))
    assert [len(layout.local_positions(how, total, size, r)) for r in range(size)] == list(
        layout.lengths(how, total, size)
    )


@given(spread())
def test_runs_ascend_within_a_rank(case: tuple[ra.Layout, int, int]) -> None:
    how, total, size = case
    for rank in range(size):
        assert (np.diff(layout.local_positions(how, total, size, rank)) > 0).all()


@given(st.integers(1, 8), st.integers(1, 60), st.sampled_from(layout.KINDS))
def test_equal_local_lengths_follow_every_layout(size: int, local: int, kind: str) -> None:
    assert layout.lengths(kind, size * local, size) == (local,) * size


@given(st.lists(st.floats(1, 6), min_size=2, max_size=6))
def test_causal_work_of_weighted_zigzag_follows_the_speeds(speeds: list[float]) -> None:
    total, size = 20_000, len(speeds)
    how = ra.weighted_zigzag(speeds)
    work = [(layout.local_positions(how, total, size, r).astype(np.float64) + 1).sum() for r in range(size)]
    time = np.array(work) / np.array(speeds)
    assert time.max() / time.min() < 1.01
    equal = [(layout.local_positions("zigzag", total, size, r).astype(np.float64) + 1).sum() for r in range(size)]
    assert (
        time.max() < 1.01 * (np.array(equal) / np.array(speeds)).max()
    )  # a step is never slower than with equal shares


def test_shard_and_unshard_on_one_rank() -> None:
    x = mx.arange(2 * 7 * 3).reshape(2, 7, 3)
    for kind in layout.KINDS:
        assert mx.array_equal(ra.unshard(ra.shard(x, 1, layout=kind), 1, layout=kind), x)


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: ra.Layout("spiral"), "unknown"),
        (lambda: ra.Layout("striped", (1.0, 2.0)), "zigzag layout only"),
        (lambda: ra.weighted_zigzag([1.0, -1.0]), "above 0"),
        (lambda: layout.runs(ra.weighted_zigzag([1, 2]), 30, 3), "one weight a rank"),
        (lambda: layout.runs("contiguous", 3, 4), "fewer ranks"),
    ],
)
def test_invalid_layouts_state_the_rule(make, rule: str) -> None:
    with pytest.raises(ra.LayoutError, match=rule):
        make()
