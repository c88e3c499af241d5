"""Run the tasks of a stage on its fleet: journal, server, workers, signals, display. Every stage uses it."""

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import Any

import msgspec

from coordinator.scheduling.events import (
    Event,
    Outcome,
    TaskDone,
    TaskFailed,
    TaskProgress,
    TaskQuarantined,
    WorkerLost,
)
from coordinator.scheduling.progress import Part, ProgressMeter, StageProgress
from coordinator.scheduling.rate_limit import RequestBudget
from coordinator.scheduling.records import TaskSpec
from coordinator.scheduling.scheduler import Scheduler
from coordinator.server.auth_proxy import MAX_PEERS
from coordinator.server.descriptors import peers_within, raise_limit
from coordinator.server.hooks import StageHooks
from coordinator.server.journal import Journal
from coordinator.server.key_store import LOCAL
from coordinator.server.lease_files import NO_FILES, LeaseFiles
from coordinator.server.server import STOP_S, Server
from coordinator.server.status import RunStatus
from coordinator.stages.display import Display, Rendering, render, run_view
from coordinator.stages.fleet import Fleet
from coordinator.stages.run_log import LoggedDisplay, RunRecorder, with_costs
from coordinator.wire.filesystem_id import filesystem_id
from coordinator.wire.messages import Weights
from coordinator.workers.local import LocalWorkerPool

log = logging.getLogger(__name__)

ENDPOINT_FILE = ".endpoint"  # in the data folder while a coordinator runs: where `coordinator status` asks
WORKER_STOP_S = 1.0  # after a second Ctrl-C, for the workers of this host to end; then they are killed
DRAIN_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
NO_BUDGETS: Mapping[str, RequestBudget] = MappingProxyType({})


@dataclass(frozen=True)
class RunResult:
    """How a run ended."""

    outcome: Outcome
    restarts: int = 0  # workers that died or were lost, and were started again
    peak_rss: int = 0  # bytes: the largest worker
    status: RunStatus | None = None  # the server's last


class StageController:
    """What a stage decides while its tasks run. A stage overrides what it needs; all is called in the server's thread."""

    stage = ""  # its name, as in `coordinator start --NAME`
    like = (
        ""  # identifies the settings that its duration depends on: the last run with the same ones gives the estimate
    )
    result_types: Mapping[str, Any] = MappingProxyType({})  # kind of task → type of its result
    upload_roots: Mapping[str, Path] = MappingProxyType({})  # further folders that workers may write to
    download_roots: Mapping[str, Path] = MappingProxyType({})  # folders that workers may read from, too

    def on_start(self, scheduler: Scheduler, post: Callable[[Event | Weights], None]) -> None:
        """The journal has been replayed and nothing is served yet. `post`: as `Server.post`, from any thread."""

    def on_task_done(self, done: TaskDone) -> Iterable[TaskSpec]:
        """Commit a result, idempotently; return the tasks that it opens."""
        return ()

    def on_lease_event(self, event: TaskProgress | TaskFailed) -> None:
        """Take the progress of a lease, or its end without a result."""

    def lease_files(self, task: TaskSpec) -> LeaseFiles:
        """Return which files a lease of the task may upload and name in its result."""
        return NO_FILES

    def check_result(self, task: TaskSpec, output: Any) -> None:
        """Check a result against its task and its files; the problem is raised as VerificationError and fails the lease."""

    def on_tick(self, scheduler: Scheduler, now: float) -> Iterable[Event | str]:
        """Return events to decide and lines to print. Called five times a second."""
        return ()

    def has_more_work(self) -> bool:
        """Return whether the stage will add tasks, even if none is open."""
        return False

    def to_come(self) -> int:
        """Return the number of tasks that the stage will open when others have ended, as far as it knows."""
        return 0

    def get_weights(self, sha256: str) -> Weights | None:
        """Return the weights that a worker asks for; None: not known (any more)."""
        return None

    def parts(self, status: RunStatus) -> tuple[Part, ...]:
        """Return the parts of the stage's work, from which the time left is estimated; none: the stage has no end."""
        return ()

    def view(self, progress: StageProgress | None) -> Rendering | None:
        """Return what displays and `coordinator status` show; None: the tasks and workers."""
        return None


