"""Run the cycles of a follower: plan what is due, lease it, build the series, publish them, wait for the next one."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Collection, Iterable
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Protocol

import msgspec
from rich.text import Text

from coordinator.scheduling.events import AddTasks, CancelTasks, Event, TaskDone
from coordinator.scheduling.progress import StageProgress
from coordinator.scheduling.records import TaskSpec, ephemeral_task
from coordinator.scheduling.scheduler import Scheduler
from coordinator.server.lease_files import LeaseFiles
from coordinator.stages.display import Rendering
from coordinator.stages.extract import lease_check
from coordinator.stages.extract.controller import ExtractController
from coordinator.stages.extract.plan import ExtractionPlan, ExtractOptions, check_world, pieces_built, widened, world_of
from coordinator.stages.extract.stage import check_reachable
from coordinator.stages.follow.forecasts import Forecasts
from coordinator.stages.follow.state import CycleSummary, FollowState, read_state, write_state
from coordinator.stages.runner import StageController
from ingest import checksums, manifest, snapshot
from ingest.coverage import write_coverage
from ingest.errors import IngestError, VerificationError
from ingest.models import BuildResult, Shard, ShardResult
from ingest.plan import plan_builds
from ingest.schedule import Cycle, next_run, plan_cycle, superseded
from ingest.store import page_folder

REACH_S = 3.0  # for a connection to the source before a cycle: the server's loop, which renews leases, waits for it
Post = Callable[[Event | Callable[[], None]], None]


class Clock(Protocol):
    """The source's clock."""

    def now(self) -> datetime:
        """Return the time, aware."""

    def idle_until(self, moment: datetime) -> None:
        """Take that nothing is due before `moment`. A clock of a test goes on to it; a real one does nothing."""


class CycleController(ExtractController):
    """Takes the results of one cycle. Its tasks are not journaled: a restart plans again from what is on disk."""

    def __init__(self, plan: ExtractionPlan, provisional: Collection[str]) -> None:
        """Take the plan and the keys of all fetches of single hours."""
        self._provisional = provisional
        super().__init__(plan)

    def make_task(self, key: str, kind: str, job: dict[str, Any], *, requires_shared_fs: bool = False) -> TaskSpec:
        """Return a task that is forgotten when it ends."""
        return ephemeral_task(key, kind, job, (), requires_shared_fs=requires_shared_fs)

    def pieces_of(self, results: Collection[ShardResult]) -> Collection[ShardResult]:
        """Return the results that a series is made of: none that a later fetch covers altogether."""
        gone = {result.shard.key for result in superseded(results, self._provisional)}
        return [result for result in results if result.shard.key not in gone]


