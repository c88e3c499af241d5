"""Time zones of respondents.

EIA's reference table of balancing authorities (2019-09) names the zone that each has chosen for its days, not the one in which it lies:
Southern's days are Central, those of New Mexico (PNM), El Paso and WACM have no daylight saving. The data agree where days without a forecast
show them (`tests/unit/ingest/test_calendar.py`); LGEE's begin at 05:00 UTC in summer and winter, which no zone of the table explains. BHBA and
SWPW are newer than the table: their zone is the one in which they lie.
"""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from ingest.errors import UsageError

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
