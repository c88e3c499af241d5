"""Rounds of a training: which workers form the ring, when a round has failed, whom to blame, what comes next. Pure.

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

from coordinator.scheduling.events import AddTasks, EndTasks, TaskGone, TaskProgress
from coordinator.scheduling.task_state import TaskSpec
from coordinator.stages.train.ring_state import BLAMELESS, DONE, Look, Past, PortFound, Rank, RankDone, Verdict
from coordinator.stages.train.stall import Pace, Patience
from coordinator.wire.failures import FailureKind
from coordinator.wire.lease_kinds import LeaseKind
from coordinator.wire.messages import RankJob

RESEND_S = 3.0  # a request to end that may have been lost is made again
AWAY_S = 5.0  # between looks: the coordinator was suspended, not the ranks

Told = AddTasks | EndTasks | str


class Rounds:
    """Supervision of one training with a ring of up to `wanted` ranks. See the module's docstring."""

    def __init__(
        self, wanted: int, run: str, config: str = "", first: int = 1, patience: Patience | None = None
    ) -> None:
        self.patience = patience or Patience()
        self.wanted, self._run, self._config = wanted, run, config
        self.stage: Literal["gather", "call", "run", "end", "over"] = "gather"
        self.verdict: Verdict | None = None
        self.round = first - 1  # number of the latest
        self.ranks: list[Rank] = []
        self.history: list[Past] = []
        self.saved = 0  # step of the newest checkpoint that was seen
        self.pace = Pace(self.patience)
        self._since = self._until = 0.0  # of this stage
        self._not_before = 0.0
        self._last_look: float | None = None
        self._called: dict[str, str] = {}  # port task → worker
        self._offers: dict[str, str] = {}  # worker → address, "" when it has none
        self._no_port = ""  # why a worker had none
        self._why: Literal["fault", "grow", "drain"] = "fault"
        self._asked_at = self._grace_s = 0.0
        self._last_done: float | None = None  # when rank 0 was done
        self._grow_from: int | None = None  # rank 0's newest checkpoint when the ring could first grow
        self._record = -1  # the furthest step of all rounds before this one
        self._fruitless = 0
        self._benched: dict[str, tuple[float, int]] = {}  # worker → until when, how often in succession

    @property
    def restarts(self) -> int:
        """Rounds that ended by a fault."""
        return sum(past.why == "fault" for past in self.history)

    @property
    def step(self) -> int:
        """The furthest step of this round; -1: none yet."""
        return max((rank.step for rank in self.ranks), default=-1)

    def decide(self, event: Look | PortFound | RankDone | TaskProgress | TaskGone, now: float) -> list[Told]:
        """One event → what follows. What belongs to an earlier round changes nothing."""
        out: list[Told] = []
        if isinstance(event, Look):
            self._shift(now)
            {"gather": self._gather, "call": self._call, "run": self._watch, "end": self._end}.get(
                self.stage, lambda *_: None
            )(event, now, out)
        elif isinstance(event, PortFound):
            if self.stage == "call" and event.task in self._called:
                taken = event.address in self._offers.values()  # two workers of one host found the same port
                self._offers[self._called[event.task]] = "" if taken else event.address
        elif isinstance(event, TaskGone) and event.task in self._called:
            worker = self._called[event.task]
            self._offers.setdefault(worker, "")
            self._no_port = event.message
            if event.error not in BLAMELESS:  # a ring that grows must not be broken for it at every checkpoint
                self._bench(worker, now)
                out.append(f"round {self.round}: {worker} can't take part: {event.message}")
        elif isinstance(event, TaskProgress) and event.task in self._called:
            self._until = max(self._until, now + self.patience.port_s)  # files are on their way to it
        elif (rank := self._rank(event.task)) is not None:
            if isinstance(event, TaskProgress):
                self._beat(rank, event, now)
            else:
                self._ended(rank, event, now)
        return out

    # -- forming a ring -------------------------------------------------------------------------------------------------

    def _gather(self, look: Look, now: float, out: list[Told]) -> None:
        if look.draining:
            self._over(Verdict("drain", "the ring was stopped; start again to resume"))
            return
        fit = self._fit(look, now)
        ready = len(fit) >= self.wanted or (fit and now >= self._until)
        if ready and now >= self._not_before:
            self.stage, self._until = "call", now + self.patience.port_s
            self.round += 1
            self._called = {f"train/{self.round}/port/{n}": worker for n, worker in enumerate(fit[: self.wanted])}
            self._offers = {}
            out.append(
                AddTasks(
                    tuple(
                        TaskSpec(task, LeaseKind.PORT, {}, worker=worker, once=True)
                        for task, worker in self._called.items()
                    )
                )
            )
        elif not fit and now >= self._since + self.patience.lonely_s:
            self._over(Verdict("incomplete", f"no worker that can hold a rank came for {now - self._since:.0f} s"))

    def _fit(self, look: Look, now: float) -> list[str]:
        """Workers that may hold a rank: all but the benched ones; were all benched, all."""
        fit = [name for name in look.workers if self._benched.get(name, (0.0, 0))[0] <= now]
        return fit or list(look.workers)

    def _call(self, look: Look, now: float, out: list[Told]) -> None:
        missing = tuple(task for task, worker in self._called.items() if worker not in self._offers)
        if not look.draining and missing and now < self._until:
            return
        if missing:
            out.append(EndTasks(missing, 0.0))
        found = [(worker, self._offers[worker]) for worker in self._called.values() if self._offers.get(worker)]
        self._called = {}
        if look.draining or not found:
            self._regather(now)
            if not look.draining:
                self._failed_again(f"no worker offered an address: {self._no_port or 'none answered'}", now)
            return
        addresses = tuple(address for _, address in found)
        self.stage, self._last_done, self._grow_from = "run", None, None
        self.ranks = [Rank(number, worker, heard=now) for number, (worker, _) in enumerate(found)]
        jobs = [RankJob(self.round, rank.number, addresses, self._run, self._config) for rank in self.ranks]
        out.append(
            AddTasks(
                tuple(
                    TaskSpec(self._task(rank), LeaseKind.TRAIN, msgspec.to_builtins(job), worker=rank.worker, once=True)
                    for rank, job in zip(self.ranks, jobs, strict=True)
                )
            )
        )
        size = f"{len(found)} of {self.wanted}" if len(found) < self.wanted else str(len(found))
        out.append(f"round {self.round}: ring of {size}" + (f", from checkpoint {self.saved}" if self.saved else ""))

    def _regather(self, now: float) -> None:
        self.stage, self._since, self._until = "gather", now, now + self.patience.regather_s

    # -- watching it ----------------------------------------------------------------------------------------------------

    def _task(self, rank: Rank) -> str:
        return f"train/{self.round}/rank/{rank.number}"

    def _rank(self, task: str) -> Rank | None:
        return next((rank for rank in self.ranks if self._task(rank) == task), None)

    def _live(self) -> list[Rank]:
        return [rank for rank in self.ranks if rank.ended is None]

    def _beat(self, rank: Rank, event: TaskProgress, now: float) -> None:
        if not event.stopped:
            rank.stopped_since = None
        elif rank.stopped_since is None:
            rank.stopped_since = now
        if event.beats > rank.beats:
            if rank.beats:
                self.pace.saw(rank.phase, now - rank.heard, len(self.ranks))
            rank.heard, rank.beats, rank.phase = now, event.beats, event.phase
            if event.phase != "start":  # which names the checkpoint that it goes on from
                rank.step = max(rank.step, event.step)
            rank.saved = event.saved
            self.saved = max(self.saved, event.saved)

    def _ended(self, rank: Rank, event: RankDone | TaskGone, now: float) -> None:
        if rank.ended is not None:
            return
        if isinstance(event, RankDone):
            rank.ended = DONE
            if rank.number == 0:
                self._last_done = now
            return
        rank.ended, rank.message = event.error, event.message
        if event.error not in BLAMELESS:
            rank.guilty = event.message

    def _watch(self, look: Look, now: float, out: list[Told]) -> None:
        live, patience = self._live(), self.patience
        failed = any(rank.ended not in (None, DONE) for rank in self.ranks)
        # A worker that is gone: its rank's lease never got there, or is about to go back.
        if failed or not live or any(rank.worker not in look.workers for rank in live):
            self._break("fault", patience.fault_grace_s, now, out)
        elif look.draining:
            self._break("drain", patience.drain_grace_s, now, out)
        elif self._last_done is not None:
            if now >= self._last_done + patience.last_s:
                self._break("fault", patience.fault_grace_s, now, out)
        elif self._stalled(live, now, out):
            self._break("fault", patience.fault_grace_s, now, out)
        elif self._can_grow(look, now):
            out.append(
                f"round {self.round}: a worker is back; the ring of {len(self.ranks)} grows from this checkpoint"
            )
            self._break("grow", patience.drain_grace_s, now, out)

    def _stalled(self, live: list[Rank], now: float, out: list[Told]) -> bool:
        """Whether a rank has stalled; marks the guilty one, where it can be told from those that wait for it."""
        if self._stopped(live, now):
            return True
        limits = {rank.number: self.pace.limit_s(rank.phase, len(self.ranks)) for rank in live}
        late = [rank for rank in live if now - rank.heard > limits[rank.number]]
        if not late:
            return False
        last = min(rank.step for rank in live)
        behind = [rank for rank in live if rank.step == last]
        text = f"nothing new for {now - late[0].heard:.0f} s after {late[0].phase} {late[0].step}"
        if len(behind) == 1 and len(live) > 1:
            behind[0].guilty = text
        else:
            self.pace.unexplained()
            out.append(f"round {self.round}: {text} from rank {late[0].number}, and no rank that is behind the others")
        return True

    def _stopped(self, live: list[Rank], now: float) -> bool:
        for rank in live:
            if rank.stopped_since is not None and now - rank.stopped_since >= self.patience.stopped_s:
                rank.guilty = f"its process is stopped since {now - rank.stopped_since:.0f} s"
        return any(rank.guilty for rank in live)

    def _can_grow(self, look: Look, now: float) -> bool:
        """A worker waits, and rank 0 has written a checkpoint since it came: little work is lost by a new round."""
        mine = {rank.worker for rank in self.ranks}
        waits = len(self.ranks) < self.wanted and not mine.issuperset(self._fit(look, now))
        if not waits or self._grow_from is None:
            self._grow_from = self.ranks[0].saved if waits else None
            return False
        return self.ranks[0].saved > self._grow_from

    # -- ending it ------------------------------------------------------------------------------------------------------

    def _break(self, why: Literal["fault", "grow", "drain"], grace_s: float, now: float, out: list[Told]) -> None:
        self.stage, self._why = "end", why
        self._ask(grace_s, now, out)

    def _ask(self, grace_s: float, now: float, out: list[Told]) -> None:
        self._asked_at, self._grace_s = now, grace_s
        if live := tuple(self._task(rank) for rank in self._live()):
            out.append(EndTasks(live, grace_s))

    def _end(self, look: Look, now: float, out: list[Told]) -> None:
        if live := self._live():
            failed = self._stopped(live, now) or any(rank.guilty for rank in self.ranks)
            if failed and self._grace_s > self.patience.fault_grace_s:  # no checkpoint will come of it
                self._break("drain" if self._why == "drain" else "fault", self.patience.fault_grace_s, now, out)
            elif now >= self._asked_at + RESEND_S:
                self._ask(self._grace_s, now, out)
            return
        final = {rank.ended: rank.message for rank in self.ranks}
        if self._last_done is not None:
            self._over(Verdict("done"))
        elif FailureKind.USAGE in final:
            self._over(Verdict("usage", final[FailureKind.USAGE]))
        elif FailureKind.STORAGE in final:
            self._over(Verdict("storage", final[FailureKind.STORAGE]))
        elif look.draining:
            self._over(Verdict("drain", "the ring was stopped; start again to resume"))
        why = self._why if self.verdict is None else self.verdict.status
        self.history.append(Past(self.round, len(self.ranks), self.step, why))
        if why == "fault":
            self._fault(now, out)
        if self.verdict is None:
            self._record = max(self._record, self.step)
            self._regather(now)

    def _fault(self, now: float, out: list[Told]) -> None:
        """Say who is to blame; give up, or leave out a worker whose ranks never come to a step."""
        guilty = [rank for rank in self.ranks if rank.guilty]
        for rank in guilty:
            out.append(f"round {self.round}: rank {rank.number} on {rank.worker} failed: {rank.guilty}")
            if any(r.phase != "start" for r in self.ranks):
                self._benched.pop(rank.worker, None)
            else:
                self._bench(rank.worker, now)
        if not guilty:
            out.append(
                f"round {self.round}: the ring broke ({', '.join(sorted({r.ended or 'done' for r in self.ranks}))})"
            )
        if self.step > self._record:
            self._fruitless = 0
            return
        last = next((rank for rank in guilty), self.ranks[0])
        self._failed_again(f"rank {last.number}: {last.guilty or last.message}", now)

    def _bench(self, worker: str, now: float) -> None:
        times = self._benched.get(worker, (0.0, 0))[1] + 1
        away = min(self.patience.bench_max_s, self.patience.bench_s * 2.0 ** (times - 1))
        self._benched[worker] = (now + away, times)

    def _failed_again(self, what: str, now: float) -> None:
        """A round came no further than those before it: wait a little longer each time, and give up in the end."""
        self._fruitless += 1
        if self._fruitless >= self.patience.fruitless:
            text = f"{self._fruitless} rounds in succession came no further than step {max(self._record, 0)}"
            self._over(Verdict("failed", f"{text}; the last one: {what}"))
        elif self._fruitless > 1:
            wait = self.patience.backoff_s * 2.0 ** (self._fruitless - 2)
            self._not_before = now + min(self.patience.backoff_max_s, wait)

    def _over(self, verdict: Verdict) -> None:
        self.stage, self.verdict = "over", verdict

    def _shift(self, now: float) -> None:
        """Time in which the coordinator itself did not run is given back."""
        if self._last_look is None:
            self._since, self._until = now, now + self.patience.gather_s
        elif (away := now - self._last_look) > AWAY_S:
            self._since, self._until, self._asked_at = self._since + away, self._until + away, self._asked_at + away
            for rank in self.ranks:
                rank.heard += away
                if rank.stopped_since is not None:
                    rank.stopped_since += away
        self._last_look = now
