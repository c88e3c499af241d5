"""Time axis and weather of the synthetic grid: local calendar, coloured noise, temperature, sun and wind."""

import zlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ingest.emulator.worlds.grid import Authority

Hourly = npt.NDArray[np.float64]

FIRST = int(np.datetime64("2018-12-31T00", "h").astype(np.int64))
LAST = int(np.datetime64("2027-12-31T23", "h").astype(np.int64))
HOURS = LAST - FIRST + 1
_NOISE = 1 << 17  # a power of two above HOURS: one fixed length keeps the draws independent of the span


def seeded(seed: int, name: str) -> np.random.Generator:
    """Return a separate generator for each named purpose, so that respondents can be made in any order."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def coloured(seed: int, name: str, hours: float) -> Hourly:
    """Return stationary Gaussian noise [FIRST…LAST], mean 0, variance 1.

    Its spectrum is that of a first-order process with a memory of `hours`.
    """
    rng = seeded(seed, name)
    frequency = np.arange(_NOISE // 2 + 1) / _NOISE
    gain = 1 / np.sqrt(1 + (2 * np.pi * frequency * hours) ** 2)
    gain[0] = 0
    spectrum = gain * (rng.standard_normal(len(gain)) + 1j * rng.standard_normal(len(gain)))
    noise = np.fft.irfft(spectrum, _NOISE)
    return (noise / noise.std())[:HOURS]


@dataclass(frozen=True)
class Calendar:
    """Hold the local time of the hour that ends at each step (its beginning decides hour and day), all [FIRST…LAST]."""

    years: Hourly  # since 2019-01-01T00 UTC
    season: Hourly  # angle of the year, 0 on 1 January
    hour: npt.NDArray[np.int64]  # 0…23, local, daylight saving included
    resting: npt.NDArray[np.bool_]  # weekend or US federal holiday
    summer_time: npt.NDArray[np.bool_]


@lru_cache(maxsize=8)
def calendar(zone: int) -> Calendar:
    """Return the calendar of the US zone that is `zone` hours from UTC in winter."""
    utc = np.arange(FIRST - 1, LAST).astype("datetime64[h]")
    summer = summer_time(utc, zone)
    local = utc + zone + summer
    days = local.astype("datetime64[D]")
    weekday = (days.astype(np.int64) + 3) % 7  # 1970-01-01 was a Thursday
    holiday = np.isin(days, federal_holidays(range(2018, 2028)))
    years = (np.arange(FIRST, LAST + 1) - FIRST - 24) / 8766
    return Calendar(
        years=years,
        season=2 * np.pi * (years % 1),
        hour=(local - days).astype(np.int64),
        resting=(weekday >= 5) | holiday,
        summer_time=summer,
    )


def summer_time(utc: npt.NDArray[np.datetime64], zone: int) -> npt.NDArray[np.bool_]:
    """Return whether daylight saving time applies to each hour [n], by the US rule since 2007.

    It lasts from the second Sunday of March to the first Sunday of November, 02:00 local time.
    """
    years = utc.astype("datetime64[Y]")
    result = np.zeros(len(utc), bool)
    for january in np.unique(years).astype("datetime64[M]"):
        begins = _weekday(january + 2, 6, 2).astype("datetime64[h]") + 2 - zone
        ends = _weekday(january + 10, 6, 1).astype("datetime64[h]") + 1 - zone
        result |= (utc >= begins) & (utc < ends)
    return result


def _weekday(month: np.datetime64, weekday: int, nth: int) -> np.datetime64:
    """Return the nth (from 1; 0: the last of the month before) `weekday` (Monday 0) of a month."""
    first = month.astype("datetime64[D]")
    return first + (weekday - 3 - int(first.astype(np.int64))) % 7 + 7 * (nth - 1)  # 1970-01-01 was a Thursday


# (months after January, weekday with Monday 0, nth): Martin Luther King, Washington, Memorial, Labor, Columbus, Thanksgiving.
_FLOATING = ((0, 0, 3), (1, 0, 3), (5, 0, 0), (8, 0, 1), (9, 0, 2), (10, 3, 4))
_FIXED = {
    "01-01": 0,
    "06-19": 2021,
    "07-04": 0,
    "11-11": 0,
    "12-25": 0,
}  # first year as a federal holiday, where it matters


def federal_holidays(years: range) -> npt.NDArray[np.datetime64]:
    """Return US federal holidays, with the Friday or Monday on which a weekend's holiday is observed (5 U.S.C. 6103)."""
    days = []
    for year in years:
        days += [_weekday(np.datetime64(f"{year}-01") + month, weekday, nth) for month, weekday, nth in _FLOATING]
        for day in (np.datetime64(f"{year}-{text}") for text, since in _FIXED.items() if year >= since):
            weekday = (int(day.astype(np.int64)) + 3) % 7
            days += [day, *([day - 1] if weekday == 5 else [day + 1] if weekday == 6 else [])]
    return np.array(days, "datetime64[D]")


def temperature(code: str, authority: Authority, seed: int) -> Hourly:
    """Return °C, [FIRST…LAST]: yearly and daily cycle, and weather that neighbours in a time zone share in part."""
    when = calendar(authority.zone)
    mean, swing = authority.warmth
    shared = coloured(seed, f"weather/{authority.zone}", 70)
    own = coloured(seed, f"weather/{code}", 40)
    daily = np.cos(2 * np.pi * (when.hour - 15.5) / 24)
    return mean - swing * np.cos(when.season - 0.35) + 5.0 * daily + 3.6 * shared + 2.2 * own


def sunshine(code: str, authority: Authority, seed: int) -> Hourly:
    """Return the share of solar capacity, 0…1, [FIRST…LAST]: the sun's height over a flat site, dimmed by clouds."""
    when = calendar(authority.zone)
    middle = (np.arange(FIRST, LAST + 1) - 0.5 + authority.zone - 0.3) % 24  # of the hour; the zones lie a little east
    tilt = np.radians(23.44) * np.sin(when.season - 2 * np.pi * 80 / 365.25)
    latitude = np.radians(authority.latitude)
    height = np.sin(latitude) * np.sin(tilt) + np.cos(latitude) * np.cos(tilt) * np.cos(2 * np.pi * (middle - 12) / 24)
    cloud = 1 / (1 + np.exp(1.6 - 1.3 * coloured(seed, f"cloud/{code}", 14)))
    return np.minimum(1.0, 1.15 * np.maximum(height, 0) ** 0.85) * (1 - 0.75 * cloud)


def windiness(code: str, authority: Authority, seed: int) -> Hourly:
    """Return the share of wind capacity, 0…1, [FIRST…LAST]: windier in spring and at night."""
    when = calendar(authority.zone)
    gusts = 1.35 * coloured(seed, f"wind/{code}", 12) + 0.45 * coloured(seed, f"wind/{authority.zone}", 60)
    cycle = 0.35 * np.cos(when.season - 2 * np.pi * 100 / 365.25) + 0.22 * np.cos(2 * np.pi * (when.hour - 1) / 24)
    return 1 / (1 + np.exp(0.85 - gusts - cycle))
