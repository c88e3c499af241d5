"""Read what the hours say of each respondent: demand and peaks, load duration, generation mix, forecast error, interchange."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from coordinator.report.model import Absent, Floats, OperatorError, Peak, PeakWeek, Region, Regions
from ingest.array_types import Int64s
from ingest.build_series import year_hours
from ingest.columns import hour_text
from ingest.errors import quoted
from ingest.files import visible
from ingest.loader import read_wide, wide_paths
from ingest.snapshot import read_whole
from ingest.zones import ZONES

Times = NDArray[np.datetime64]
DRAWN = 12  # respondents with charts: more would make the page too long
DAY_HOURS = 20  # valid hours that a day's mean needs
MONTH_HOURS = 72  # likewise of a month
YEAR_HOURS = 720  # valid hours that a year's load duration needs
CURVES = 3  # years of load duration
LEVELS = 201  # points of a load duration curve
WEEK = 168  # hours
GROUPS = {
    "nuclear": ("NUC",),
    "coal": ("COL",),
    "gas": ("NG",),
    "hydro": ("WAT",),
    "wind": ("WND", "WNB"),
    "solar": ("SUN", "SNB"),
}
OTHER = "storage and other"


def regions(data_dir: Path) -> Regions | Absent:
    """Return the facts of every respondent with demand, the largest first.

    A damaged file raises `VerificationError`.
    """

    def read(folder: Path) -> list[Region]:
        codes = sorted(path.name for path in visible(folder.glob("*"), folder)) if folder.is_dir() else []
        found = (region(code, *_hours(data_dir, folder, code)) for code in codes)
        return [one for one in found if one is not None]

    found = sorted(read_whole(data_dir, read), key=lambda one: (-one.mean, one.code))
    if not found:
        return Absent(
            "no series with demand was built in this folder", f"coordinator start --extract --data {quoted(data_dir)}"
        )
    return Regions(tuple(found), DRAWN)


def having(found: Regions | Absent, what: str, has: str, command: str) -> Regions | Absent:
    """Return the respondents for which the fact `has` is there; where none has it, `what` names it and `command` fetches it."""
    if isinstance(found, Absent):
        return found
    own = tuple(one for one in found.regions if getattr(one, has))
    return Regions(own, found.drawn) if own else Absent(f"no series here has {what}", command)


def _hours(data_dir: Path, folder: Path, code: str) -> tuple[int, dict[str, Floats]]:
    """Return the number of the first hour, and valid values of every variable: [hour], NaN where there is none."""
    paths = wide_paths(data_dir, folder, code, range(0))
    first = year_hours(min(paths))[0]
    last, hours = year_hours(max(paths))
    columns: dict[str, Floats] = {}
    for year, path in paths.items():
        names = read_wide(path, ())[0]
        start, count = year_hours(year)
        for name, (values, _) in read_wide(path, sorted(names))[1].items():
            whole = columns.setdefault(name, np.full(last + hours - first, np.nan))
            whole[start - first : start - first + count] = values
    return first, columns


def region(code: str, first: int, columns: Mapping[str, Floats]) -> Region | None:
    """Return the facts of a respondent from its hours; None without any demand."""
    demand = columns.get("D")
    if demand is None or not np.isfinite(demand).any():
        return None
    clock = _local(code, first, len(demand))
    day = clock.astype("datetime64[D]").astype(np.int64)
    month = clock.astype("datetime64[M]").astype(np.int64)
    known = np.flatnonzero(np.isfinite(demand))
    days, daily = _means(day, demand, DAY_HOURS)
    lowest, highest = _extremes((day - int(days[0])).astype(np.int64), demand, len(days))
    forecast = columns.get("DF")
    return Region(
        code=code,
        zone=ZONES.get(code, "UTC"),
        first=hour_text(first + int(known[0])),
        last=hour_text(first + int(known[-1])),
        mean=float(np.nanmean(demand)),
        days=days,
        daily=daily,
        lowest=np.where(np.isfinite(daily), lowest, np.nan),
        highest=np.where(np.isfinite(daily), highest, np.nan),
        week=_week(day, clock, demand, forecast),
        peaks=tuple(_peaks(clock, first, demand)),
        duration=_duration(clock, demand),
        mix=_mix(month, columns),
        error=None if forecast is None else _error(clock, month, demand, forecast),
        exports=_monthly(month, columns["TI"]) if "TI" in columns else None,
        flows={
            name.removeprefix("ID."): float(np.nanmean(values))
            for name, values in sorted(columns.items())
            if name.startswith("ID.") and np.isfinite(values).any()
        },
    )


def _local(code: str, first: int, count: int) -> Times:
    """Return the local time at which each hour begins; UTC where the respondent's time zone is unknown."""
    begins = pd.DatetimeIndex(np.arange(first - 1, first - 1 + count).astype("datetime64[h]").astype("datetime64[s]"))
    return begins.tz_localize("UTC").tz_convert(ZONES.get(code, "UTC")).tz_localize(None).to_numpy()


def _means(key: Int64s, values: Floats, least: int = 1) -> tuple[Floats, Floats]:
    """Return each key from the first to the last, and the mean of its valid values: NaN with fewer than `least`."""
    low = int(key.min())
    valid = np.isfinite(values)
    size = int(key.max()) - low + 1
    counts = np.bincount(key[valid] - low, minlength=size)
    sums = np.bincount(key[valid] - low, weights=values[valid], minlength=size)
    means = np.where(counts >= least, sums / np.maximum(counts, 1), np.nan)
    span = np.flatnonzero(counts)
    inside = slice(span[0], span[-1] + 1) if len(span) else slice(0)
    return (np.arange(size, dtype=float) + low)[inside], means[inside]


