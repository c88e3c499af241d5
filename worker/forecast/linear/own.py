"""Ridge regressions of a respondent's own tokens at several penalties, shrunk to zero and to what all respondents share.

Moments of hours add up, so one pass over the months gives both the respondents' regressions and the pooled one. Few hours of its own
pull a respondent towards the pooled coefficients (an empirical Bayes prior, Robbins 1956), not towards no correction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ingest.array_types import Floats
from ingest.features import BOUND
from worker.forecast.baselines.history import History, monthly_refits
from worker.forecast.baselines.ridge import HOURS, MIN_DAYS, Moments, add_hours
from worker.training.tokens import Period

PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # of the standardised inputs' variance
POOLED_PENALTY = 0.01
MESSAGE_EVERY = 12  # fits
EXPERTS = 2 * len(PENALTIES) + 1  # shrunk to zero, shrunk to the pooled coefficients, and these themselves


@dataclass(frozen=True)
class Month:
    """A month of all respondents, or several months, which one fit forecasts."""

    rows: dict[int, slice]  # by index of the respondent: its hours of the local months
    known: int  # hour number: the last hour known to each of them when the first one forecast its first hour


def common_months(histories: Sequence[History], every: int = 1, first: int = 0) -> list[Month]:
    """Return the months of all respondents, in order.

    Args:
        histories: the respondents.
        every: months that one fit forecasts; the later ones count as part of the first.
        first: a month with a fit of its own, months since 1970-01.
    """
    found: dict[int, dict[int, slice]] = {}
    known: dict[int, int] = {}
    for index, history in enumerate(histories):
        for refit in monthly_refits(history, Period(int(history.hours[0]), int(history.hours[-1]))):
            day = history.calendar.day[refit.rows.start : refit.rows.start + 1]
            month = (int(day.astype("datetime64[D]").astype("datetime64[M]").astype(int)[0]) - first) // every
            own = found.setdefault(month, {})
            own[index] = slice(own[index].start if index in own else refit.rows.start, refit.rows.stop)
            known[month] = min(known.get(month, refit.known), refit.known)
    return [Month(found[month], known[month]) for month in sorted(found)]


def own_experts(
    histories: Sequence[History], months: Sequence[Month], log: Callable[[str], None] = lambda message: None
) -> list[NDArray[np.float32]]:
    """Return the corrections of each respondent's hours, in scales, [expert, hour]; 0 before there are `MIN_DAYS` days.

    Args:
        histories: the respondents; all of them are pooled.
        months: as `common_months` returns them.
        log: called with a message now and then.
    """
    inputs = histories[0].inputs.shape[1]
    pooled, moments = Moments.empty(inputs), [Moments.empty(inputs) for _ in histories]
    corrections = [np.zeros((EXPERTS, len(history.hours)), np.float32) for history in histories]
    done = [0] * len(histories)
    for number, month in enumerate(months, 1):
        if number % MESSAGE_EVERY == 0:
            log(f"regressions on own hours: {number} of {len(months)} fits")
        for index, history in enumerate(histories):
            upto = int(np.searchsorted(history.hours, month.known, side="right"))
            if upto > done[index]:
                new = Moments.empty(inputs)
                add_hours(new, history, slice(done[index], upto))
                moments[index].include(new)
                if new.weight.sum() > 0:
                    pooled.include(new, new.days.sum() / new.weight.sum())  # an hour of each counts the same
                done[index] = upto
        centres = [_pooled_slopes(pooled, hour) for hour in range(HOURS)]
        for index, rows in month.rows.items():
            _forecast(corrections[index], histories[index], rows, moments[index], centres)
    return corrections


def _pooled_slopes(pooled: Moments, hour: int) -> Floats:
    return pooled.solve(hour, (POOLED_PENALTY,))[0]


def _forecast(
    corrections: NDArray[np.float32], history: History, rows: slice, moments: Moments, centres: Sequence[Floats]
) -> None:
    """Write a month's corrections into [expert, hour].

    Args:
        corrections: [expert, hour], changed in place.
        history: the respondent.
        rows: hours of the month.
        moments: of the respondent's known hours.
        centres: by local hour, the pooled coefficients [input + 1].
    """
    local = history.calendar.hour[rows]
    for hour in np.unique(local):
        centre = centres[hour]
        if moments.days[hour] < MIN_DAYS:
            zero = np.zeros((len(PENALTIES), len(centre)))
            coefficients = np.concatenate([zero, np.tile(centre, (len(PENALTIES) + 1, 1))])
        else:
            slopes = np.stack([np.zeros(len(centre) - 1), centre[:-1]])
            own = moments.solve(int(hour), PENALTIES, slopes)
            coefficients = np.concatenate([own, centre[None]])
        at = rows.start + np.flatnonzero(local == hour)
        x = history.inputs[at].astype(np.float64)
        corrections[:, at] = np.clip(coefficients[:, :-1] @ x.T + coefficients[:, -1:], -BOUND, BOUND)
