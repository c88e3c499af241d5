"""Which rank computes and keeps which positions: shares stay even whatever the chunks, and needs are exact."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringattn.lm.steps import needs_of, plan_step


@given(size=st.integers(1, 5), counts=st.lists(st.integers(1, 40), min_size=1, max_size=12))
def test_each_position_is_kept_once_and_shares_differ_by_one_at_most(size: int, counts: list[int]) -> None:
    owner = np.empty(0, np.uint8)
    for count in counts:
        held = tuple(np.bincount(owner, minlength=size).tolist())
        step = plan_step(len(owner), count, held)
        everyone = [step.positions(rank) for rank in range(size)]
        kept = [at[step.kept(rank)] for rank, at in enumerate(everyone)]
        assert sorted(np.concatenate(kept).tolist()) == list(range(len(owner), len(owner) + count))
        assert all((step.owner[at - step.start] == rank).all() for rank, at in enumerate(kept))
        assert all(len(at) > 0 for at in everyone)  # no rank is without queries
        if step.replicated:
            assert all(at.tolist() == list(range(step.start, step.start + count)) for at in everyone)
        owner = np.concatenate([owner, step.owner])
        shares = np.bincount(owner, minlength=size)
        assert shares.max() - shares.min() <= 1


@pytest.mark.parametrize("window", [None, 1, 5, 30])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_needs_are_exactly_what_queries_see(size: int, window: int | None) -> None:
    first = plan_step(0, 23, (0,) * size)
    step = plan_step(23, 17, tuple(np.bincount(first.owner, minlength=size).tolist()))
    owner = np.concatenate([first.owner, step.owner])
    keys = np.arange(len(owner))
    needs = needs_of(step, owner, window)
    for s in range(size):
        gap = step.positions(s)[:, None] - keys[None, :]
        seen = np.asarray(((gap >= 0) & (gap < (window or 99))).any(axis=0))
        # A run is as good as all between its ends: zigzag's two are far apart, so a window between them may be counted in.
        for r in range(size):
            assert needs[r][s] or not seen[owner == r].any()
        if window is None:
            assert [needs[r][s] for r in range(size)] == [bool(seen[owner == r].any()) for r in range(size)]
