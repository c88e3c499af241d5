"""Local days, daylight saving, holidays and issue times."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.calendar import ISSUE_HOUR, calendar_of
from ingest.catalog import RESPONDENTS
from ingest.columns import hour_number
from ingest.errors import UsageError
from ingest.zones import ZONES
from tests.support.recordings import demand, needs_recordings


def test_every_respondent_has_a_time_zone() -> None:
    assert set(ZONES) == set(RESPONDENTS)


@pytest.mark.parametrize(
    ("who", "summer", "winter"),  # the first hour of the local day, UTC and hour-ending
    [
        ("EPE", 8, 8),
        ("IPCO", 8, 9),
        ("LGEE", 6, 7),
        ("MISO", 6, 7),
        ("PNM", 8, 8),
        ("SOCO", 6, 7),
        ("WACM", 8, 8),
        ("PJM", 5, 6),
        ("PACW", 8, 9),
    ],
)
def test_zones_are_those_of_eias_table(who: str, summer: int, winter: int) -> None:
    for day, hour in (("2018-07-10", summer), ("2018-01-10", winter)):
        calendar = calendar_of(who, hour_number(f"{day}T00"), hour_number(f"{day}T23"))
        assert int(np.flatnonzero(calendar.hour == 0)[0]) == hour


@needs_recordings
@pytest.mark.parametrize("who", ["SOCO", "PNM", "WACM", "PSCO"])
def test_days_without_a_forecast_begin_at_midnight_of_the_zone(who: str) -> None:
    """An operator that forgets a forecast forgets a local day: the data tell which days it has. PSCO's are of its mountains."""
    hours, columns = demand(who, "2020_Oct_more")
    absent = ~np.isfinite(columns["DF"])
    edges = np.diff(np.concatenate(([0], absent.astype(np.int8), [0])))
    starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    days = [start for start, end in zip(starts, ends, strict=True) if start and (end - start) % 24 == 0]
    first = hour_number(hours[0])
    calendar = calendar_of(who, first, first + len(hours) - 1)
    assert len(days) >= 3
    assert {int(calendar.hour[start]) for start in days} == {0}


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
