"""Quantiles around a point forecast: from the errors that an issue time knows, as wide as those of the hour."""

from __future__ import annotations

import numpy as np
import pytest

from ingest.calendar import calendar_of
from ingest.columns import hour_number
from worker.forecast.linear import intervals
from worker.forecast.linear.intervals import quantiles_around
from worker.forecast.model.network import MEDIAN, QUANTILES

FIRST, DAYS = hour_number("2018-01-01T00"), 200
LOW, HIGH = QUANTILES.index(0.1), QUANTILES.index(0.9)


def errors(calendar_hours: np.ndarray) -> np.ndarray:
    """Errors, MWh, three times as large in the local afternoon as at night, and more often above than below."""
    draw = np.random.default_rng(3)
    wide = np.where((calendar_hours >= 12) & (calendar_hours < 20), 90.0, 30.0)
    return wide * (draw.exponential(1, len(calendar_hours)) - 0.7)


def test_intervals_are_as_wide_as_the_hours_errors_and_cover_them() -> None:
    calendar = calendar_of("PACW", FIRST, FIRST + 24 * DAYS - 1)
    point, scale = np.full(24 * DAYS, 3000.0), np.full(24 * DAYS, 40.0)
    demand = point + errors(calendar.hour)
    q = quantiles_around(point, demand, scale, calendar)
    late = calendar.day - calendar.day[0] > 100
    np.testing.assert_array_equal(q[:, MEDIAN], point)
    assert (np.diff(q[late], axis=1) >= 0).all()
    afternoon, night = (late & (calendar.hour == h) for h in (15, 3))
    width = q[:, HIGH] - q[:, LOW]
    assert width[afternoon].mean() / width[night].mean() == pytest.approx(3, rel=0.25)
    assert ((q[:, HIGH] - point) / (point - q[:, LOW]))[late].mean() > 1.5  # errors above are the larger ones
    covered = ((demand >= q[:, LOW]) & (demand <= q[:, HIGH]))[late].mean()
    assert 0.76 < covered < 0.84


def test_no_error_after_the_issue_time_reaches_a_quantile_and_few_errors_give_none() -> None:
    calendar = calendar_of("PACW", FIRST, FIRST + 24 * DAYS - 1)
    point, scale = np.full(24 * DAYS, 3000.0), np.full(24 * DAYS, 40.0)
    demand = point + errors(calendar.hour)
    day = calendar.day[0] + 150
    issue = calendar.issue[calendar.day == day][0]
    spoilt = np.where(calendar.hours > issue, 9e5, demand)
    before, after = (quantiles_around(point, one, scale, calendar) for one in (demand, spoilt))
    upto = calendar.day <= day
    np.testing.assert_array_equal(before[upto], after[upto])
    assert not np.array_equal(before[calendar.day == day + 2], after[calendar.day == day + 2])
    early = calendar.day < calendar.day[0] + intervals.FEWEST
    assert np.isnan(before[early][:, [LOW, HIGH]]).all() and np.isfinite(before[early][:, MEDIAN]).all()
