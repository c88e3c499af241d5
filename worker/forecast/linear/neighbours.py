"""What the forecasts of the same day by an authority's neighbours say about the error of its own: ridge on all of them at once.

Where DF of the authorities around changes and its own does not, an operator misses weather that others expect. Neighbours are the
authorities of its time zone; those of the others add nothing to them. Their numbers are the same for each of them, so one
decomposition a zone and month solves the regressions of all their hours. What is unknown at the issue time is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ingest.array_types import Floats, Int64s
from ingest.calendar import calendar_of
from ingest.features import BOUND
from ingest.publication import known_at
from ingest.zones import zone_of
from worker.forecast.baselines.history import History
from worker.forecast.baselines.ridge import HOURS, MIN_DEVIATION
from worker.forecast.linear.own import Month

DAY, WEEK, MORNING = 24, 168, 10  # hours; the morning ends at the issue time
BACK = (DAY, 2 * DAY, WEEK)  # hours: what the day's forecast is compared with
BLOCK = 4  # hours of a day whose forecasts are averaged; chosen on 2018, as the days that they are compared with
UNIT = 0.1  # of an authority's level: its mean demand of four weeks
PENALTIES = (1.0, 3.0, 10.0)  # of the standardised signals' variance
WARM_UP = 150  # days of the own regressions alone: their first errors tell little
MIN_DAYS = 120  # days that a fit needs after that
ERROR_BOUND = 4.0  # scales at which errors are clipped
CORRECTION_BOUND = 3.0  # scales

SIGNALS = (
    *(f"DF of hours {k} to {k + BLOCK} against {back} h before" for back in BACK for k in range(0, DAY, BLOCK)),
    "morning's demand against a week before",
)


def neighbour_experts(
    histories: Sequence[History],
    own: Sequence[Floats],
    months: Sequence[Month],
    log: Callable[[str], None] = lambda message: None,
) -> list[NDArray[np.float32]]:
    """Return the corrections of each respondent, in scales, [1 + penalty, hour]; the first is `own`.

    Args:
        histories: the authorities: each is corrected, and each tells about the others.
        own: by respondent, the correction without the others, in scales, [hour].
        months: as `common_months` returns them.
        log: called with a message before each time zone.
    """
    first = min(int(history.calendar.day[0]) for history in histories)
    days = np.arange(first, max(int(history.calendar.day[-1]) for history in histories) + 1)
    experts = [np.tile(one.astype(np.float32), (1 + len(PENALTIES), 1)) for one in own]
    errors = [_by_day(history, history.target - one, days) for history, one in zip(histories, own, strict=True)]
    zones: dict[str, list[int]] = {}
    for index, history in enumerate(histories):
        zones.setdefault(zone_of(history.respondent), []).append(index)
    for zone, members in zones.items():
        log(f"regressions on the neighbours' forecasts: {len(members)} authorities of {zone}")
        inputs = zone_signals([histories[index] for index in members], days)
        for month in months:
            there = [index for index in members if index in month.rows]
            if there:
                _month(experts, histories, errors, inputs, days, month, there)
    return experts


def _month(
    experts: list[NDArray[np.float32]],
    histories: Sequence[History],
    errors: Sequence[Floats],
    inputs: Floats,
    days: Int64s,
    month: Month,
    members: Sequence[int],
) -> None:
    """Add the correction of a month to the experts of a zone's members."""
    starts = [int(histories[index].calendar.day[month.rows[index].start]) for index in members]
    known = min(starts) - 1 - int(days[0])  # days before this one had ended everywhere at the first issue time
    if known < WARM_UP + MIN_DAYS:
        return
    past = inputs[WARM_UP:known]
    mean, deviation = past.mean(axis=0), past.std(axis=0)
    inverse = np.where(deviation > MIN_DEVIATION, 1 / np.maximum(deviation, MIN_DEVIATION), 0.0)
    x = (past - mean) * inverse
    values, vectors = np.linalg.eigh(x.T @ x / len(x))
    y = np.concatenate([errors[index][WARM_UP:known] for index in members], axis=1)
    along = vectors.T @ (x.T @ (y - y.mean(axis=0)) / len(x))
    for position, index in enumerate(members):
        history, rows = histories[index], month.rows[index]
        own = along[:, position * HOURS : (position + 1) * HOURS]
        span = slice(
            int(history.calendar.day[rows.start] - days[0]), int(history.calendar.day[rows.stop - 1] - days[0]) + 1
        )
        turned = ((inputs[span] - mean) * inverse) @ vectors
        at = history.calendar.day[rows] - days[0] - span.start, history.calendar.hour[rows]
        for number, penalty in enumerate(PENALTIES, 1):
            correction = turned @ (own / (np.maximum(values, 0) + penalty)[:, None])
            experts[index][number, rows] += np.clip(correction, -CORRECTION_BOUND, CORRECTION_BOUND)[at].astype(
                np.float32
            )


