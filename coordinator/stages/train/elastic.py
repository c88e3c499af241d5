"""Supervise an elastic ring: rendezvous of the workers, failed and stalled ranks, restarts from checkpoints. Sans-I/O.

A round is one ring, from its rendezvous to the end of its last rank:

    waiting ── enough workers, or join_s is over ──▶ rendezvous ── addresses known ──▶ running ── rank 0 done ──▶ finished
      ▲                                                │                                 │
      │◀─────────── no worker offered an address ──────┘                                 │ a rank died or stalled, the ring
      │                                                                                  ▼ can grow, or a drain
      └──────────────────────── all of its ranks have ended ◀─────────────────────── draining ── no next round ──▶ finished

(state, event, now) → events for the scheduler, and lines to print. No round starts before every rank of the previous one
has ended, so two rings never write to one run folder.
"""

from typing import Literal

import msgspec

from coordinator.scheduling.events import AddTasks, TaskFailed, TaskProgress, TerminateTasks
from coordinator.scheduling.records import pinned_task
from coordinator.stages.train.ring_state import (
    DONE,
    NOT_WORKERS_FAULT,
    AddressOffered,
    Rank,
    RankDone,
    RoundSummary,
    SupervisionTick,
    TrainingOutcome,
)
from coordinator.stages.train.stall import StallDetector, SupervisionTimeouts
from coordinator.wire.failures import FailureKind
from coordinator.wire.lease_kinds import LeaseKind
from coordinator.wire.payloads import RankSpec
from ingest.backoff import backoff_s

RESEND_S = 3.0  # a request to end may be lost, so it is repeated
SUSPENDED_S = 5.0  # between two ticks: the coordinator was suspended, not the ranks

RingAction = AddTasks | TerminateTasks | str


