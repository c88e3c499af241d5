"""The supervisor of a control training: leases out what the learner asks for, twice what is late, and nothing to who cheats."""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from coordinator.scheduling.events import (
    AddTasks,
    CancelTasks,
    Event,
    ExcludeWorker,
    TaskDone,
    TaskFailed,
    TaskProgress,
)
from coordinator.scheduling.scheduler import Scheduler, TaskSpec
from coordinator.scheduling.speculation import RunningLease, select_speculative_copies
from coordinator.stages.display import Rendering
from coordinator.stages.rollouts.learner_process import LearnerProcess
from coordinator.stages.rollouts.view import ControlView, PlayerView, render
from coordinator.wire.failures import FailureKind
from coordinator.wire.lease_kinds import LeaseKind
from coordinator.wire.messages import MAX_WEIGHTS, Weights
from coordinator.wire.payloads import FileRef
from rl.distributed.protocol import (
    DistrustWorker,
    Finished,
    FromLearner,
    JobResult,
    Log,
    Progress,
    PublishPolicy,
    RunJob,
    as_bytes,
)
from rl.env.dataset_file import DATASETS, path_of

MOST_PUT_OUT = 10  # workers: then it is the learner that differs from all of them
WEIGHTS_KEPT = 256  # a few hundred KB each
STOPPED_S = 5.0  # that a learner may be stopped (SIGSTOP) until another takes its place
REMEMBERED = 64  # leases of a kind whose times are known


@dataclass
class PendingJob:
    """What the learner wants, and the tasks that are out for it."""

    ask: RunJob
    tasks: dict[str, float] = field(default_factory=dict)  # id → when it was first seen leased; 0: not yet
    given: str = ""  # digest of the result that was handed on
    twice: bool = False


