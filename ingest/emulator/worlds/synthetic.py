"""The synthetic world: a deterministic grid whose every hour balances, D = NG − TI and NG = Σ fuels, in whole MWh.

Temperature drives demand; sun, wind, water and nuclear are taken as they come; coal follows the day's mean, gas (hydro
for BPAT) closes the balance. Demand has daily, weekly and yearly cycles, holidays, heating, cooling and growth. The
day-ahead forecast DF misses by a few percent, for hours at a time, and too low in heat waves.

On top, unless `quirks` is "none", lie the faults of real data: per series about 1 hour in 7,000 missing (in runs of 1 to
6), 1 in 10,000 null, 1 in 65,000 multiplied by 100; per respondent all series missing for 2 to 8 hours every 3 years.

Revisions: of the hours younger than `revise_days`, 30% carry a preliminary value (demand off by up to 3%, interchange
off by as much, so that the balance holds; generation booked to the wrong fuel by up to 2%), and 2% a null demand, until
an age that is drawn for each hour. Hours older than that never change.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ingest.emulator.worlds.base import ABSENT, NULL, VALUE, Block
from ingest.emulator.worlds.grid import AUTHORITIES, EDGES, LINES, REGIONS, STORAGE_SPLIT, Authority
from ingest.emulator.worlds.weather import (
    FIRST,
    HOURS,
    LAST,
    Hourly,
    calendar,
    coloured,
    seeded,
    sunshine,
    temperature,
    windiness,
)

Series = dict[str, npt.NDArray[np.int64]]  # code → MWh, [HOURS]

_WORKING = np.array(
    (86, 83, 81, 80, 82, 87, 95, 101, 103, 103, 103, 103, 103, 102, 102, 103, 105, 109, 111, 110, 107, 103, 97, 91)
)
_RESTING = np.array((83, 79, 77, 76, 76, 78, 82, 86, 91, 94, 95, 95, 95, 94, 93, 94, 96, 100, 102, 101, 98, 95, 91, 86))
_PUMPING = np.array((0, 0, 0, 0, 0, 0, 0, 0, -2, -5, -6, -6, -6, -6, -5, -3, 0, 4, 8, 9, 7, 3, 1, 0)) / 10


class SyntheticWorld:
    """Respondents are made when first asked for (about 0.1 s each) and kept."""

    name = "synthetic"
    note = "SYNTHETIC hours made by a local emulator; not EIA data."

    def __init__(self, seed: int = 0, *, quirks: bool = True, revise_days: int = 14) -> None:
        self._seed = seed
        self._quirks = quirks
        self._revise_hours = revise_days * 24
        self._blocks = lru_cache(maxsize=None)(self._make)
        self._clean = lru_cache(maxsize=None)(self._authority)
        self._flow = lru_cache(maxsize=None)(self._line)
        self._draws = lru_cache(maxsize=None)(self._draw)

    def respondents(self, route: str) -> tuple[str, ...]:
        return tuple(sorted((*AUTHORITIES, *REGIONS)))

    def codes(self, route: str) -> tuple[str, ...]:
        if route == "region-data":
            return ("D", "DF", "NG", "TI")
        if route == "fuel-type-data":
            return ("BAT", "COL", "GEO", "NG", "NUC", "OIL", "OTH", "PS", "SUN", "WAT", "WND")
        ends = {end for line in LINES for end in line} | {EDGES[end] for end in EDGES}
        return tuple(sorted(ends))

    def span(self, now: int) -> tuple[int, int]:
        return FIRST, min(now, LAST)

    def settled_before(self, now: int) -> int:
        return now - self._revise_hours

    def block(self, route: str, respondent: str, start: int, end: int, now: int) -> Block | None:
        if respondent not in AUTHORITIES and respondent not in REGIONS:
            return None
        cut = self._blocks(route, respondent).cut(start, min(end, now))
        return self._preliminary(route, respondent, cut, now)

    def clean(self, respondent: str) -> tuple[Series, Series]:
        """(region series D DF NG TI, fuel series) of a respondent before quirks and revisions, MWh, [FIRST…LAST]."""
        if respondent in AUTHORITIES:
            return self._clean(respondent)
        parts = [self._clean(part) for part in REGIONS[respondent]]
        region, fuels = _total([part[0] for part in parts]), _total([part[1] for part in parts])
        if respondent == "TEX":  # differs from ERCO in one hour of the whole span, as the real one does
            hour = int(seeded(self._seed, "tex").integers(HOURS))
            region["D"][hour] += 37
            region["TI"][hour] -= 37
        return region, fuels

    def neighbours(self, respondent: str) -> Series:
        """Flow from a respondent to each neighbour, MWh an hour, [FIRST…LAST]; the sum is its TI."""
        members = REGIONS.get(respondent, (respondent,))
        flows: Series = {}
        for line in LINES:
            for here, there, sign in ((line[0], line[1], 1), (line[1], line[0], -1)):
                if here in members and there not in members:
                    code = EDGES[there] if respondent in REGIONS else there
                    flows[code] = flows.get(code, np.zeros(HOURS, np.int64)) + sign * self._flow(line)
        return flows

    def _authority(self, code: str) -> tuple[Series, Series]:
        authority = AUTHORITIES[code]
        heat = temperature(code, authority, self._seed)
        demand, forecast = _demand(code, authority, heat, self._seed)
        interchange = sum(self.neighbours(code).values(), np.zeros(HOURS, np.int64))
        fuels = _dispatch(code, authority, demand + interchange, self._seed)
        return {"D": demand, "DF": forecast, "NG": demand + interchange, "TI": interchange}, fuels

    def _line(self, line: tuple[str, str]) -> npt.NDArray[np.int64]:
        mean, swing, solar = LINES[line]
        name = "/".join(line)
        zone = next(AUTHORITIES[end].zone for end in line if end in AUTHORITIES)
        when = calendar(zone)
        noon = np.clip(np.cos(2 * np.pi * (when.hour - 12.5) / 24), 0, 1) * (0.8 - 0.4 * np.cos(when.season))
        daily = 0.5 * np.sin(2 * np.pi * (when.hour - 7) / 24)
        noise = 0.55 * coloured(self._seed, f"line/{name}", 9) + 0.45 * coloured(self._seed, f"lines/{name}", 200)
        flow = mean + swing * (solar * 2.2 * (noon - 0.3) + 0.3 * daily + noise)
        return np.round(np.clip(flow, mean - 2.5 * swing, mean + 2.5 * swing)).astype(np.int64)

    def _make(self, route: str, respondent: str) -> Block:
        """The settled block of a respondent: clean series and, where asked for, quirks."""
        if route == "interchange-data":
            series = self.neighbours(respondent)
        else:
            series = self.clean(respondent)[0 if route == "region-data" else 1]
        codes = tuple(sorted(series))
        values = np.stack([series[code] for code in codes], axis=1).astype(np.int32)
        state = np.full(values.shape, VALUE, np.uint8)
        merged = np.arange(FIRST, LAST + 1) < int(STORAGE_SPLIT.astype(np.int64))
        for column, code in enumerate(codes):
            if route == "fuel-type-data" and code in ("BAT", "GEO", "PS"):
                state[merged, column] = ABSENT
        if self._quirks:
            _spoil(values, state, seeded(self._seed, f"quirks/{route}/{'ERCO' if respondent == 'TEX' else respondent}"))
        return Block(FIRST, codes, values, state)

    def _draw(self, respondent: str) -> npt.NDArray[np.float64]:
        """Uniform draws that decide each hour's revisions, [HOURS, 4]: whether, until which age, how much, null."""
        return seeded(self._seed, f"revisions/{'ERCO' if respondent == 'TEX' else respondent}").random((HOURS, 4))

    def _preliminary(self, route: str, respondent: str, block: Block, now: int) -> Block:
        young = max(self.settled_before(now) + 1 - block.first, 0)
        if route == "interchange-data" or young >= len(block.values):
            return block
        draws = self._draws(respondent)[block.first - FIRST + young : block.first - FIRST + len(block.values)]
        age = now - np.arange(block.first + young, block.first + len(block.values))
        until = 2 + draws[:, 1] * (self._revise_hours - 2)
        open_hours = (draws[:, 0] < 0.3) & (age < until)
        values, state = block.values.copy(), block.state.copy()
        column = {code: i for i, code in enumerate(block.codes)}
        more, less, share = ("D", "TI", 0.06) if route == "region-data" else ("WND", "NG", 0.04)
        if more in column and less in column:
            size = values[young:, column["D" if route == "region-data" else "NG"]]
            shift = np.where(open_hours, np.round(size * share * (draws[:, 2] - 0.5)), 0).astype(np.int32)
            values[young:, column[more]] += shift
            values[young:, column[less]] -= shift
        if route == "region-data":
            waiting = (draws[:, 3] < 0.02) & (age < until)
            state[young:, column["D"]] = np.where(
                waiting & (state[young:, column["D"]] == VALUE), NULL, state[young:, column["D"]]
            )
        return Block(block.first, block.codes, values, state)


