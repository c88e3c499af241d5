"""Local time of a respondent: daylight saving, local days, US federal holidays, and the issue time of each hour.

Hours are EIA's: UTC, hour-ending, as hour numbers (hours since 1970-01-01T00). A local day is the 23 to 25 hours that end
after its midnight, up to and including the next one. Holidays: the US federal ones of the `holidays` library.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np

from ingest.array_types import Bools, Int64s
from ingest.publication import DEFAULT, Publication, known_at
from ingest.zones import ZONES as ZONES
from ingest.zones import zone_of as zone_of

ISSUE_HOUR = 10  # o'clock local on the day before: operators have published their forecast of the day by then


@dataclass(frozen=True)
class Calendar:
    """Local time of consecutive hours; every array is [hour]."""

    hours: Int64s  # hour numbers
    hour: Int64s  # 0…23, the local hour that begins
    day: Int64s  # local day, days since 1970-01-01
    weekday: Int64s  # 0 = Monday
    yearday: Int64s  # 1…366
    year: Int64s
    summer: Bools  # daylight saving
    holiday: Bools  # a US federal holiday
    issue: Int64s  # hour number: the last hour whose actual value a forecast of this hour may use
    published: Int64s  # hour number: the last hour whose DF it may use


def calendar_of(
    respondent: str, first: int, last: int, issue_hour: int = ISSUE_HOUR, publication: Publication = DEFAULT
) -> Calendar:
    """Return the calendar of the hours `first` to `last` (hour numbers, both inclusive) at a respondent.

    Every hour of local day d is forecast at `issue_hour` o'clock local on day d - 1; what `publication` says is known then never decreases
    from one hour to the next.
    """
    import holidays  # here, as pandas: half of the start-up time of a rank or learner, which mostly reads tokens that exist
    import pandas as pd

    zone = ZoneInfo(zone_of(respondent))
    hours = np.arange(first, last + 1)
    begins = pd.DatetimeIndex((hours - 1).astype("datetime64[h]")).tz_localize("UTC").tz_convert(zone)
    local = begins.tz_localize(None)
    day = local.to_numpy().astype("datetime64[D]").astype(np.int64)
    days, where = np.unique(day, return_inverse=True)
    dates = [date(1970, 1, 1) + timedelta(days=int(d)) for d in days]
    free = holidays.country_holidays("US", years=range(dates[0].year, dates[-1].year + 1))
    offset = np.array([moment.dst() != timedelta(0) for moment in begins.to_pydatetime()])
    known = known_at(respondent, np.array([_issue(d, zone, issue_hour) for d in dates], np.int64), publication)
    return Calendar(
        hours,
        local.hour.to_numpy().astype(np.int64),
        day,
        local.dayofweek.to_numpy().astype(np.int64),
        local.dayofyear.to_numpy().astype(np.int64),
        local.year.to_numpy().astype(np.int64),
        offset,
        np.array([d in free for d in dates])[where],
        known.actual[where],
        known.forecast[where],
    )


def _issue(day: date, zone: ZoneInfo, issue_hour: int) -> int:
    """Return the number of the hour that ends at `issue_hour` local on the day before `day`."""
    before = day - timedelta(days=1)
    moment = datetime(before.year, before.month, before.day, issue_hour, tzinfo=zone).astimezone(UTC)
    return int(moment.timestamp()) // 3600
