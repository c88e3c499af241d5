"""The linear path as a contender: closed form, all authorities on disk, quantiles from its own past errors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ingest.calendar import calendar_of
from ingest.loader import respondents_on_disk
from ingest.publication import Publication
from worker.forecast.backtest.contender import Log, key_of
from worker.forecast.backtest.rows import WalkRows
from worker.forecast.backtest.schedule import Walk
from worker.forecast.baselines.history import History, read_history
from worker.forecast.linear import intervals
from worker.forecast.linear.own import common_months
from worker.forecast.linear.path import linear_forecasts
from worker.training.tokens import LINEAR_VERSION, open_token_store, with_forecast


@dataclass(frozen=True)
class LinearContender:
    """The linear path, fitted again each `every` months; every authority with DF on disk is a neighbour."""

    data_dir: Path
    respondents: tuple[str, ...]
    every: int  # months
    publication: Publication
    log: Log
    name: str = "linear"

    def key(self, walk: Walk) -> str:
        """Return the digest of a walk."""
        settings = [LINEAR_VERSION, intervals.VERSION, self.every, self.respondents]
        return key_of(self.data_dir, walk, self._neighbours(), self.publication, settings)

    def _neighbours(self) -> list[str]:
        return with_forecast(self.data_dir, respondents_on_disk(self.data_dir))

    def forecast(self, walks: Sequence[Walk]) -> Iterator[list[WalkRows]]:
        """Yield the rows of each walk; one pass over the months fits them all."""
        names = self._neighbours()
        store = open_token_store(self.data_dir, names, "DF", self.log, self.publication)
        histories = [read_history(store, region) for region in range(len(names))]
        self.log(f"fitting the linear forecasts of {len(names)} authorities")
        found = linear_forecasts(histories, common_months(histories, self.every, walks[0].first), self.log)
        own = {
            name: _rows(history, one.neighbours, walks)
            for name, history, one in zip(names, histories, found, strict=True)
            if name in self.respondents
        }
        for walk in walks:
            yield [_within(own[name], walk) for name in self.respondents]


def _rows(history: History, point: np.ndarray, walks: Sequence[Walk]) -> WalkRows:
    """Return the rows of all walks of a respondent, and no earlier ones."""
    name = history.respondent
    low = max(walks[0].hours(name).first - intervals.LOOKBACK, int(history.hours[0]))
    high = min(walks[-1].hours(name).last, int(history.hours[-1]))
    part = slice(low - int(history.hours[0]), high + 1 - int(history.hours[0]))
    calendar = calendar_of(name, low, high, publication=history.publication)
    quantiles = intervals.quantiles_around(point[part], history.demand[part], history.scale[part], calendar)
    return WalkRows(name, calendar.hours, calendar.issue, history.demand[part], quantiles)


def _within(rows: WalkRows, walk: Walk) -> WalkRows:
    period = walk.hours(rows.respondent)
    inside = (rows.hour >= period.first) & (rows.hour <= period.last)
    return WalkRows(
        rows.respondent, rows.hour[inside], rows.cutoff[inside], rows.actual[inside], rows.quantiles[inside]
    )
