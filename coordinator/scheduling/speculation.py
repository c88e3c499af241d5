"""Speculative execution of stragglers: choose slow leases to run a second time on idle workers.

Deterministic, no I/O (sans-I/O).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

SLOW_FACTOR = 3.0  # times the median duration of the kind
MIN_AGE_S = 2.0  # however short the median: a copy costs a round trip and a worker's time


@dataclass(frozen=True)
class RunningLease:
    """A lease without a result yet."""

    number: int
    kind: str
    age_s: float
    worker: str


def select_speculative_copies(
    running: Iterable[RunningLease],
    seconds: Mapping[str, Sequence[float]],
    idle: Sequence[str],
    copied: Iterable[int],
) -> list[tuple[int, str]]:
    """Return (number, worker) of the leases to copy, the oldest first, one for each idle worker.

    Args:
        running: The leases without a result.
        seconds: Durations of the last leases of each kind; a kind without any has no stragglers.
        idle: Workers that hold no lease while no task waits for one.
        copied: Numbers that have a copy already.
    """
    done = set(copied)
    stragglers = [
        lease
        for lease in running
        if lease.number not in done
        and seconds.get(lease.kind)
        and lease.age_s > max(MIN_AGE_S, SLOW_FACTOR * median(seconds[lease.kind]))
    ]
    stragglers.sort(key=lambda lease: (-lease.age_s, lease.number))
    free = list(idle)
    copies = []
    for lease in stragglers:
        other = next((name for name in free if name != lease.worker), None)
        if other is not None:
            free.remove(other)
            copies.append((lease.number, other))
    return copies
