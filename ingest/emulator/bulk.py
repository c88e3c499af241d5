"""EIA's key-less six-month files, EIA930_{BALANCE,INTERCHANGE,SUBREGION}_YYYY_{Jan_Jun,Jul_Dec}.csv, written from the same world.

They hold balancing authorities only, rows by local time, thousands commas, `MM/DD/YYYY h:mm:ss AM`. The columns drift as
EIA's do: files up to 2019 have no imputed and adjusted columns by fuel; up to 2024-H1 hydro and pumped storage are one
column; from 2024-H2 they are two, solar and wind are split by integrated storage, batteries and geothermal have separate
columns, an adjusted column is misspelt ("witho"), and the file begins with a byte-order mark.
"""

import numpy as np
import numpy.typing as npt

from ingest.catalog import BALANCING_AUTHORITY, RESPONDENTS
from ingest.emulator.http.responses import CSV, NO_SUCH_PAGE, Response
from ingest.emulator.worlds.base import Block, World
from ingest.emulator.worlds.grid import AUTHORITIES, BULK_REGION
from ingest.emulator.worlds.weather import summer_time

_REGION = (
    "Demand Forecast (MW)",
    "Demand (MW)",
    "Net Generation (MW)",
    "Total Interchange (MW)",
    "Sum(Valid DIBAs) (MW)",
)
_TOTALS = ("Demand (MW)", "Net Generation (MW)", "Total Interchange (MW)")
_FUEL = "Net Generation (MW) from "
_BEFORE_SPLIT = (
    ("Coal", "COL"),
    ("Natural Gas", "NG"),
    ("Nuclear", "NUC"),
    ("All Petroleum Products", "OIL"),
    ("Hydropower and Pumped Storage", "WAT"),
    ("Solar", "SUN"),
    ("Wind", "WND"),
    ("Other Fuel Sources", "OTH"),
    ("Unknown Fuel Sources", "UNK"),
)
_AFTER_SPLIT = (
    ("Coal", "COL"),
    ("Natural Gas", "NG"),
    ("Nuclear", "NUC"),
    ("All Petroleum Products", "OIL"),
    ("Hydropower Excluding Pumped Storage", "WAT"),
    ("Pumped Storage", "PS"),
    ("Solar without Integrated Battery Storage", "SUN"),
    ("Solar with Integrated Battery Storage", "SNB"),
    ("Wind without Integrated Battery Storage", "WND"),
    ("Wind with Integrated Battery Storage", "WNB"),
    ("Battery Storage", "BAT"),
    ("Other Energy Storage", "OES"),
    ("Unknown Energy Storage", "UES"),
    ("Geothermal", "GEO"),
    ("Other Fuel Sources", "OTH"),
    ("Unknown Fuel Sources", "UNK"),
)
# Files with one value a line: route, names of the columns of the series and of the value.
_LONG = {
    "INTERCHANGE": ("interchange-data", "Directly Interconnected Balancing Authority", "Interchange (MW)"),
    "SUBREGION": ("region-sub-ba-data", "Sub-Region", "Demand (MW)"),
}
_EASTERN = -5  # zone of an authority that the synthetic grid lacks (recordings)


def _edge(year: int, half: str) -> tuple[str, str]:
    return (f"{year}-01-01", f"{year}-07-01") if half == "Jan_Jun" else (f"{year}-07-01", f"{year + 1}-01-01")


def is_open(year: int, half: str, settled_before: int) -> bool:
    """Return whether hours of the file may still change."""
    return int(np.datetime64(_edge(year, half)[1], "h").astype(np.int64)) + 24 >= settled_before


def _is_split(year: int, half: str) -> bool:
    return (year, half) >= (2024, "Jul_Dec")


def respond(world: World, file: str, year: int, half: str, now: int) -> Response:
    """Return the file as plain CSV; 404 when the world has no hour of it."""
    if file in _LONG:
        return _respond_long(world, file, year, half, now)
    lines = []
    for code in sorted({*world.respondents("region-data"), *world.respondents("fuel-type-data")}):
        if code in RESPONDENTS and RESPONDENTS[code].kind == BALANCING_AUTHORITY:
            lines += _lines(world, code, year, half, now)
    if not lines:
        return NO_SUCH_PAGE
    text = "\r\n".join((",".join(f'"{name}"' for name in header(year, half)), *lines, ""))
    return Response(200, text.encode("utf-8-sig" if _is_split(year, half) else "utf-8"), CSV, rows=len(lines))


def header(year: int, half: str) -> list[str]:
    """Return the column names of a file of that half-year."""
    split = _is_split(year, half)
    fuels = [_FUEL + name for name, _ in (_AFTER_SPLIT if split else _BEFORE_SPLIT)]
    # Imputed and adjusted columns by fuel exist from 2020 on, for unknown fuels only after the split.
    detailed = [] if year < 2020 else fuels if split else fuels[:-1]
    return [
        *("Balancing Authority", "Data Date", "Hour Number", "Local Time at End of Hour", "UTC Time at End of Hour"),
        *_REGION,
        *(f"{name} (Imputed)" for name in _TOTALS),
        *(f"{name} (Adjusted)" for name in _TOTALS),
        *fuels,
        *(f"{name} (Imputed)" for name in detailed),
        *(f"{name} (Adjusted)".replace("Solar with ", "Solar witho ") for name in detailed),
        "Region",
    ]


