"""Compare daily values with the sums of their hours on disk: the same series of EIA, added up by two programs."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ingest.array_types import Floats, Int32s
from ingest.build_series import year_hours
from ingest.columns import hour_text
from ingest.daily import respondents_in, summaries_in
from ingest.daily_loader import read_daily
from ingest.loader import read_wide
from ingest.models import DAY
from ingest.snapshot import DAILY, read_whole
from ingest.zones import midnights, zone_of

TOLERANCE = 0.01  # of the sum: EIA adds up hours at another time than it serves them
LEAST_MWH = 0.5 * DAY  # of a day: each hour is rounded to 1 MWh
SHOWN = 3  # differences that a line names


@dataclass(frozen=True)
class DailyDifference:
    """A day whose value is not the sum of its hours, both in MWh."""

    respondent: str
    variable: str
    day: str  # local, YYYY-MM-DD
    value: float
    hourly: float

    def __str__(self) -> str:
        """Return a part of a line."""
        return f"{self.respondent} {self.variable} {self.day} {self.value:,.0f} for {self.hourly:,.0f} MWh"


@dataclass(frozen=True)
class DailyTotals:
    """The daily values of a folder, and how they compare with the hours."""

    respondents: int
    first: str  # first day with a value, YYYY-MM-DD
    last: str
    values: int
    missing: int  # values of days that were asked for and did not come
    null: int
    revised: int
    compared: int = 0  # values whose hours are all valid
    differing: tuple[DailyDifference, ...] = ()  # largest first

    def __str__(self) -> str:
        """Return one line."""
        line = (
            f"daily values: {self.respondents} respondents, {self.first} to {self.last} (local days), {self.values:,} values, "
            f"{self.missing:,} missing, {self.null:,} null"
        )
        if self.compared:
            line += f"; {self.compared:,} compared with the sums of their hours, {len(self.differing):,} differ"
        if self.differing:
            line += f": {', '.join(map(str, self.differing[:SHOWN]))}" + ", …" * (len(self.differing) > SHOWN)
        return line


def totals(data_dir: Path, *, compare: bool = True) -> DailyTotals | None:
    """Return the daily values of a data folder; None where it has none. A damaged file raises VerificationError.

    Args:
        data_dir: data folder.
        compare: with the hours on disk; it reads every series.
    """
    return read_whole(data_dir, lambda series: _totals(data_dir, series, compare=compare))


def _totals(data_dir: Path, series: Path, *, compare: bool) -> DailyTotals | None:
    folder = series.parent / DAILY
    found = summaries_in(folder)
    if not found:
        return None
    compared, differing = 0, []
    for respondent in respondents_in(folder) if compare else ():
        count, own = _compare(data_dir, series, respondent)
        compared += count
        differing += own
    differing.sort(key=lambda one: (-abs(one.value - one.hourly), one.respondent, one.variable, one.day))
    return DailyTotals(
        respondents=len(found),
        first=min(one.first for one in found),
        last=max(one.last for one in found),
        values=sum(one.days("ok") for one in found),
        missing=sum(one.days("missing") for one in found),
        null=sum(one.days("null") for one in found),
        revised=sum(len({(one.variable, one.period) for one in each.revisions}) for each in found),
        compared=compared,
        differing=tuple(differing),
    )


def _compare(data_dir: Path, series: Path, respondent: str) -> tuple[int, list[DailyDifference]]:
    """Return how many values of a respondent can be compared, and those that differ."""
    paths = {int(path.parent.name): path for path in sorted((series / respondent).glob("*/wide.parquet"))}
    if not paths:
        return 0, []
    rows = read_daily(data_dir, series.parent / DAILY, respondent).rows
    first, last = min(paths), max(paths)
    start, stop = year_hours(first)[0], sum(year_hours(last))
    hourly = {name: np.full(stop - start, np.nan) for name in rows}
    for year, path in paths.items():
        low, hours = year_hours(year)
        for name, (value, _) in read_wide(path, list(rows))[1].items():
            hourly[name][low - start : low - start + hours] = value
    compared, differing = 0, []
    for name, (days, value, _) in rows.items():
        other = _sums(hourly[name], start, days, zone_of(respondent))
        both = ~np.isnan(value) & ~np.isnan(other)
        compared += int(both.sum())
        with np.errstate(invalid="ignore"):
            apart = both & (np.abs(value - other) > np.maximum(LEAST_MWH, TOLERANCE * np.abs(other)))
        for at in np.flatnonzero(apart):
            day = hour_text(int(days[at]) * DAY)[:10]
            differing.append(DailyDifference(respondent, name, day, float(value[at]), float(other[at])))
    return compared, differing


def _sums(hourly: Floats, start: int, days: Int32s, zone: str) -> Floats:
    """Return the sum of the hours of each day: float64 [day]; NaN where one has no valid value or is not there.

    Args:
        hourly: MWh, consecutive hours; NaN where there is no valid value.
        start: hour number of the first of them.
        days: days since 1970-01-01.
        zone: IANA zone of the days.
    """
    low, high = int(days.min()), int(days.max())
    ends = midnights(zone, low, high) + 1 - start  # index of the first hour of each day, and of the day after the last
    total = np.concatenate([[0.0], np.cumsum(np.nan_to_num(hourly))])
    lacking = np.concatenate([[0], np.cumsum(np.isnan(hourly))])
    first, stop = ends[:-1][days - low], ends[1:][days - low]
    inside = (first >= 0) & (stop <= len(hourly))
    first, stop = np.where(inside, first, 0), np.where(inside, stop, 0)
    return np.where(inside & (lacking[stop] == lacking[first]), total[stop] - total[first], np.nan)