def _total(parts: list[Series]) -> Series:
    total: Series = {}
    for part in parts:
        for code, series in part.items():
            total[code] = total[code] + series if code in total else series.copy()
    return total


def _demand(
    code: str, authority: Authority, heat: Hourly, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(D, DF) in MWh."""
    when = calendar(authority.zone)
    shape = np.where(when.resting, _RESTING[when.hour], _WORKING[when.hour]) / 100
    felt = np.convolve(heat, np.full(6, 1 / 6))[:HOURS]  # buildings answer to the last six hours
    need = 1 + authority.heat * _softplus(felt - 20) + authority.cold * _softplus(10 - felt)
    growth = (1 + authority.growth) ** when.years
    noise = 1 + 0.007 * coloured(seed, f"demand/{code}", 6)
    demand = authority.demand * growth * shape * need / need.mean() / 0.96 * noise
    miss = 0.029 * coloured(seed, f"forecast/{code}", 30) + 0.012 * coloured(seed, f"forecast-fast/{code}", 3)
    hot = float(np.quantile(felt, 0.98))
    wave = 0.03 * np.clip((felt - hot) / 3, 0, 1)
    forecast = demand * (1 + miss - wave)
    return np.round(demand).astype(np.int64), np.round(forecast).astype(np.int64)


def _softplus(x: Hourly) -> Hourly:
    return 2 * np.logaddexp(0, x / 2)


def _dispatch(code: str, authority: Authority, need: npt.NDArray[np.int64], seed: int) -> Series:
    """Fuels in MWh whose sum is `need` (net generation) in every hour."""
    when = calendar(authority.zone)
    free: dict[str, Hourly] = {}  # can be turned down when there is too much
    firm: dict[str, Hourly] = {}
    if authority.solar[0]:
        night = np.where(coloured(seed, f"parasitic/{code}", 4) > 1, -0.002, 0.0) * authority.solar[0]
        capacity = np.maximum(authority.solar[0] + authority.solar[1] * when.years, 0)
        free["SUN"] = capacity * sunshine(code, authority, seed)
        firm["SUN"] = np.where(free["SUN"] > 0, 0, night)
    if authority.wind[0]:
        free["WND"] = (authority.wind[0] + authority.wind[1] * when.years) * windiness(code, authority, seed)
    if authority.hydro:
        melt = 1 + 0.3 * np.cos(when.season - 2 * np.pi * 140 / 365.25)
        peak = 1 + 0.2 * np.cos(2 * np.pi * (when.hour - 18) / 24)
        free["WAT"] = authority.hydro * melt * peak * np.exp(0.2 * coloured(seed, f"hydro/{code}", 400))
    if authority.nuclear:
        outage = np.clip(coloured(seed, f"nuclear/{code}", 300) - 1.2, 0, 1) * 0.25
        firm["NUC"] = authority.nuclear * (0.97 - outage - 0.03 * np.cos(when.season - 0.3))
    for fuel, level in authority.flat.items():
        firm[fuel] = level * np.maximum(1 + 0.12 * coloured(seed, f"flat/{code}/{fuel}", 60), 0)
    split = np.arange(FIRST, LAST + 1) >= int(STORAGE_SPLIT.astype(np.int64))
    for fuel, level in authority.storage.items():
        strength = np.clip(0.75 + 0.15 * coloured(seed, f"storage/{code}/{fuel}", 80), 0.2, 1)
        firm[fuel] = np.where(split, level * strength * _PUMPING[when.hour], 0)
    if "GEO" in firm:  # before the split geothermal was reported as other
        firm["OTH"] = firm["OTH"] + np.where(split, 0, firm["GEO"])
        firm["GEO"] = np.where(split, firm["GEO"], 0)

    taken = sum(firm.values(), np.zeros(HOURS))
    offered = sum(free.values(), np.zeros(HOURS))
    floor = 0.03 * authority.demand  # the closing fuel keeps at least this much
    keep = np.clip((need - taken - floor) / np.maximum(offered, 1), 0, 1)
    free = {fuel: power * keep for fuel, power in free.items()}
    if authority.coal:
        left = need - taken - sum(free.values(), np.zeros(HOURS))
        day = np.convolve(np.maximum(left, 0), np.full(24, 1 / 24), mode="same")
        firm["COL"] = np.clip(
            authority.coal * np.maximum(1 - 0.05 * when.years, 0.2) * day, 0, np.maximum(left - floor, 0)
        )
    fuels: Series = {}
    for fuel in {*firm, *free}:
        fuels[fuel] = np.round(firm.get(fuel, 0.0) + free.get(fuel, 0.0)).astype(np.int64)
    closing = need - sum(fuels.values(), np.zeros(HOURS, np.int64))
    fuels[authority.balance] = fuels.get(authority.balance, 0) + closing
    return fuels


def _spoil(values: npt.NDArray[np.int32], state: npt.NDArray[np.uint8], rng: np.random.Generator) -> None:
    """Put the faults of real data into a block, in place: missing runs, nulls, a hundredfold value, a dark spell of all."""
    hours, columns = values.shape
    for column in range(columns):
        for _ in range(rng.poisson(hours / 7_000 / 3.5)):
            at = int(rng.integers(hours))
            state[at : at + int(rng.integers(1, 7)), column] = ABSENT
        for at in rng.integers(hours, size=rng.poisson(hours / 10_000)):
            state[at, column] = min(state[at, column], NULL)
        for at in rng.integers(hours, size=rng.poisson(hours / 65_000)):
            values[at, column] *= 100
    for _ in range(rng.poisson(hours / (3 * 8_766))):
        at = int(rng.integers(hours))
        state[at : at + int(rng.integers(2, 9))] = ABSENT