class StageRunner:
    """One run of a stage: leases its tasks until all have ended or the run was interrupted."""

    def __init__(
        self,
        fleet: Fleet,
        controller: StageController,
        display: Display,
        budgets: Mapping[str, RequestBudget] = NO_BUDGETS,
        supervise: Callable[[], str] = str,
    ) -> None:
        """Replay the journal, then start the server and prepare the workers.

        Args:
            fleet: where the tasks run.
            controller: the stage's decisions.
            display: shows the run.
            budgets: limits on requests by name.
            supervise: called five times a second, for a process of the stage's own; returns a line to print, or "".
        """
        self._supervise = supervise
        self._recorder = RunRecorder(fleet.data_dir, controller.stage, controller.like)
        display = LoggedDisplay(display, self._recorder.log, controller.stage)
        self._fleet, self._controller, self._display = fleet, controller, display
        self._meter = ProgressMeter(time.monotonic())
        self._progress: StageProgress | None = None
        limit = raise_limit()
        log.info("%s; at most %d connections", limit, peers_within(limit.soft, MAX_PEERS))
        if fleet.keys is not None and peers_within(limit.soft, MAX_PEERS) < MAX_PEERS:
            places = peers_within(limit.soft, MAX_PEERS)
            display.note(f"{limit}: at most {places} connections; a higher limit of `ulimit -Hn` allows {MAX_PEERS}")
        self._journal = Journal(fleet.data_dir / "journal.sqlite")
        self._scheduler = Scheduler(filesystem_id(fleet.data_dir), replace(fleet.timings, max_failures=fleet.retries))
        if fleet.keys is not None and fleet.workers:
            self._scheduler.resident_owner = LOCAL
        for record in self._journal.load():
            self._scheduler.apply(record)
        self._peak_rss = 0
        self._noted_loss = ""  # of an engine
        self._told: set[str] = set()  # messages of quarantined tasks
        self._server = Server(
            self._scheduler,
            self._journal,
            dict(budgets),
            data_dir=fleet.data_dir,
            bind=fleet.bind,
            keys=fleet.keys,
            hooks=StageHooks(
                on_task_done=controller.on_task_done,
                on_quarantined=self._on_quarantined,
                on_lease_event=controller.on_lease_event,
                on_tick=self._on_tick,
                has_more_work=controller.has_more_work,
                status_line=self._status_line,
                progress=lambda: self._progress,
                get_weights=controller.get_weights,
                lease_files=controller.lease_files,
                check_result=controller.check_result,
                result_types=controller.result_types,
                upload_roots=controller.upload_roots,
                download_roots=controller.download_roots,
            ),
        )
        self._workers = LocalWorkerPool(
            fleet.worker_command,
            self._server.endpoint,
            fleet.data_dir,
            fleet.workers,
            fleet.connections,
            fleet.timings.silence_s / 2,
            key=fleet.worker_key,
            engine=fleet.engine,
        )

    def run(self, tasks: Iterable[TaskSpec] = ()) -> RunResult:
        """Lease `tasks`, and those that the controller opens, to the end.

        The first Ctrl-C (or SIGTERM) finishes the running tasks, the second stops at once; both leave a run that can be
        resumed.
        """
        fleet, hosts = self._fleet, self._fleet.hosts
        self._controller.on_start(self._scheduler, self._server.post)
        endpoint, outcome = fleet.data_dir / ENDPOINT_FILE, None
        endpoint.write_text(self._server.endpoint, "utf-8")
        try:
            self._server.add_tasks(tasks, whole=True)
            self._workers.start()
            if hosts is not None:
                hosts.start(self._server.endpoint)
            with drain_on_interrupt(self._server, self._display):
                outcome = self._server.run()
        finally:
            endpoint.unlink(missing_ok=True)
            stopped = outcome is not None and outcome.status == "stopped"
            if hosts is not None:
                hosts.stop(*([STOP_S] if stopped else []))
            self._workers.stop(*([WORKER_STOP_S] if stopped else []))
            self._journal.close()
            self._record_end(outcome)
        return RunResult(outcome, self._restarts, self._peak_rss, self._server.status())

    @property
    def _restarts(self) -> int:
        return self._workers.restarts + (self._fleet.hosts.restarts if self._fleet.hosts is not None else 0)

    def _record_end(self, outcome: Outcome | None) -> None:
        """Record how the run ended; `outcome` None: by an exception, the one that is being raised."""
        error = sys.exc_info()[1]
        why = "" if error is None else f"{type(error).__name__}: {error}".rstrip(": ")
        status, message = ("failed", why) if outcome is None else (outcome.status, outcome.message)
        last = self._server.status()
        self._recorder.end(status, message, self._observed(last), self._meter.seen)
        self._recorder.write(last, self._rendering(last).plain, self._restarts, status)

    def _observed(self, status: RunStatus) -> StageProgress | None:
        """Return how far the stage is; None: it has no end."""
        parts = with_costs(self._controller.parts(status), self._recorder.costs)
        return self._meter.observe(time.monotonic(), parts) if parts else None

    def _rendering(self, status: RunStatus) -> Rendering:
        own = self._controller.view(self._progress)
        return own or render(run_view(status, self._controller.to_come(), self._controller.stage))

    def _on_tick(self) -> None:
        workers, hosts = self._scheduler.workers.values(), self._fleet.hosts
        for line in self._workers.supervise(
            {worker.registration.pid for worker in workers if worker.shares_filesystem}, self._server.lost
        ):
            self._display.note(line)
        if line := self._supervise():
            self._display.note(line)
        if hosts is not None:
            for line in hosts.supervise({worker.registration.host for worker in workers}, self._on_host_lost):
                self._display.note(line)
        if (loss := self._scheduler.engine_loss) != self._noted_loss:
            self._noted_loss = loss
            self._display.note(loss)
        status = self._server.status()
        self._peak_rss = max([self._peak_rss, *(worker.rss for worker in status.workers)])
        for what in self._controller.on_tick(self._scheduler, time.monotonic()):
            if isinstance(what, str):
                self._display.note(what)
            else:
                self._server.post(what)
        self._progress = self._observed(status)
        status = msgspec.structs.replace(status, progress=self._progress)
        rendering = self._rendering(status)
        self._display.update(rendering)
        if self._recorder.due():
            self._recorder.write(status, rendering.plain, self._restarts)

    def _on_host_lost(self, host: str, reason: str) -> None:
        for name, worker in self._scheduler.workers.items():
            if worker.registration.host == host:
                self._server.post(WorkerLost(name, reason))

    def _on_quarantined(self, what: TaskQuarantined) -> None:
        told = ", as above" if what.message in self._told else f": {what.message}"  # one cause may end many tasks
        self._told.add(what.message)
        self._display.note(f"quarantined {what.task.id}: {what.error}{told}")

    def _status_line(self) -> str:
        view = self._controller.view(self._progress)
        return "" if view is None else view.line


@contextmanager
def drain_on_interrupt(server: Server, display: Display) -> Iterator[None]:
    """Inside, the first Ctrl-C, SIGTERM or SIGHUP drains the server; a second Ctrl-C or SIGTERM stops it.

    The end of a terminal may send several SIGHUPs, so a further one changes nothing. `nohup` ignores all of them.
    """
    received = 0

    def on_signal(signum: int, frame: FrameType | None) -> None:
        nonlocal received
        received += 1
        if signum == signal.SIGHUP:
            drop_lost_terminal()
        if received == 1:
            server.drain()
            display.note("Stopping after the running tasks. Press Ctrl-C again to stop now. Both can be resumed.")
        elif signum != signal.SIGHUP:
            server.stop_now()

    handled = [which for which in DRAIN_SIGNALS if signal.getsignal(which) != signal.SIG_IGN or which != signal.SIGHUP]
    before = {which: signal.signal(which, on_signal) for which in handled}
    try:
        yield
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)


def drop_lost_terminal() -> None:
    """Let stdout and stderr write to nothing where they were a terminal that has hung up: each write to it would be an error."""
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"")
        except OSError:
            with suppress(OSError):
                nothing = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nothing, descriptor)
                os.close(nothing)
