"""The EIA-930 catalogue of respondents, sub-areas and fuels, checked before the first request.

Codes and names: EIA, Form EIA-930, facet values of `electricity/rto` (2026-06). The API responds to an unknown facet
value with 200 and no rows, so a wrong code must be caught here.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from ingest.errors import UsageError, did_you_mean

BALANCING_AUTHORITY = "balancing authority"
REGION = "region"


class Respondent(NamedTuple):
    """A reporter of hours to EIA-930."""

    name: str
    kind: str  # BALANCING_AUTHORITY | REGION
    since: str = ""  # first hour, where it is after the first that EIA has; UTC, YYYY-MM-DDTHH
    until: str = ""  # last hour, where it reports no longer

    def reports_in(self, start: str, end: str) -> bool:
        """Return whether it has an hour in a period of `YYYY-MM-DDTHH` texts, both inclusive, as far as is known."""
        return (not self.until or self.until >= start) and self.since <= end


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
    "BHBA": "Black Hills Energy",  # after the facet values: EIA's spelling is not known
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
    "SWPW": "Southwest Power Pool West",  # as BHBA
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

# First and last hours, where they are known. OVEC joined PJM, and is in EIA's files and in recordings, but no facet value of the
# API: its hours end before those of the API begin. NSB: README of the recordings (Ruggles et al.).
_SINCE = {"BHBA": "2026-06-01T00", "SWPW": "2026-06-01T00"}
_UNTIL = {"OVEC": "2018-12-01T05", "NSB": "2020-01-08T23"}

RESPONDENTS: dict[str, Respondent] = {
    **{
        code: Respondent(name, BALANCING_AUTHORITY, _SINCE.get(code, ""), _UNTIL.get(code, ""))
        for code, name in _BALANCING_AUTHORITIES.items()
    },
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

# How many fuels an authority generates with, as in July 2021 (gridemissions' sample of EIA-930). Of others the number is not known.
_BY_FUELS = {
    1: "DEAA DOPD GCPD GRIF GWA HGMA HST SCL SEPA TPWR WAUW WWA YAD",
    2: "CHPD EPE SPA TAL TIDC",
    3: "AECI GVL SEC",
    4: "AEC AVRN BANC GRID IID LGEE TEPC WALC",
    5: "AVA CPLW FPL JEA PGE PSEI TEC WACM",
    6: "BPAT DUK FMPP FPC IPCO LDWP NWMT PACE PACW PNM PSCO SC SCEG",
    7: "CPLE ERCO MISO SRP",
    8: "AZPS CISO ISNE NEVP NYIS PJM SOCO SWPP TVA",
}
FUEL_COUNTS = {code: count for count, codes in _BY_FUELS.items() for code in codes.split()}
ONLY_GENERATE = frozenset(
    ("AVRN", "DEAA", "GRID", "GRIF", "GWA", "HGMA", "SEPA", "WWA", "YAD")
)  # no demand, no forecast


# Areas within a balancing authority that report their demand: authority → code → name. A code is unique over all authorities.
SUB_AREAS: dict[str, dict[str, str]] = {
    "CISO": {
        "PGAE": "Pacific Gas and Electric",
        "SCE": "Southern California Edison",
        "SDGE": "San Diego Gas and Electric",
        "VEA": "Valley Electric Association",
    },
    "ERCO": {
        "COAS": "Coast",
        "EAST": "East",
        "FWES": "Far West",
        "NCEN": "North Central",
        "NRTH": "North",
        "SCEN": "South Central",
        "SOUT": "South",
        "WEST": "West",
    },
    "ISNE": {
        "4001": "Maine",
        "4002": "New Hampshire",
        "4003": "Vermont",
        "4004": "Connecticut",
        "4005": "Rhode Island",
        "4006": "Southeast Mass.",
        "4007": "Western/Central Mass.",
        "4008": "Northeast Mass.",
    },
    "MISO": {
        "0001": "Zone 1",
        "0004": "Zone 4",
        "0006": "Zone 6",
        "0027": "Zones 2 and 7",
        "0035": "Zones 3 and 5",
        "8910": "Zones 8, 9 and 10",
    },
    "NYIS": {
        "ZONA": "West",
        "ZONB": "Genesee",
        "ZONC": "Central",
        "ZOND": "North",
        "ZONE": "Mohawk Valley",
        "ZONF": "Capital",
        "ZONG": "Hudson Valley",
        "ZONH": "Millwood",
        "ZONI": "Dunwoodie",
        "ZONJ": "New York City",
        "ZONK": "Long Island",
    },
    "PJM": {
        "AE": "Atlantic Electric zone",
        "AEP": "American Electric Power zone",
        "AP": "Allegheny Power zone",
        "ATSI": "American Transmission Systems, Inc. zone",
        "BC": "Baltimore Gas & Electric zone",
        "CE": "Commonwealth Edison zone",
        "DAY": "Dayton Power & Light zone",
        "DEOK": "Duke Energy Ohio/Kentucky zone",
        "DOM": "Dominion Virginia Power zone",
        "DPL": "Delmarva Power & Light zone",
        "DUQ": "Duquesne Lighting Company zone",
        "EKPC": "East Kentucky Power Cooperative zone",
        "JC": "Jersey Central Power & Light zone",
        "ME": "Metropolitan Edison zone",
        "PE": "PECO Energy zone",
        "PEP": "Potomac Electric Power zone",
        "PL": "Pennsylvania Power & Light zone",
        "PN": "Pennsylvania Electric zone",
        "PS": "Public Service Electric & Gas zone",
        "RECO": "Rockland Electric (East) zone",
    },
    "PNM": {
        "ACMA": "City of Acoma Pueblo",
        "CYGA": "CYGA",
        "Frep": "Frep",
        "Jica": "Jicarilla Apache Nation",
        "KAFB": "Kirtland Air Force Base",
        "KCEC": "Kit Carson Electric Cooperative",
        "LAC": "Los Alamos County",
        "NTUA": "Navajo Tribal Utility Authority",
        "PNM": "PNM System Firm Load",
        "TSGT": "TSGT",
    },
    "SWPP": {
        "CSWS": "AEPW American Electric Power West",
        "EDE": "Empire District Electric Company",
        "GRDA": "Grand River Dam Authority",
        "INDN": "Independence Power & Light",
        "KACY": "Kansas City Board of Public Utilities",
        "KCPL": "Kansas City Power & Light",
        "LES": "Lincoln Electric System",
        "MPS": "KCP&L Greater Missouri Operations",
        "NPPD": "Nebraska Public Power District",
        "OKGE": "Oklahoma Gas and Electric Co.",
        "OPPD": "Omaha Public Power District",
        "SECI": "Sunflower Electric",
        "SPRM": "City of Springfield",
        "SPS": "Southwestern Public Service Company",
        "WAUE": "Western Area Power Upper Great Plains East",
        "WFEC": "Western Farmers Electric Cooperative",
        "WR": "Westar Energy",
    },
}


# Regions as sums of authorities (last column of EIA's six-month files). US48 is all of them.
MEMBERS: dict[str, frozenset[str]] = {
    region: frozenset(codes.split())
    for region, codes in {
        "CAL": "BANC CISO IID LDWP TIDC",
        "CAR": "CPLE CPLW DUK SC SCEG YAD",
        "CENT": "SPA SWPP",
        "FLA": "FMPP FPC FPL GVL HST JEA NSB SEC TAL TEC",
        "MIDA": "OVEC PJM",
        "MIDW": "AECI EEI GLHB LGEE MISO SIKE",
        "NE": "ISNE",
        "NW": "AVA AVRN BHBA BPAT CHPD DOPD GCPD GRID GWA IPCO NEVP NWMT PACE PACW PGE PSCO PSEI SCL SWPW TPWR WACM WAUW WWA",
        "NY": "NYIS",
        "SE": "AEC SEPA SOCO",
        "SW": "AZPS DEAA EPE GRIF HGMA PNM SRP TEPC WALC",
        "TEN": "TVA",
        "TEX": "ERCO",
        "US48": " ".join(_BALANCING_AUTHORITIES),
    }.items()
}


def distinct(codes: Iterable[str]) -> tuple[str, ...]:
    """Return codes without the regions that hold another one of them: TEX beside ERCO, CAL beside CISO.

    A mean over respondents takes these: it would otherwise count the same demand twice. Unknown names are kept.
    """
    codes = tuple(codes)
    return tuple(code for code in codes if not any(_holds(code, other) for other in codes))


def _holds(code: str, other: str) -> bool:
    """Return whether a region holds another respondent, an authority or a region."""
    return other in MEMBERS.get(code, ()) or (other in MEMBERS and MEMBERS[other] < MEMBERS.get(code, frozenset()))


# Names of groups in a list of respondents, e.g. `--respondents bas`.
GROUPS: dict[str, Callable[[Respondent], bool]] = {
    "ALL": lambda respondent: True,
    "BAS": lambda respondent: respondent.kind == BALANCING_AUTHORITY,
    "REGIONS": lambda respondent: respondent.kind == REGION,
}


def expand_groups(
    codes: Sequence[str],
    start: str,
    end: str,
    serves: Callable[[str], bool],
    known: Mapping[str, Respondent] = RESPONDENTS,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Replace names of groups by their codes.

    Args:
        codes: codes and names in `GROUPS`, upper case.
        start: first hour of the period, `YYYY-MM-DDTHH`.
        end: last hour, inclusive.
        serves: whether the source has a respondent.
        known: all respondents.

    Returns:
        Codes, each once, in order; and those of groups that are left out because they report at another time. A code that is
        named is always asked for.

    Raises:
        UsageError: the source has no respondent of a group.
    """
    found: dict[str, None] = {}
    idle: dict[str, None] = {}
    for code in codes:
        if code not in GROUPS:
            found[code] = None
            continue
        members = [name for name, one in known.items() if GROUPS[code](one) and serves(name)]
        if not members:
            raise UsageError(f"the source has no {code.lower()}; name respondents that it has, or use `--source eia`")
        for name in members:
            (found if known[name].reports_in(start, end) else idle)[name] = None
    return tuple(found), tuple(name for name in idle if name not in found)


