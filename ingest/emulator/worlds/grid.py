"""Parameters of the synthetic grid: balancing authorities, their fleets and climates, and the lines between them.

The sizes are within about a fifth of the real systems' sizes, so that plots look familiar. No hour is real.
"""

from dataclasses import dataclass, field

import numpy as np

from ingest.catalog import MEMBERS, RESPONDENTS, SUB_AREAS

# EIA's spelling of the facets' names (facet values of electricity/rto, 2026-06).
FUEL_NAMES = {
    "BAT": "Battery storage",
    "COL": "Coal",
    "GEO": "Geothermal",
    "NG": "Natural Gas",
    "NUC": "Nuclear",
    "OES": "Other energy storage",
    "OIL": "Petroleum",
    "OTH": "Other",
    "PS": "Pumped storage",
    "SNB": "Solar Battery",
    "SUN": "Solar",
    "UES": "Unknown Energy",
    "UNK": "Unknown",
    "WAT": "Hydro",
    "WNB": "Wind with integrated battery storage",
    "WND": "Wind",
}
TYPE_NAMES = {
    "D": "Demand",
    "DF": "Day-ahead demand forecast",
    "NG": "Net generation",
    "TI": "Total interchange",
}
NEIGHBOUR_NAMES = {
    "AESO": "Alberta Electric System Operator",
    "CAN": "Canada",
    "CEN": "Centro Nacional de Control de Energia",
    "HQT": "Hydro-Quebec TransEnergie",
    "IESO": "Ontario IESO",
    "MEX": "Mexico",
}
_AREA_NAMES = {code: name for areas in SUB_AREAS.values() for code, name in areas.items()}
STORAGE_SPLIT = np.datetime64("2024-07-01T08", "h")  # battery, pumped storage and geothermal are reported from here on


def series_name(route: str, code: str) -> str:
    """Return EIA's name of a type, fuel, sub-area or neighbour."""
    names = {"region-data": TYPE_NAMES, "fuel-type-data": FUEL_NAMES, "region-sub-ba-data": _AREA_NAMES}.get(route)
    return names.get(code, code) if names else respondent_name(code)


def respondent_name(code: str) -> str:
    """Return EIA's name of a balancing authority or region, or the code itself where the catalogue lacks it."""
    return RESPONDENTS[code].name if code in RESPONDENTS else NEIGHBOUR_NAMES.get(code, code)


@dataclass(frozen=True)
class Authority:
    """Describe one balancing authority.

    Powers are in MW. A (level, slope) pair is the level in 2019 and its growth a year.
    """

    demand: float  # mean of 2019; 0: it only generates
    zone: int  # hours from UTC in winter
    latitude: float
    warmth: tuple[float, float]  # mean temperature and half of the summer-winter difference, °C
    heat: float  # demand per °C above 20, as a share
    cold: float  # demand per °C below 10, as a share
    growth: float  # of demand, a year
    coal: float  # share of the thermal remainder in 2019; falls by a twentieth of itself a year
    nuclear: float
    hydro: float  # mean
    solar: tuple[float, float]  # capacity
    wind: tuple[float, float]  # capacity
    flat: dict[str, float] = field(default_factory=dict)  # OIL, OTH, GEO: mean
    storage: dict[str, float] = field(default_factory=dict)  # BAT, PS: capacity, from 2024-07 on
    balance: str = "NG"  # the fuel that closes the balance


