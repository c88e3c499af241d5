"""Supervise a training: feed `ElasticRing` with what the server observes, and post what it decides."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import msgspec

from coordinator.scheduling.events import AddTasks, Event, TaskDone, TaskFailed, TaskProgress
from coordinator.scheduling.progress import Part, StageProgress
from coordinator.scheduling.records import TaskSpec
from coordinator.scheduling.scheduler import Scheduler
from coordinator.server.lease_files import NO_FILES, LeaseFiles
from coordinator.server.status import RunStatus
from coordinator.stages.display import Rendering
from coordinator.stages.fleet import StageOptions
from coordinator.stages.run_folder import check_config, read_config
from coordinator.stages.runner import StageController
from coordinator.stages.train import artifacts
from coordinator.stages.train.artifacts import MetricsFollower
from coordinator.stages.train.elastic import ElasticRing, RingAction
from coordinator.stages.train.inputs import TrainingFiles
from coordinator.stages.train.ring_state import AddressOffered, RankDone, SupervisionTick
from coordinator.stages.train.stall import SupervisionTimeouts
from coordinator.stages.train.view import describe_rebalance, render, train_view
from coordinator.stages.train.work import TrainingPlan, TrainingWork, like
from coordinator.stages.years import years_on_disk
from coordinator.wire.lease_kinds import LeaseKind
from coordinator.wire.messages import Weights
from coordinator.wire.payloads import JoinReply, JoinRequest
from coordinator.workers.arithmetic import describe_difference

# Of rank 0's lease: its checkpoints, of which four are on disk at once, and the files of the run.
UPLOADS = LeaseFiles(
    (r"run/checkpoints/\d{6,}/[\w.-]+", r"run/(metrics\.jsonl|config\.json|result\.json)"), 1_000, 64 << 30
)


@dataclass(frozen=True, kw_only=True)
class TrainOptions(StageOptions):
    """Options of a training of the forecaster."""

    run: Path  # run folder
    ranks: int
    config: bytes  # content of the training's configuration file; empty: train.py's defaults

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], **own: Any) -> Self:
        """Return the options of resolved settings.

        Raises:
            UsageError: the configuration file cannot be read, is not TOML, or has a wrong key or value.
        """
        config = read_config(settings["train-config"], "train-config")
        check_config(settings["train-config"], "train-config")
        options = super().from_settings(
            settings,
            run=settings["run"] or settings["data"] / "train",
            ranks=settings["ranks"],
            config=config,
            workers=max(settings["workers"], settings["ranks"]),
            engine="",  # ranks of a ring need workers
            **own,
        )
        size = options.workers if options.hosts is None else options.hosts.size
        return replace(options, ranks=options.ranks or size)


class TrainController(StageController):
    """The supervision of one run. What the ring decides between two ticks is collected and posted at the next one."""

    stage = "train"
    result_types = MappingProxyType({LeaseKind.JOIN: JoinReply})

    def __init__(self, options: TrainOptions, timeouts: SupervisionTimeouts) -> None:
        """Prepare a run; the ring exists from `on_start` on."""
        self._options, self._timeouts = options, timeouts
        years = years_on_disk(options.data_dir)
        self.like = like(options.config, options.ranks, years)
        self._work = TrainingWork(TrainingPlan.of(options.config, years), artifacts.checkpoint_step(options.run))
        self.last_work_at = time.monotonic()  # when the last step or validation ended
        self._done: tuple[float, ...] = ()  # of each part
        self._pending: list[RingAction] = []
        self._blas: dict[str, str] = {}  # worker → BLAS of its ranks
        self._began = time.monotonic()
        self.metrics = MetricsFollower(options.run / artifacts.METRICS)
        self._inputs = TrainingFiles(options.data_dir, options.run, bool(options.config))
        self.upload_roots = self._inputs.upload_roots
        self._host_order = {host.name: n for n, host in enumerate(options.hosts.remote if options.hosts else ())}
        self._shares_filesystem: dict[str, bool] = {}  # worker → whether it has the coordinator's files
        self._rank_shares: list[float] = []  # of the sequence, as of the newest step
        self._pruned = 0  # the newest checkpoint at the time when those that came from a host were last removed
        self.ring: ElasticRing

    def on_start(self, scheduler: Scheduler, post: Callable[[Event | Weights], None]) -> None:
        """Number rounds on from those in the journal, so that no lease of an earlier one is taken for one of this run."""
        numbers = [int(name.split("/")[1]) for name in scheduler.tasks if name.startswith("train/")]
        config = artifacts.CONFIG if self._options.config else ""
        run = _relative_to(self._options.run, self._options.data_dir)
        self.ring = ElasticRing(self._options.ranks, run, config, max(numbers, default=0) + 1, self._timeouts)

    def on_task_done(self, done: TaskDone) -> Iterable[TaskSpec]:
        """Take the address of a worker that joins, or the end of a rank that is done."""
        if done.task.kind == LeaseKind.JOIN:
            reply: JoinReply = done.output
            if reply.blas not in self._blas.values():
                self._blas[done.worker] = reply.blas
                self._pending.append(describe_difference(self._blas) or f"{done.worker}: {reply.blas}")
            self._blas[done.worker] = reply.blas
            self._decide(AddressOffered(done.task.id, reply.address))
        elif done.task.kind == LeaseKind.TRAIN:
            self._decide(RankDone(done.task.id))
        return ()

    def lease_files(self, task: TaskSpec) -> LeaseFiles:
        """Return the files of rank 0, which a host on another file system uploads; no other rank has any."""
        return UPLOADS if task.kind == LeaseKind.TRAIN and task.job.get("rank") == 0 else NO_FILES

    def on_lease_event(self, event: TaskProgress | TaskFailed) -> None:
        """Hand the event to the ring."""
        self._decide(event)

    def on_tick(self, scheduler: Scheduler, now: float) -> Iterable[Event | str]:
        """Show the ring the workers that can hold a rank, in the hostfile's order; return what it has decided."""
        able = {
            name: worker for name, worker in scheduler.workers.items() if LeaseKind.TRAIN in worker.registration.kinds
        }
        self._shares_filesystem = {name: worker.shares_filesystem for name, worker in able.items()}
        # One worker for each host of the hostfile: of two, the older one is about to be given up.
        newest = {
            worker.registration.host if worker.registration.host in self._host_order else name: name
            for name, worker in able.items()
        }
        last = len(self._host_order)
        fit = sorted(newest.values(), key=lambda name: self._host_order.get(able[name].registration.host, last))
        self._decide(SupervisionTick(tuple(fit), scheduler.is_draining))
        if self.ring.checkpoint_step != self._pruned and not self._shares_filesystem.get(self._first_rank(), True):
            self._pruned = self.ring.checkpoint_step
            self._inputs.prune()
        shares = self.metrics.numbers("shares")
        self._pending += describe_rebalance(self._rank_shares, shares)
        self._rank_shares = shares
        decided, self._pending = self._pending, []
        return decided

    def has_more_work(self) -> bool:
        """Return whether the training has no outcome yet."""
        return self.ring.outcome is None

    def parts(self, status: RunStatus) -> tuple[Part, ...]:
        """Return the start, until ranks take steps, the steps, the validations and the end."""
        done, parts = self._done, self._work.parts(self.ring.ranks)
        self._done = tuple(part.done for part in parts)
        if self._done != done:
            self.last_work_at = time.monotonic()
        return parts

    def view(self, progress: StageProgress | None = None) -> Rendering:
        """Return the training's view, with the newest metrics."""
        self.metrics.poll()
        now = time.monotonic()
        return render(train_view(self.ring, self.metrics, now, now - self._began, self._work.plan.steps, progress))

    def _decide(self, event: SupervisionTick | AddressOffered | RankDone | TaskProgress | TaskFailed) -> None:
        for action in self.ring.decide(event, time.monotonic()):
            self._pending.append(self._with_files(action) if isinstance(action, AddTasks) else action)

    def _with_files(self, tasks: AddTasks) -> AddTasks:
        """List for workers on other file systems the files that they need before they can answer a rendezvous."""
        job: Any = None
        specs = []
        for spec in tasks.tasks:
            if spec.kind == LeaseKind.JOIN and not self._shares_filesystem.get(spec.worker, True):
                job = job or msgspec.to_builtins(JoinRequest(tuple(self._inputs.list_files())))
                spec = msgspec.structs.replace(spec, job=job)
            specs.append(spec)
        return AddTasks(tuple(specs), tasks.whole)

    def _first_rank(self) -> str:
        return self.ring.ranks[0].worker if self.ring.ranks else ""


def _relative_to(path: Path, folder: Path) -> str:
    """Return the path relative to the folder if it lies in it, since a worker may have mounted that elsewhere; else absolute."""
    path, folder = path.resolve(), folder.resolve()
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)
