"""What can be read at a moment: how long after its hour an actual value is published, and when the day-ahead forecast of a day (DF) is.

Form EIA-930's instructions (2014) ask each balancing authority to post an hour's demand "as soon as it is available within an hour after the
operating hour", and by 07:00 Eastern, standard or daylight time, the forecast made on the prior day for today. That is `DEADLINE`: at any
moment it counts only what the instructions promise. `DAY_BEFORE` is what published comparisons, and this project before, take as known: an
hour's demand as it ends, and the whole of the next local day's DF at 10:00 local. Series on disk hold each hour's last value and not when it
came, so neither can be confirmed from them; authorities may post earlier than they must.

Moments are hour numbers as everywhere: the moment m is the end of hour m. A value is known at m if it was published at m or before.
`known_at` serves any issue time, also those re-issued every hour: actual values up to `Known.actual` and DF up to `Known.forecast` are known,
and nothing after these. Both never decrease with the moment.

    known = known_at("PACW", np.arange(first, last + 1), DEADLINE)   # one moment an hour
    usable = hour <= known.forecast[i]                               # DF of `hour` at moment i
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from zoneinfo import available_timezones

import numpy as np

from ingest.array_types import Int64s
from ingest.errors import UsageError
from ingest.zones import zone_of

LOCAL = "local"
MAX_ACTUAL_HOURS = 8  # an issue at 10:00 local then knows the whole day before it
MAX_FORECAST_DAYS = 2  # from a day to the publication of its forecast, either way
_TEXT = re.compile(r"(?P<actual>[0-8])h,(?P<day>-?[0-2])T(?P<hour>[01][0-9]|2[0-3]),(?P<zone>[\w/+-]+)")


@dataclass(frozen=True)
class Publication:
    """When values are published; `parse` and `str` convert it from and to text, which settings and checkpoints hold."""

    actual_hours: int  # from the end of an hour to the publication of its actual value
    forecast_day: int  # the day on which DF of a local day is published, in days from that day: -1 the day before
    forecast_hour: int  # o'clock on it
    forecast_zone: str  # of that clock: IANA, or `LOCAL`

    @classmethod
    def parse(cls, text: str) -> "Publication":
        """Return the publication that a name of `NAMED` or a text such as `1h,-1T10,local` means.

        Raises:
            UsageError: it is neither.
        """
        if text in NAMED:
            return NAMED[text]
        found = _TEXT.fullmatch(text)
        if found is None or (found["zone"] != LOCAL and found["zone"] not in available_timezones()):
            raise UsageError(
                f"publication {text!r} is unknown: write {' or '.join(NAMED)}, or the hours until actual values ({MAX_ACTUAL_HOURS} at most), "
                f"the day and hour of DF, and their zone: 1h,-1T10,{LOCAL} or 2h,0T07,America/New_York"
            )
        return cls(int(found["actual"]), int(found["day"]), int(found["hour"]), found["zone"])

    def __str__(self) -> str:
        names = {found: name for name, found in NAMED.items()}
        return names.get(
            self,
            f"{self.actual_hours}h,{self.forecast_day}T{self.forecast_hour:02d},{self.forecast_zone}",
        )


DAY_BEFORE = Publication(0, -1, 10, LOCAL)
DEADLINE = Publication(1, 0, 7, "America/New_York")
NAMED = {"day-before": DAY_BEFORE, "deadline": DEADLINE}
DEFAULT = DAY_BEFORE


@dataclass(frozen=True)
class Known:
    """The last hours whose values are known, hour numbers, [moment]."""

    actual: Int64s
    forecast: Int64s  # DF


def known_at(respondent: str, moments: Int64s, publication: Publication = DEFAULT) -> Known:
    """Return what is known of a respondent at each moment.

    Args:
        respondent: EIA code.
        moments: hour numbers, in any order.
        publication: when values are published.

    Raises:
        UsageError: the respondent's time zone is unknown.
    """
    moments = np.asarray(moments, np.int64)
    if not moments.size:
        return Known(moments, moments)
    margin = MAX_FORECAST_DAYS + 2
    first, last = int(moments.min()) // 24 - margin, int(moments.max()) // 24 + margin
    published, ends = _days(zone_of(respondent), first, last, publication)
    latest = np.searchsorted(published, moments, side="right") - 1  # never -1: the margin holds earlier days
    return Known(moments - publication.actual_hours, ends[latest])


@lru_cache(maxsize=64)
def _days(zone: str, first: int, last: int, publication: Publication) -> tuple[Int64s, Int64s]:
    """Return when DF of the local days `first` to `last` is published, and the last hour of each; hour numbers, [day]."""
    days = np.arange(first, last + 1)
    clock = zone if publication.forecast_zone == LOCAL else publication.forecast_zone
    published = _moments(days + publication.forecast_day, publication.forecast_hour, clock)
    return published, _moments(days + 1, 0, zone)


def _moments(days: Int64s, hour: int, zone: str) -> Int64s:
    """Return the hour numbers that end at `hour` o'clock of local days; a time that a clock skips is the next, one it repeats the later."""
    import pandas as pd  # here: see `ingest.calendar.calendar_of`

    local = pd.DatetimeIndex((days * 24 + hour).astype("datetime64[h]"))
    utc = local.tz_localize(zone, ambiguous=np.zeros(len(days), bool), nonexistent="shift_forward").tz_convert("UTC")
    return utc.tz_localize(None).to_numpy().astype("datetime64[h]").astype(np.int64)