# fmt: off
# Columns: demand, zone, latitude, warmth, heat, cold, growth, coal, nuclear, hydro, solar, wind, flat, storage.
DETAILED: dict[str, Authority] = {
    "PACW": Authority( 2_350, -8, 44.5,      (11, 9), 0.016, 0.017, 0.008,     0,      0,   420,       (330, 40),       (850, 40), {"OTH": 25}),
    "ERCO": Authority(43_500, -6, 31.0, (20.5, 10.5), 0.031, 0.022, 0.028,  0.36,  4_950,    70,  (2_000, 3_600), (22_000, 2_700), {"OTH": 90}, {"BAT": 5_500}),
    "MISO": Authority(74_000, -6, 41.0,     (11, 14), 0.024, 0.009, 0.004,  0.58, 11_300, 1_400,    (400, 1_600), (19_000, 2_100), {"OIL": 90, "OTH": 900}, {"BAT": 250, "PS": 1_700}),
    "CISO": Authority(25_300, -8, 36.0,    (17.5, 7),  0.03, 0.008, 0.003, 0.012,  2_180, 2_700, (11_500, 1_350),    (5_800, 150), {"GEO": 850, "OIL": 25, "OTH": 800}, {"BAT": 7_500}),
    "BANC": Authority( 1_950, -8, 38.5,      (17, 8), 0.034, 0.008, 0.008,     0,      0,   450,       (150, 40),          (0, 0)),
    "IID":  Authority(   420, -8, 33.0,      (24, 9), 0.045, 0.004, 0.008,     0,      0,     0,        (90, 12),          (0, 0), {"OTH": 80}),
    "LDWP": Authority( 2_950, -8, 34.0,    (18.5, 6),  0.03, 0.006, 0.008,  0.35,    370,   160,      (800, 110),       (400, 15), {"OTH": 30}),
    "TIDC": Authority(   310, -8, 37.5,      (17, 8), 0.034, 0.008, 0.008,     0,      0,    45,          (0, 0),          (0, 0)),
    "PACE": Authority( 5_700, -7, 40.5,     (11, 13),  0.02, 0.009, 0.015,  0.72,      0,   250,      (900, 220),    (1_900, 350), {"OTH": 60}),
    "BPAT": Authority( 6_400, -8, 46.0,    (10.5, 9),  0.01, 0.022, 0.008,     0,  1_050,     0,          (0, 0),     (2_700, 10), {"NG": 350, "OTH": 40}, balance="WAT"),
    "PGE":  Authority( 2_350, -8, 45.5,      (12, 8),  0.02, 0.017, 0.012,     0,      0,   160,        (50, 60),       (550, 60)),
    "NEVP": Authority( 4_250, -8, 36.5,     (20, 11), 0.038, 0.004, 0.015,  0.05,      0,    30,    (1_500, 330),          (0, 0)),
    "AVA":  Authority( 1_350, -8, 47.5,    (9.5, 11), 0.012,  0.02, 0.008,     0,      0,   480,          (0, 0),        (110, 5), {"OTH": 45}),
    "IPCO": Authority( 2_000, -7, 43.5,     (11, 12), 0.026, 0.013, 0.015,  0.25,      0,   850,       (290, 50),        (720, 0)),
    "SWPP": Authority(29_800, -6, 37.0,     (14, 13), 0.026, 0.011, 0.014,   0.6,  1_950, 1_300,       (200, 90), (21_500, 2_100), {"OIL": 30, "OTH": 40}),
    "PJM":  Authority(89_000, -5, 40.0,     (12, 12), 0.024, 0.011, 0.006,  0.36, 32_000, 1_600,  (1_500, 1_300),    (8_500, 500), {"OIL": 200, "OTH": 700}, {"BAT": 150, "PS": 3_000}),
}
# fmt: on

# EIA's region of each authority, as in the last column of the bulk files.
BULK_REGION: dict[str, str] = {
    code: region for region, codes in MEMBERS.items() if region != "US48" for code in sorted(codes)
}
_ABROAD = {"AESO": "CAN", "HQT": "CAN", "IESO": "CAN", "CEN": "MEX"}

# Zone, latitude, mean temperature and half of the summer-winter difference, heat and cold as in `Authority`, by region.
_CLIMATES: dict[str, tuple[int, float, tuple[float, float], float, float]] = {
    "CAR": (-5, 35.0, (16, 10.5), 0.028, 0.014),
    "CENT": (-6, 37.0, (14, 13), 0.026, 0.011),
    "FLA": (-5, 28.0, (23, 6), 0.034, 0.008),
    "MIDW": (-6, 38.0, (12, 13), 0.024, 0.01),
    "NE": (-5, 42.5, (10, 12.5), 0.02, 0.01),
    "NW": (-8, 46.0, (10, 10), 0.014, 0.018),
    "NY": (-5, 42.0, (11, 12.5), 0.022, 0.01),
    "SE": (-6, 32.5, (18, 9.5), 0.03, 0.012),
    "SW": (-7, 33.5, (21, 10), 0.036, 0.005),
    "TEN": (-6, 35.5, (15, 10.5), 0.028, 0.014),
}