class ElasticRing:
    """Supervises one training with a ring of up to `wanted` ranks. The module's docstring has its states."""

    def __init__(
        self, wanted: int, run: str, config: str = "", first: int = 1, timeouts: SupervisionTimeouts | None = None
    ) -> None:
        """Start without a round.

        Args:
            wanted: ranks of a full ring.
            run: the run folder, as workers are given it.
            config: name of the training's configuration file in it; "": none.
            first: number of the first round.
            timeouts: by default those of a deployment.
        """
        self.timeouts = timeouts or SupervisionTimeouts()
        self.wanted, self._run, self._config = wanted, run, config
        self.stage: Literal["waiting", "rendezvous", "running", "draining", "finished"] = "waiting"
        self.outcome: TrainingOutcome | None = None
        self.round = first - 1  # number of the latest one
        self.ranks: list[Rank] = []
        self.history: list[RoundSummary] = []
        self.checkpoint_step = 0  # of the newest checkpoint that a rank reported
        self.stalls = StallDetector(self.timeouts)
        self._since = self._until = 0.0  # start and end of the current state
        self._not_before = 0.0
        self._last_tick: float | None = None
        self._join_tasks: dict[str, str] = {}  # join task → worker
        self._addresses: dict[str, str] = {}  # worker → address; "": it has none
        self._join_error = ""  # why a worker had none
        self._end_reason: Literal["fault", "grow", "drain"] = "fault"
        self._end_requested_at = self._grace_s = 0.0
        self._last_done: float | None = None  # when rank 0 was done
        self._grow_after_step: int | None = None  # rank 0's checkpoint when the ring could first grow
        self._best_step = -1  # the furthest of all earlier rounds
        self._rounds_without_progress = 0
        self._excluded_until: dict[str, tuple[float, int]] = {}  # worker → until when, consecutive times

    @property
    def restarts(self) -> int:
        """The number of rounds that ended with a fault."""
        return sum(past.why == "fault" for past in self.history)

    @property
    def step(self) -> int:
        """The furthest step of this round; -1 before the first."""
        return max((rank.step for rank in self.ranks), default=-1)

    def decide(
        self, event: SupervisionTick | AddressOffered | RankDone | TaskProgress | TaskFailed, now: float
    ) -> list[RingAction]:
        """Return what follows from an event: events for the scheduler, lines to print. Events of earlier rounds change nothing."""
        out: list[RingAction] = []
        if isinstance(event, SupervisionTick):
            self._compensate_suspend(now)
            {
                "waiting": self._wait_for_workers,
                "rendezvous": self._rendezvous,
                "running": self._watch,
                "draining": self._drain,
            }.get(self.stage, lambda *_: None)(event, now, out)
        elif isinstance(event, AddressOffered):
            if self.stage == "rendezvous" and event.task in self._join_tasks:
                taken = event.address in self._addresses.values()  # two workers of one host chose the same port
                self._addresses[self._join_tasks[event.task]] = "" if taken else event.address
        elif isinstance(event, TaskFailed) and event.task in self._join_tasks:
            worker = self._join_tasks[event.task]
            self._addresses.setdefault(worker, "")
            self._join_error = event.message
            if (
                event.error not in NOT_WORKERS_FAULT
            ):  # else a ring that could grow would stop for it at every checkpoint
                self._exclude(worker, now)
                out.append(f"round {self.round}: {worker} cannot take part: {event.message}")
        elif isinstance(event, TaskProgress) and event.task in self._join_tasks:
            self._until = max(self._until, now + self.timeouts.address_s)  # it is still downloading files
        elif (rank := self._rank(event.task)) is not None:
            if isinstance(event, TaskProgress):
                self._on_heartbeat(rank, event, now)
            else:
                self._on_rank_end(rank, event, now)
        return out

    # -- forming a ring -------------------------------------------------------------------------------------------------

    def _wait_for_workers(self, tick: SupervisionTick, now: float, out: list[RingAction]) -> None:
        if tick.draining:
            self._finish(TrainingOutcome("drain", "The ring was stopped. Run the same command to resume."))
            return
        fit = self._eligible_workers(tick, now)
        ready = len(fit) >= self.wanted or (fit and now >= self._until)
        if ready and now >= self._not_before:
            self.stage, self._until = "rendezvous", now + self.timeouts.address_s
            self.round += 1
            self._join_tasks = {f"train/{self.round}/port/{n}": worker for n, worker in enumerate(fit[: self.wanted])}
            self._addresses = {}
            out.append(
                AddTasks(
                    tuple(pinned_task(task, LeaseKind.JOIN, {}, worker) for task, worker in self._join_tasks.items())
                )
            )
        elif not fit and now >= self._since + self.timeouts.no_worker_s:
            self._finish(
                TrainingOutcome("incomplete", f"No worker that can hold a rank connected for {now - self._since:.0f} s")
            )

    def _eligible_workers(self, tick: SupervisionTick, now: float) -> list[str]:
        """Return the workers that may hold a rank: all but the excluded ones; all, if every one is excluded."""
        fit = [name for name in tick.workers if self._excluded_until.get(name, (0.0, 0))[0] <= now]
        return fit or list(tick.workers)

    def _rendezvous(self, tick: SupervisionTick, now: float, out: list[RingAction]) -> None:
        missing = tuple(task for task, worker in self._join_tasks.items() if worker not in self._addresses)
        if not tick.draining and missing and now < self._until:
            return
        if missing:
            out.append(TerminateTasks(missing, 0.0))
        found = [
            (worker, self._addresses[worker]) for worker in self._join_tasks.values() if self._addresses.get(worker)
        ]
        self._join_tasks = {}
        if tick.draining or not found:
            self._restart_rendezvous(now)
            if not tick.draining:
                self._count_failure(f"no worker offered an address: {self._join_error or 'none answered in time'}", now)
            return
        addresses = tuple(address for _, address in found)
        self.stage, self._last_done, self._grow_after_step = "running", None, None
        self.ranks = [Rank(number, worker, last_progress=now) for number, (worker, _) in enumerate(found)]
        jobs = [RankSpec(self.round, rank.number, addresses, self._run, self._config) for rank in self.ranks]
        out.append(
            AddTasks(
                tuple(
                    pinned_task(self._task(rank), LeaseKind.TRAIN, msgspec.to_builtins(job), rank.worker)
                    for rank, job in zip(self.ranks, jobs, strict=True)
                )
            )
        )
        size = f"{len(found)} of {self.wanted}" if len(found) < self.wanted else str(len(found))
        out.append(
            f"round {self.round}: ring of {size}"
            + (f", from checkpoint {self.checkpoint_step}" if self.checkpoint_step else "")
        )

    def _restart_rendezvous(self, now: float) -> None:
        self.stage, self._since, self._until = "waiting", now, now + self.timeouts.rejoin_s

    # -- watching it ----------------------------------------------------------------------------------------------------

    def _task(self, rank: Rank) -> str:
        return f"train/{self.round}/rank/{rank.number}"

    def _rank(self, task: str) -> Rank | None:
        return next((rank for rank in self.ranks if self._task(rank) == task), None)

    def _live(self) -> list[Rank]:
        return [rank for rank in self.ranks if rank.ended is None]

    def _on_heartbeat(self, rank: Rank, event: TaskProgress, now: float) -> None:
        if not event.is_stopped:
            rank.stopped_since = None
        elif rank.stopped_since is None:
            rank.stopped_since = now
        if event.heartbeat_count > rank.heartbeat_count:
            if rank.heartbeat_count:
                self.stalls.record_gap(rank.phase, now - rank.last_progress, len(self.ranks))
            rank.last_progress, rank.heartbeat_count, rank.phase = now, event.heartbeat_count, event.phase
            if event.phase != "start":  # its step is that of the checkpoint it resumes from
                rank.step = max(rank.step, event.step)
            rank.checkpoint_step = event.checkpoint_step
            self.checkpoint_step = max(self.checkpoint_step, event.checkpoint_step)

    def _on_rank_end(self, rank: Rank, event: RankDone | TaskFailed, now: float) -> None:
        if rank.ended is not None:
            return
        if isinstance(event, RankDone):
            rank.ended = DONE
            if rank.number == 0:
                self._last_done = now
            return
        rank.ended, rank.message = event.error, event.message
        if event.error not in NOT_WORKERS_FAULT:
            rank.fault = event.message

    def _watch(self, tick: SupervisionTick, now: float, out: list[RingAction]) -> None:
        live, timeouts = self._live(), self.timeouts
        failed = any(rank.ended not in (None, DONE) for rank in self.ranks)
        # A worker is gone: its rank's lease never arrived, or is about to be released.
        if failed or not live or any(rank.worker not in tick.workers for rank in live):
            self._end_round("fault", timeouts.fault_grace_s, now, out)
        elif tick.draining:
            self._end_round("drain", timeouts.drain_grace_s, now, out)
        elif self._last_done is not None:
            if now >= self._last_done + timeouts.last_rank_s:
                self._end_round("fault", timeouts.fault_grace_s, now, out)
        elif self._stalled(live, now, out):
            self._end_round("fault", timeouts.fault_grace_s, now, out)
        elif self._can_grow(tick, now):
            out.append(
                f"round {self.round}: a worker is available; the ring of {len(self.ranks)} restarts from this checkpoint to grow"
            )
            self._end_round("grow", timeouts.drain_grace_s, now, out)

    def _stalled(self, live: list[Rank], now: float, out: list[RingAction]) -> bool:
        """Return whether a rank has stalled; blame it, if it can be distinguished from the ranks that wait for it."""
        if self._stopped(live, now):
            return True
        limits = {rank.number: self.stalls.timeout_s(rank.phase, len(self.ranks)) for rank in live}
        late = [rank for rank in live if now - rank.last_progress > limits[rank.number]]
        if not late:
            return False
        last = min(rank.step for rank in live)
        behind = [rank for rank in live if rank.step == last]
        text = f"no progress for {now - late[0].last_progress:.0f} s after {late[0].phase} {late[0].step}"
        if len(behind) == 1 and len(live) > 1:
            behind[0].fault = text
        else:
            self.stalls.record_unexplained_stall()
            out.append(
                f"round {self.round}: {text} from rank {late[0].number}; no single slow rank could be identified"
            )
        return True

    def _stopped(self, live: list[Rank], now: float) -> bool:
        for rank in live:
            if rank.stopped_since is not None and now - rank.stopped_since >= self.timeouts.stopped_s:
                rank.fault = f"its process has been stopped for {now - rank.stopped_since:.0f} s"
        return any(rank.fault for rank in live)

    def _can_grow(self, tick: SupervisionTick, now: float) -> bool:
        """Return whether a worker is idle and rank 0 has written a checkpoint since: then a new round loses little work."""
        mine = {rank.worker for rank in self.ranks}
        waits = len(self.ranks) < self.wanted and not mine.issuperset(self._eligible_workers(tick, now))
        if not waits or self._grow_after_step is None:
            self._grow_after_step = self.ranks[0].checkpoint_step if waits else None
            return False
        return self.ranks[0].checkpoint_step > self._grow_after_step

    # -- ending it ------------------------------------------------------------------------------------------------------

    def _end_round(
        self, why: Literal["fault", "grow", "drain"], grace_s: float, now: float, out: list[RingAction]
    ) -> None:
        self.stage, self._end_reason = "draining", why
        self._request_end(grace_s, now, out)

    def _request_end(self, grace_s: float, now: float, out: list[RingAction]) -> None:
        self._end_requested_at, self._grace_s = now, grace_s
        if live := tuple(self._task(rank) for rank in self._live()):
            out.append(TerminateTasks(live, grace_s))

    def _drain(self, tick: SupervisionTick, now: float, out: list[RingAction]) -> None:
        if live := self._live():
            failed = self._stopped(live, now) or any(rank.fault for rank in self.ranks)
            if failed and self._grace_s > self.timeouts.fault_grace_s:  # there will be no checkpoint to wait for
                self._end_round(
                    "drain" if self._end_reason == "drain" else "fault", self.timeouts.fault_grace_s, now, out
                )
            elif now >= self._end_requested_at + RESEND_S:
                self._request_end(self._grace_s, now, out)
            return
        final = {rank.ended: rank.message for rank in self.ranks}
        if self._last_done is not None:
            self._finish(TrainingOutcome("done"))
        elif FailureKind.USAGE in final:
            self._finish(TrainingOutcome("usage", final[FailureKind.USAGE]))
        elif FailureKind.STORAGE in final:
            self._finish(TrainingOutcome("storage", final[FailureKind.STORAGE]))
        elif tick.draining:
            self._finish(TrainingOutcome("drain", "The ring was stopped. Run the same command to resume."))
        why = self._end_reason if self.outcome is None else self.outcome.status
        self.history.append(RoundSummary(self.round, len(self.ranks), self.step, why))
        if why == "fault":
            self._on_fault(now, out)
        if self.outcome is None:
            self._best_step = max(self._best_step, self.step)
            self._restart_rendezvous(now)

    def _on_fault(self, now: float, out: list[RingAction]) -> None:
        """Print which ranks failed; exclude a worker whose ranks never reach a step, or give up."""
        failed = [rank for rank in self.ranks if rank.fault]
        for rank in failed:
            out.append(f"round {self.round}: rank {rank.number} on {rank.worker} failed: {rank.fault}")
            if any(r.phase != "start" for r in self.ranks):
                self._excluded_until.pop(rank.worker, None)
            else:
                self._exclude(rank.worker, now)
        if not failed:
            out.append(
                f"round {self.round}: the ring failed ({', '.join(sorted({r.ended or 'done' for r in self.ranks}))})"
            )
        if self.step > self._best_step:
            self._rounds_without_progress = 0
            return
        last = next(iter(failed), self.ranks[0])
        self._count_failure(f"rank {last.number}: {last.fault or last.message}", now)

    def _exclude(self, worker: str, now: float) -> None:
        times = self._excluded_until.get(worker, (0.0, 0))[1] + 1
        away = backoff_s(times, self.timeouts.exclude_s, self.timeouts.exclude_max_s)
        self._excluded_until[worker] = (now + away, times)

    def _count_failure(self, what: str, now: float) -> None:
        """Count a round without progress: back off a little longer each time, and give up in the end."""
        self._rounds_without_progress += 1
        if self._rounds_without_progress >= self.timeouts.max_rounds_without_progress:
            rounds, step = self._rounds_without_progress, max(self._best_step, 0)
            text = f"Gave up after {rounds} rounds without progress (last step {step}). Last error: {what}"
            self._finish(TrainingOutcome("failed", text))
        elif self._rounds_without_progress > 1:
            failures = self._rounds_without_progress - 1
            self._not_before = now + backoff_s(failures, self.timeouts.backoff_s, self.timeouts.backoff_max_s)

    def _finish(self, outcome: TrainingOutcome) -> None:
        self.stage, self.outcome = "finished", outcome

    def _compensate_suspend(self, now: float) -> None:
        """Add the time in which the coordinator itself did not run to every deadline."""
        if self._last_tick is None:
            self._since, self._until = now, now + self.timeouts.join_s
        elif (away := now - self._last_tick) > SUSPENDED_S:
            self._since, self._until, self._end_requested_at = (
                self._since + away,
                self._until + away,
                self._end_requested_at + away,
            )
            for rank in self.ranks:
                rank.last_progress += away
                if rank.stopped_since is not None:
                    rank.stopped_since += away
        self._last_tick = now
