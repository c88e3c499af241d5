"""Commit the results of an extraction and open the builds that they make possible."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

import msgspec

from coordinator.scheduling.events import TaskDone
from coordinator.scheduling.progress import Part
from coordinator.scheduling.records import TaskSpec, journaled_task
from coordinator.server.lease_files import LeaseFiles
from coordinator.server.status import RunStatus
from coordinator.stages.extract import lease_check
from coordinator.stages.extract.plan import BUCKET, ExtractionPlan, check_world, world_of
from coordinator.stages.extract.work import ExtractWork
from coordinator.stages.runner import StageController
from coordinator.wire.lease_kinds import LeaseKind
from ingest import manifest
from ingest.errors import VerificationError
from ingest.models import BuildResult, ShardResult
from ingest.plan import Build, build_job, years_of


class ExtractController(StageController):
    """Takes the results of one plan. Manifests on disk are the truth; the journal only holds the scheduling's progress."""

    stage = "extract"
    result_types = MappingProxyType({LeaseKind.FETCH: ShardResult, LeaseKind.BUILD: BuildResult})

    def __init__(self, plan: ExtractionPlan, *, like: str = "") -> None:
        """Index the plan: which builds wait for a shard, and which results a series is made of.

        Args:
            plan: What to produce.
            like: Names the source and the workers, on which the time of a row depends.
        """
        self.plan, self.like = plan, like
        self.fetched: list[ShardResult] = []  # verified in this run
        self.built_now: list[BuildResult] = []  # likewise
        self.new_files = 0  # written in this run: pages, pieces, series
        self._world = plan.world
        self._seen_world = False  # a result of this run has confirmed `_world`
        self._verified: set[str] = set()  # keys of shards
        self._built = dict(plan.built)
        # (respondent or "ALL", year) → key of a shard → its result: a build looks at its own results only
        self._by_series: dict[tuple[str, int], dict[str, ShardResult]] = defaultdict(dict)
        self._builds_of: dict[str, list[Build]] = defaultdict(list)  # key of a shard → builds that wait for it
        for build in plan.builds:
            for key in build.shards:
                self._builds_of[key].append(build)
        for result in plan.results.values():
            self._add(result)
        self.last_done_at = time.monotonic()  # when the last task was done
        self._work = ExtractWork(plan.missing, 0, emulated=plan.world == "synthetic")
        self._unopened = {build.key for build in plan.builds if not self._verified.issuperset(build.shards)}

    @property
    def results(self) -> list[ShardResult]:
        """The results on disk, those of this run included."""
        return [*self.plan.results.values(), *self.fetched]

    @property
    def verified(self) -> int:
        """The planned shards that are verified."""
        return sum(shard.key in self._verified for shard in self.plan.shards)

    def open_tasks(self, base_url: str, *, limited: bool) -> list[TaskSpec]:
        """Return fetches without a manifest, and builds of complete fetches whose series is not made of their pieces.

        Args:
            base_url: The source's address.
            limited: whether fetches draw on the request budget.
        """
        bucket = BUCKET if limited else ""
        fetches = [(shard.key, self.plan.fetch_job(shard, base_url, bucket)) for shard in self.plan.missing]
        tasks = [self.make_task(key, LeaseKind.FETCH, msgspec.to_builtins(job)) for key, job in fetches]
        builds = self.open_builds(self.plan.builds)
        self._work.series = len(builds) + len(self._unopened)
        due = {task.id for task in builds} | self._unopened
        read = {key for build in self.plan.builds if build.key in due for key in build.shards}
        self._work.held = sum(result.rows for key, result in self.plan.results.items() if key in read)
        return [*tasks, *builds]

    def make_task(self, key: str, kind: str, job: dict[str, Any], *, requires_shared_fs: bool = False) -> TaskSpec:
        """Return the task of a fetch or a build."""
        return journaled_task(key, kind, job, requires_shared_fs=requires_shared_fs)

    def pieces_of(self, results: Collection[ShardResult]) -> Collection[ShardResult]:
        """Return the results of a respondent and year whose pieces its series is made of."""
        return results

    def to_come(self) -> int:
        """Return the number of builds that wait for fetches."""
        return len(self._unopened)

    def parts(self, status: RunStatus) -> tuple[Part, ...]:
        """Return the rows to fetch and the series to build."""
        return self._work.parts(status)

    def lease_files(self, task: TaskSpec) -> LeaseFiles:
        """Return the files of a fetch or a build."""
        return lease_check.lease_files(task)

    def check_result(self, task: TaskSpec, output: ShardResult | BuildResult) -> None:
        """Check a result against its lease.

        Raises:
            VerificationError: It contradicts its lease or its files, or comes from another world than this run's results.
        """
        lease_check.check_result(task, output, self.plan.data_dir)
        if isinstance(output, ShardResult):
            if self.plan.origin and output.origin != self.plan.origin:
                raise VerificationError(f"{task.id}: origin {output.origin!r}, but the source is {self.plan.origin}")
            if self._seen_world and world_of(output.origin) != self._world:
                raise VerificationError(
                    f"{task.id}: origin {output.origin!r}, but this run's results are {self._world}"
                )

    def on_task_done(self, done: TaskDone) -> list[TaskSpec]:
        """Write a result's manifest, atomically and idempotently; return the builds that it makes possible."""
        self.last_done_at = time.monotonic()
        committed = datetime.now(UTC).isoformat(timespec="seconds")
        if done.task.kind == LeaseKind.BUILD:
            built: BuildResult = done.output
            manifest.write(self.plan.data_dir, manifest.Manifest(built, done.attempt, done.worker, committed))
            self._built[built.key] = built.pieces
            self.built_now.append(built)
            self._work.built += 1
            self.new_files += 3  # long.parquet, wide.parquet, series.json
            return []
        result: ShardResult = done.output
        self._world = check_world(self.plan.data_dir, self._world, result)
        self._seen_world = True
        manifest.write(self.plan.data_dir, manifest.Manifest(result, done.attempt, done.worker, committed))
        self._add(result)
        self.fetched.append(result)
        self._work.fetched(result)
        self.new_files += len(result.pages) + 1
        return self.open_builds(self._builds_of[result.shard.key])

    def _add(self, result: ShardResult) -> None:
        key = result.shard.key
        for year in years_of(result.shard):
            self._by_series[result.shard.respondent, year][key] = result
        self._verified.add(key)

    def open_builds(self, builds: Iterable[Build]) -> list[TaskSpec]:
        """Return the tasks of builds whose fetches are complete, unless the series on disk is made of the same pieces."""
        tasks = []
        for build in builds:
            if not self._verified.issuperset(build.shards):
                continue
            self._unopened.discard(build.key)
            results = self._by_series[build.respondent, build.year] | self._by_series["ALL", build.year]
            origin = results[build.shards[0]].origin
            job = build_job(build.respondent, build.year, origin, self.pieces_of(results.values()))
            if job.pieces and self._built.get(job.key) != tuple(piece.file.sha256 for piece in job.pieces):
                tasks.append(
                    self.make_task(job.key, LeaseKind.BUILD, msgspec.to_builtins(job), requires_shared_fs=True)
                )
        return tasks
