"""The EIA-930 catalogue: respondents, fuels and routes, and the checks made before the first request.

Codes and names: EIA, Form EIA-930, facet values of `electricity/rto` (2026-06). An unknown facet value is answered by
200 with no rows, so a wrong code must be caught here.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import NamedTuple

from ingest.errors import UsageError
from ingest.models import REGION_TYPES

BALANCING_AUTHORITY = "balancing authority"
REGION = "region"
FIRST_YEAR = 2019  # EIA's hourly routes start at 2019-01-01T00
LAST_YEAR = 2100  # beyond it, a year is a slip of the keyboard


class Respondent(NamedTuple):
    """Who reports hours to EIA-930."""

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

TYPES: dict[str, str] = dict(
    zip(REGION_TYPES, ("Demand", "Day-ahead demand forecast", "Net generation", "Total interchange"), strict=True)
)

ROUTES: dict[str, tuple[str, ...]] = {
    "eia": ("region-data", "fuel-type-data"),
    "oasis": ("SLD_FCST", "SLD_REN_FCST", "ENE_SLRS"),
    "bulk": ("BALANCE",),
}


def _near(word: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(word, list(known), n=3, cutoff=0.5)
    return f" (did you mean {', '.join(matches)}?)" if matches else ""


def _near_respondent(code: str) -> str:
    """Near matches by code, else by a name that holds the word: `california` → CAL, CISO."""
    if near := _near(code.upper(), RESPONDENTS):
        return near
    word = code.casefold()
    named = [known for known, (name, _) in RESPONDENTS.items() if len(word) > 3 and word in name.casefold()][:5]
    return f" (did you mean {', '.join(named)}?)" if named else ""


def check_respondents(codes: Iterable[str], source: str = "eia") -> None:
    """UsageError that names every unknown code and its near matches, or a region asked of the bulk files."""
    codes = list(codes)
    if not codes:
        raise UsageError("no respondent asked for; name at least one, e.g. `--respondents PACW`")
    if unknown := [code for code in codes if code not in RESPONDENTS]:
        listed = "; ".join(f"{code!r}{_near_respondent(code)}" for code in unknown)
        raise UsageError(f"unknown respondent: {listed}. `coordinator start --extract --dry-run` shows a plan")
    if source == "bulk" and (regions := [code for code in codes if RESPONDENTS[code].kind == REGION]):
        raise UsageError(
            f"EIA's bulk files hold balancing authorities only, not the regions {', '.join(regions)}; "
            "ask for CISO in place of CAL and ERCO in place of TEX, or use `--source eia`"
        )
    if source == "oasis" and (others := [code for code in codes if code != "CISO"]):
        raise UsageError(f"OASIS serves CISO only, not {', '.join(others)}")


def check_routes(routes: Iterable[str], source: str = "eia") -> None:
    """UsageError for a source or a route that isn't known, with near matches."""
    if source not in ROUTES:
        raise UsageError(f"unknown source {source!r}{_near(source, ROUTES)}; known: {', '.join(ROUTES)}")
    for route in routes:
        if route not in ROUTES[source]:
            known = ROUTES[source]
            raise UsageError(f"unknown route {route!r} of {source}{_near(route, known)}; known: {', '.join(known)}")


def check_years(years: Iterable[int], first: int = FIRST_YEAR) -> None:
    """UsageError for a year before `first` (EIA's hourly routes start in 2019) or far in the future."""
    for year in years:
        if not first <= year <= LAST_YEAR:
            raise UsageError(f"year {year}: hours are served from {first} on; ask for {first} or later")
