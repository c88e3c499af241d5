"""Parameters of the synthetic grid: balancing authorities, their fleets and climates, and the lines between them.

The sizes are within about a fifth of the real systems' sizes, so that plots look familiar. No hour is real.
"""

from dataclasses import dataclass, field

import numpy as np

from ingest.catalog import RESPONDENTS

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
NEIGHBOUR_NAMES = {"CEN": "Centro Nacional de Control de Energia", "MEX": "Mexico"}
STORAGE_SPLIT = np.datetime64("2024-07-01T08", "h")  # battery, pumped storage and geothermal are reported from here on


def respondent_name(code: str) -> str:
    """Return EIA's name of a balancing authority or region, or the code itself where the catalogue lacks it."""
    return RESPONDENTS[code].name if code in RESPONDENTS else NEIGHBOUR_NAMES.get(code, code)


@dataclass(frozen=True)
class Authority:
    """Describe one balancing authority.

    Powers are in MW. A (level, slope) pair is the level in 2019 and its growth a year.
    """

    demand: float  # mean of 2019
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
AUTHORITIES: dict[str, Authority] = {
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

# Regions are sums of authorities; EDGES names the region beyond each line that leaves one.
REGIONS: dict[str, tuple[str, ...]] = {"CAL": ("BANC", "CISO", "IID", "LDWP", "TIDC"), "TEX": ("ERCO",)}
EDGES: dict[str, str] = {
    "BPAT": "NW",
    "PACW": "NW",
    "AZPS": "SW",
    "SRP": "SW",
    "WALC": "SW",
    "NEVP": "NW",
    "SWPP": "CENT",
    "CEN": "MEX",
}
# EIA's region of each authority, as in the last column of the bulk files.
BULK_REGION: dict[str, str] = {
    **dict.fromkeys(("PACW", "PACE", "BPAT", "PGE", "NEVP", "AVA", "IPCO"), "NW"),
    **dict.fromkeys(REGIONS["CAL"], "CAL"),
    "ERCO": "TEX",
    "MISO": "MIDW",
    "PJM": "MIDA",
    "SWPP": "CENT",
}
