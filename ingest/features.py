"""Features of the forecaster: one token per hour, with only the values that are known at the issue time of that hour.

The token of hour t contains the operators' forecast (DF) of t and of the other hours of t's local day, the calendar, and
actual values up to the issue time of t (10:00 local on the day before; `ingest.calendar`). Issue times never decrease from
one hour to the next. Therefore a causal model that reads the tokens up to t has seen nothing after the issue time of t. A
test changes every later value and expects the same tokens.

What is known at an issue time follows `ingest.publication`: actual values come some hours after their hour, DF of a day at its moment.

The target is the error of the reference forecast, (D - reference) / scale, where the scale is the mean absolute error of
the reference over the 56 days before the issue time. The reference is DF where that is known and sound, else a forecast from the
authority's own history (`ingest.own_history`); or demand a week before, for a model without DF; or the linear forecast of all
authorities (`worker.forecast.linear`), which the caller hands in. All features of a token are of its own reference.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ingest.array_types import Floats, Int64s
from ingest.calendar import ISSUE_HOUR, Calendar, calendar_of
from ingest.columns import hour_number, hour_text
from ingest.errors import UsageError
from ingest.loader import SeriesArrays, available, load_series
from ingest.own_history import HISTORY, choose_reference
from ingest.publication import DEFAULT, Publication

Float32s = NDArray[np.float32]
Reference = Literal["DF", "week", "linear"]

VERSION = 2  # of the features: raised when a checkpoint trained on earlier ones would misread them
DAY, WEEK = 24, 168  # hours
MEMORY_LAG = (
    2 * DAY
)  # hours: the latest whole day whose actual values every hour of a local day knows at its issue time
TRAILING = 56 * DAY  # hours over which scale and level are taken
MIN_SCALE = 0.003  # of the demand's level: a reference that was perfect for weeks still has an error
BOUND = 6.0  # scales: features are clipped here, so that a missed outlier does not dominate a forecast
TARGET_BOUND = 20.0  # scales: training targets are clipped here

ERROR_LAGS = (24, 48, 72, 96, 120, 144, 168, 192, 336)  # hours before t
RECENT = tuple(range(12))  # hours before the issue time
TRAILS = (3, 6, 12, 24, WEEK, 4 * WEEK)  # hours up to the issue time
NEIGHBOURS = (-24, -12, -6, -3, -2, -1, 1, 2, 3, 6)  # hours from t
CHANGES = (24, 48, 168)  # hours before t
FUELS = ("NG.SUN", "NG.WND")  # generation that follows the weather; other fuels follow demand

ODD = (  # features that change sign with the reference's errors
    *(f"error.{k}" for k in ERROR_LAGS),
    *(f"error.issue-{k}" for k in RECENT),
    *(f"error.mean-{k}" for k in TRAILS),
    *("error.same-hour-7", "error.same-hour-14", "error.same-hour-28", "error.same-hour-weeks"),
)
LOAD = (
    "reference",
    *(f"reference.{k:+d}" for k in NEIGHBOURS),
    *("reference.day-mean", "reference.day-peak"),
    *(f"demand.{k}" for k in CHANGES),
    *(f"reference.{k}" for k in CHANGES),
)
CLOCK = (
    *(f"{wave}.{unit}{k}" for k in (1, 2) for unit in ("hour", "year") for wave in ("sin", "cos")),
    *(f"weekday.{k}" for k in range(7)),
    *("holiday", "summer"),
)
WEATHER = tuple(f"{fuel}.{k}" for fuel in FUELS for k in (48, 168))
MISSING = ("missing.24", "missing.48", "missing.issue", *(f"missing.{fuel}" for fuel in FUELS))
FEATURES = (*ODD, *LOAD, *CLOCK, *WEATHER, *MISSING)
CONDITION = (  # the inputs that describe a day, to find similar days
    *(f"profile.{h}" for h in range(0, DAY, 2)),
    *(f"change.{h}" for h in range(0, DAY, 2)),
    *("weekend", "free"),
)
COLUMNS = ("target", "reference", "scale", "demand", "operator")  # further arrays of Tokens


@dataclass(frozen=True)
class Tokens:
    """Features of consecutive hours of one respondent; arrays are [hour] or [hour, feature]."""

    respondent: str
    calendar: Calendar
    hours: Int64s  # hour numbers, UTC, hour-ending
    features: Float32s  # [hour, feature] of FEATURES; 0 where unknown, and then a missing.* feature is 1
    condition: Float32s  # [hour, condition] of CONDITION: the reference over the local day, and its change
    target: Float32s  # (D - reference) / scale; NaN where either was not measured
    reference: Float32s  # MWh: the forecast to correct; NaN where there is none
    scale: Float32s  # MWh
    demand: Float32s  # MWh; NaN where not measured
    operator: Float32s  # DF, MWh; NaN where there is none


def load_tokens(
    data_dir: Path,
    respondent: str,
    start: str,
    end: str,
    *,
    reference: Reference = "DF",
    issue_hour: int = ISSUE_HOUR,
    publication: Publication = DEFAULT,
    linear: Floats | None = None,
) -> Tokens:
    """Return the tokens of one respondent from the series on disk.

    Hours before the first series count as missing; an absent year in between raises the UsageError of `load_series`, a
    damaged file its VerificationError.

    Args:
        data_dir: data folder.
        respondent: EIA code.
        start: first hour, `YYYY-MM-DDTHH`.
        end: last hour, inclusive.
        reference: forecast to correct.
        issue_hour: o'clock local on the day before.
        publication: when values are published.
        linear: the linear forecast of every hour on disk, MWh, [hour]; only for that reference.
    """
    on_disk = available(data_dir, respondent)
    first = hour_number(f"{on_disk.years[0]}-01-01T00")  # what history says of an hour depends on all hours before
    last = min(hour_number(end) + DAY, hour_number(f"{on_disk.years[-1]}-12-31T23"))  # DF to the end of the local day
    needed = ("D",) if reference == "week" else ("D", "DF")
    others = tuple(name for name in ("DF", *FUELS) if name in on_disk.variables and name not in needed)
    series = load_series(data_dir, [respondent], (*needed, *others), hour_text(first), hour_text(max(last, first)))
    if linear is not None:
        linear = linear[: len(series.hours)]
    tokens = make_tokens(
        respondent, series, reference=reference, issue_hour=issue_hour, publication=publication, linear=linear
    )
    return cut(tokens, hour_number(start), hour_number(end))


def cut(tokens: Tokens, first: int, last: int) -> Tokens:
    """Return the tokens of the hours `first` to `last` (hour numbers, inclusive), as far as `tokens` has them."""
    low, high = (int(x) for x in np.clip((first - tokens.hours[0], last + 1 - tokens.hours[0]), 0, len(tokens.hours)))
    calendar = cut_calendar(tokens.calendar, first, last)
    arrays = {name: getattr(tokens, name)[low:high] for name in ("hours", "features", "condition", *COLUMNS)}
    return replace(tokens, calendar=calendar, **arrays)


def cut_calendar(calendar: Calendar, first: int, last: int) -> Calendar:
    """Return the hours `first` to `last` (hour numbers, inclusive) of a calendar, as far as it has them."""
    low, high = (
        int(x) for x in np.clip((first - calendar.hours[0], last + 1 - calendar.hours[0]), 0, len(calendar.hours))
    )
    return Calendar(*(getattr(calendar, name)[low:high] for name in Calendar.__dataclass_fields__))


def make_tokens(
    respondent: str,
    series: SeriesArrays,
    *,
    reference: Reference = "DF",
    issue_hour: int = ISSUE_HOUR,
    publication: Publication = DEFAULT,
    linear: Floats | None = None,
) -> Tokens:
    """Return the tokens of every hour of a respondent's series (columns `<respondent>.D`, `.DF` and its fuels).

    Args:
        respondent: EIA code.
        series: its hours.
        reference: forecast to correct.
        issue_hour: o'clock local on the day before.
        publication: when values are published.
        linear: the linear forecast of those hours, MWh, [hour], if that is the reference.

    Raises:
        ValueError: that forecast is missing.
        UsageError: actual values are published so late that the model's memory, `MEMORY_LAG` hours before, would know more.
    """
    column = {name.partition(".")[2]: i for i, name in enumerate(series.names)}
    known = {name: np.where(series.mask[:, i], series.values[:, i], np.nan).astype(float) for name, i in column.items()}
    hours = series.hours.astype("datetime64[h]").astype(np.int64)
    calendar = calendar_of(respondent, int(hours[0]), int(hours[-1]), issue_hour, publication)
    if (hours - MEMORY_LAG > calendar.issue).any():
        raise UsageError(
            f"publication {publication}: a forecast issued at {issue_hour}:00 does not know the whole day before; name an earlier publication"
        )
    demand, operator = known["D"], known.get("DF", np.full(len(hours), np.nan))
    fuels = {fuel: known.get(fuel) for fuel in FUELS}
    if reference == "DF":
        chosen = choose_reference(calendar, demand, operator)
        columns = _columns(calendar, demand, np.where(hours <= calendar.published, operator, np.nan), fuels)
        own = chosen.source == HISTORY
        if own.any():
            instead = _columns(calendar, demand, chosen.history, fuels)
            columns = {
                name: np.where(own if x.ndim == 1 else own[:, None], instead[name], x) for name, x in columns.items()
            }
    else:
        corrected = _before(demand, WEEK) if reference == "week" else linear
        if corrected is None:
            raise ValueError("the reference linear needs its forecast")
        columns = _columns(calendar, demand, corrected, fuels)
    return Tokens(
        respondent, calendar, hours, **columns, demand=demand.astype(np.float32), operator=operator.astype(np.float32)
    )


def _columns(
    calendar: Calendar, demand: Floats, reference: Floats, fuels: Mapping[str, Floats | None]
) -> dict[str, Float32s]:
    """Return the features, condition, target, reference and scale of every hour, for one reference forecast [hour], MWh."""
    known = _KnownValues(calendar, demand, reference)
    groups = {**known.errors(), **known.loads(), **_clock(calendar)}
    for fuel, generation in fuels.items():
        groups |= known.fuel(fuel, generation)
    with np.errstate(invalid="ignore"):
        target = np.clip((demand - reference) / known.scale, -TARGET_BOUND, TARGET_BOUND)
    return {
        "features": _stack(groups, FEATURES),
        "condition": _stack(known.conditions(), CONDITION),
        "target": target.astype(np.float32),
        "reference": reference.astype(np.float32),
        "scale": known.scale.astype(np.float32),
    }


class _KnownValues:
    """The values that are known of each hour at its issue time; arrays are [hour]."""

    def __init__(self, calendar: Calendar, demand: Floats, reference: Floats) -> None:
        self.calendar, self.demand, self.reference = calendar, demand, reference
        self.at = np.arange(len(demand))
        self.issue = calendar.issue - calendar.hours[0]  # index of the last known hour
        self.error = demand - reference
        self._sums = {id(x): _sums(x) for x in (self.error, demand)}
        absolute = _mean(_sums(np.abs(self.error)), self.issue, TRAILING)
        self.level = self.mean(demand, TRAILING)
        with np.errstate(invalid="ignore"):
            self.scale = np.where(self.level > 0, np.maximum(absolute, MIN_SCALE * self.level), np.nan)

    def mean(self, x: Floats, width: int) -> Floats:
        """Return the mean over the `width` hours up to the issue time; NaN where none was measured."""
        return _mean(self._sums[id(x)], self.issue, width)

    def known(self, x: Floats, lag: int) -> Floats:
        """Return x of `lag` hours before, where that is not after the issue time; otherwise NaN."""
        return np.where(self.at - lag <= self.issue, _before(x, lag), np.nan)

    def ahead(self, x: Floats, step: int) -> Floats:
        """Return x of `step` hours away, if it is published at the issue time: up to the end of the local day; otherwise NaN."""
        to = np.clip(self.at + step, 0, len(x) - 1)
        inside = (self.at + step >= 0) & (self.calendar.day[to] <= self.calendar.day)
        return np.where(inside, x[to], np.nan)

    def errors(self) -> dict[str, Floats]:
        """Return the errors of the reference, in scales."""
        same_hour = np.stack([self.known(self.error, DAY * k) for k in range(1, 29)])
        weeks = np.stack([self.known(self.error, WEEK * k) for k in range(1, 5)])
        recent = {k: self.issue - k for k in RECENT}
        raw = {
            **{f"error.{k}": self.known(self.error, k) for k in ERROR_LAGS},
            **{f"error.issue-{k}": _at(self.error, i) for k, i in recent.items()},
            **{f"error.mean-{k}": self.mean(self.error, k) for k in TRAILS},
            **{f"error.same-hour-{k}": _nanmean(same_hour[:k]) for k in (7, 14, 28)},
            "error.same-hour-weeks": _nanmean(weeks),
        }
        missing = {"24": "error.24", "48": "error.48", "issue": "error.issue-0"}
        return {
            **{name: x / self.scale for name, x in raw.items()},
            **{f"missing.{name}": np.isnan(raw[of]).astype(float) for name, of in missing.items()},
        }

    def loads(self) -> dict[str, Floats]:
        """Return the shape of the load, in levels."""
        mean, peak = _by_day(self.reference, self.calendar.day)
        now = self.reference
        raw = {
            "reference": now,
            **{f"reference.{k:+d}": self.ahead(now, k) - now for k in NEIGHBOURS},
            "reference.day-mean": mean,
            "reference.day-peak": peak,
            **{f"demand.{k}": self.known(self.demand, k) - now for k in CHANGES},
            **{f"reference.{k}": _before(now, k) - now for k in CHANGES},
        }
        return {name: x / self.level for name, x in raw.items()}

    def conditions(self) -> dict[str, Floats]:
        """Return the forecast of the local day, in levels, and its change from the day before."""
        day = self.calendar.day - self.calendar.day[0] + 1
        table = np.full((day[-1] + 1, DAY), np.nan)
        table[day, self.calendar.hour] = self.reference
        change = table[1:] - table[:-1]
        free = self.calendar.holiday | (self.calendar.weekday >= 5)
        return {
            **{f"profile.{h}": table[day, h] / self.level for h in range(0, DAY, 2)},
            **{f"change.{h}": change[day - 1, h] / self.level for h in range(0, DAY, 2)},
            "weekend": (self.calendar.weekday >= 5).astype(float),
            "free": free.astype(float),
        }

    def fuel(self, name: str, generation: Floats | None) -> dict[str, Floats]:
        """Return generation by a fuel, in levels; all missing where the respondent has none."""
        generation = np.full(len(self.at), np.nan) if generation is None else generation
        lags = {k: self.known(generation, k) / self.level for k in (48, 168)}
        return {**{f"{name}.{k}": x for k, x in lags.items()}, f"missing.{name}": np.isnan(lags[48]).astype(float)}


def _stack(columns: dict[str, Floats], names: tuple[str, ...]) -> Float32s:
    """Return float32 [hour, name], clipped, with 0 for unknown values."""
    stacked = np.stack([columns[name] for name in names], axis=1)
    return np.clip(np.nan_to_num(stacked), -BOUND, BOUND).astype(np.float32)


def _clock(calendar: Calendar) -> dict[str, Floats]:
    turns = {"hour": calendar.hour / 24.0, "year": calendar.yearday / 365.25}
    waves = {"sin": np.sin, "cos": np.cos}
    return {
        **{f"{w}.{u}{k}": waves[w](2 * np.pi * k * turns[u]) for k in (1, 2) for u in turns for w in waves},
        **{f"weekday.{k}": (calendar.weekday == k).astype(float) for k in range(7)},
        "holiday": calendar.holiday.astype(float),
        "summer": calendar.summer.astype(float),
    }


def _before(x: Floats, lag: int) -> Floats:
    """Return x of `lag` hours before; NaN before its start."""
    return np.concatenate([np.full(min(lag, len(x)), np.nan), x[: max(len(x) - lag, 0)]])


def _at(x: Floats, index: Int64s) -> Floats:
    inside = (index >= 0) & (index < len(x))
    return np.where(inside, x[np.clip(index, 0, len(x) - 1)], np.nan)


def _sums(x: Floats) -> tuple[Floats, Floats]:
    """Return the running sum and count of measured values, each with a leading 0."""
    valid = ~np.isnan(x)
    return (
        np.concatenate([[0.0], np.cumsum(np.where(valid, x, 0.0))]),
        np.concatenate([[0.0], np.cumsum(valid, dtype=float)]),
    )


def _mean(sums: tuple[Floats, Floats], last: Int64s, width: int) -> Floats:
    high = np.clip(last + 1, 0, len(sums[0]) - 1)
    low = np.clip(last + 1 - width, 0, None)
    total, count = (s[high] - s[np.minimum(low, high)] for s in sums)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _nanmean(x: Floats) -> Floats:
    """Return the mean of measured values over the first axis."""
    valid = ~np.isnan(x)
    count = valid.sum(axis=0)
    return np.where(count > 0, np.where(valid, x, 0.0).sum(axis=0) / np.maximum(count, 1), np.nan)


def _by_day(x: Floats, day: Int64s) -> tuple[Floats, Floats]:
    """Return the mean and maximum of the local day of each hour."""
    days, where = np.unique(day, return_inverse=True)
    valid = ~np.isnan(x)
    count = np.bincount(where[valid], minlength=len(days))
    total = np.bincount(where[valid], x[valid], minlength=len(days))
    peak = np.full(len(days), -np.inf)
    np.maximum.at(peak, where[valid], x[valid])
    mean = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return mean[where], np.where(count > 0, peak, np.nan)[where]