# Mean demand; of generation: coal's share of the thermal part, and MW of nuclear, hydro, solar, wind and other.
# Means of July 2021 (gridemissions' sample), rounded. The fuel that closes the balance is gas, else the one that is named.
_SMALL = """
AEC 530 0 0 5 0 0 5         | AECI 2640 .6 0 0 0 200 0     | AVRN 0 0 0 0 0 650 0          | AZPS 3610 .35 0 0 200 25 25
BHBA 950 .5 0 0 5 80 0      | CHPD 205 0 0 0 0 0 0 WAT     | CPLE 7130 .4 3600 20 650 0 400 | CPLW 590 0 0 20 5 0 60
DEAA 0 0 0 0 0 0 0          | DOPD 200 0 0 0 0 0 0 WAT     | DUK 12270 .4 7200 60 150 0 12 | EEI 0 .9 0 0 0 0 0
EPE 980 0 0 0 40 0 0        | FMPP 2080 .25 130 0 55 0 20  | FPC 6240 .15 0 30 130 0 60    | FPL 14550 0 3700 0 725 0 300
GCPD 610 0 0 0 0 0 0 WAT    | GLHB 0 .8 0 0 0 0 0          | GRID 0 .3 0 0 50 100 0        | GRIF 0 0 0 0 0 0 0
GVL 240 .4 0 0 0 0 40       | GWA 0 0 0 0 0 0 0 WND        | HGMA 0 0 0 0 0 0 0            | HST 66 0 0 0 0 0 0
ISNE 13790 .01 3300 730 60 180 650 | JEA 1500 .3 0 0 9 0 5 | LGEE 4180 .85 0 30 3 0 0      | NSB 50 0 0 0 0 0 0
NWMT 1380 .9 0 360 6 80 0   | NYIS 18090 0 3300 3150 0 260 210 | PNM 1590 .45 0 4 130 210 4 | PSCO 5260 .55 0 40 220 1100 0
PSEI 3370 0 0 100 0 130 25  | SC 2860 .7 0 30 25 0 60      | SCEG 2830 .3 980 90 250 0 0   | SCL 1090 0 0 0 0 0 0 WAT
SEC 1500 .5 0 0 0 0 0       | SEPA 0 0 0 0 0 0 0 WAT       | SIKE 60 .9 0 0 0 0 0          | SOCO 27390 .35 5700 1000 750 0 350
SPA 75 0 0 0 0 0 100 WAT    | SRP 3420 .15 1000 50 120 25 0 | SWPW 3500 .6 0 300 100 500 0 | TAL 320 0 0 0 15 0 0
TEC 2470 .15 0 0 160 0 60   | TEPC 1460 .3 0 0 60 20 0     | TPWR 550 0 0 0 0 0 0 WAT      | TVA 18360 .4 8000 1580 95 0 20
WACM 2790 .95 0 600 25 260 0 | WALC 1300 0 0 300 15 140 0  | WAUW 95 0 0 0 0 0 0 WAT       | WWA 0 0 0 0 0 0 0 WND
YAD 0 0 0 0 0 0 0 WAT
"""


def _small(line: str) -> tuple[str, Authority]:
    """Return the code and the authority of an entry of `_SMALL`."""
    code, *fields = line.split()
    demand, coal, nuclear, hydro, sun, wind, other = map(float, fields[:7])
    zone, latitude, warmth, heat, cold = _CLIMATES[BULK_REGION[code]]
    # The capacity of solar is about four times its mean, of wind three times.
    solar, wind_power, flat = (4 * sun, 0.2 * sun), (3 * wind, 0.1 * wind), {"OTH": other} if other else {}
    fleet = (coal, nuclear, hydro, solar, wind_power, flat)
    return code, Authority(demand, zone, latitude, warmth, heat, cold, 0.008, *fleet, balance=(fields[7:] or ["NG"])[0])


AUTHORITIES: dict[str, Authority] = {
    **DETAILED,
    **dict(_small(line) for row in _SMALL.strip().splitlines() for line in row.split("|")),
}

