"""Which leases are issued a second time: those at the tail, that run far longer than their kind does while workers idle. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

LATE = 3.0  # times the median of its kind
AT_LEAST_S = 2.0  # however short the median: a second issue costs a round trip and a worker's attention


@dataclass(frozen=True)
class RunningLease:
    """A lease that is out."""

    number: int
    kind: str
    age_s: float
    worker: str


def select_speculative_copies(
    out: Iterable[RunningLease], seconds: Mapping[str, Sequence[float]], idle: Sequence[str], twice: Iterable[int]
) -> list[tuple[int, str]]:
    """(number, worker) to issue once more, the longest out first, one an idle worker.

    `seconds`: how long the last leases of each kind took; a kind that never ended yet has no tail. `twice`: numbers that were
    issued a second time already. `idle`: workers that hold nothing, when nothing waits to be leased.
    """
    done = set(twice)
    late = [
        one
        for one in out
        if one.number not in done
        and seconds.get(one.kind)
        and one.age_s > max(AT_LEAST_S, LATE * median(seconds[one.kind]))
    ]
    late.sort(key=lambda one: (-one.age_s, one.number))
    free = list(idle)
    issued = []
    for one in late:
        other = next((name for name in free if name != one.worker), None)
        if other is not None:
            free.remove(other)
            issued.append((one.number, other))
    return issued
