"""Time zones of respondents, and their local days as hours in UTC.

EIA's reference table of balancing authorities (2019-09) names the zone that each has chosen for its days, not the one in which it lies:
Southern's days are Central, those of New Mexico (PNM), El Paso and WACM have no daylight saving. The data agree where days without a forecast
show them (`tests/unit/ingest/test_calendar.py`); LGEE's begin at 05:00 UTC in summer and winter, which no zone of the table explains. BHBA and
SWPW are newer than the table: their zone is the one in which they lie.
"""

from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

import numpy as np

from ingest.array_types import Int64s
from ingest.errors import UsageError

LATEST_MIDNIGHT_H = 8  # hours after midnight UTC: the Pacific one, in winter
EPOCH_DAY = date(1970, 1, 1)

_EASTERN, _CENTRAL, _MOUNTAIN = "America/New_York", "America/Chicago", "America/Denver"
_ARIZONA, _PACIFIC = "America/Phoenix", "America/Los_Angeles"
_MEMBERS = {
    _EASTERN: "CAR FLA MIDA NE NY US48 CPLE CPLW DUK FMPP FPC FPL GVL HST ISNE JEA NSB NYIS OVEC PJM SC SCEG SEC TAL TEC YAD GLHB",
    _CENTRAL: "CENT MIDW SE TEN TEX AEC AECI EEI ERCO LGEE MISO SEPA SIKE SOCO SPA SWPP TVA",
    _MOUNTAIN: "BHBA GWA NWMT PACE PSCO SWPW WAUW WWA",
    _ARIZONA: "AZPS DEAA EPE GRIF HGMA PNM SRP SW TEPC WACM WALC",
    _PACIFIC: "CAL NW AVA AVRN BANC BPAT CHPD CISO DOPD GCPD GRID IID IPCO LDWP NEVP PACW PGE PSEI SCL TIDC TPWR",
}
ZONES = {code: zone for zone, codes in _MEMBERS.items() for code in codes.split()}


def zone_of(respondent: str) -> str:
    """Return the IANA zone of a respondent.

    Raises:
        UsageError: EIA's tables name no time zone for the respondent.
    """
    if respondent not in ZONES:
        raise UsageError(f"the time zone of {respondent} is unknown; choose one of {', '.join(sorted(ZONES))}")
    return ZONES[respondent]


def standard_offset(respondent: str) -> int:
    """Return the hours from UTC to the standard time of a respondent's zone: -5 for Eastern; daylight saving does not move it.

    Raises:
        UsageError: as for `zone_of`.
    """
    winter = datetime(2020, 1, 1, tzinfo=ZoneInfo(zone_of(respondent)))
    return (winter.replace(tzinfo=UTC) - winter) // timedelta(hours=1)


@lru_cache(maxsize=256)
def midnights(zone: str, first: int, last: int) -> Int64s:
    """Return the hour that ends at each local midnight: int64 [day + 1], hours since 1970-01-01T00 UTC.

    The hours of day `first + i` end after entry `i`, up to and including entry `i + 1`: 23 to 25.

    Args:
        zone: IANA zone.
        first: day number, days since 1970-01-01.
        last: day number, inclusive.
    """
    clock = ZoneInfo(zone)
    days = (EPOCH_DAY + timedelta(days=number) for number in range(first, last + 2))
    ends = [datetime(day.year, day.month, day.day, tzinfo=clock).timestamp() for day in days]
    return np.array(ends, np.int64) // 3600
