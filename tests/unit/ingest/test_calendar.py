"""Local days, daylight saving, holidays and issue times."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.calendar import ISSUE_HOUR, ZONES, calendar_of
from ingest.catalog import RESPONDENTS
from ingest.columns import hour_number
from ingest.errors import UsageError


def test_every_respondent_has_a_time_zone() -> None:
    assert set(ZONES) == set(RESPONDENTS)


def test_unknown_respondent_has_no_time_zone() -> None:
    with pytest.raises(UsageError, match="XXXX"):
        calendar_of("XXXX", 0, 1)


@pytest.mark.parametrize(("day", "hours"), [("2024-03-10", 23), ("2024-03-11", 24), ("2024-11-03", 25)])
def test_daylight_saving_days_have_23_and_25_hours(day: str, hours: int) -> None:
    calendar = calendar_of("PACW", hour_number(f"{day}T00") - 48, hour_number(f"{day}T00") + 96)
    number = int(np.datetime64(day, "D").astype(int))
    assert (calendar.day == number).sum() == hours
    assert set(calendar.hour[calendar.day == number]) == set(range(24)) - ({2} if hours == 23 else set())


def test_hour_belongs_to_the_day_in_which_it_begins() -> None:
    midnight = hour_number("2024-07-02T05")  # the hour that ends at local midnight, Central summer time
    calendar = calendar_of("ERCO", midnight, midnight + 1)
    assert calendar.hour.tolist() == [23, 0]
    assert np.diff(calendar.day).tolist() == [1]


def test_holidays_are_local_days() -> None:
    calendar = calendar_of("MISO", hour_number("2024-07-03T00"), hour_number("2024-07-06T23"))
    fourth = int(np.datetime64("2024-07-04", "D").astype(int))
    assert (calendar.holiday == (calendar.day == fourth)).all()


@settings(max_examples=40)
@given(st.sampled_from(sorted(ZONES)), st.integers(0, 24 * 365 * 9), st.integers(1, 400))
def test_issue_times_are_10_local_on_the_day_before_and_monotonic(who: str, start: int, length: int) -> None:
    first = hour_number("2016-01-01T00") + start
    calendar = calendar_of(who, first, first + length)
    assert (np.diff(calendar.issue) >= 0).all()
    assert (calendar.issue < calendar.hours).all()
    for i in {0, length // 2, length}:
        issue = datetime.fromtimestamp(int(calendar.issue[i]) * 3600, UTC).astimezone(ZoneInfo(ZONES[who]))
        assert issue.hour == ISSUE_HOUR
        assert (issue.date() - datetime(1970, 1, 1).date()).days == calendar.day[i] - 1
