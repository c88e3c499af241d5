"""What is known at a moment: actual values after their lag, DF from the moment of its day on; at any hour, in every zone, over clock changes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.calendar import ZONES, calendar_of
from ingest.columns import hour_number
from ingest.errors import UsageError
from ingest.publication import DAY_BEFORE, DEADLINE, Publication, known_at


def last_forecast(who: str, moment: int, publication: Publication) -> int:
    """Return the last hour whose DF is known, day by day with the standard library."""
    own = ZoneInfo(ZONES[who])
    clock = own if publication.forecast_zone == "local" else ZoneInfo(publication.forecast_zone)
    day = datetime.fromtimestamp(moment * 3600, own).date() + timedelta(days=4)
    while True:
        on = day + timedelta(days=publication.forecast_day)
        published = datetime(on.year, on.month, on.day, publication.forecast_hour, tzinfo=clock)
        if published.timestamp() <= moment * 3600:
            after = day + timedelta(days=1)
            return int(datetime(after.year, after.month, after.day, tzinfo=own).timestamp()) // 3600
        day -= timedelta(days=1)


@settings(max_examples=60)
@given(
    st.sampled_from(["PACW", "ERCO", "ISNE", "SRP", "PSCO"]),
    st.sampled_from([DAY_BEFORE, DEADLINE, Publication(2, -1, 18, "America/Chicago"), Publication(1, -2, 0, "local")]),
    st.integers(hour_number("2018-12-30T00"), hour_number("2020-01-03T00")),
)
def test_any_moment_knows_what_is_published(who: str, publication: Publication, moment: int) -> None:
    known = known_at(who, np.array([moment, moment + 7]), publication)
    assert known.actual.tolist() == [moment - publication.actual_hours, moment + 7 - publication.actual_hours]
    assert known.forecast.tolist() == [last_forecast(who, m, publication) for m in (moment, moment + 7)]


def test_the_assumption_of_before_is_that_of_the_calendar() -> None:
    """At 10:00 local the next local day's DF, whole, and the hour that ends are known; also on days of 23 and 25 hours."""
    calendar = calendar_of("PACW", hour_number("2019-01-02T00"), hour_number("2019-12-30T00"))
    known = known_at("PACW", calendar.issue, DAY_BEFORE)
    ends = np.searchsorted(calendar.day, calendar.day, side="right") - 1
    whole = calendar.day < calendar.day[-1]
    assert (known.actual == calendar.issue).all()
    assert (known.forecast[whole] == calendar.hours[ends][whole]).all()
    before = known_at("PACW", calendar.issue - 1, DAY_BEFORE)
    assert (before.forecast < calendar.hours).all()  # at 9:00 none of the day is known


def test_the_deadline_knows_no_forecast_of_the_next_day() -> None:
    calendar = calendar_of("PACW", hour_number("2019-03-01T00"), hour_number("2019-03-20T00"))
    known = known_at("PACW", calendar.issue, DEADLINE)
    assert (known.forecast < calendar.hours).all()
    local = datetime.fromtimestamp(int(known.forecast[0]) * 3600, UTC).astimezone(ZoneInfo(ZONES["PACW"]))
    assert local.hour == 0  # all of the present day


def test_publications_convert_to_text_and_back() -> None:
    for one in (DAY_BEFORE, DEADLINE, Publication(2, 0, 7, "America/New_York"), Publication(0, -1, 10, "UTC")):
        assert Publication.parse(str(one)) == one
    assert str(DEADLINE) == "deadline"
    for text in ("", "never", "1h,-1T10", "1h,-1T25,local", "9h,-1T10,local", "1h,-1T10,Mars/Base"):
        with pytest.raises(UsageError, match="day-before or deadline"):
            Publication.parse(text)
