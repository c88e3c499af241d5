"""The work of an extraction as parts: rows to fetch and series to build, for the estimate of the time left. No I/O."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from coordinator.scheduling.progress import Part, planned_seconds
from coordinator.scheduling.rate_limit import BudgetStatus
from coordinator.server.status import RunStatus
from coordinator.stages.extract.plan import BUCKET
from coordinator.stages.run_log import with_costs
from ingest.models import Shard, ShardResult
from ingest.plan import expected_requests
from ingest.sources import get_source

# Reference times of the parts that the first run in a folder has not measured yet, on two cores that do nothing else.
START_S = 1.1  # until the first page is verified
EMULATED_ROW_S = 1.7e-6  # of the bundled emulator, on the same cores; what another server takes is not known before
BUILD_ROW_S = 0.36e-6  # with one worker or two, which keep the cores busy
FINISH_S = 0.004  # the end of the workers, coverage, checksums and snapshot, a series
REPEATED = 1.4  # requests for a planned one: a page with nulls is asked for twice
PRIOR = 3.0  # respondents: so many finished ones weigh as much as the plan for those of which none has
PRIOR_REQUESTS = 20  # so many weigh as much as the plan


class ExtractWork:
    """Counts the rows that are fetched and built. Planned rows are corrected by the rows of finished shards of the same route."""

    def __init__(self, missing: Iterable[Shard], series: int, *, emulated: bool = False) -> None:
        """Take the shards that are to be fetched, the series that are to be built at most, and who answers."""
        missing = list(missing)
        self._row_s = EMULATED_ROW_S if emulated else None
        self._planned = {shard.key: float(get_source(shard.source).planned_rows(shard)) for shard in missing}
        self._requests = expected_requests(missing)
        self._rows = sum(self._planned.values())
        # (route, respondent) → planned rows of unfinished shards; the same of finished ones; the rows that these had
        self._unfinished: dict[Group, float] = defaultdict(float)
        self._finished: dict[Group, float] = defaultdict(float)
        self._found: dict[Group, float] = defaultdict(float)
        for shard in missing:
            self._unfinished[group_of(shard)] += self._planned[shard.key]
        self._furthest = 0.0  # rows: the estimate of running fetches goes up and down, the work done only up
        self.series, self.built = series, 0
        self.held = 0.0  # rows of shards that earlier runs fetched, of series that this run builds

    def fetched(self, result: ShardResult) -> None:
        """Take a verified shard."""
        planned = self._planned.pop(result.shard.key, None)
        if planned is not None:
            group = group_of(result.shard)
            self._unfinished[group] -= planned
            self._finished[group] += planned
            self._found[group] += result.rows

    def planned_s(self, costs: Mapping[str, float], least_s: float) -> float | None:
        """Return the seconds of the whole work before it begins; None: unknown.

        Args:
            costs: part → seconds per unit of the last run.
            least_s: seconds that the source's policy asks for, if no page is asked for twice.
        """
        if not self._rows:
            return 0.0
        return planned_seconds(with_costs(self._as_parts(0.0, self._rows, least_s * REPEATED, started=False), costs))

    def parts(self, status: RunStatus) -> tuple[Part, ...]:
        """Return the parts at the time of a status."""
        seen = sum(worker.rows for worker in status.workers) + status.departed_rows
        finished, left = sum(self._found.values()), self._rows_left()
        leased = min(status.tasks["leased"] / len(self._planned), 1.0) if self._planned else 0.0
        running = min(max(seen - finished, 0.0), left * leased)
        self._furthest = max(self._furthest, finished + running)
        rest = max(left - (self._furthest - finished), 0.0)
        started = seen > 0 or not self._planned or self.built > 0
        return self._as_parts(self._furthest, rest, self._least_s(status, rest, seen), started=started)

    def _as_parts(self, done: float, rest: float, least_s: float, *, started: bool) -> tuple[Part, ...]:
        series = max(self.series, self.built)
        rows = (done + rest + self.held) if series else 0.0
        built = rows * self.built / series if series else 0.0
        return (
            Part("start", "", float(started), 1.0, START_S),
            Part("fetch", "rows", done, done + rest, self._row_s, least_s),
            Part("build", "rows", built, rows, BUILD_ROW_S),
            Part("finish", "series", 0.0, float(series), FINISH_S),
        )

    def _rows_left(self) -> float:
        """Return the rows of shards that are not finished, by those of finished ones: of the same respondent, else of the same route.

        The plan counts for a route as much as `PRIOR` respondents: the first ones to finish are the small ones.
        """
        each: dict[str, list[float]] = defaultdict(list)  # route → rows over planned rows of each respondent
        for (route, _), planned in self._finished.items():
            if planned > 0:
                each[route].append(self._found[route, _] / planned)
        usual = {route: (sum(shares) + PRIOR) / (len(shares) + PRIOR) for route, shares in each.items()}
        return sum(
            planned
            * (self._found[group] / self._finished[group] if self._finished.get(group) else usual.get(group[0], 1.0))
            for group, planned in self._unfinished.items()
            if planned > 0
        )

    def _least_s(self, status: RunStatus, rows: float, seen: int) -> float:
        """Return the seconds that the request budget asks for."""
        budget: BudgetStatus | None = status.budgets.get(BUCKET)
        if budget is None or rows <= 0:
            return 0.0
        spent = sum(worker.requests for worker in status.workers) + status.departed_requests
        planned = self._requests * REPEATED / self._rows  # for a row
        per_row = (spent + PRIOR_REQUESTS) / (seen + PRIOR_REQUESTS / planned)
        return budget.paused_s + rows * per_row / budget.pace


Group = tuple[str, str]  # source and route, respondent


def group_of(shard: Shard) -> Group:
    """Return the route of a shard, with its source, and its respondent."""
    return f"{shard.source}/{shard.route}", shard.respondent
