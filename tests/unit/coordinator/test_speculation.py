"""Speculative copies: only of stragglers by the durations of their kind, only on idle workers, each once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.scheduling.speculation import MIN_AGE_S, SLOW_FACTOR, RunningLease, select_speculative_copies

SECONDS = {"rollout": [1.0, 2.0, 9.0], "labels": [0.01], "evaluate": []}


def test_straggler_takes_three_medians_and_at_least_the_minimum() -> None:
    late, early = SLOW_FACTOR * 2.0 + 0.1, SLOW_FACTOR * 2.0 - 0.1
    assert select_speculative_copies([RunningLease(1, "rollout", late, "a")], SECONDS, ["b"], []) == [(1, "b")]
    assert not select_speculative_copies([RunningLease(1, "rollout", early, "a")], SECONDS, ["b"], [])
    assert not select_speculative_copies([RunningLease(1, "labels", MIN_AGE_S - 0.1, "a")], SECONDS, ["b"], [])
    assert select_speculative_copies([RunningLease(1, "labels", MIN_AGE_S + 0.1, "a")], SECONDS, ["b"], []) == [
        (1, "b")
    ]
    assert not select_speculative_copies(
        [RunningLease(1, "evaluate", 1e6, "a"), RunningLease(2, "port", 1e6, "a")], SECONDS, ["b"], []
    )


def test_speculative_copy_runs_on_another_worker() -> None:
    assert not select_speculative_copies([RunningLease(1, "rollout", 100.0, "a")], SECONDS, ["a"], [])


OUTS = st.lists(
    st.builds(
        RunningLease,
        st.integers(0, 20),
        st.sampled_from(["rollout", "labels", "evaluate"]),
        st.floats(0, 100),
        st.sampled_from("abc"),
    ),
    max_size=12,
    unique_by=lambda one: one.number,
)


@given(OUTS, st.lists(st.sampled_from("abcde"), unique=True), st.sets(st.integers(0, 20)))
def test_stragglers_are_copied_once_oldest_first(out: list[RunningLease], idle: list[str], twice: set[int]) -> None:
    issued = select_speculative_copies(out, SECONDS, idle, twice)
    of = {one.number: one for one in out}
    numbers, workers = [number for number, _ in issued], [worker for _, worker in issued]
    assert len(set(numbers)) == len(numbers) and len(set(workers)) == len(workers)
    assert not set(numbers) & twice and set(workers) <= set(idle)
    assert all(of[number].worker != worker for number, worker in issued)
    ages = [of[number].age_s for number in numbers]
    assert ages == sorted(ages, reverse=True)
    # No idle worker is left that could run a straggler.
    late = [one for one in out if one.number not in {*numbers, *twice} and one.kind != "evaluate"]
    late = [one for one in late if one.age_s > (SLOW_FACTOR * 2.0 if one.kind == "rollout" else MIN_AGE_S)]
    assert not [1 for one in late for name in set(idle) - set(workers) if name != one.worker]