class FollowController(StageController):
    """Decides, five times a second and after each result, what the follower does next."""

    stage = "follow"
    result_types = MappingProxyType(dict(ExtractController.result_types))

    def __init__(
        self,
        options: ExtractOptions,
        base_url: str,
        clock: Clock,
        report: Callable[[CycleSummary], None],
        forecasts: Forecasts | None = None,
    ) -> None:
        """Read what is on disk.

        Args:
            options: what is followed; its period begins at the first hour.
            base_url: the source's address.
            clock: the source's.
            report: takes each cycle that has ended.
            forecasts: issued after a cycle, where they are due.

        Raises:
            UsageError: the folder holds hours of another world.
            VerificationError: a manifest is damaged.
        """
        self._options, self._base_url, self._clock, self._report = options, base_url, clock, report
        self._forecasts = forecasts
        self._data_dir = options.data_dir
        self._world = options.source.world or ""
        found = list(manifest.shard_results(self._data_dir))
        for result in found:
            self._world = check_world(self._data_dir, self._world, result)
        self._results = {r.shard.key: r for r in found if manifest.in_place(self._data_dir, r)}
        builds = manifest.build_results(self._data_dir)
        self._builds = {build.key: build for build in builds if manifest.in_place(self._data_dir, build)}
        if snapshot.current(self._data_dir) is None:  # the series of an earlier version, which a cycle may replace
            snapshot.publish(self._data_dir, self._builds.values())
        state = read_state(self._data_dir)
        self._provisional = {key for key in state.provisional if key in self._results}
        self._last = state.last
        self._began = self._next = clock.now()
        self._cycle = Cycle()
        self._controller: CycleController | None = None  # of the running cycle
        self._building = self._publishing = False
        self._issued: set[str] = set()  # ids of the open tasks
        self._failed: list[str] = []
        self._first = True  # the first cycle also builds the series that an earlier run left
        self._over = False
        self._scheduler: Scheduler
        self._post: Post

    # -- the server's thread --------------------------------------------------------------------------------------------

    def on_start(self, scheduler: Scheduler, post: Callable[[Any], None]) -> None:
        """Keep what starts tasks and tells their state."""
        self._scheduler, self._post = scheduler, post

    def has_more_work(self) -> bool:
        """Return whether it goes on: until the run is drained, and what a cycle has fetched is published."""
        return not self._over or self._publishing

    def lease_files(self, task: TaskSpec) -> LeaseFiles:
        """Return the files of a fetch or a build."""
        return lease_check.lease_files(task)

    def check_result(self, task: TaskSpec, output: ShardResult | BuildResult) -> None:
        """Check a result against its lease; see `ExtractController.check_result`.

        Raises:
            VerificationError: likewise, and where no cycle runs.
        """
        if self._controller is None:
            raise VerificationError(f"{task.id}: the cycle of this lease has ended")
        self._controller.check_result(task, output)

    def on_task_done(self, done: TaskDone) -> Iterable[TaskSpec]:
        """Commit a result; open the builds after the last fetch, end the cycle after the last build."""
        self._running.on_task_done(done)
        self._issued.discard(done.task.id)
        return self._advance()

    def on_tick(self, scheduler: Scheduler, now: float) -> Iterable[Event | str]:
        """Begin a cycle that is due; take tasks that were given up; issue forecasts."""
        if scheduler.is_draining:
            self._over = True
        lines = list(self._forecasts.poll()) if self._forecasts is not None else []
        if self._over:
            return lines
        if self._controller is not None:
            opened = self._advance()
            return [*lines, *([AddTasks(tuple(opened))] if opened else [])]
        self._look()
        return lines

    def _look(self) -> None:
        """Begin a cycle if one is due."""
        if self._forecasts is not None and self._forecasts.busy:
            return
        self._clock.idle_until(self._next)
        if self._clock.now() >= self._next:
            self._begin(self._clock.now())

    def view(self, progress: StageProgress | None = None) -> Rendering:
        """Return one line: what runs, or when the next cycle is due."""
        if self._controller is not None:
            done, total = len(self._controller.fetched), len(self._controller.plan.shards)
            doing = f"cycle of {_minute(self._began)}Z: {done} of {total} fetches" + (
                ", building" if self._building else ""
            )
        else:
            doing = f"next cycle {_minute(self._next)}Z"
        last = f"; last: {self._last}" if self._last is not None else ""
        line = f"following {self._options.source.name} · {doing}{last}"
        plain = {
            "running": self._controller is not None,
            "doing": doing,
            "next": _minute(self._next),
            "last": msgspec.to_builtins(self._last),
        }
        return Rendering(line, lambda: Text(line), plain)

    # -- a cycle --------------------------------------------------------------------------------------------------------

    @property
    def _running(self) -> CycleController:
        assert self._controller is not None, "a result outside a cycle"
        return self._controller

    def _begin(self, now: datetime) -> None:
        options = self._options
        self._began, self._building, self._failed = now, False, []
        self._cycle = plan_cycle(self._whole(), options.shards, now, options.revise_days)
        respondents = frozenset(options.respondents)
        shards = tuple(widened(shard, self._results, respondents, options.start) for shard in self._cycle.shards)
        if not shards and not self._first:  # a cycle that was tried again after the full hour has fetched this one too
            self._next = next_run(now)
            return
        if shards and options.hosts is None:
            try:
                check_reachable(self._base_url, REACH_S)
            except IngestError as error:
                self._controller = self._plan((), respondents)
                self._finish([str(error).partition(". ")[0]])  # the advice is for a command that has ended
                return
        self._provisional |= set(self._cycle.provisional)
        write_state(self._data_dir, FollowState(tuple(sorted(self._provisional)), self._last, _minute(now)))
        self._controller = self._plan(shards, respondents)
        checksums.remove(self._data_dir)
        tasks = self._controller.open_tasks(self._base_url, limited=options.budget is not None)
        self._issued = {task.id for task in tasks}
        if tasks:
            self._post(AddTasks(tuple(tasks)))
        elif opened := self._advance():
            self._post(AddTasks(tuple(opened)))

    def _plan(self, shards: tuple[Shard, ...], respondents: frozenset[str]) -> CycleController:
        plan = ExtractionPlan(
            data_dir=self._data_dir,
            shards=shards,
            builds=(),
            respondents=respondents,
            world=self._world,
            results=self._results,
            built=pieces_built(self._builds.values()),
            origin=self._options.source.origin,
            start=self._options.start,
        )
        return CycleController(plan, self._provisional)

    def _whole(self) -> list[ShardResult]:
        """Return the results that count as fetched: not a file of all respondents that was read for others only."""
        kept = set(self._options.respondents)
        return [result for result in self._results.values() if not result.kept or kept <= set(result.kept)]

    def _advance(self) -> list[TaskSpec]:
        """Return the builds, once all fetches have ended; end the cycle, once all builds have."""
        given_up = []
        for name in self._issued:
            task = self._scheduler.tasks.get(name)
            if task is not None and task.state == "quarantined":
                given_up.append(name)
                self._failed.append(f"{name}: {task.message}")
        self._issued -= set(given_up)
        if given_up:
            self._post(CancelTasks(tuple(given_up)))
        if self._issued or self._controller is None or self._publishing:
            return []
        if self._building:
            self._finish(self._failed)
            return []
        self._building = True
        opened = self._open_builds()
        self._issued = {task.id for task in opened}
        if not opened:
            self._finish(self._failed)
        return opened

    def _open_builds(self) -> list[TaskSpec]:
        """Return the builds of series whose pieces have changed: of this cycle, and at first those that an earlier run left."""
        controller = self._running
        for result in controller.fetched:
            self._results[result.shard.key] = result
            self._world = world_of(result.origin)
        sources = self._results.values() if self._first else controller.fetched
        built = tuple(self._builds)
        builds = plan_builds([result.shard for result in sources], self._options.respondents, None, built)
        return controller.open_builds(builds)

    def _finish(self, failed: list[str]) -> None:
        """Bring what is derived from the results up to date, in a thread: a large folder takes longer than a heartbeat may."""
        controller = self._running
        self._builds |= {build.key: build for build in controller.built_now}
        if not (controller.fetched or controller.built_now or self._first):
            self._end(failed)
            return
        self._publishing = True

        def work() -> None:
            problem: Exception | None = None
            try:
                self._publish(complete=not failed)
            except Exception as error:  # raised again in the server's thread, which ends the run by it
                problem = error
            self._post(lambda: self._published(failed, problem))

        threading.Thread(target=work, name="publish").start()

    def _published(self, failed: list[str], problem: Exception | None) -> None:
        self._publishing = False
        if problem is not None:
            raise problem
        self._end(failed)
        if not self._over:
            self._look()

    def _end(self, failed: list[str]) -> None:
        """Tell how the cycle ended, and issue the forecasts that are due."""
        controller = self._running
        self._next = next_run(self._clock.now(), failed=bool(failed))
        self._last = CycleSummary(
            at=_minute(self._began),
            daily=self._cycle.daily,
            shards=len(controller.fetched),
            rows=sum(result.rows for result in controller.fetched),
            requests=sum(result.requests for result in controller.fetched),
            series=len(controller.built_now),
            failed=tuple(failed),
            next=_minute(self._next),
        )
        self._first = self._first and bool(failed)
        self._controller = None
        write_state(self._data_dir, FollowState(tuple(sorted(self._provisional)), self._last, self._last.next))
        self._report(self._last)
        if self._forecasts is not None and not failed:
            self._forecasts.start_due(self._clock.now())

    def _publish(self, *, complete: bool) -> None:
        """Bring what is derived from the results up to date; `complete`: no fetch of this cycle is missing."""
        if complete:
            self._remove_superseded()
        manifest.write_summary(self._data_dir, self._results.values(), self._builds.values())
        if self._builds and (self._cycle.daily or self._first):
            write_coverage(self._data_dir)
        checksums.write(self._data_dir, checksums.data_files(self._data_dir))
        snapshot.publish(self._data_dir, self._builds.values())

    def _remove_superseded(self) -> None:
        """Remove fetches of single hours that the day's fetch has replaced, each manifest first."""
        for result in superseded(self._results.values(), self._provisional):
            key = result.shard.key
            manifest.manifest_path(self._data_dir, key).unlink(missing_ok=True)
            (self._data_dir / result.piece.path).unlink(missing_ok=True)
            shutil.rmtree(page_folder(self._data_dir, result.shard), ignore_errors=True)
            del self._results[key]
            self._provisional.discard(key)


def _minute(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M}"