def _extremes(day: Int64s, values: Floats, count: int) -> tuple[Floats, Floats]:
    """Return the lowest and the highest valid value of each day from 0 on: [day], infinite where there is none."""
    valid = np.isfinite(values) & (day >= 0) & (day < count)
    low, high = np.full(count, np.inf), np.full(count, -np.inf)
    np.minimum.at(low, day[valid], values[valid])
    np.maximum.at(high, day[valid], values[valid])
    return low, high


def _monthly(month: Int64s, values: Floats) -> tuple[Floats, Floats] | None:
    """Return months and their means; those with few hours, at the turn of a year in UTC, only where there are no others."""
    months, means = _means(month, values, min(MONTH_HOURS, int(np.isfinite(values).sum())))
    known = np.flatnonzero(np.isfinite(means))
    return (months[known[0] : known[-1] + 1], means[known[0] : known[-1] + 1]) if len(known) else None


def _week(day: Int64s, clock: Times, demand: Floats, forecast: Floats | None) -> PeakWeek:
    """Return the week around the highest hour: three local days before it and three after, shifted to where there are hours."""
    top = int(np.nanargmax(demand))
    known = np.flatnonzero(np.isfinite(demand))
    first = max(min(day[top] - 3, day[known[-1]] - 6), day[known[0]])
    start = int(np.searchsorted(day, first))
    stop = min(start + WEEK, len(demand))
    shown = slice(start, stop)
    operators = np.full(stop - start, np.nan) if forecast is None else forecast[shown]
    return PeakWeek(
        start=str(clock[start].astype("datetime64[D]")),
        hour=np.arange(1.0, stop - start + 1),
        demand=demand[shown],
        forecast=operators,
        peak=float(demand[top]),
    )


def _peaks(clock: Times, first: int, demand: Floats) -> list[Peak]:
    """Return the highest hour of each local year that has a valid one."""
    years = clock.astype("datetime64[Y]").astype(np.int64) + 1970
    found = []
    for year in range(int(years.min()), int(years.max()) + 1):
        at = np.flatnonzero((years == year) & np.isfinite(demand))
        if len(at) >= 24:  # the turn of the year in UTC leaves a few hours of another local year
            top = int(at[np.argmax(demand[at])])
            local = str((clock[top] + np.timedelta64(1, "h")).astype("datetime64[h]"))
            mean = float(demand[at].mean())
            found.append(Peak(year, float(demand[top]), hour_text(first + top), local, mean, len(at)))
    return found


def _duration(clock: Times, demand: Floats) -> dict[int, Floats]:
    """Return demand of the newest years at 0 to 100 % of their hours, the highest first."""
    years = clock.astype("datetime64[Y]").astype(np.int64) + 1970
    curves: dict[int, Floats] = {}
    for year in sorted(set(years.tolist()), reverse=True):
        values = demand[(years == year) & np.isfinite(demand)]
        if len(values) >= YEAR_HOURS and len(curves) < CURVES:
            curves[year] = np.quantile(values, np.linspace(1, 0, LEVELS))
    return curves


def _mix(month: Int64s, columns: Mapping[str, Floats]) -> tuple[Floats, dict[str, Floats]] | None:
    """Return months, and the mean generation of each group of fuels in them: MW, 0 where a group has none."""
    fuels = {name.removeprefix("NG."): values for name, values in columns.items() if name.startswith("NG.")}
    if not any(np.isfinite(values).any() for values in fuels.values()):
        return None
    low = int(month.min())
    months = np.arange(low, int(month.max()) + 1, dtype=float)
    group_of = {fuel: group for group, own in GROUPS.items() for fuel in own}
    groups: dict[str, Floats] = {name: np.zeros(len(months)) for name in (*GROUPS, OTHER)}
    seen = np.zeros(len(months), bool)
    for fuel, values in fuels.items():
        if (monthly := _monthly(month, values)) is not None:
            at, means = monthly
            places = (at - low).astype(int)
            groups[group_of.get(fuel, OTHER)][places] += np.nan_to_num(means)
            seen[places] |= np.isfinite(means)
    span = np.flatnonzero(seen)
    inside = slice(span[0], span[-1] + 1)
    return months[inside], {name: values[inside] for name, values in groups.items() if values.any()}


def _error(clock: Times, month: Int64s, demand: Floats, forecast: Floats) -> OperatorError | None:
    """Return the error of the operator's day-ahead forecast, in % of the demand of the same hours; None without a common hour."""
    error = forecast - demand
    both = np.isfinite(error)
    if not both.any():
        return None
    load = np.where(both, demand, np.nan)
    hour = (clock.astype("datetime64[h]").astype(np.int64)) % 24
    months, loads = _monthly(month, load) or (np.zeros(0), np.zeros(0))
    errors = _means(month, np.abs(error))
    inside = slice(int(months[0] - errors[0][0]), int(months[0] - errors[0][0]) + len(months))
    return OperatorError(
        hours=int(both.sum()),
        mae=float(np.abs(error[both]).mean()),
        bias=float(error[both].mean()),
        share=float(np.abs(error[both]).sum() / load[both].sum()),
        by_hour=_percent(hour, np.abs(error), load),
        bias_by_hour=_percent(hour, error, load),
        months=months,
        by_month=100 * errors[1][inside] / loads,
    )


def _percent(key: Int64s, error: Floats, load: Floats) -> Floats:
    """Return the mean of `error` in % of that of `load`, for the keys 0 to 23; NaN where a key has no hour."""
    valid = np.isfinite(error)
    off, total = (np.bincount(key[valid], weights=x[valid], minlength=24).astype(np.float64) for x in (error, load))
    return np.where(total > 0, 100 * off / np.where(total > 0, total, 1.0), np.nan)
