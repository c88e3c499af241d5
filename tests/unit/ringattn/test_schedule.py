"""Schedules are verified for any needs, send only needed blocks, and the verifier catches broken tables."""

from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from ringattn import layout, schedule
from ringattn.schedule import Exchange, Hop, Span, Work


@st.composite
def matrices(draw: st.DrawFn) -> tuple[tuple[bool, ...], ...]:
    n = draw(st.integers(1, 8))
    return tuple(tuple(draw(st.booleans()) for _ in range(n)) for _ in range(n))


@given(matrices())
def test_any_needs_have_a_verified_schedule(needs: tuple[tuple[bool, ...], ...]) -> None:
    schedule.verify(schedule.forward(needs), needs, gradients=False)
    schedule.verify(schedule.backward(needs), needs, gradients=True)


@st.composite
def masked(draw: st.DrawFn):
    size = draw(st.integers(1, 6))
    total = draw(st.integers(size, 70))
    ids = np.sort(draw(st.lists(st.integers(0, 3), min_size=total, max_size=total)))
    return (
        size,
        total,
        draw(st.sampled_from(layout.KINDS)),
        draw(st.booleans()),
        draw(st.none() | st.integers(1, total + 1)),
        ids if draw(st.booleans()) else None,
    )


@given(masked())
def test_needs_never_miss_a_visible_key(case) -> None:
    size, total, kind, causal, window, ids = case
    spans, held = [], []
    for runs in layout.runs(kind, total, size):
        bounds = [None if ids is None else (int(ids[list(r)].min()), int(ids[list(r)].max())) for r in runs]
        spans.append([Span(r[0], r[-1], b) for r, b in zip(runs, bounds, strict=True)])
        held.append(np.concatenate([np.array(r) for r in runs]))
    needs = schedule.needs_of(spans, spans, causal=causal, window=window)
    for q in range(size):
        for k in range(size):
            gap = held[q][:, None] - held[k][None, :]
            seen = np.ones_like(gap, dtype=bool)
            if causal:
                seen &= gap >= 0
            if window is not None:
                seen &= (gap if causal else abs(gap)) < window
            if ids is not None:
                seen &= ids[held[q]][:, None] == ids[held[k]][None, :]
            assert needs[q][k] or not seen.any()
            if ids is None and kind != "striped":
                assert needs[q][k] == seen.any()


def band(n: int, width: int) -> tuple[tuple[bool, ...], ...]:
    return tuple(tuple(0 <= q - k <= width for k in range(n)) for q in range(n))


def sends(tables, kind: str) -> int:
    return sum(1 for t in tables for hop in t if getattr(hop, kind) and getattr(hop, kind).send is not None)


def test_window_on_contiguous_layout_skips_hops() -> None:
    forward, backward = schedule.forward(band(8, 1)), schedule.backward(band(8, 1))
    assert len(forward[0]) == 2
    assert sends(forward, "kv") == sends(backward, "kv") == 7
    assert sends(backward, "grad") == 7  # one step back each, not seven onward


def test_separate_segments_send_nothing() -> None:
    needs = tuple(tuple(q == k for k in range(4)) for q in range(4))
    assert sends(schedule.forward(needs), "kv") == sends(schedule.backward(needs), "grad") == 0


def everyone(n: int) -> tuple[tuple[bool, ...], ...]:
    return ((True,) * n,) * n


def edited(tables, rank: int, hop: int, **changes):
    row = list(tables[rank])
    row[hop] = replace(row[hop], **changes)
    return (*tables[:rank], tuple(row), *tables[rank + 1 :])


@pytest.mark.parametrize(
    ("rank", "hop", "changes", "finding"),
    [
        (0, 1, {"work": None}, "computes \\[\\] of block"),
        (1, 1, {"work": Work(1)}, "computes"),
        (0, 0, {"work": Work(2)}, "without holding it"),
        (2, 0, {"kv": None}, "does not hold"),
        (1, 0, {"kv": Exchange(1, 2, 2, 0)}, "expects"),
        (1, 1, {"kv": Exchange(2, 2, 2, 0)}, "without holding it"),
    ],
)
def test_verifier_catches_broken_tables(rank: int, hop: int, changes: dict, finding: str) -> None:
    tables = edited(schedule.forward(everyone(3)), rank, hop, **changes)
    with pytest.raises(AssertionError, match=finding):
        schedule.verify(tables, everyone(3), gradients=False)


def test_verifier_catches_ranks_that_all_receive_first() -> None:
    def table(rank: int) -> schedule.Table:
        other = 1 - rank
        return (
            Hop(rank, Work(rank), Exchange(None, other, other, other)),
            Hop(other, Work(other), Exchange(rank, other, None, other)),
        )

    with pytest.raises(AssertionError, match="deadlocks"):
        schedule.verify((table(0), table(1)), everyone(2), gradients=False)


def test_verifier_catches_gradient_on_the_wrong_rank() -> None:
    tables = schedule.backward(everyone(3))
    cut = tuple(tuple(Hop(h.holds, h.work, h.kv, None if i == 2 else h.grad) for i, h in enumerate(t)) for t in tables)
    with pytest.raises(AssertionError, match="does not own them"):
        schedule.verify(cut, everyone(3), gradients=True)
