"""Rollout controller: schedules the learner's jobs, runs stragglers a second time, and excludes workers with wrong results."""

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

from coordinator.scheduling.events import (
    AddTasks,
    CancelTasks,
    Event,
    ExcludeWorker,
    TaskDone,
    TaskFailed,
    TaskProgress,
)
from coordinator.scheduling.progress import Part, StageProgress
from coordinator.scheduling.records import TaskSpec, ephemeral_task
from coordinator.scheduling.scheduler import Scheduler
from coordinator.scheduling.speculation import RunningLease, select_speculative_copies
from coordinator.server.status import RunStatus
from coordinator.stages.display import Rendering
from coordinator.stages.fleet import LEASES_EACH
from coordinator.stages.rollouts.learner_process import LearnerProcess
from coordinator.stages.rollouts.view import ControlView, WorkerView, planned_parts, render
from coordinator.stages.runner import StageController
from coordinator.wire.failures import FailureKind
from coordinator.wire.lease_kinds import LeaseKind
from coordinator.wire.messages import MAX_WEIGHTS, Weights
from coordinator.wire.payloads import FileRef
from coordinator.workers.arithmetic import describe_difference
from ringattn.blas.library import numpy_blas
from rl.distributed.protocol import (
    DistrustWorker,
    Finished,
    FromLearner,
    JobResult,
    Log,
    PartPlan,
    Progress,
    PublishPolicy,
    RunJob,
    WorkPlan,
)
from rl.env.dataset_file import DATASETS, path_of

MAX_EXCLUDED = 10  # workers: beyond it, it is the learner that differs from all of them
WEIGHTS_KEPT = 256  # a few hundred KB each
STOPPED_S = 5.0  # that a learner may be stopped (SIGSTOP) before another replaces it
DURATIONS_KEPT = 64  # of the last leases of each kind


@dataclass
class PendingJob:
    """A job of the learner, and its tasks that have not ended."""

    request: RunJob
    tasks: dict[str, float] = field(default_factory=dict)  # id → when it was first seen leased; 0: not yet
    digest: str = ""  # of the result that the learner has; "": none yet
    speculated: bool = False  # issued a second time


