"""What a file is judged by: the actual hours of a folder, and forecasts that provably use no hour after their issue time.

Simple forecasts are computed at the cutoff of each row. Running bias, ridge and a trained model are issued at 10:00 local of the day before, from
what a publication (`ingest.publication`) makes known then. DF is what operators publish, whenever they do: skill over it compares with them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ingest.array_types import Floats, Int64s
from ingest.calendar import Calendar, calendar_of
from ingest.columns import hour_number, hour_text
from ingest.errors import UsageError, quoted
from ingest.loader import available, load_series
from ingest.publication import DEFAULT, Publication
from worker.forecast.baselines.history import History, read_history
from worker.forecast.baselines.ridge import ridge
from worker.forecast.baselines.running_bias import running_bias
from worker.forecast.judge.submission import Rows
from worker.training.tokens import Period, open_token_store

DF, PERSISTENCE, LAST_ERROR, BIAS, RIDGE, OURS = (
    "DF",
    "persistence",
    "DF less last error",
    "running bias",
    "ridge",
    "ours",
)
DAY, WEEK = 24, 168  # hours
ERROR_HOURS = 24  # how far before a cutoff its last error may lie
MIN_TRAINING = 90 * DAY  # measured hours before the validation, or there is no ridge
VALIDATION = 180 * DAY  # hours before the file's first one that choose the baselines' settings

Log = Callable[[str], None]


@dataclass(frozen=True)
class Actuals:
    """One respondent, consecutive hours; arrays are [hour], MWh, NaN where unknown."""

    respondent: str
    calendar: Calendar
    demand: Floats
    operator: Floats  # DF
    day_ahead: dict[str, Floats] = field(
        default_factory=dict
    )  # forecasts issued at 10:00 local of the day before, by name

    def index(self, hour: Int64s) -> Int64s:
        """Return the places of hour numbers; those outside are clipped (`at` makes them NaN)."""
        return np.clip(hour - self.calendar.hours[0], 0, len(self.demand) - 1)

    def at(self, values: Floats, hour: Int64s) -> Floats:
        """Return values [hour] at hour numbers, NaN outside."""
        first, last = self.calendar.hours[0], self.calendar.hours[-1]
        return np.where((hour >= first) & (hour <= last), values[self.index(hour)], np.nan)


def read_actuals(data_dir: Path, rows: Rows, log: Log, publication: Publication = DEFAULT) -> Actuals:
    """Read the actual hours of a respondent, from the first on disk to the last that the file names.

    Raises:
        UsageError: the folder has none of the file's hours, or the respondent has no time zone.
    """
    there = available(data_dir, rows.respondent)
    first, last = hour_number(f"{there.years[0]}-01-01T00"), hour_number(f"{there.years[-1]}-12-31T23")
    inside = (rows.hour >= first) & (rows.hour <= last)
    if not inside.any():
        raise UsageError(
            f"{rows.respondent}: the file's hours {hour_text(int(rows.hour.min()))} to {hour_text(int(rows.hour.max()))} are not in {data_dir}, "
            f"which has {there.years[0]} to {there.years[-1]}; extract them with `coordinator start --extract --data {quoted(data_dir)}`"
        )
    names = ["D", "DF"] if "DF" in there.variables else ["D"]
    series = load_series(data_dir, [rows.respondent], names, hour_text(first), hour_text(last))
    values = np.where(series.mask, series.values, np.nan).astype(np.float64)
    calendar = calendar_of(rows.respondent, first, last, publication=publication)
    operator = values[:, 1] if "DF" in names else np.full(len(values), np.nan)
    if "DF" not in names:
        log(f"{rows.respondent} has no day-ahead forecast (DF) on disk: it is compared with persistence alone")
    return Actuals(rows.respondent, calendar, values[:, 0], operator)


def add_baselines(
    actuals: Actuals, data_dir: Path, test: Period, note: Log, log: Log, publication: Publication = DEFAULT
) -> None:
    """Add running bias and ridge where enough hours before the file's support them; what is left out is said."""
    if not np.isfinite(actuals.operator).any():
        return
    history = read_history(open_token_store(data_dir, [actuals.respondent], "DF", log, publication), 0)
    validate = Period(test.first - VALIDATION, test.first - 1)
    measured = np.isfinite(history.target) & np.isfinite(history.operator)
    training = int((measured & (history.hours < validate.first)).sum())
    if training < MIN_TRAINING or not history.scored(validate).any():
        note(
            f"{actuals.respondent}: no {BIAS} and no {RIDGE}: {training:,} hours with demand and DF before {validate}, "
            f"{MIN_TRAINING:,} are needed"
        )
        return
    log(f"{actuals.respondent}: {BIAS}, {RIDGE}")
    actuals.day_ahead[BIAS] = _on(actuals, history, running_bias(history, validate)[1])
    actuals.day_ahead[RIDGE] = _on(actuals, history, ridge(history, validate, test)[1])


def _on(actuals: Actuals, history: History, values: Floats) -> Floats:
    """Return values of a history's hours at those of the actuals."""
    whole = np.full(len(actuals.demand), np.nan)
    at = history.hours - actuals.calendar.hours[0]
    inside = (at >= 0) & (at < len(whole))
    whole[at[inside]] = values[inside]
    return whole


def add_ours(actuals: Actuals, found: dict[str, Floats], first: int) -> None:
    """Add a trained model's medians of consecutive hours from `first` on, where it has the respondent."""
    if actuals.respondent not in found:
        return
    whole = np.full(len(actuals.demand), np.nan)
    start = first - int(actuals.calendar.hours[0])
    whole[start : start + len(found[actuals.respondent])] = found[actuals.respondent]
    actuals.day_ahead[OURS] = whole


def last_known(hour: Int64s, cutoff: Int64s, step: int) -> Int64s:
    """Return the latest hour a multiple of `step` before each hour that is not after its cutoff."""
    return np.asarray(hour - np.maximum(-((cutoff - hour) // step), 1) * step, np.int64)


def rivals(actuals: Actuals, hour: Int64s, cutoff: Int64s) -> dict[str, Floats]:
    """Return the forecast of every rival by name, [row], MWh.

    Args:
        actuals: the respondent.
        hour: numbers, [row].
        cutoff: hour numbers, [row].
    """
    error = actuals.demand - actuals.operator
    places = np.where(np.isfinite(error), np.arange(len(error)), -1)
    latest = np.maximum.accumulate(places)[actuals.index(cutoff)]
    age = cutoff - actuals.calendar.hours[0] - latest
    recent = np.where((latest >= 0) & (age >= 0) & (age < ERROR_HOURS), error[np.maximum(latest, 0)], np.nan)
    operator = actuals.at(actuals.operator, hour)
    return {
        DF: operator,
        PERSISTENCE: actuals.at(actuals.demand, last_known(hour, cutoff, DAY)),
        LAST_ERROR: operator + recent,
        **{name: actuals.at(values, hour) for name, values in actuals.day_ahead.items()},
    }
