"""Find forecasts that use hours after their cutoff, where it can be shown. Pure functions of arrays.

1. A cutoff that is not before its own hour.
2. Copies: the forecast equals the actual of an hour after its cutoff, more often than its neighbouring values would by chance, and no
   forecast that knows no such hour has that value.
3. Innovations: the part of an hour's actual that no earlier hour and no causal forecast explains is uncorrelated with a forecast made before
   it. A file that mixes in the actual with weight w has the regression coefficient w, whatever else it knows; its standard error is from
   the sums of days, which are nearly independent. News that a forecast has from elsewhere foresees the hours of a day alike: the coefficient
   of one hour must stand out from that of the next. Every quantile is tested as the point forecast is.
4. Errors far below those of every causal forecast, of hours or of days' means; interval widths that follow the error to come.

Bounds are set so that honest forecasts stay below them, also poor ones of small authorities: a finding is an accusation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ingest.array_types import Floats, Int64s
from ingest.columns import hour_text
from worker.forecast.judge.reference import DF, PERSISTENCE, RIDGE, Actuals, rivals
from worker.forecast.judge.submission import Rows

LAGS = range(-24, 49)  # hours between the hour forecast and the one that it may be taken from
STEPS = range(1, 7)  # hours after the cutoff that a forecast of any later hour may be taken from
EARLIER = (1, 2, 3, 24, 25, 48, 168)  # hours before an hour whose errors explain its own
OLDER = (47, 48, 49, 167, 168, 169)  # hours before an hour that every day-ahead forecast knows, and may be made of
SAME = 0.5  # MWh: values this near are equal
NEAR = 10.5  # MWh: values this near show how often equal ones happen by chance
MIN_COPIES, COPY_SHARE, COPY_RATIO = 20, 0.02, 5.0  # rows, share of rows, over those by chance
WEIGHT, SCORE = 0.1, 9.0  # of an innovation, over a whole file: coefficient, and its t
# How far that coefficient is over the next hour's: at least STEP, and a share of itself unless it is large.
STEP, SHARE_OF_SLOPE, LARGE_STEP = 0.15, 0.6, 0.3
PART_LAGS = (0, 1)  # hours before the hour forecast that are also tested by month and by local hour
# Of a part: coefficient between these, and t; one that holds more than all of an hour does so by chance.
PART_WEIGHT, PART_LIMIT, PART_SCORE = 0.3, 1.05, 16.0
MIN_DAYS, MIN_PART_DAYS = 30, 15  # with a value, for a t
ERROR_RATIO = 0.4  # MAE over that of the best causal forecast
WIDTH_CORRELATION = 0.75  # between the logarithms of width and error
ACTUAL_TOLERANCE, ACTUAL_SHARE = 0.02, 0.01  # of the actual; share of rows with y further from it than that


@dataclass(frozen=True)
class Finding:
    """What a file does wrong."""

    respondent: str
    kind: str
    text: str
    peeks: bool  # uses hours after its cutoff; else it only disagrees with the folder

    def __str__(self) -> str:
        return f"{self.respondent}: {self.kind}: {self.text}"


def findings(rows: Rows, levels: Sequence[float], actuals: Actuals) -> list[Finding]:
    """Return what is wrong with the forecasts of one respondent; nothing where nothing can be shown."""
    actual = actuals.at(actuals.demand, rows.hour)
    known = rivals(actuals, rows.hour, rows.cutoff)
    columns = {"the forecast": rows.point}
    columns |= {f"q{level:g}": rows.quantiles[:, i] for i, level in enumerate(levels) if level != 0.5}
    causal, anchor = _innovations(actuals)
    found = [*_cutoffs(rows), *_actuals(rows, actual), *_errors(rows, actual, known, actuals)]
    for name, forecast in columns.items():
        found += _copies(name, forecast, rows, actuals, known)
        revision = _unexplained(
            forecast - actuals.at(anchor, rows.hour), list(known.values()), actuals.at(anchor, rows.hour)
        )
        found += _mixtures(name, revision, rows, actuals, causal)
    found += _widths(rows, levels, actual)
    return [Finding(rows.respondent, *one) for one in _first_of_each(found)]


_Found = tuple[str, str, bool]


def _first_of_each(found: list[_Found]) -> list[_Found]:
    """Return one finding a kind: that of the point forecast comes before those of its quantiles."""
    return list({one[0]: one for one in reversed(found)}.values())[::-1]


def _cutoffs(rows: Rows) -> Iterator[_Found]:
    late = rows.cutoff >= rows.hour
    if late.any():
        at = int(np.flatnonzero(late)[0])
        text = f"{late.sum():,} of {len(late):,} rows, the first for {hour_text(int(rows.hour[at]))} at {hour_text(int(rows.cutoff[at]))}"
        yield "cutoff not before ds", text, True


def _actuals(rows: Rows, actual: Floats) -> Iterator[_Found]:
    both = np.isfinite(rows.actual) & np.isfinite(actual)
    off = both & (np.abs(rows.actual - actual) > np.maximum(ACTUAL_TOLERANCE * np.abs(actual), 1.0))
    if off.sum() > ACTUAL_SHARE * both.sum():
        at = int(np.flatnonzero(off)[0])
        text = f"{off.sum():,} of {both.sum():,} rows, the first {rows.actual[at]:,.0f} MWh for {actual[at]:,.0f} at {hour_text(int(rows.hour[at]))}"
        yield "y disagrees with the folder's actuals", text, False


def _errors(rows: Rows, actual: Floats, known: dict[str, Floats], actuals: Actuals) -> Iterator[_Found]:
    """Compare errors of hours, and of days' means, with those of the best causal forecast."""
    day = actuals.calendar.day[actuals.index(rows.hour)]
    for what, mean in (("hours", False), ("days' means", True)):
        ratios = {}
        for name, other in known.items():
            both = np.isfinite(actual) & np.isfinite(rows.point) & np.isfinite(other) & (rows.cutoff < rows.hour)
            mine, theirs = (actual - rows.point)[both], (actual - other)[both]
            if mean:
                mine, theirs = _day_means(mine, day[both]), _day_means(theirs, day[both])
            if len(mine) >= MIN_DAYS:
                ratios[name] = float(np.abs(mine).mean() / max(np.abs(theirs).mean(), SAME))
        if ratios and (worst := max(ratios.values())) < ERROR_RATIO:
            name = max(ratios, key=lambda one: ratios[one])
            yield "error below any causal forecast", f"of {what}: {worst:.2f} of that of {name}, the best", True


