"""Detect stalled ranks: the timeout adapts to the longest heartbeat gap seen in each phase. Sans-I/O."""

from dataclasses import dataclass, field

FADE = 0.95  # per heartbeat: one long gap must not lengthen the timeout for ever


@dataclass(frozen=True)
class SupervisionTimeouts:
    """Times in seconds, counts and factors of a training's supervision."""

    join_s: float = 20.0  # for the workers of the first ring to connect; then it starts with those that did
    rejoin_s: float = 4.0  # the same for a later ring: a worker of this host is back within two seconds
    no_worker_s: float = 120.0  # without any worker, until the run ends
    address_s: float = 5.0  # a worker that has not offered an address by then is not part of the round
    stopped_s: float = 5.0  # a process that is stopped (SIGSTOP) for this long has stalled
    unknown_phase_s: float = 300.0  # the timeout in a phase whose gaps are not known yet
    min_s: float = 10.0  # the shortest timeout
    factor: float = 5.0  # timeout ÷ longest gap
    fault_grace_s: float = 2.0  # for the ranks of a failed ring to end by themselves
    drain_grace_s: float = 60.0  # for the ranks of a healthy ring to write a checkpoint and end
    last_rank_s: float = 10.0  # for the other ranks to end after rank 0 is done
    # A worker whose rank ends rounds before their first step is excluded for this long; doubles.
    exclude_s: float = 30.0
    exclude_max_s: float = 600.0
    backoff_s: float = 0.5  # after the second round without progress; doubles
    backoff_max_s: float = 10.0
    max_rounds_without_progress: int = 5  # consecutive ones until the run fails


@dataclass
class StallDetector:
    """Keeps the longest gap after a heartbeat of each phase, and the ring's size at that time."""

    timeouts: SupervisionTimeouts
    stretch: float = 1.0  # doubles with each unexplained stall: it may have been slowness
    _longest: dict[str, tuple[float, int]] = field(default_factory=dict)

    def record_gap(self, phase: str, gap_s: float, ranks: int) -> None:
        """Record that in a ring of `ranks` a heartbeat came `gap_s` seconds after one of `phase`."""
        known, at = self._longest.get(phase, (0.0, ranks))
        faded = FADE * known * max(1.0, at / ranks)
        self._longest[phase] = (max(gap_s, faded), ranks)

    def timeout_s(self, phase: str, ranks: int) -> float:
        """Return the seconds after a heartbeat of `phase` until a rank has stalled. In a smaller ring each rank has more to do."""
        timeouts = self.timeouts
        if phase not in self._longest:
            return timeouts.unknown_phase_s
        longest, at = self._longest[phase]
        limit = max(timeouts.min_s, timeouts.factor * longest * max(1.0, at / ranks)) * self.stretch
        return min(limit, max(timeouts.unknown_phase_s, timeouts.factor * longest))

    def record_unexplained_stall(self) -> None:
        """Record a stall that could not be attributed to a rank: double the timeouts."""
        self.stretch *= 2.0
