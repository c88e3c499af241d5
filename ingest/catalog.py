"""The EIA-930 catalogue of respondents and fuels, checked before the first request.

Codes and names: EIA, Form EIA-930, facet values of `electricity/rto` (2026-06). The API responds to an unknown facet
value with 200 and no rows, so a wrong code must be caught here.
"""

from collections.abc import Iterable
from typing import NamedTuple

from ingest.errors import UsageError, did_you_mean

BALANCING_AUTHORITY = "balancing authority"
REGION = "region"


class Respondent(NamedTuple):
    """A reporter of hours to EIA-930."""

    name: str
    kind: str  # BALANCING_AUTHORITY | REGION


_REGIONS = {
    "CAL": "California",
    "CAR": "Carolinas",
    "CENT": "Central",
    "FLA": "Florida",
    "MIDA": "Mid-Atlantic",
    "MIDW": "Midwest",
    "NE": "New England",
    "NW": "Northwest",
    "NY": "New York",
    "SE": "Southeast",
    "SW": "Southwest",
    "TEN": "Tennessee",
    "TEX": "Texas",
    "US48": "United States Lower 48",
}

_BALANCING_AUTHORITIES = {
    "AEC": "PowerSouth Energy Cooperative",
    "AECI": "Associated Electric Cooperative, Inc.",
    "AVA": "Avista Corporation",
    "AVRN": "Avangrid Renewables, LLC",
    "AZPS": "Arizona Public Service Company",
    "BANC": "Balancing Authority of Northern California",
    "BPAT": "Bonneville Power Administration",
    "CHPD": "Public Utility District No. 1 of Chelan County",
    "CISO": "California Independent System Operator",
    "CPLE": "Duke Energy Progress East",
    "CPLW": "Duke Energy Progress West",
    "DEAA": "Arlington Valley, LLC",
    "DOPD": "PUD No. 1 of Douglas County",
    "DUK": "Duke Energy Carolinas",
    "EEI": "Electric Energy, Inc.",
    "EPE": "El Paso Electric Company",
    "ERCO": "Electric Reliability Council of Texas, Inc.",
    "FMPP": "Florida Municipal Power Pool",
    "FPC": "Duke Energy Florida, Inc.",
    "FPL": "Florida Power & Light Co.",
    "GCPD": "Public Utility District No. 2 of Grant County, Washington",
    "GLHB": "GridLiance",
    "GRID": "Gridforce Energy Management, LLC",
    "GRIF": "Griffith Energy, LLC",
    "GVL": "Gainesville Regional Utilities",
    "GWA": "NaturEner Power Watch, LLC",
    "HGMA": "New Harquahala Generating Company, LLC",
    "HST": "City of Homestead",
    "IID": "Imperial Irrigation District",
    "IPCO": "Idaho Power Company",
    "ISNE": "ISO New England",
    "JEA": "JEA",
    "LDWP": "Los Angeles Department of Water and Power",
    "LGEE": "LG&E and KU Services Company",
    "MISO": "Midcontinent Independent System Operator, Inc.",
    "NEVP": "Nevada Power Company",
    "NSB": "Utilities Commission of New Smyrna Beach",
    "NWMT": "NorthWestern Corporation",
    "NYIS": "New York Independent System Operator",
    "OVEC": "Ohio Valley Electric Corporation",
    "PACE": "PacifiCorp East",
    "PACW": "PacifiCorp West",
    "PGE": "Portland General Electric Company",
    "PJM": "PJM Interconnection, LLC",
    "PNM": "Public Service Company of New Mexico",
    "PSCO": "Public Service Company of Colorado",
    "PSEI": "Puget Sound Energy, Inc.",
    "SC": "South Carolina Public Service Authority",
    "SCEG": "Dominion Energy South Carolina, Inc.",
    "SCL": "Seattle City Light",
    "SEC": "Seminole Electric Cooperative",
    "SEPA": "Southeastern Power Administration",
    "SIKE": "Sikeston Board of Municipal Utilities",
    "SOCO": "Southern Company Services, Inc. - Trans",
    "SPA": "Southwestern Power Administration",
    "SRP": "Salt River Project Agricultural Improvement and Power District",
    "SWPP": "Southwest Power Pool",
    "TAL": "City of Tallahassee",
    "TEC": "Tampa Electric Company",
    "TEPC": "Tucson Electric Power",
    "TIDC": "Turlock Irrigation District",
    "TPWR": "City of Tacoma, Department of Public Utilities, Light Division",
    "TVA": "Tennessee Valley Authority",
    "WACM": "Western Area Power Administration - Rocky Mountain Region",
    "WALC": "Western Area Power Administration - Desert Southwest Region",
    "WAUW": "Western Area Power Administration - Upper Great Plains West",
    "WWA": "NaturEner Wind Watch, LLC",
    "YAD": "Alcoa Power Generating, Inc. - Yadkin Division",
}

# In EIA's files and in recordings, but no facet value of the API: its hours end before those of the API begin.
RETIRED = {"OVEC": "2018-12-01"}  # code → day on which it joined another authority

RESPONDENTS: dict[str, Respondent] = {
    **{code: Respondent(name, BALANCING_AUTHORITY) for code, name in _BALANCING_AUTHORITIES.items()},
    **{code: Respondent(name, REGION) for code, name in _REGIONS.items()},
}

FUELS: dict[str, str] = {
    "BAT": "Battery storage",
    "COL": "Coal",
    "GEO": "Geothermal",
    "NG": "Natural gas",
    "NUC": "Nuclear",
    "OES": "Other energy storage",
    "OIL": "Petroleum",
    "OTH": "Other",
    "PS": "Pumped storage",
    "SNB": "Solar with integrated battery storage",
    "SUN": "Solar",
    "UES": "Unknown energy storage",
    "UNK": "Unknown",
    "WAT": "Hydro",
    "WNB": "Wind with integrated battery storage",
    "WND": "Wind",
}


VARIABLE_NAMES = {
    "D": "Demand, load",
    "DF": "Day-ahead demand forecast",
    "NG": "Net generation",
    "TI": "Total interchange",
    **{f"NG.{code}": name for code, name in FUELS.items()},
}


def variable_near(words: Iterable[str], known: Iterable[str]) -> str:
    """Return near matches of variables by code, otherwise by a name that holds the word: `demand` → D, `solar` → NG.SUN."""
    words, known = list(words), list(known)
    if near := did_you_mean(words, known):
        return near
    named = [code for code in known for word in words if word.casefold() in VARIABLE_NAMES.get(code, "").casefold()]
    return f" (did you mean {' or '.join(dict.fromkeys(named))}?)" if named else ""


def near_matches(code: str) -> str:
    """Return near matches by code, otherwise by a name that contains the word: `california` → CAL, CISO."""
    if near := did_you_mean([code.upper()], RESPONDENTS):
        return near
    word = code.casefold()
    named = [known for known, (name, _) in RESPONDENTS.items() if len(word) > 3 and word in name.casefold()][:5]
    return f" (did you mean {' or '.join(named)}?)" if named else ""


def check_respondents(codes: Iterable[str]) -> None:
    """Check respondent codes against the catalogue.

    Raises:
        UsageError: no code, or unknown ones; each is named with its near matches.
    """
    codes = list(codes)
    if not codes:
        raise UsageError("no respondent given; name at least one, for example `--respondents PACW`")
    if unknown := [code for code in codes if code not in RESPONDENTS]:
        listed = "; ".join(f"{code!r}{near_matches(code)}" for code in unknown)
        raise UsageError(f"unknown respondent: {listed}. `coordinator start --extract --dry-run` shows a plan")
