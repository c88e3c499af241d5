"""Running bias: the reference forecast less its own mean error at the same hour of the days before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ingest.array_types import Floats
from worker.forecast.baselines.history import History, choose
from worker.training.tokens import Period

DAY = 24  # hours
WINDOWS = (3, 5, 7, 10, 14, 21, 28, 42, 56)  # days tried
WEIGHTS = tuple(k / 10 for k in range(11))  # tried; 0 is the reference itself


class Bias(NamedTuple):
    """How much of the mean error is taken off."""

    days: int  # over which the error is averaged
    weight: float


def running_bias(history: History, validate: Period) -> tuple[Bias, Floats]:
    """Return window and weight chosen on the validation hours, and the forecast of every hour, MWh, [hour].

    Errors after an hour's issue time do not count; before any is known, the forecast is the reference.
    """
    return choose(history, validate, _forecasts(history))


def _forecasts(history: History) -> Iterator[tuple[Bias, Floats]]:
    error = history.demand - history.reference
    at = np.arange(len(error))
    known = history.calendar.issue - history.hours[0]  # index of the last hour with a known error
    total, count = np.zeros(len(error)), np.zeros(len(error))
    for days in range(1, max(WINDOWS) + 1):
        then = at - DAY * days
        past = np.where((then >= 0) & (then <= known), error[np.maximum(then, 0)], np.nan)
        total += np.nan_to_num(past)
        count += np.isfinite(past)
        if days in WINDOWS:
            mean = total / np.maximum(count, 1)
            yield from ((Bias(days, weight), history.reference + weight * mean) for weight in WEIGHTS)
