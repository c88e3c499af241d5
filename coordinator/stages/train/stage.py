"""The train stage: one rank a worker through leases, watched, started again after every fault, until the run proves itself.

`coordinator start --train` runs it. The run folder decides what is left to do: a result that was accepted for the same
configuration and series ends the stage at once; otherwise the ranks go on from the newest checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from coordinator.scheduling.events import AddTasks, Event, TaskDone, TaskFailed, TaskProgress
from coordinator.scheduling.scheduler import Scheduler, TaskSpec
from coordinator.server.folder_lock import FolderLock
from coordinator.server.hooks import StageHooks
from coordinator.stages.base import Fleet, build_fleet, run_tasks
from coordinator.stages.display import Rendering, choose_display
from coordinator.stages.train import artifacts
from coordinator.stages.train.artifacts import MetricsFollower
from coordinator.stages.train.elastic import ElasticRing, RingAction
from coordinator.stages.train.inputs import TrainingFiles
from coordinator.stages.train.ring_state import AddressOffered, RankDone, RoundSummary, SupervisionTick, TrainingOutcome
from coordinator.stages.train.stall import SupervisionTimeouts
from coordinator.stages.train.view import describe_rebalance, render, train_view
from coordinator.wire.exit_codes import ExitCode
from coordinator.wire.failures import FailureKind
from coordinator.wire.lease_kinds import LeaseKind
from coordinator.wire.messages import Weights
from coordinator.wire.payloads import JoinReply, JoinRequest
from coordinator.workers.hostfile import Hosts, hosts_from
from ingest.errors import UsageError, VerificationError
from ingest.files import atomic_write


@dataclass(frozen=True)
class TrainOptions:
    """All that a run is told."""

    data_dir: Path
    run: Path
    ranks: int
    config: bytes  # of the training's configuration file; empty: train.py's defaults
    workers: int
    connections: int
    bind: str
    keys: Path
    retries: int
    hosts: Hosts | None = None


def options_from(settings: Mapping[str, Any]) -> TrainOptions:
    """Resolved settings → TrainOptions. UsageError for a configuration file that is not there."""
    data_dir, path = settings["data"], settings["train-config"]
    try:
        config = path.read_bytes() if path is not None else b""
    except OSError as error:
        raise UsageError(
            f"train-config {path}: {error.strerror}. Name the TOML file that worker/train.py reads."
        ) from None
    hosts = hosts_from(settings)
    return TrainOptions(
        data_dir=data_dir,
        run=settings["run"] or data_dir / "train",
        ranks=settings["ranks"] or (hosts.size if hosts is not None else settings["workers"]),
        config=config,
        workers=max(settings["workers"], settings["ranks"]),
        connections=settings["connections"],
        bind=settings["bind"],
        keys=settings["keys"],
        retries=settings["retries"],
        hosts=hosts,
    )


class TrainController:
    """The supervisor of one run: feeds `ElasticRing` with what the server sees, and hands on what it decides."""

    def __init__(self, options: TrainOptions, timeouts: SupervisionTimeouts) -> None:
        self._options, self._timeouts = options, timeouts
        self._told: list[RingAction] = []
        self._blas: set[str] = set()
        self._began = time.monotonic()
        self.metrics = MetricsFollower(options.run / artifacts.METRICS)
        self.files = TrainingFiles(options.data_dir, options.run, bool(options.config))
        self._order = {host.name: n for n, host in enumerate(options.hosts.remote if options.hosts else ())}
        self._shares: dict[str, bool] = {}  # worker → whether it has the coordinator's files
        self._shares_of_ranks: list[float] = []  # of the sequence, as the newest step had them
        self._pruned = 0  # the newest checkpoint when those that came from a host were last cleared up
        self.ring: ElasticRing

    def on_start(self, scheduler: Scheduler, post: Callable[[Event | Weights], None]) -> None:
        """ElasticRing are numbered on from those in the journal, so that no lease of an old one is taken for one of ours."""
        numbers = [int(name.split("/")[1]) for name in scheduler.tasks if name.startswith("train/")]
        config = artifacts.CONFIG if self._options.config else ""
        run = _below(self._options.run, self._options.data_dir)
        self.ring = ElasticRing(self._options.ranks, run, config, max(numbers, default=0) + 1, self._timeouts)

    def on_task_done(self, done: TaskDone) -> Iterable[TaskSpec]:
        """A port was found, or a rank has done its part."""
        if done.task.kind == LeaseKind.JOIN:
            try:
                proof = msgspec.convert(done.proof, JoinReply)
            except msgspec.ValidationError as error:
                self._decide(TaskFailed(done.task.id, FailureKind.BAD_PROOF, str(error)))
                return ()
            if proof.blas not in self._blas:
                self._blas.add(proof.blas)
                self._told.append(f"{done.worker}: {proof.blas}")
            self._decide(AddressOffered(done.task.id, proof.address))
        elif done.task.kind == LeaseKind.TRAIN:
            self._decide(RankDone(done.task.id))
        return ()

    def on_lease_event(self, what: TaskProgress | TaskFailed) -> None:
        self._decide(what)

    def on_tick(self, scheduler: Scheduler, now: float) -> Iterable[Event | str]:
        able = {
            name: worker for name, worker in scheduler.workers.items() if LeaseKind.TRAIN in worker.registration.kinds
        }
        self._shares = {name: worker.shares_filesystem for name, worker in able.items()}
        # One a host of the hostfile: of two, the older is about to be given up.
        newest = {
            worker.registration.host if worker.registration.host in self._order else name: name
            for name, worker in able.items()
        }
        fit = sorted(newest.values(), key=lambda name: self._order.get(able[name].registration.host, len(self._order)))
        self._decide(SupervisionTick(tuple(fit), scheduler.is_draining))
        if self.ring.saved != self._pruned and not self._shares.get(self._first_rank(), True):
            self._pruned = self.ring.saved
            self.files.prune()
        shares = self.metrics.numbers("shares")
        self._told += describe_rebalance(self._shares_of_ranks, shares)
        self._shares_of_ranks = shares
        told, self._told = self._told, []
        return told

    def _decide(self, event: SupervisionTick | AddressOffered | RankDone | TaskProgress | TaskFailed) -> None:
        for told in self.ring.decide(event, time.monotonic()):
            self._told.append(self._with_files(told) if isinstance(told, AddTasks) else told)

    def _with_files(self, tasks: AddTasks) -> AddTasks:
        """A roll call tells workers on other file systems what they need before they answer."""
        listed: Any = None
        specs = []
        for spec in tasks.tasks:
            if spec.kind == LeaseKind.JOIN and not self._shares.get(spec.worker, True):
                listed = listed or msgspec.to_builtins(JoinRequest(tuple(self.files.listed())))
                spec = replace(spec, job=listed)
            specs.append(spec)
        return AddTasks(tuple(specs), tasks.whole)

    def _first_rank(self) -> str:
        return self.ring.ranks[0].worker if self.ring.ranks else ""

    def has_more_work(self) -> bool:
        return self.ring.outcome is None

    def get_weights(self, sha256: str) -> Weights | None:
        return None

    def view(self) -> Rendering:
        self.metrics.poll()
        now = time.monotonic()
        return render(train_view(self.ring, self.metrics, now, now - self._began))


def _below(path: Path, folder: Path) -> str:
    """Relative to the folder where it lies in it, since a worker may have mounted it elsewhere; else absolute."""
    path, folder = path.resolve(), folder.resolve()
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)


def run(
    options: TrainOptions,
    *,
    as_json: bool = False,
    quiet: bool = False,
    fleet: Fleet | None = None,
    timeouts: SupervisionTimeouts | None = None,
) -> dict[str, Any]:
    """Run the stage to its end; the summary, whose `exit_code` says how it ended. Data and run folder are locked meanwhile.

    `fleet`, `timeouts`: other workers and times than the options'.
    """
    began = time.monotonic()
    with ExitStack() as stack:
        stack.enter_context(FolderLock(options.data_dir))
        stack.enter_context(FolderLock(options.run))
        request = artifacts.request_digest(options.data_dir, options.config)
        result = artifacts.completed_result(options.run, request)
        if result is not None:
            return _summary(
                options, TrainingOutcome("done", "nothing was left to do"), result, (), time.monotonic() - began
            )
        if options.config:
            atomic_write(options.run / artifacts.CONFIG, options.config)
        training = TrainController(
            options, timeouts or SupervisionTimeouts(max_rounds_without_progress=options.retries)
        )
        display = stack.enter_context(closing(choose_display(as_json=as_json, quiet=quiet)))
        fleet = fleet or build_fleet(options, display.say)
        hooks = StageHooks(on_task_done=training.on_task_done, upload_roots=training.files.upload_roots)
        ended = run_tasks(fleet, (), {}, display, hooks, training)
        outcome = training.ring.outcome or TrainingOutcome("drain", ended.outcome.message)
        if ended.outcome.status == "storage":
            outcome = TrainingOutcome("storage", ended.outcome.message)
        elif outcome.status == "done":
            try:
                result = artifacts.mark_complete(options.run, request)
            except VerificationError as error:
                outcome = TrainingOutcome("failed", f"rank 0 ended well, but proved nothing: {error}")
        return _summary(options, outcome, result, training.ring.history, time.monotonic() - began)


def _summary(
    options: TrainOptions,
    outcome: TrainingOutcome,
    result: artifacts.TrainingResult | None,
    history: Sequence[RoundSummary],
    seconds: float,
) -> dict[str, Any]:
    return {
        "exit_code": ExitCode.of_status(outcome.status),
        "status": outcome.status,
        "message": outcome.message,
        "run": str(options.run),
        "result": None if result is None else msgspec.to_builtins(result),
        "ranks": options.ranks,
        "rounds": [asdict(past) for past in history],
        "restarts": sum(past.why == "fault" for past in history),
        "seconds": seconds,
    }


def describe_summary(summary: Mapping[str, Any]) -> str:
    """A summary as text: what is proved, what this run did."""
    lines = []
    if (result := summary["result"]) is not None:
        skill = f"best validation skill {result['validation_skill']:+.3f}"
        lines.append(f"trained {result['steps']:,} steps, {skill}: {summary['run']}/{result['checkpoint']}")
    if summary["rounds"]:
        sizes = ", ".join(f"{past['ranks']} ({past['why']})" for past in summary["rounds"])
        lines.append(f"this run: {summary['seconds']:.1f} s, {summary['restarts']} restarts; rings of {sizes}")
    elif summary["status"] == "done":
        lines.append(summary["message"])
    return "\n".join(lines)
