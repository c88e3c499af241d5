"""Own history takes the place of a model that did worse of late, from errors that the issue time knows, and gives it back."""

from __future__ import annotations

import numpy as np

from ingest.calendar import calendar_of
from tests.unit.ingest.test_features import FIRST
from worker.forecast.fallback import MARGIN, history_instead, recent_error

DAYS = 120


def test_a_model_that_breaks_is_left_and_taken_back() -> None:
    draw = np.random.default_rng(0)
    calendar = calendar_of("PACW", FIRST, FIRST + 24 * DAYS - 1)
    demand = 1000 + draw.normal(0, 10, 24 * DAYS)
    history = demand + draw.normal(0, 50, 24 * DAYS)
    model = demand + draw.normal(0, 30, 24 * DAYS)
    broken = (calendar.day >= calendar.day[0] + 50) & (calendar.day < calendar.day[0] + 70)
    model[broken] += draw.normal(0, 400, broken.sum())
    instead, ratio = history_instead(calendar, demand, model, history)
    days = calendar.day - calendar.day[0]
    assert not instead[days < 51].any() and instead[(days > 60) & (days < 72)].all() and not instead[days > 98].any()
    assert (ratio[instead] < MARGIN).all() and (ratio[~instead] == 1).all()
    # A day without the model is no error of it: its hours start from history already.
    model[:] = np.nan
    assert not history_instead(calendar, demand, model, history)[0].any()


def test_only_errors_of_days_before_the_issue_time_count() -> None:
    calendar = calendar_of("PACW", FIRST, FIRST + 24 * DAYS - 1)
    error = np.random.default_rng(1).normal(0, 10, 24 * DAYS)
    target = calendar.day[0] + 80
    known = calendar.hours <= calendar.issue[calendar.day == target][0]
    spoilt = np.where(known, error, 9e9)
    upto = calendar.day <= target
    np.testing.assert_array_equal(recent_error(calendar, error)[upto], recent_error(calendar, spoilt)[upto])
    assert (
        recent_error(calendar, error)[calendar.day == target + 3]
        != recent_error(calendar, spoilt)[calendar.day == target + 3]
    ).all()
