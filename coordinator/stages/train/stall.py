"""How long a rank may be silent before it counts as stalled: reckoned from the gaps between its words so far. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

FADE = 0.95  # a word: one hiccup must not lengthen the limit for ever


@dataclass(frozen=True)
class Patience:
    """Times in seconds, counts, and factors of a training's supervision."""

    gather_s: float = 20.0  # for the first ring's workers to come; then it starts with those that are there
    regather_s: float = 4.0  # for a ring that is formed again: a worker of this host is back within two
    lonely_s: float = 120.0  # without any worker
    port_s: float = 5.0  # a worker that has not offered an address by then is left out of the round
    stopped_s: float = 5.0  # a process that the system does not run (SIGSTOP) for this long has stalled
    unseen_s: float = 300.0  # the limit of a phase whose length is not known yet
    floor_s: float = 10.0  # the least limit
    factor: float = 5.0  # limit ÷ longest gap
    fault_grace_s: float = 2.0  # for the ranks of a broken ring to end by themselves
    drain_grace_s: float = 60.0  # for the ranks of a whole ring to write a checkpoint and end
    last_s: float = 10.0  # for the others to end once rank 0 is done
    bench_s: float = 30.0  # a worker whose rank breaks rounds before their first step is left out; doubles
    bench_max_s: float = 600.0
    backoff_s: float = 0.5  # after the second fruitless round; doubles
    backoff_max_s: float = 10.0
    fruitless: int = 5  # rounds in succession that failed and came no further than those before them: give up


@dataclass
class Pace:
    """The longest gap after a word of each phase, and at how many ranks."""

    patience: Patience
    stretch: float = 1.0  # doubles with each stall that nothing explained: it may have been slowness
    _longest: dict[str, tuple[float, int]] = field(default_factory=dict)

    def saw(self, phase: str, gap_s: float, ranks: int) -> None:
        """A rank of a ring of `ranks` said something new `gap_s` after a word of `phase`."""
        known, at = self._longest.get(phase, (0.0, ranks))
        faded = FADE * known * max(1.0, at / ranks)
        self._longest[phase] = (max(gap_s, faded), ranks)

    def limit_s(self, phase: str, ranks: int) -> float:
        """Silence after a word of `phase` beyond which a rank has stalled. Fewer ranks have more to do each."""
        patience = self.patience
        if phase not in self._longest:
            return patience.unseen_s
        longest, at = self._longest[phase]
        limit = max(patience.floor_s, patience.factor * longest * max(1.0, at / ranks)) * self.stretch
        return min(limit, max(patience.unseen_s, patience.factor * longest))

    def unexplained(self) -> None:
        """A stall of which no rank was seen to be the cause."""
        self.stretch *= 2.0
