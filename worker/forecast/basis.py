"""What the forecast of each hour starts from: the operator's forecast (DF), or the authority's own history, and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ingest.array_types import Bools, Int64s
from ingest.calendar import calendar_of
from ingest.columns import hour_number, hour_text
from ingest.features import Reference
from ingest.loader import available, load_series
from ingest.own_history import HISTORY, NONE, OPERATOR, choose_reference
from ingest.publication import Publication
from worker.forecast.fallback import WINDOW
from worker.forecast.predict import Forecast

WEEK = 3  # of a model without DF
NAMES = {OPERATOR: "DF", HISTORY: "own history", WEEK: "week before", NONE: None}


@dataclass(frozen=True)
class Basis:
    """The hours of a forecast; arrays are [hour]."""

    hours: Int64s
    source: Int64s  # NONE, OPERATOR or HISTORY of `ingest.own_history`, or WEEK
    replaced: Bools  # history is used because the model did worse of late
    expected: Bools  # DF of the hour is published by the issue time
    there: Bools  # DF of the hour is on disk
    issue: int  # hour number: the last actual value that the issue time knows
    latest: int | None  # the last one of a week before it that is on disk

    @property
    def awaited(self) -> int:
        """The number of hours whose DF is published by the issue time, and not on disk."""
        return int((self.expected & ~self.there).sum())

    @property
    def names(self) -> list[str | None]:
        """What each hour starts from; None where nothing is known."""
        return [NAMES[int(one)] for one in np.where(self.replaced, HISTORY, self.source)]

    def reasons(self, publication: Publication) -> Iterator[str]:
        """Yield a sentence for each reason why hours do not start from DF, and for late actual values."""
        n, own = len(self.hours), self.source == HISTORY
        absent = self.expected & ~self.there
        causes = {
            "have no DF on disk": own & absent,
            f"are forecast before their DF is published ({publication})": own & ~self.expected,
            f"were forecast worse by the model than by history in the last {WINDOW} days, as when DF is broken": self.replaced
            & ~own,
        }
        for cause, where in causes.items():
            if where.any():
                yield f"{where.sum()} of {n} hours {cause}: they start from the authority's own history"
        if none := int((self.source == NONE).sum()):
            yield f"{none} of {n} hours have neither DF nor demand of the weeks before on disk: they have no forecast"
        if self.latest is None:
            yield f"no demand of the week before {hour_text(self.issue)} is on disk"
        elif self.latest < self.issue:
            yield (
                f"demand on disk ends at {hour_text(self.latest)}, {self.issue - self.latest} h before the last that the issue time knows"
            )


def basis_of(data_dir: Path, forecast: Forecast, publication: Publication, reference: Reference) -> Basis:
    """Return what the forecast of a local day starts from, as the tokens of the same publication have it.

    Args:
        data_dir: data folder.
        forecast: of the day.
        publication: when values are published.
        reference: of the model: one that corrects demand a week before neither needs nor awaits DF.
    """
    respondent = forecast.respondent
    on_disk = available(data_dir, respondent)
    names = [name for name in ("D", "DF") if name in on_disk.variables]
    first, last = hour_number(f"{on_disk.years[0]}-01-01T00"), hour_number(f"{on_disk.years[-1]}-12-31T23")
    series = load_series(data_dir, [respondent], names, hour_text(first), hour_text(last))
    values = np.where(series.mask, series.values, np.nan).astype(np.float64)
    calendar = calendar_of(respondent, first, last, publication=publication)
    demand = values[:, 0]
    operator = values[:, 1] if "DF" in names else np.full(len(values), np.nan)
    chosen = choose_reference(calendar, demand, operator)
    part = slice(int(forecast.hours[0]) - first, int(forecast.hours[-1]) + 1 - first)
    issue = int(calendar.issue[part][0])
    week = demand[max(issue - first - 167, 0) : issue + 1 - first]
    measured = np.flatnonzero(np.isfinite(week))
    source, expected = chosen.source[part], calendar.hours[part] <= calendar.published[part]
    if reference == "week":
        source, expected = np.where(np.isfinite(forecast.median), WEEK, NONE), np.zeros(len(source), bool)
    return Basis(
        calendar.hours[part],
        source,
        forecast.replaced,
        expected,
        np.isfinite(operator[part]),
        issue,
        issue - len(week) + 1 + int(measured[-1]) if measured.size else None,
    )
