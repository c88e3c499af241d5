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

# Reference times of the parts that the first run in a folder has not measured yet, on two cores.
START_S = 2.5  # until the first page is verified
EMULATED_ROW_S = 3.5e-6  # of the bundled emulator, on the same cores; what another server takes is not known before
BUILD_S = 0.09  # of a worker, for a series of a year
FINISH_S = 0.03  # the end of the workers, coverage, checksums and snapshot, a series
KNOWN_REQUESTS = 20  # after so many, rows per request are known


class ExtractWork:
    """Counts what is fetched and built. Planned rows are corrected by the rows of finished shards of the same route."""

    def __init__(self, missing: Iterable[Shard], series: int, workers: int, *, emulated: bool = False) -> None:
        """Take the shards that are to be fetched, the series that are to be built at most, the workers, and who answers."""
        self._row_s = EMULATED_ROW_S if emulated else None
        self._planned = {shard.key: float(get_source(shard.source).planned_rows(shard)) for shard in missing}
        self._requests = expected_requests(missing)
        self._rows = sum(self._planned.values())
        self._unfinished: dict[str, float] = defaultdict(float)  # route → planned rows; the same of finished shards
        self._finished: dict[str, float] = defaultdict(float)
        self._found: dict[str, float] = defaultdict(float)  # route → rows of finished shards
        for shard in missing:
            self._unfinished[route_of(shard)] += self._planned[shard.key]
        self._furthest = 0.0  # rows: the estimate of running fetches goes up and down, the work done only up
        self._workers = max(workers, 1)
        self.series, self.built = series, 0

    def fetched(self, result: ShardResult) -> None:
        """Take a verified shard."""
        planned = self._planned.pop(result.shard.key, None)
        if planned is not None:
            route = route_of(result.shard)
            self._unfinished[route] -= planned
            self._finished[route] += planned
            self._found[route] += result.rows

    def planned_s(self, costs: Mapping[str, float], least_s: float) -> float | None:
        """Return the seconds of the whole work before it begins; None: unknown.

        Args:
            costs: part → seconds per unit of the last run.
            least_s: seconds that the source's policy asks for.
        """
        if not self._rows:
            return 0.0
        return planned_seconds(with_costs(self._as_parts(0.0, self._rows, least_s, started=False), costs))

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
        return (
            Part("start", "", float(started), 1.0, START_S),
            Part("fetch", "rows", done, done + rest, self._row_s, least_s),
            Part("build", "series", self.built, max(self.series, self.built), BUILD_S / self._workers),
            Part("finish", "", 0.0, float(self.series), FINISH_S),
        )

    def _rows_left(self) -> float:
        """Return the rows of shards that are not finished, by the rows that finished ones of their route had."""
        planned, found = sum(self._finished.values()), sum(self._found.values())
        whole = found / planned if planned else 1.0
        shares = {route: self._found[route] / rows for route, rows in self._finished.items() if rows}
        return sum(rows * shares.get(route, whole) for route, rows in self._unfinished.items() if rows > 0)

    def _least_s(self, status: RunStatus, rows: float, seen: int) -> float:
        """Return the seconds that the request budget asks for."""
        budget: BudgetStatus | None = status.budgets.get(BUCKET)
        if budget is None or rows <= 0:
            return 0.0
        spent = sum(worker.requests for worker in status.workers) + status.departed_requests
        per_row = spent / seen if spent >= KNOWN_REQUESTS and seen else self._requests / self._rows
        return budget.paused_s + rows * per_row / budget.pace


def route_of(shard: Shard) -> str:
    """Return the route of a shard, with its source."""
    return f"{shard.source}/{shard.route}"