def _by_day(history: History, error: Floats, days: Int64s) -> Floats:
    """Return errors [day, local hour], clipped; 0 where unknown, and the later one where an hour occurs twice."""
    table = np.zeros((len(days), HOURS))
    at = history.calendar.day - days[0], history.calendar.hour
    table[at] = np.clip(np.nan_to_num(error), -ERROR_BOUND, ERROR_BOUND)
    return table


def zone_signals(histories: Sequence[History], days: Int64s) -> Floats:
    """Return `SIGNALS` of the authorities of one zone for forecasts of its local days, [day, authority · signal]."""
    calendar = calendar_of(
        histories[0].respondent,
        int(days[0] - 1) * DAY,
        int(days[-1] + 3) * DAY,
        publication=histories[0].publication,
    )
    at = np.searchsorted(calendar.day, days)
    columns = [signals(history, calendar.issue[at], calendar.hours[at]) for history in histories]
    return np.concatenate(columns, axis=1)


def signals(other: History, issues: Int64s, starts: Int64s) -> Floats:
    """Return `SIGNALS` of an authority for forecasts made at other issue times, [issue, signal], in `UNIT`; 0 where unknown.

    Args:
        other: the authority.
        issues: hour numbers: no actual value after them counts.
        starts: first hour of the day that each forecast is of, hour numbers.
    """
    first = int(other.hours[0])
    moments = issues + other.publication.actual_hours
    known = known_at(other.respondent, moments, other.publication).forecast - first  # index of the last hour with a DF
    at = issues - first  # index of the latest hour with a known outcome
    level = _means(other.demand, at, DAY * 28)
    level[~(level > 0)] = np.nan
    columns = []
    for back in BACK:
        for block in range(0, DAY, BLOCK):
            begin = starts - first + block
            end = np.minimum(begin + BLOCK - 1, known)
            hours = np.maximum(end - begin + 1, 0)
            coming = np.where(hours >= BLOCK // 2, _means(other.operator, end, hours), np.nan)
            columns.append(coming - _means(other.operator, end - back, hours))
    columns.append(_means(other.demand, at, MORNING) - _means(other.demand, at - WEEK, MORNING))
    return np.clip(np.nan_to_num(np.stack(columns, axis=1) / (UNIT * level[:, None])), -BOUND, BOUND)


def _means(x: Floats, last: Int64s, width: Int64s | int) -> Floats:
    """Return the means of the measured values among the `width` up to each index `last`; NaN where there is none."""
    valid = np.isfinite(x)
    total = np.concatenate([[0.0], np.cumsum(np.where(valid, x, 0.0))])
    count = np.concatenate([[0], np.cumsum(valid)])
    high, low = (np.clip(k, 0, len(x)) for k in (last + 1, last + 1 - width))
    n = count[high] - count[low]
    return np.where(n > 0, (total[high] - total[low]) / np.maximum(n, 1), np.nan)