VARIABLE_NAMES = {
    "D": "Demand, load",
    "DF": "Day-ahead demand forecast",
    "NG": "Net generation",
    "TI": "Total interchange",
    **{f"NG.{code}": name for code, name in FUELS.items()},
    **{f"D.{code.upper()}": name for areas in SUB_AREAS.values() for code, name in areas.items()},
}


def variable_near(words: Iterable[str], known: Iterable[str]) -> str:
    """Return near matches of variables by code, otherwise by a name that holds the word: `demand` → D, `solar` → NG.SUN.

    EIA's own codes are no slips of the pen: of these it says that they were not extracted.
    """
    words, known = list(words), list(known)
    if real := [word for word in words if word in VARIABLE_NAMES]:
        return f" ({', '.join(real)} was not extracted, or the source lacks it; --routes all asks for every route)"
    if near := did_you_mean(words, known):
        return near
    named = [code for code in known for word in words if word.casefold() in VARIABLE_NAMES.get(code, "").casefold()]
    return f" (did you mean {' or '.join(dict.fromkeys(named))}?)" if named else ""


def near_matches(code: str) -> str:
    """Return near matches by code, otherwise by a name that contains the word: `california` → CAL, CISO."""
    if near := did_you_mean([code.upper()], [*RESPONDENTS, *GROUPS]):
        return near
    word = code.casefold()
    named = [known for known, one in RESPONDENTS.items() if len(word) > 3 and word in one.name.casefold()][:5]
    return f" (did you mean {' or '.join(named)}?)" if named else ""


def check_respondents(codes: Iterable[str], known: Mapping[str, Respondent] = RESPONDENTS) -> None:
    """Check respondent codes against the catalogue, or against `known`.

    Raises:
        UsageError: no code, or unknown ones; each is named with its near matches.
    """
    codes = list(codes)
    if not codes:
        raise UsageError("no respondent given; name at least one, for example `--respondents PACW`")
    if unknown := [code for code in codes if code not in known]:
        listed = "; ".join(f"{code!r}{near_matches(code)}" for code in unknown)
        raise UsageError(f"unknown respondent: {listed}. `coordinator catalog` lists all")