class RolloutController(StageController):
    """Controls one run. The learner's messages arrive in a thread of their own; `_lock` guards what both threads touch."""

    stage = "rollouts"

    def __init__(self, command: tuple[str, ...], run: Path, max_deaths: int, like: str = "") -> None:
        """Take the learner's `command`, the folder `run` of its log and datasets, and its deaths without progress until failure.

        `like` names what the times depend on.
        """
        self.like = like
        self._plan: Mapping[str, PartPlan] = {}
        self._command, self._run, self._max_deaths = command, run, max_deaths
        self.download_roots = {DATASETS: run / DATASETS}
        self._lock = threading.RLock()
        self._pending: dict[int, PendingJob] = {}
        self._number_of: dict[str, int] = {}  # task → number of its job
        self._durations: dict[str, deque[float]] = {}  # kind → seconds
        self._weights: dict[str, Weights] = {}
        self._results: Counter[str] = Counter()
        self._issued = self._speculated = self._deaths = 0
        self._excluded: set[str] = set()
        self._arithmetic = {"the learner": numpy_blas().describe()}  # and of each worker's host
        self._lines: list[str] = []  # to show
        self._progress = Progress("start", 0, 0, {})
        self.last_progress_at = time.monotonic()
        self._figures: dict[str, float] = {}
        self._workers: tuple[WorkerView, ...] = ()
        self._leases = 0
        self._began = self._running = time.monotonic()  # `_running`: when the learner was last seen to run
        self._post: Callable[[Event | Weights], None]
        self._learner: LearnerProcess | None = None
        self.over: Finished | None = None

    def on_start(self, scheduler: Scheduler, post: Callable[[Event | Weights], None]) -> None:
        """Start the learner."""
        self._post = post
        self._start()

    def _start(self) -> None:
        """Start a learner. Its tasks have ids that no other learner's have, so results for an earlier one are ignored."""
        self._nonce = secrets.token_hex(4)
        with self._lock:  # its first message waits until the process is known
            self._learner = LearnerProcess(self._command, self._run / "logs" / "learner.log", self._on_message)

    # -- the learner's reading thread -----------------------------------------------------------------------------------

    def _on_message(self, learner: LearnerProcess, message: FromLearner | None, frames: tuple[bytes, ...]) -> None:
        with self._lock:
            if learner is not self._learner:
                return
            if isinstance(message, RunJob):
                self._withdraw(message.number)
                self._pending[message.number] = PendingJob(message)
                self._issue(message.number)
            elif isinstance(message, PublishPolicy):
                self._publish(Weights(message.version, message.sha256, frames[0]))
            elif isinstance(message, DistrustWorker):
                self._exclude(message)
            elif isinstance(message, Progress):
                if (message.stage, message.done) != (self._progress.stage, self._progress.done):
                    self._deaths = 0
                self._progress, self.last_progress_at = message, time.monotonic()
                self._figures |= message.figures
            elif isinstance(message, WorkPlan):
                self._plan = message.parts
            elif isinstance(message, Log):
                self._lines.append(message.text)
            elif isinstance(message, Finished):
                self._finish(message)
            else:
                self._learner_died(learner.exit_reason)

    def _publish(self, weights: Weights) -> None:
        """Send weights to the workers; keep the newest and those that a pending job names."""
        if len(weights.data) > MAX_WEIGHTS:
            size = f"weights of {len(weights.data)} bytes are over the limit of {MAX_WEIGHTS} for a message"
            self._finish(Finished("usage", f"{size}. Choose a smaller `width` in the control configuration."))
            return
        self._weights.pop(weights.sha256, None)
        self._weights[weights.sha256] = weights
        named = {
            value for job in self._pending.values() for value in job.request.job.values() if isinstance(value, str)
        }
        named.update(list(self._weights)[-WEIGHTS_KEPT:])
        self._weights = {sha256: kept for sha256, kept in self._weights.items() if sha256 in named}
        self._post(weights)

    def get_weights(self, sha256: str) -> Weights | None:
        """Return the weights of this digest, for a worker that requests them."""
        with self._lock:
            return self._weights.get(sha256)

    def _exclude(self, message: DistrustWorker) -> None:
        self._excluded.add(message.worker)
        self._lines.append(f"Excluded worker {message.worker}: wrong result for {message.reason}")
        self._post(ExcludeWorker(message.worker, f"its results are wrong: {message.reason}"[:1000]))
        if len(self._excluded) > MAX_EXCLUDED:
            differ = f"the results of {len(self._excluded)} workers differ from this host's"
            self._finish(Finished("failed", f"{differ}; the last one: {message.reason}"))

    def _issue(self, number: int, worker: str = "") -> None:
        job, self._issued = self._pending[number], self._issued + 1
        name, request = f"control/{self._nonce}/{self._issued:08d}", job.request
        try:
            files = {"files": self._files(request.datasets)} if request.datasets else {}
        except OSError as error:
            message = f"dataset {error.filename}: {error.strerror}. Run the same command again: it builds the dataset."
            self._finish(Finished("failed", message))
            return
        job.tasks[name] = 0.0
        self._number_of[name] = number
        spec = ephemeral_task(
            name,
            request.kind,
            {**request.job, **files},
            request.arrays,
            worker=worker,
            requires_shared_fs=not request.datasets,
        )
        self._post(AddTasks((spec,)))

    def _files(self, datasets: Iterable[str]) -> list[dict[str, Any]]:
        """Return datasets as files that a worker on another file system downloads."""
        paths = [path_of(self._run, sha256) for sha256 in datasets]
        listed = [FileRef(f"{DATASETS}/{path.name}", path.stat().st_size, path.stem) for path in paths]
        return [msgspec.to_builtins(file) for file in listed]

    def _withdraw(self, *numbers: int) -> None:
        names = [name for number in numbers if number in self._pending for name in self._pending[number].tasks]
        for name in names:
            self._pending[self._number_of.pop(name)].tasks.pop(name)
        if names:
            self._post(CancelTasks(tuple(names)))

    def _learner_died(self, exit_reason: str) -> None:
        if self.over is not None:
            return
        self._deaths += 1
        self._withdraw(*self._pending)
        self._pending.clear()
        if self._deaths >= self._max_deaths:
            log = self._run / "logs" / "learner.log"
            self._finish(
                Finished(
                    "failed", f"the learner ended {self._deaths} times without progress ({exit_reason}). Read {log}."
                )
            )
            return
        self._lines.append(f"the learner ended with {exit_reason}; another one resumes from its newest state")
        self._start()

    def _finish(self, over: Finished) -> None:
        if self.over is None:
            self.over = over
            self._withdraw(*self._pending)

    # -- the server's thread --------------------------------------------------------------------------------------------

    def on_task_done(self, done: TaskDone) -> Iterable[TaskSpec]:
        """Pass a result on to the learner; the second one of a job that ran twice only where it differs."""
        with self._lock:
            number = self._number_of.pop(done.task.id, None)
            if number is None or self._learner is None:
                return ()
            job = self._pending[number]
            job.tasks.pop(done.task.id)
            self._durations.setdefault(done.task.kind, deque(maxlen=DURATIONS_KEPT)).append(done.seconds)
            self._results[done.worker] += 1
            digest = hashlib.sha256(b"".join(done.arrays)).hexdigest()
            if digest != job.digest:
                job.digest = job.digest or digest
                result = JobResult(number, done.worker, done.seconds, done.output)
                self._learner.send_result(result, done.arrays)
            if not job.tasks:
                del self._pending[number]
        return ()

    def on_lease_event(self, event: TaskProgress | TaskFailed) -> None:
        """Do nothing: the controller polls its tasks in `on_tick`."""

    def on_tick(self, scheduler: Scheduler, now: float) -> Iterable[Event | str]:
        """Supervise tasks and learner; return the lines to show."""
        with self._lock:
            if scheduler.is_draining and self.over is None and self._learner is not None:
                self._withdraw(*self._pending)
                learner, self._learner = self._learner, None
                learner.kill()
            if self.over is None and self._learner is not None:
                self._supervise_learner(self._learner, now)
                self._supervise_tasks(scheduler, now)
            lines, self._lines = self._lines, []
            return lines

    def _supervise_learner(self, learner: LearnerProcess, now: float) -> None:
        if not learner.stopped:
            self._running = now
        elif now - self._running > STOPPED_S:
            self._running = now
            self._lines.append(f"the learner's process has been stopped for {STOPPED_S:.0f} s: killed")
            learner.kill()

    def _supervise_tasks(self, scheduler: Scheduler, now: float) -> None:
        workers = {
            name: worker for name, worker in scheduler.workers.items() if LeaseKind.ROLLOUT in worker.registration.kinds
        }
        for registration in [worker.registration for worker in workers.values()]:
            if registration.arithmetic not in ("", *self._arithmetic.values()):
                self._lines.append(describe_difference(self._arithmetic | {registration.host: registration.arithmetic}))
            self._arithmetic[registration.host] = registration.arithmetic
        self._workers = tuple(
            WorkerView(
                name, len(worker.held), worker.registration.capacity, self._results[name], now - worker.last_seen
            )
            for name, worker in workers.items()
        )
        running, waiting = [], False
        for name, number in list(self._number_of.items()):
            task, job = scheduler.tasks.get(name), self._pending[number]
            if task is None:
                continue  # posted, not decided yet
            if task.state == "quarantined":
                failed = f"{job.request.kind} failed {task.failures} times: {task.error}: {task.message}"
                usage = task.error == FailureKind.USAGE
                self._finish(Finished("usage", task.message) if usage else Finished("failed", failed))
                return
            if task.state == "leased":
                job.tasks[name] = job.tasks[name] or now
                running.append(RunningLease(number, job.request.kind, now - job.tasks[name], task.worker))
            elif job.digest or (task.spec.worker and task.spec.worker not in workers):
                self._drop(name, job)
            else:
                job.tasks[name] = 0.0
                waiting = True
        self._leases = len(running)
        idle = [] if waiting else [name for name, worker in workers.items() if not worker.held]
        settled = [number for number, job in self._pending.items() if job.speculated or job.digest]
        for number, worker in select_speculative_copies(running, self._durations, idle, settled):
            self._pending[number].speculated = True
            self._speculated += 1
            self._issue(number, worker)

    def _drop(self, name: str, job: PendingJob) -> None:
        """Cancel a speculative copy that is no longer needed, or whose worker has gone."""
        self._post(CancelTasks((name,)))
        number = self._number_of.pop(name)
        del job.tasks[name]
        job.speculated = bool(job.digest)
        if job.digest and not job.tasks:
            del self._pending[number]

    def has_more_work(self) -> bool:
        """Whether the learner may submit more jobs."""
        return self.over is None and self._learner is not None

    def parts(self, status: RunStatus) -> tuple[Part, ...]:
        """Return the parts that the learner has named; those before its present one are done."""
        with self._lock:
            workers = max(
                sum(worker.capacity for worker in self._workers) // LEASES_EACH, 1
            )  # an engine counts as several
            return planned_parts(self._plan, self._progress, workers, over=self.over is not None)

    def view(self, progress: StageProgress | None = None) -> Rendering:
        """Return what displays show."""
        with self._lock:
            now = time.monotonic()
            return render(
                ControlView(
                    stage=self._progress.stage if self.over is None else "over",
                    done=self._progress.done,
                    total=self._progress.total,
                    progress=progress,
                    eta_s=None if progress is None else progress.eta_s,
                    figures=dict(self._figures),
                    out=self._leases,
                    issued_twice=self._speculated,
                    put_out=len(self._excluded),
                    elapsed_s=now - self._began,
                    workers=self._workers,
                )
            )

    def close(self) -> None:
        """End the learner's process."""
        with self._lock:
            learner, self._learner = self._learner, None
        if learner is not None:
            learner.kill()
            learner.join()

    @property
    def figures(self) -> dict[str, Any]:
        """The run's numbers for the summary."""
        return {"leases": self._issued, "issued_twice": self._speculated, "put_out": sorted(self._excluded)}
