"""Run leases at full rate and kill a worker at intervals: `uv run python -m scripts.bench.soak [--minutes 30] [--kill-every 20] [--out FILE]`.

A coordinator with its journal and two worker processes on one host. A fixed set of tasks is leased repeatedly: each is reopened after its
commit. At the end no task is reopened and the run ends. Verified: every opening was committed exactly once, under an attempt number that
was never used before; replaying the journal gives the live state; memory did not grow: its median over the last tenth of the time is
within `FLAT` of that over the first tenth after the warm-up. The peak, to which rewriting the journal adds for a while, is reported too.
The exit code is 1 otherwise. One JSON line every ten seconds on stderr, the result on stdout.
"""

import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from coordinator.scheduling.events import Outcome, TaskDone
from coordinator.scheduling.records import TaskSpec
from coordinator.scheduling.scheduler import Scheduler
from coordinator.scheduling.worker_state import LeaseTimings
from coordinator.server.hooks import StageHooks
from coordinator.server.journal import Journal
from coordinator.server.server import MAX_BATCH, Server
from coordinator.wire.filesystem_id import filesystem_id
from coordinator.wire.lease_kinds import LeaseKind
from coordinator.workers.local import LocalWorkerPool
from scripts.bench.common import emit, parser

POOL = 2 * MAX_BATCH + 1_000  # tasks
CAPACITY = 256  # leases a worker holds
WARM_UP_S = 150.0  # the journal has been rewritten several times by then
FLAT = 0.05
LIMITS = LeaseTimings(max_failures=1_000)  # killed workers may hold the same task many times


@dataclass
class Soak:
    """The stage: reopens tasks, counts commits, kills workers, samples memory."""

    data: Path
    seconds: float
    kill_every: float
    warm_up: float
    began: float = field(default_factory=time.monotonic)
    opened: int = POOL
    commits: int = 0
    wrong: int = 0  # commits of an attempt that had been committed before, or of an older one
    kills: int = 0
    last: dict[str, int] = field(default_factory=dict)  # task → attempt of its last commit
    waiting: deque[TaskSpec] = field(default_factory=deque)  # committed, to be reopened
    memory: list[tuple[float, int]] = field(default_factory=list)  # (seconds, bytes of the coordinator)
    largest_worker: int = 0
    longest_journal: int = 0
    sampled: float = 0.0

    def run(self) -> Outcome:
        """Run until all tasks are committed after the time is over."""
        self.scheduler, self.journal = (
            Scheduler(filesystem_id(self.data), LIMITS),
            Journal(self.data / "journal.sqlite"),
        )
        hooks = StageHooks(on_task_done=self.done, on_tick=self.tick)
        self.server = Server(self.scheduler, self.journal, data_dir=self.data, hooks=hooks)
        command = (sys.executable, "-m", "worker", "--capacity", str(CAPACITY))
        self.workers = LocalWorkerPool(command, self.server.endpoint, self.data, 2, 1, LIMITS.silence_s)
        self.server.add_tasks(TaskSpec(f"t{n}", LeaseKind.NOOP, {}) for n in range(POOL))
        self.draw, self.process, self.next_kill = random.Random(0), psutil.Process(), self.began + self.kill_every
        self.workers.start()
        try:
            return self.server.run()
        finally:
            self.workers.stop()

    @property
    def over(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() - self.began >= self.seconds

    def done(self, done: TaskDone) -> list[TaskSpec]:
        """Count a commit, and reopen the task that was committed longest ago."""
        self.commits += 1
        self.wrong += done.attempt <= self.last.get(done.task.id, 0)
        self.last[done.task.id] = done.attempt
        self.waiting.append(done.task)
        # A commit is confirmed in the batch after its own: of those that are opened here, all were of an earlier batch.
        if self.over or len(self.waiting) <= MAX_BATCH:
            return []
        self.opened += 1
        return [self.waiting.popleft()]

    def tick(self) -> None:
        """Kill a worker if it is time, and sample memory."""
        now = time.monotonic()
        registered = {worker.registration.pid for worker in self.scheduler.workers.values()}
        self.workers.supervise(registered, self.server.lost)
        if now >= self.next_kill and not self.over and registered:
            with suppress(ProcessLookupError):  # already dead but still registered: the next tick kills another
                os.kill(self.draw.choice(sorted(registered)), signal.SIGKILL)
                self.next_kill = now + self.kill_every
                self.kills += 1
        if now - self.sampled >= min(10.0, self.seconds / 20):
            self.sampled = now
            self.memory.append((now - self.began, self.process.memory_info().rss))
            rss = [worker.rss for worker in self.scheduler.workers.values()]
            self.largest_worker = max([self.largest_worker, *rss])
            self.longest_journal = max(self.longest_journal, (self.data / "journal.sqlite").stat().st_size)
            mb = self.memory[-1][1] / 1e6
            line = {"s": round(now - self.began), "commits": self.commits, "mb": mb, "kills": self.kills}
            emit(line, None, progress=True)

    def result(self, outcome: Outcome) -> dict[str, Any]:
        """Return the counts, the growth of memory, and whether the journal leads to the live state."""
        again = Scheduler()
        for record in self.journal.load():
            again.apply(record)
        after = [rss for seconds, rss in self.memory if self.warm_up <= seconds <= self.seconds]
        tenth = max(1, len(after) // 10)
        level, last = statistics.median(after[:tenth]), statistics.median(after[-tenth:])
        return {
            "status": outcome.status,
            "minutes": self.seconds / 60,
            "opened": self.opened,
            "commits": self.commits,
            "committed_twice": self.wrong,
            "lost": self.opened - self.commits,
            "per_s": round(self.commits / (time.monotonic() - self.began)),
            "kills": self.kills,
            "restarts": self.workers.restarts,
            "replay_is_the_live_state": again.tasks == self.scheduler.tasks,
            "mb_after_warm_up": level / 1e6,
            "memory_growth": last / level - 1.0,
            "memory_peak": max(after) / level - 1.0,
            "largest_worker_mb": self.largest_worker / 1e6,
            "largest_journal_mb": self.longest_journal / 1e6,
            "journal_rewrites": self.server.counters["rewrites"],
            "journal_commits": self.server.counters["commits"],
        }


def main() -> int:
    """Return 0 if nothing was lost or committed twice, the journal is right and memory is flat; else 1."""
    command = parser(__doc__)
    command.add_argument("--minutes", type=float, default=30.0)
    command.add_argument("--kill-every", type=float, default=20.0, metavar="SECONDS")
    command.add_argument("--out", type=Path, help="append the result as a JSON line")
    options = command.parse_args()
    seconds = 60 * options.minutes
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        soak = Soak(Path(folder), seconds, options.kill_every, warm_up=min(WARM_UP_S, seconds / 2))
        result = soak.result(soak.run())
    emit(result, None)
    if options.out is not None:
        emit({"event": "soak", **result}, options.out, progress=True)
    good = result["status"] == "done" and result["replay_is_the_live_state"] and result["memory_growth"] <= FLAT
    return 0 if good and not result["lost"] and not result["committed_twice"] else 1


if __name__ == "__main__":
    sys.exit(main())
