"""The tokens of one respondent as a baseline sees them, when its outcomes become known, and how settings are chosen.

A model that forecasts the hours of a period is fitted on hours whose demand was known when the first of them was forecast.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ingest.array_types import Bools, Floats, Int64s
from ingest.calendar import Calendar, calendar_of
from ingest.publication import DEFAULT, Publication
from worker.training.tokens import TARGET, Period, TokenStore

Choice = TypeVar("Choice")


@dataclass(frozen=True)
class History:
    """Consecutive hours of one respondent; arrays are [hour]."""

    respondent: str
    calendar: Calendar
    inputs: NDArray[np.float32]  # [hour, input] of tokens.INPUTS
    target: Floats  # (D - reference) / scale; NaN where unknown
    reference: Floats  # MWh: the forecast to correct
    scale: Floats  # MWh: the reference's mean absolute error over the weeks before the issue time
    demand: Floats  # MWh
    operator: Floats  # DF, MWh
    publication: Publication = DEFAULT

    @property
    def hours(self) -> Int64s:
        """Hour numbers, UTC, hour-ending, [hour]."""
        return self.calendar.hours

    def within(self, period: Period) -> Bools:
        """Return which hours lie in a period, [hour]."""
        return (self.hours >= period.first) & (self.hours <= period.last)

    def scored(self, period: Period) -> Bools:
        """Return the hours of a period that have a target and DF, [hour]."""
        return self.within(period) & np.isfinite(self.target) & np.isfinite(self.operator)


@dataclass(frozen=True)
class Refit:
    """A local month: hours that one fit forecasts."""

    rows: slice  # of the history
    known: int  # hour number: the last hour whose demand was known when the first of them was forecast


def read_history(store: TokenStore, region: int) -> History:
    """Return the tokens of a store's respondent, all hours on disk."""
    first, rows = store.maps[region]
    name = store.respondents[region]
    target, reference, scale, demand, operator = rows[:, TARGET:].T.astype(np.float64)
    calendar = calendar_of(name, first, first + len(rows) - 1, publication=store.publication)
    return History(name, calendar, rows[:, :TARGET], target, reference, scale, demand, operator, store.publication)


def monthly_refits(history: History, period: Period) -> list[Refit]:
    """Return the local months of a period, in order; the first and the last may be cut."""
    rows = np.flatnonzero(history.within(period))
    if not rows.size:
        return []
    months = history.calendar.day[rows].astype("datetime64[D]").astype("datetime64[M]").astype(np.int64)
    starts = [0, *(np.flatnonzero(np.diff(months)) + 1), len(rows)]
    return [
        Refit(slice(int(rows[a]), int(rows[b - 1]) + 1), int(history.calendar.issue[rows[a]]))
        for a, b in itertools.pairwise(starts)
    ]


def known_at_start(histories: Iterable[History], period: Period) -> int:
    """Return the last hour whose demand was known to all respondents when the first hour of a period was forecast."""
    return min(int(history.calendar.issue[np.searchsorted(history.hours, period.first)]) for history in histories)


def choose(history: History, validate: Period, candidates: Iterable[tuple[Choice, Floats]]) -> tuple[Choice, Floats]:
    """Return the setting, with its forecast, of least absolute error on the validation hours; the first of equal ones.

    Args:
        history: the respondent.
        validate: hours that decide; only those with demand and DF count.
        candidates: pairs of a setting and its forecast [hour], MWh.
    """
    where = history.scored(validate)
    demand = history.demand[where]
    return min(candidates, key=lambda one: float(np.abs(demand - one[1][where]).sum()))