class RolloutController:
    """The supervisor of one run. The learner's words come in a thread of their own; `_lock` covers all that both touch."""

    def __init__(self, command: tuple[str, ...], run: Path, most_deaths: int) -> None:
        """`command` starts a learner, which may die `most_deaths` times in one place; `run` has its log and the tables."""
        self._command, self._run, self._most_deaths = command, run, most_deaths
        self._lock = threading.RLock()
        self._asked: dict[int, PendingJob] = {}
        self._number_of: dict[str, int] = {}  # task → number
        self._seconds: dict[str, deque[float]] = {}
        self._weights: dict[str, Weights] = {}
        self._results: Counter[str] = Counter()
        self._issued = self._twice = self._deaths = 0
        self._put_out: set[str] = set()
        self._told: list[str] = []
        self._progress = Progress("start", 0, 0, {})
        self._figures: dict[str, float] = {}
        self._players: tuple[PlayerView, ...] = ()
        self._leases = 0
        self._began = self._running = time.monotonic()  # when the learner was last seen to run
        self._post: Callable[[Event | Weights], None]
        self._learner: LearnerProcess | None = None
        self.over: Finished | None = None

    def on_start(self, scheduler: Scheduler, post: Callable[[Event | Weights], None]) -> None:
        self._post = post
        self._start()

    def _start(self) -> None:
        """A learner; ids of its tasks never meet those of another, whose results are void."""
        self._nonce = secrets.token_hex(4)
        learner: list[LearnerProcess] = []

        def heard(word: FromLearner | None, arrays: Mapping[str, NDArray]) -> None:
            with self._lock:
                if learner and self._learner is learner[0]:
                    self._heard(word, arrays)

        with self._lock:  # its first word waits until we know it
            learner.append(LearnerProcess(self._command, self._run / "logs" / "learner.log", heard))
            self._learner = learner[0]

    # -- the learner's thread -------------------------------------------------------------------------------------------

    def _heard(self, word: FromLearner | None, arrays: Mapping[str, NDArray]) -> None:
        if isinstance(word, RunJob):
            self._withdraw(word.number)
            self._asked[word.number] = PendingJob(word)
            self._issue(word.number)
        elif isinstance(word, PublishPolicy):
            data = as_bytes(arrays["data"])
            if len(data) > MAX_WEIGHTS:
                self._finish(
                    Finished("usage", f"weights of {len(data)} bytes do not fit into a message: a smaller width")
                )
            else:
                self._keep(Weights(word.version, word.sha256, data))
        elif isinstance(word, DistrustWorker):
            self._put_out.add(word.worker)
            self._told.append(f"{word.worker} is put out: {word.reason}")
            self._post(ExcludeWorker(word.worker, f"its results are wrong: {word.reason}"[:1000]))
            if len(self._put_out) > MOST_PUT_OUT:
                self._finish(
                    Finished("failed", f"{len(self._put_out)} workers gave other results than this host: {word.reason}")
                )
        elif isinstance(word, Progress):
            if (word.stage, word.done) != (self._progress.stage, self._progress.done):
                self._deaths = 0
            self._progress = word
            self._figures |= word.figures
        elif isinstance(word, Log):
            self._told.append(word.text)
        elif isinstance(word, Finished):
            self._finish(word)
        elif word is None:
            self._died()

    def _keep(self, weights: Weights) -> None:
        """The newest few, and those that somebody who plays for an open job may still ask for."""
        self._weights.pop(weights.sha256, None)
        self._weights[weights.sha256] = weights
        wanted = {value for asked in self._asked.values() for value in asked.ask.job.values() if isinstance(value, str)}
        newest = list(self._weights)[-WEIGHTS_KEPT:]
        self._weights = {name: one for name, one in self._weights.items() if name in newest or name in wanted}
        self._post(weights)

    def get_weights(self, sha256: str) -> Weights | None:
        with self._lock:
            return self._weights.get(sha256)

    def _issue(self, number: int, worker: str = "") -> None:
        asked, self._issued = self._asked[number], self._issued + 1
        name, ask = f"control/{self._nonce}/{self._issued:08d}", asked.ask
        try:
            job = {**ask.job, "files": self._files(ask.datasets)} if ask.datasets else ask.job
        except OSError as error:
            self._finish(Finished("failed", f"{error.filename}: {error.strerror}; start again, and it is made again"))
            return
        asked.tasks[name] = 0.0
        self._number_of[name] = number
        spec = TaskSpec(
            name, ask.kind, job, requires_shared_fs=not ask.datasets, worker=worker, ephemeral=True, arrays=ask.arrays
        )
        self._post(AddTasks((spec,)))

    def _files(self, tables: Iterable[str]) -> list[dict[str, Any]]:
        """Tables as files that a worker on another file system asks for."""
        paths = [path_of(self._run, sha256) for sha256 in tables]
        listed = [FileRef(f"{DATASETS}/{path.name}", path.stat().st_size, path.stem) for path in paths]
        return [msgspec.to_builtins(file) for file in listed]

    def _withdraw(self, *numbers: int) -> None:
        names = [name for number in numbers if number in self._asked for name in self._asked[number].tasks]
        for name in names:
            self._asked[self._number_of.pop(name)].tasks.pop(name)
        if names:
            self._post(CancelTasks(tuple(names)))

    def _died(self) -> None:
        if self.over is not None or self._learner is None:
            return
        how = self._learner.exit_reason
        self._deaths += 1
        self._withdraw(*self._asked)
        self._asked.clear()
        if self._deaths >= self._most_deaths:
            self._finish(
                Finished("failed", f"the learner ended with {how}, {self._deaths} times in one place: see its log")
            )
            return
        self._told.append(f"the learner ended with {how}: started again from its newest state")
        self._start()

    def _finish(self, over: Finished) -> None:
        if self.over is None:
            self.over = over
            self._withdraw(*self._asked)

    # -- the server's thread --------------------------------------------------------------------------------------------

    def on_task_done(self, done: TaskDone) -> Iterable[TaskSpec]:
        """Hand a result on. The second one of a job that was issued twice only where it differs."""
        with self._lock:
            number = self._number_of.pop(done.task.id, None)
            if number is None or self._learner is None:
                return ()
            asked = self._asked[number]
            asked.tasks.pop(done.task.id)
            self._seconds.setdefault(done.task.kind, deque(maxlen=REMEMBERED)).append(done.seconds)
            self._results[done.worker] += 1
            digest = hashlib.sha256(b"".join(done.arrays)).hexdigest()
            if digest != asked.given:
                asked.given = asked.given or digest
                arrays = {
                    name: np.frombuffer(frame, dtype).reshape(shape)
                    for (name, dtype, shape), frame in zip(done.task.arrays, done.arrays, strict=True)
                }
                self._learner.send_result(JobResult(number, done.worker, done.seconds, done.proof), arrays)
            if not asked.tasks:
                del self._asked[number]
        return ()

    def on_lease_event(self, what: TaskProgress | TaskFailed) -> None:
        pass

    def on_tick(self, scheduler: Scheduler, now: float) -> Iterable[Event | str]:
        with self._lock:
            if scheduler.is_draining and self.over is None and self._learner is not None:
                self._withdraw(*self._asked)
                learner, self._learner = self._learner, None
                learner.end()
            if self.over is None and self._learner is not None:
                self._look(scheduler, now)
            told, self._told = self._told, []
            return told

    def _look(self, scheduler: Scheduler, now: float) -> None:
        runners = {
            name: worker for name, worker in scheduler.workers.items() if LeaseKind.ROLLOUT in worker.registration.kinds
        }
        self._players = tuple(
            PlayerView(name, len(worker.held), self._results[name], now - worker.last_seen)
            for name, worker in runners.items()
        )
        out, waiting = [], False
        for name, number in list(self._number_of.items()):
            task, asked = scheduler.tasks.get(name), self._asked[number]
            if task is None:
                continue  # posted, not decided yet
            if task.state == "quarantined":
                usage = task.error == FailureKind.USAGE
                told = f"{asked.ask.kind} failed {task.failures} times: {task.error}: {task.message}"
                self._finish(Finished("usage", task.message) if usage else Finished("failed", told))
                return
            if task.state == "leased":
                asked.tasks[name] = asked.tasks[name] or now
                out.append(RunningLease(number, asked.ask.kind, now - asked.tasks[name], task.worker))
            elif asked.given or (task.spec.worker and task.spec.worker not in runners):
                self._drop(name, asked)
            else:
                asked.tasks[name] = 0.0
                waiting = True
        self._leases = len(out)
        assert self._learner is not None
        if not self._learner.stopped:
            self._running = now
        elif now - self._running > STOPPED_S:
            self._running = now
            self._told.append("the learner's process is stopped: ended by force")
            self._learner.end()
        idle = [name for name, worker in runners.items() if not worker.held] if not waiting else []
        twice = [number for number, asked in self._asked.items() if asked.twice or asked.given]
        for number, worker in select_speculative_copies(out, self._seconds, idle, twice):
            self._asked[number].twice = True
            self._twice += 1
            self._issue(number, worker)

    def _drop(self, name: str, asked: PendingJob) -> None:
        """A second issue that nobody needs, or whose worker is gone."""
        self._post(CancelTasks((name,)))
        number = self._number_of.pop(name)
        del asked.tasks[name]
        asked.twice = bool(asked.given)
        if asked.given and not asked.tasks:
            del self._asked[number]

    def has_more_work(self) -> bool:
        return self.over is None and self._learner is not None

    def view(self) -> Rendering:
        with self._lock:
            now = time.monotonic()
            return render(
                ControlView(
                    stage=self._progress.stage if self.over is None else "over",
                    done=self._progress.done,
                    total=self._progress.total,
                    figures=dict(self._figures),
                    out=self._leases,
                    issued_twice=self._twice,
                    put_out=len(self._put_out),
                    elapsed_s=now - self._began,
                    workers=self._players,
                )
            )

    def close(self) -> None:
        """End the learner's process."""
        with self._lock:
            learner, self._learner = self._learner, None
        if learner is not None:
            learner.end()

    @property
    def figures(self) -> dict[str, Any]:
        """For the summary."""
        return {"leases": self._issued, "issued_twice": self._twice, "put_out": sorted(self._put_out)}
