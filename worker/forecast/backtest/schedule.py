"""The schedule of a backtest: which local months each fit forecasts. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ingest.calendar import calendar_of
from ingest.errors import UsageError
from worker.training.tokens import Period

EVERY = {"month": 1, "quarter": 3, "year": 12}  # months that one fit forecasts
FIRST_YEAR, LAST_YEAR = 2000, 2100  # bounds that catch a typing error
MARGIN = 48  # hours: more than any zone's distance from UTC


@dataclass(frozen=True)
class Walk:
    """Consecutive local months that one fit forecasts."""

    first: int  # month, months since 1970-01
    last: int

    def __str__(self) -> str:
        return (
            month_text(self.first)
            if self.first == self.last
            else f"{month_text(self.first)} to {month_text(self.last)}"
        )

    def hours(self, respondent: str) -> Period:
        """Return the hours of the months at a respondent, which are of its local time."""
        start, end = (
            int(np.datetime64(month, "M").astype("datetime64[h]").astype(int)) for month in (self.first, self.last + 1)
        )
        calendar = calendar_of(respondent, start - MARGIN, end + MARGIN)
        months = calendar.day.astype("datetime64[D]").astype("datetime64[M]").astype(int)
        inside = calendar.hours[(months >= self.first) & (months <= self.last)]
        return Period(int(inside[0]), int(inside[-1]))


def month_number(text: str, option: str) -> int:
    """Return the months since 1970-01 of `YYYY-MM`.

    Args:
        text: as the user writes it.
        option: its name, for the message.

    Raises:
        UsageError: it is no month.
    """
    found = re.fullmatch(r"(\d{4})-(\d{2})", text.strip())
    if not found or not 1 <= int(found[2]) <= 12 or not FIRST_YEAR <= int(found[1]) <= LAST_YEAR:
        raise UsageError(f"--{option} {text} is no month; write YYYY-MM, e.g. 2019-01")
    return (int(found[1]) - 1970) * 12 + int(found[2]) - 1


def month_text(month: int) -> str:
    """Return a month as `YYYY-MM`."""
    return str(np.datetime64(month, "M"))


def walks_of(first: int, last: int, every: int) -> list[Walk]:
    """Return the walks from one month to another: a fit before the first month, and again after each `every` months.

    Raises:
        UsageError: the last month comes before the first.
    """
    if last < first:
        raise UsageError(f"--from {month_text(first)} --to {month_text(last)} ends before it starts: swap them")
    return [Walk(start, min(start + every - 1, last)) for start in range(first, last + 1, every)]


def check_months(first: int, last: int, there: Sequence[Period], data_dir: object) -> None:
    """Refuse months in which nothing was measured.

    Args:
        first: month of the backtest.
        last: its last month.
        there: of each respondent, the first and the last measured hour.
        data_dir: for the message.

    Raises:
        UsageError: the months are not within the measured hours.
    """
    whole = Period(min(one.first for one in there), max(one.last for one in there))
    start, end = (
        int(np.datetime64(hour, "h").astype("datetime64[M]").astype(int)) for hour in (whole.first, whole.last)
    )
    if first <= start or last > end:
        raise UsageError(
            f"--from {month_text(first)} --to {month_text(last)}: {data_dir} has demand and its forecast from {whole} (UTC), and a fit needs "
            f"hours before; choose months from {month_text(start + 1)} to {month_text(end)}"
            if start < end
            else f"--from {month_text(first)}: {data_dir} has demand and its forecast in {month_text(start)} alone, and a fit needs hours before; extract more"
        )
