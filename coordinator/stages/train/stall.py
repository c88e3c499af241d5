"""How long a rank may be silent before it counts as stalled: reckoned from the gaps between its words so far. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

FADE = 0.95  # a word: one hiccup must not lengthen the limit for ever


@dataclass(frozen=True)
class SupervisionTimeouts:
    """Times in seconds, counts, and factors of a training's supervision."""

    join_s: float = 20.0  # for the first ring's workers to come; then it starts with those that are there
    rejoin_s: float = 4.0  # for a ring that is formed again: a worker of this host is back within two
    no_worker_s: float = 120.0  # without any worker
    address_s: float = 5.0  # a worker that has not offered an address by then is left out of the round
    stopped_s: float = 5.0  # a process that the system does not run (SIGSTOP) for this long has stalled
    unknown_phase_s: float = 300.0  # the limit of a phase whose length is not known yet
    min_s: float = 10.0  # the least limit
    factor: float = 5.0  # limit ÷ longest gap
    fault_grace_s: float = 2.0  # for the ranks of a broken ring to end by themselves
    drain_grace_s: float = 60.0  # for the ranks of a whole ring to write a checkpoint and end
    last_rank_s: float = 10.0  # for the others to end once rank 0 is done
    exclude_s: float = 30.0  # a worker whose rank breaks rounds before their first step is left out; doubles
    exclude_max_s: float = 600.0
    backoff_s: float = 0.5  # after the second max_rounds_without_progress round; doubles
    backoff_max_s: float = 10.0
    max_rounds_without_progress: int = (
        5  # rounds in succession that failed and came no further than those before them: give up
    )


@dataclass
class StallDetector:
    """The longest gap after a word of each phase, and at how many ranks."""

    timeouts: SupervisionTimeouts
    stretch: float = 1.0  # doubles with each stall that nothing explained: it may have been slowness
    _longest: dict[str, tuple[float, int]] = field(default_factory=dict)

    def record_gap(self, phase: str, gap_s: float, ranks: int) -> None:
        """A rank of a ring of `ranks` said something new `gap_s` after a word of `phase`."""
        known, at = self._longest.get(phase, (0.0, ranks))
        faded = FADE * known * max(1.0, at / ranks)
        self._longest[phase] = (max(gap_s, faded), ranks)

    def timeout_s(self, phase: str, ranks: int) -> float:
        """Silence after a word of `phase` beyond which a rank has stalled. Fewer ranks have more to do each."""
        timeouts = self.timeouts
        if phase not in self._longest:
            return timeouts.unknown_phase_s
        longest, at = self._longest[phase]
        limit = max(timeouts.min_s, timeouts.factor * longest * max(1.0, at / ranks)) * self.stretch
        return min(limit, max(timeouts.unknown_phase_s, timeouts.factor * longest))

    def record_unexplained_stall(self) -> None:
        """A stall of which no rank was seen to be the cause."""
        self.stretch *= 2.0