# (from, to): mean flow and swing in MW, and the share of the swing that follows the sun at `from` (exports at noon).
LINES: dict[tuple[str, str], tuple[float, float, float]] = {
    ("BPAT", "PACW"): (350, 180, 0.0),
    ("PACE", "PACW"): (250, 120, 0.0),
    ("GCPD", "PACW"): (130, 50, 0.0),
    ("AVA", "PACW"): (40, 40, 0.0),
    ("IPCO", "PACW"): (50, 60, 0.0),
    ("PACW", "PGE"): (70, 60, 0.0),
    ("CISO", "PACW"): (-40, 160, 0.7),
    ("BPAT", "CISO"): (1_300, 600, -0.5),
    ("BPAT", "PGE"): (450, 200, 0.0),
    ("BPAT", "LDWP"): (600, 300, -0.4),
    ("BPAT", "AVA"): (60, 80, 0.0),
    ("AZPS", "CISO"): (1_100, 600, -0.7),
    ("SRP", "CISO"): (700, 350, -0.6),
    ("WALC", "CISO"): (600, 250, -0.5),
    ("NEVP", "CISO"): (150, 350, -0.6),
    ("IID", "CISO"): (-20, 40, 0.0),
    ("CISO", "LDWP"): (250, 300, 0.5),
    ("CISO", "BANC"): (350, 200, 0.4),
    ("CISO", "TIDC"): (90, 40, 0.3),
    ("PACE", "IPCO"): (120, 110, 0.0),
    ("PACE", "NEVP"): (200, 130, 0.0),
    ("ERCO", "SWPP"): (-60, 220, 0.0),
    ("ERCO", "CEN"): (10, 60, 0.0),
    ("MISO", "PJM"): (-1_600, 1_000, 0.0),
    ("MISO", "SWPP"): (-600, 900, 0.0),
    ("MISO", "TVA"): (250, 500, 0.0),
    ("MISO", "SOCO"): (-400, 350, 0.0),
    ("MISO", "AECI"): (80, 250, 0.0),
    ("PJM", "NYIS"): (1_700, 600, 0.0),
    ("PJM", "TVA"): (-300, 400, 0.0),
}
# Mean flows between the authorities of `_SMALL` and with `DETAILED` ones. The default respondents keep the lines above.
_SMALL_LINES = """
AEC SOCO -16 | AECI SPA -430 | AECI SWPP -20 | AECI TVA 130 | AVA CHPD -20 | AVA GCPD -20 | AVRN BPAT 650 | AZPS PNM 300
AZPS SRP -900 | AZPS TEPC 230 | AZPS WALC 500 | BHBA WACM -60 | BHBA SWPW 40 | BPAT CHPD -700 | BPAT DOPD -210 | BPAT GCPD -250
BPAT GRID -60 | BPAT PSEI 900 | BPAT SCL 300 | BPAT TPWR 150 | CHPD DOPD -30 | CHPD PSEI 120 | CPLE DUK 25 | CPLE PJM 270
CPLE SC 150 | CPLE SCEG -100 | CPLE YAD -10 | CPLW DUK 40 | CPLW TVA -20 | DEAA SRP 400 | DUK PJM 230 | DUK SC -400
DUK SCEG -50 | DUK SOCO 320 | DUK TVA -110 | DUK YAD -60 | EEI TVA 600 | EEI LGEE 200 | EPE PNM -300 | EPE TEPC -50
FMPP FPC 400 | FMPP FPL -300 | FMPP JEA -25 | FMPP TEC -300 | FPC FPL -600 | FPC GVL 10 | FPC SEC -360 | FPC SOCO -180
FPC TAL -40 | FPC TEC 370 | FPL GVL 20 | FPL HST 30 | FPL JEA 500 | FPL NSB 20 | FPL SEC -700 | FPL SOCO -440
FPL TEC -170 | GCPD PSEI -100 | GLHB LGEE 200 | GRID SRP 500 | GRIF WALC 200 | GWA NWMT 40 | HGMA SRP 790 | ISNE HQT -1600
ISNE NYIS 20 | JEA SEC 30 | LGEE TVA -250 | NWMT AESO 120 | NWMT BPAT 300 | NWMT WAUW 12 | NWMT WWA -45 | NYIS HQT -1500
NYIS IESO -800 | PNM PSCO -130 | PNM TEPC 250 | PNM WACM -160 | PSCO WACM -300 | PSCO SWPW 120 | PSEI SCL 15 | PSEI TPWR -30
SC SCEG -400 | SC SOCO -450 | SCEG SOCO -500 | SEC TEC 110 | SEPA SOCO 165 | SIKE SPA -20 | SOCO TAL 60 | SOCO TVA -500
SPA SWPP 500 | SRP TEPC 150 | SRP WALC -400 | SWPP WACM 200 | TEPC WALC -250 | WACM WALC 150 | WACM WAUW -50 | WACM SWPW 150
"""
for _line in _SMALL_LINES.replace("\n", " | ").strip(" |").split("|"):
    _here, _there, _mean = _line.split()
    LINES[_here, _there] = (float(_mean), 20 + 0.4 * abs(float(_mean)), 0.0)

# Regions are sums of authorities; EDGES names the region beyond a line that leaves one.
REGIONS: dict[str, tuple[str, ...]] = {
    region: tuple(sorted(codes & AUTHORITIES.keys())) for region, codes in MEMBERS.items()
}
EDGES: dict[str, str] = {**BULK_REGION, **_ABROAD}


def line_zone(line: tuple[str, str]) -> int:
    """Return the zone, hours from UTC in winter, whose days a line's flow follows."""
    return next(group[end].zone for group in (DETAILED, AUTHORITIES) for end in line if end in group)