def _day_means(values: Floats, day: Int64s) -> Floats:
    _, where = np.unique(day, return_inverse=True)
    return np.asarray(np.bincount(where, values) / np.maximum(np.bincount(where), 1))


def _copies(name: str, forecast: Floats, rows: Rows, actuals: Actuals, known: dict[str, Floats]) -> Iterator[_Found]:
    """Count forecasts that equal the actual of an hour after their cutoff."""
    older = [actuals.at(actuals.demand, rows.hour - lag) for lag in (24, 48, 72, 168, 336)]
    older = [
        np.where(rows.hour - lag <= rows.cutoff, one, np.nan)
        for lag, one in zip((24, 48, 72, 168, 336), older, strict=True)
    ]
    for lag in sorted(LAGS, key=abs):
        source = rows.hour - lag
        value = actuals.at(actuals.demand, source)
        away = np.where(source > rows.cutoff, np.abs(forecast - value), np.nan)
        for other in (known[DF], known[PERSISTENCE], *older):  # honest reasons for the same value
            away[np.abs(value - other) <= SAME] = np.nan
        equal = int((away <= SAME).sum())
        chance = float(((away > SAME) & (away <= NEAR)).sum()) * SAME / (NEAR - SAME)
        if equal >= max(MIN_COPIES, COPY_SHARE * len(forecast)) and equal > COPY_RATIO * max(chance, 1.0):
            text = f"{name} equals the actual of {_hour(lag)}, after its cutoff, in {equal:,} of {len(forecast):,} rows ({chance:,.0f} by chance)"
            yield "copies hours after its cutoff", text, True
            return


