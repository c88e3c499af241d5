"""ElasticRing of a training: which workers form the ring, when a round has failed, whom to blame, what comes next. Pure.

A round is one ring, from its roll call to the end of its last rank:

    gather ── enough workers, or enough waiting ──▶ call ── addresses are known ──▶ run ── rank 0 is done ──▶ over
      ▲                                              │                               │
      │◀──────────── nobody offered one ─────────────┘                               │ a rank died or stalled, or
      │                                                                              ▼ the ring can grow, or a drain
      └──────────────────────── all of its ranks have ended ◀─────────────────────  end ── nothing may follow ──▶ over

(state, event, now) → events for the scheduler, and lines to say. No round begins before every rank of the one before it
has ended, so two rings never write to one run folder.
"""

from __future__ import annotations

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

RESEND_S = 3.0  # a request to end that may have been lost is made again
SUSPENDED_S = 5.0  # between looks: the coordinator was suspended, not the ranks

RingAction = AddTasks | TerminateTasks | str


class ElasticRing:
    """Supervision of one training with a ring of up to `wanted` ranks. See the module's docstring."""

    def __init__(
        self, wanted: int, run: str, config: str = "", first: int = 1, timeouts: SupervisionTimeouts | None = None
    ) -> None:
        self.timeouts = timeouts or SupervisionTimeouts()
        self.wanted, self._run, self._config = wanted, run, config
        self.stage: Literal["waiting", "rendezvous", "running", "draining", "finished"] = "waiting"
        self.outcome: TrainingOutcome | None = None
        self.round = first - 1  # number of the latest
        self.ranks: list[Rank] = []
        self.history: list[RoundSummary] = []
        self.saved = 0  # step of the newest checkpoint that was seen
        self.stalls = StallDetector(self.timeouts)
        self._since = self._until = 0.0  # of this stage
        self._not_before = 0.0
        self._last_tick: float | None = None
        self._join_tasks: dict[str, str] = {}  # port task → worker
        self._addresses: dict[str, str] = {}  # worker → address, "" when it has none
        self._join_error = ""  # why a worker had none
        self._end_reason: Literal["fault", "grow", "drain"] = "fault"
        self._asked_at = self._grace_s = 0.0
        self._last_done: float | None = None  # when rank 0 was done
        self._grow_after_step: int | None = None  # rank 0's newest checkpoint when the ring could first grow
        self._best_step = -1  # the furthest step of all rounds before this one
        self._rounds_without_progress = 0
        self._excluded_until: dict[str, tuple[float, int]] = {}  # worker → until when, how often in succession

    @property
    def restarts(self) -> int:
        """ElasticRing that ended by a fault."""
        return sum(past.why == "fault" for past in self.history)

    @property
    def step(self) -> int:
        """The furthest step of this round; -1: none yet."""
        return max((rank.step for rank in self.ranks), default=-1)

    def decide(
        self, event: SupervisionTick | AddressOffered | RankDone | TaskProgress | TaskFailed, now: float
    ) -> list[RingAction]:
        """One event → what follows. What belongs to an earlier round changes nothing."""
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
                taken = event.address in self._addresses.values()  # two workers of one host found the same port
                self._addresses[self._join_tasks[event.task]] = "" if taken else event.address
        elif isinstance(event, TaskFailed) and event.task in self._join_tasks:
            worker = self._join_tasks[event.task]
            self._addresses.setdefault(worker, "")
            self._join_error = event.message
            if event.error not in NOT_WORKERS_FAULT:  # a ring that grows must not be broken for it at every checkpoint
                self._exclude(worker, now)
                out.append(f"round {self.round}: {worker} can't take part: {event.message}")
        elif isinstance(event, TaskProgress) and event.task in self._join_tasks:
            self._until = max(self._until, now + self.timeouts.address_s)  # files are on their way to it
        elif (rank := self._rank(event.task)) is not None:
            if isinstance(event, TaskProgress):
                self._on_heartbeat(rank, event, now)
            else:
                self._on_rank_end(rank, event, now)
        return out

    # -- forming a ring -------------------------------------------------------------------------------------------------

    def _wait_for_workers(self, tick: SupervisionTick, now: float, out: list[RingAction]) -> None:
        if tick.draining:
            self._finish(TrainingOutcome("drain", "the ring was stopped; start again to resume"))
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
                TrainingOutcome("incomplete", f"no worker that can hold a rank came for {now - self._since:.0f} s")
            )

    def _eligible_workers(self, tick: SupervisionTick, now: float) -> list[str]:
        """Workers that may hold a rank: all but the benched ones; were all benched, all."""
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
                self._count_failure(f"no worker offered an address: {self._join_error or 'none answered'}", now)
            return
        addresses = tuple(address for _, address in found)
        self.stage, self._last_done, self._grow_after_step = "running", None, None
        self.ranks = [Rank(number, worker, heard=now) for number, (worker, _) in enumerate(found)]
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
        out.append(f"round {self.round}: ring of {size}" + (f", from checkpoint {self.saved}" if self.saved else ""))

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
        if event.heartbeat_count > rank.beats:
            if rank.beats:
                self.stalls.record_gap(rank.phase, now - rank.heard, len(self.ranks))
            rank.heard, rank.beats, rank.phase = now, event.heartbeat_count, event.phase
            if event.phase != "start":  # which names the checkpoint that it goes on from
                rank.step = max(rank.step, event.step)
            rank.saved = event.checkpoint_step
            self.saved = max(self.saved, event.checkpoint_step)

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
        # A worker that is gone: its rank's lease never got there, or is about to go back.
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
                f"round {self.round}: a worker is back; the ring of {len(self.ranks)} grows from this checkpoint"
            )
            self._end_round("grow", timeouts.drain_grace_s, now, out)

    def _stalled(self, live: list[Rank], now: float, out: list[RingAction]) -> bool:
        """Whether a rank has stalled; marks the fault one, where it can be told from those that wait for it."""
        if self._stopped(live, now):
            return True
        timings = {rank.number: self.stalls.timeout_s(rank.phase, len(self.ranks)) for rank in live}
        late = [rank for rank in live if now - rank.heard > timings[rank.number]]
        if not late:
            return False
        last = min(rank.step for rank in live)
        behind = [rank for rank in live if rank.step == last]
        text = f"nothing new for {now - late[0].heard:.0f} s after {late[0].phase} {late[0].step}"
        if len(behind) == 1 and len(live) > 1:
            behind[0].fault = text
        else:
            self.stalls.record_unexplained_stall()
            out.append(f"round {self.round}: {text} from rank {late[0].number}, and no rank that is behind the others")
        return True

    def _stopped(self, live: list[Rank], now: float) -> bool:
        for rank in live:
            if rank.stopped_since is not None and now - rank.stopped_since >= self.timeouts.stopped_s:
                rank.fault = f"its process is stopped since {now - rank.stopped_since:.0f} s"
        return any(rank.fault for rank in live)

    def _can_grow(self, tick: SupervisionTick, now: float) -> bool:
        """A worker waits, and rank 0 has written a checkpoint since it came: little work is lost by a new round."""
        mine = {rank.worker for rank in self.ranks}
        waits = len(self.ranks) < self.wanted and not mine.issuperset(self._eligible_workers(tick, now))
        if not waits or self._grow_after_step is None:
            self._grow_after_step = self.ranks[0].saved if waits else None
            return False
        return self.ranks[0].saved > self._grow_after_step

    # -- ending it ------------------------------------------------------------------------------------------------------

    def _end_round(
        self, why: Literal["fault", "grow", "drain"], grace_s: float, now: float, out: list[RingAction]
    ) -> None:
        self.stage, self._end_reason = "draining", why
        self._request_end(grace_s, now, out)

    def _request_end(self, grace_s: float, now: float, out: list[RingAction]) -> None:
        self._asked_at, self._grace_s = now, grace_s
        if live := tuple(self._task(rank) for rank in self._live()):
            out.append(TerminateTasks(live, grace_s))

    def _drain(self, tick: SupervisionTick, now: float, out: list[RingAction]) -> None:
        if live := self._live():
            failed = self._stopped(live, now) or any(rank.fault for rank in self.ranks)
            if failed and self._grace_s > self.timeouts.fault_grace_s:  # no checkpoint will come of it
                self._end_round(
                    "drain" if self._end_reason == "drain" else "fault", self.timeouts.fault_grace_s, now, out
                )
            elif now >= self._asked_at + RESEND_S:
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
            self._finish(TrainingOutcome("drain", "the ring was stopped; start again to resume"))
        why = self._end_reason if self.outcome is None else self.outcome.status
        self.history.append(RoundSummary(self.round, len(self.ranks), self.step, why))
        if why == "fault":
            self._on_fault(now, out)
        if self.outcome is None:
            self._best_step = max(self._best_step, self.step)
            self._restart_rendezvous(now)

    def _on_fault(self, now: float, out: list[RingAction]) -> None:
        """Say who is to blame; give up, or leave out a worker whose ranks never come to a step."""
        fault = [rank for rank in self.ranks if rank.fault]
        for rank in fault:
            out.append(f"round {self.round}: rank {rank.number} on {rank.worker} failed: {rank.fault}")
            if any(r.phase != "start" for r in self.ranks):
                self._excluded_until.pop(rank.worker, None)
            else:
                self._exclude(rank.worker, now)
        if not fault:
            out.append(
                f"round {self.round}: the ring broke ({', '.join(sorted({r.ended or 'done' for r in self.ranks}))})"
            )
        if self.step > self._best_step:
            self._rounds_without_progress = 0
            return
        last = next((rank for rank in fault), self.ranks[0])
        self._count_failure(f"rank {last.number}: {last.fault or last.message}", now)

    def _exclude(self, worker: str, now: float) -> None:
        times = self._excluded_until.get(worker, (0.0, 0))[1] + 1
        away = backoff_s(times, self.timeouts.exclude_s, self.timeouts.exclude_max_s)
        self._excluded_until[worker] = (now + away, times)

    def _count_failure(self, what: str, now: float) -> None:
        """A round came no further than those before it: wait a little longer each time, and give up in the end."""
        self._rounds_without_progress += 1
        if self._rounds_without_progress >= self.timeouts.max_rounds_without_progress:
            text = f"{self._rounds_without_progress} rounds in succession came no further than step {max(self._best_step, 0)}"
            self._finish(TrainingOutcome("failed", f"{text}; the last one: {what}"))
        elif self._rounds_without_progress > 1:
            failures = self._rounds_without_progress - 1
            self._not_before = now + backoff_s(failures, self.timeouts.backoff_s, self.timeouts.backoff_max_s)

    def _finish(self, outcome: TrainingOutcome) -> None:
        self.stage, self.outcome = "finished", outcome

    def _compensate_suspend(self, now: float) -> None:
        """Time in which the coordinator itself did not run is given back."""
        if self._last_tick is None:
            self._since, self._until = now, now + self.timeouts.join_s
        elif (away := now - self._last_tick) > SUSPENDED_S:
            self._since, self._until, self._asked_at = self._since + away, self._until + away, self._asked_at + away
            for rank in self.ranks:
                rank.heard += away
                if rank.stopped_since is not None:
                    rank.stopped_since += away
        self._last_tick = now