def _hours(
    world: World, code: str, year: int, half: str, now: int
) -> tuple[int, npt.NDArray[np.datetime64], npt.NDArray[np.datetime64]]:
    """Return an authority's zone, and the hours (UTC, hour-ending) of a file with the local day of each."""
    zone = AUTHORITIES[code].zone if code in AUTHORITIES else _EASTERN
    first, last = _edge(year, half)
    wide = np.arange(np.datetime64(first, "h") + 1, np.datetime64(last, "h") + 13)
    begins = wide - 1
    days = (begins + zone + summer_time(begins, zone).astype(np.int64)).astype("datetime64[D]")
    low, high = world.span(now)
    served = (wide.astype(np.int64) >= low) & (wide.astype(np.int64) <= high)
    own = (days >= np.datetime64(first)) & (days < np.datetime64(last)) & served
    return zone, wide[own], days[own]


def _numbers(days: npt.NDArray[np.datetime64]) -> npt.NDArray[np.int64]:
    """Return the number of each hour in its day, from 1."""
    midnight = np.flatnonzero(np.r_[True, days[1:] != days[:-1]])
    return np.arange(len(days)) - np.repeat(midnight, np.diff(np.r_[midnight, len(days)])) + 1


def _respond_long(world: World, file: str, year: int, half: str, now: int) -> Response:
    route, name, value = _LONG[file]
    with_regions = file == "INTERCHANGE"
    head = ("Balancing Authority", "Data Date", "Hour Number", name, value, "Local Time at End of Hour")
    head += ("UTC Time at End of Hour", *(("Region", "DIBA_Region") if with_regions else ()))
    lines: list[str] = []
    for code in world.respondents(route):
        if code not in RESPONDENTS or RESPONDENTS[code].kind != BALANCING_AUTHORITY:
            continue
        zone, wide, days = _hours(world, code, year, half, now)
        if not len(wide):
            continue
        hours = wide.astype(np.int64).tolist()
        block = world.block(route, code, hours[0], hours[-1], now)
        local = wide + zone + summer_time(wide, zone).astype(np.int64)
        times = list(zip(_dates(days), _numbers(days).tolist(), _times(local), _times(wide), strict=True))
        for other in block.codes if block else ():
            end = f",{BULK_REGION.get(code, '')},{BULK_REGION.get(other, '')}" if with_regions else ""
            lines += [
                f"{code},{day},{number},{other},{text},{here},{utc}{end}"
                for (day, number, here, utc), text in zip(times, _texts(block, other, hours), strict=True)
                if text
            ]
    if not lines:
        return NO_SUCH_PAGE
    text = "\r\n".join((",".join(f'"{column}"' for column in head), *lines, ""))
    return Response(200, text.encode(), CSV, rows=len(lines))


def _lines(world: World, code: str, year: int, half: str, now: int) -> list[str]:
    split = _is_split(year, half)
    fuels = [fuel for _, fuel in (_AFTER_SPLIT if split else _BEFORE_SPLIT)]
    zone, wide, days = _hours(world, code, year, half, now)
    if not len(wide):
        return []
    hours = wide.astype(np.int64).tolist()
    region, fuel = (world.block(route, code, hours[0], hours[-1], now) for route in ("region-data", "fuel-type-data"))
    demand, forecast, generation, interchange = (_texts(region, kind, hours) for kind in ("D", "DF", "NG", "TI"))
    mix = [",".join(row) for row in zip(*(_texts(fuel, name, hours) for name in fuels), strict=True)]
    detailed = mix if split else [row.rpartition(",")[0] for row in mix]
    number = _numbers(days)
    local = wide + zone + summer_time(wide, zone).astype(np.int64)
    region_name = BULK_REGION.get(code, "")
    blank = "," * (len(fuels) - (1 if split else 2))  # counted by cells, as a quoted number contains commas
    return [
        f"{code},{day},{n},{here},{utc},{df},{d},{ng},{ti},{ti},,,,{d},{ng},{ti},{m}"
        + (f",{blank},{a},{region_name}" if year >= 2020 else f",{region_name}")
        for day, n, here, utc, df, d, ng, ti, m, a in zip(
            _dates(days), number.tolist(), _times(local), _times(wide), forecast, demand, generation, interchange, mix, detailed,
            strict=True,
        )
    ]  # fmt: skip


def _texts(block: Block | None, code: str, hours: list[int]) -> list[str]:
    """Return values as the file writes them; "" where there is none."""
    values = {
        hour: f'"{value:,}"' if abs(value) >= 1000 else str(value)
        for hour, value in (block.series(code) if block else {}).items()
    }
    return [values.get(hour, "") for hour in hours]


def _dates(days: npt.NDArray[np.datetime64]) -> list[str]:
    return [f"{day[5:7]}/{day[8:]}/{day[:4]}" for day in np.datetime_as_string(days).tolist()]


def _times(hours: npt.NDArray[np.datetime64]) -> list[str]:
    clock = (hours - hours.astype("datetime64[D]")).astype(np.int64)
    return [
        f"{date} {(hour - 1) % 12 + 1}:00:00 {'AM' if hour < 12 else 'PM'}"
        for date, hour in zip(_dates(hours.astype("datetime64[D]")), clock.tolist(), strict=True)
    ]