def _innovations(actuals: Actuals) -> tuple[Floats, Floats]:
    """Return the innovations of every hour, and the causal forecast they were taken from; both MWh, [hour].

    An innovation is what a linear regression on earlier errors and on all causal forecasts of the hour leaves.
    """
    hours = actuals.calendar.hours
    known = rivals(actuals, hours, actuals.calendar.issue)
    anchor = next(known[name] for name in (RIDGE, DF, PERSISTENCE) if name in known and np.isfinite(known[name]).any())
    error = actuals.demand - anchor
    others = [known[name] for name in known if np.isfinite(known[name]).mean() > 0.1 * np.isfinite(anchor).mean()]
    columns = [_shifted(error, lag) for lag in EARLIER]
    columns += [_shifted(other - anchor, lag) for other in others for lag in (0, 1)]
    columns += [_shifted(actuals.demand, lag) - anchor for lag in OLDER]
    columns += [(actuals.calendar.hour == h).astype(float) for h in range(24)]
    x = np.stack(columns, axis=1)
    complete = np.isfinite(x).all(axis=1) & np.isfinite(error)
    innovation = np.full(len(error), np.nan)
    if complete.sum() > 10 * x.shape[1]:
        solution = np.linalg.lstsq(x[complete], error[complete], rcond=1e-9)[0]
        innovation[complete] = error[complete] - x[complete] @ solution
    bounded = _bounded(innovation)
    month = actuals.calendar.day.astype("datetime64[D]").astype("datetime64[M]").astype(np.int64)
    _, group = np.unique(24 * month + actuals.calendar.hour, return_inverse=True)
    count = np.bincount(group, np.isfinite(bounded))
    mean = np.bincount(group, np.nan_to_num(bounded)) / np.maximum(count, 1)
    return bounded - mean[group], anchor  # a month's daily shape is no news: an honest forecast may have it too


def _unexplained(revision: Floats, known: Sequence[Floats], anchor: Floats) -> Floats:
    """Return what a linear regression on the causal forecasts leaves of a forecast's difference from one of them, [row]."""
    columns = [np.nan_to_num(one - anchor) for one in known if np.isfinite(one).any()]
    x = np.stack([np.ones(len(anchor)), *columns], axis=1)
    where = np.isfinite(revision)
    left = np.full(len(revision), np.nan)
    if where.any():
        y = _bounded(revision)[where]
        left[where] = y - x[where] @ np.linalg.lstsq(x[where], y, rcond=1e-9)[0]
    return left


def _bounded(values: Floats) -> Floats:
    """Return values within eight times their median size: a missed outlier does not decide a regression."""
    known = np.isfinite(values)
    bound = 8 * float(np.median(np.abs(values[known]))) if known.any() else 0.0
    return np.clip(values, -bound, bound)


def _shifted(values: Floats, lag: int) -> Floats:
    if not lag:
        return values
    return np.concatenate([np.full(lag, np.nan), values[:-lag]])


def _mixtures(name: str, revision: Floats, rows: Rows, actuals: Actuals, innovation: Floats) -> Iterator[_Found]:
    """Regress the forecast's difference from a causal one on innovations after the cutoff, hour by hour."""
    place = actuals.index(rows.hour)
    day = actuals.calendar.day[place]
    month = day.astype("datetime64[D]").astype("datetime64[M]").astype(np.int64)
    groups = {"month": month, "local hour": actuals.calendar.hour[place]}
    bounded = _bounded(revision)
    families = {
        _hour: {lag: rows.hour - lag for lag in LAGS},
        _after_cutoff: {step: rows.cutoff + step for step in STEPS},
    }
    for describe, sources in families.items():
        known = {}
        for number, source in sources.items():
            value = actuals.at(innovation, source)
            where = np.isfinite(value) & np.isfinite(bounded) & (source > rows.cutoff) & (rows.cutoff < rows.hour)
            if where.any():
                known[number] = value, where
        fits = {number: regression(bounded[where], x[where], day[where]) for number, (x, where) in known.items()}
        for number in sorted(fits, key=abs):
            about = f"of what was new in {describe(number)}, after its cutoff"
            fit = fits[number]
            if fit.days >= MIN_DAYS and fit.slope > WEIGHT and fit.t > SCORE and _stands_out(fits, number):
                yield "knows innovations after its cutoff", f"{name} holds {fit} {about}", True
                return
            value, where = known[number]
            for what, group in groups.items() if describe is _hour and number in PART_LAGS else ():
                for one in np.unique(group[where]):
                    own = where & (group == one)
                    fit = regression(bounded[own], value[own], day[own])
                    if fit.days >= MIN_PART_DAYS and PART_WEIGHT < fit.slope < PART_LIMIT and fit.t > PART_SCORE:
                        part = np.datetime64(int(one), "M") if what == "month" else one
                        yield (
                            "knows innovations after its cutoff",
                            f"{name} holds {fit} {about}, in {what} {part}",
                            True,
                        )
                        return


def _stands_out(fits: Mapping[int, Regression], number: int) -> bool:
    """Return whether an hour's coefficient rises over that of the hour before or after it.

    A forecast with news of its own, such as neighbours' forecasts of the weather, foresees a part of all hours of a day alike. One that
    holds an actual has its hour's coefficient and not that of the next.
    """
    slope = fits[number].slope
    beside = [fits[one].slope for one in (number - 1, number + 1) if one in fits and fits[one].days >= MIN_DAYS]
    step = slope - min(beside, default=0.0)
    return step > max(STEP, min(SHARE_OF_SLOPE * slope, LARGE_STEP))


def _hour(lag: int) -> str:
    return f"the hour {abs(lag)} h {'before' if lag > 0 else 'after'} it" if lag else "its own hour"


def _after_cutoff(step: int) -> str:
    return f"the hour {step} h after the cutoff"


class Regression(NamedTuple):
    """A slope, its t by the sums of days, and their number."""

    slope: float
    t: float
    days: int

    def __str__(self) -> str:
        return f"{self.slope:.2f} (t {self.t:.0f})"


def regression(y: Floats, x: Floats, day: Int64s) -> Regression:
    """Regress `y`, centred, on `x`, which has mean zero; all [row]."""
    total = float(x @ x)
    if total <= 0:
        return Regression(0.0, 0.0, 0)
    y = y - y.mean()
    slope = float(y @ x) / total
    place = day - day.min()
    sums = np.bincount(place, (y - slope * x) * x)
    deviation = float(np.sqrt(np.square(sums).sum()))
    return Regression(slope, slope * total / max(deviation, 1e-9 * total), int((np.bincount(place) > 0).sum()))


def _widths(rows: Rows, levels: Sequence[float], actual: Floats) -> Iterator[_Found]:
    """Correlate interval widths with the errors to come."""
    if len(levels) < 2:
        return
    width, error = rows.quantiles[:, -1] - rows.quantiles[:, 0], np.abs(actual - rows.point)
    both = np.isfinite(width) & np.isfinite(error) & (width > SAME) & (error > SAME)
    if both.sum() < 24 * MIN_DAYS or np.std(width[both]) < 1e-9 * np.mean(width[both]):
        return
    correlation = float(np.corrcoef(np.log(width[both]), np.log(error[both]))[0, 1])
    if correlation > WIDTH_CORRELATION:
        yield "interval widths follow the errors to come", f"correlation of their logarithms {correlation:.2f}", True
