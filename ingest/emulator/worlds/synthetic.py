"""The synthetic world: a deterministic grid whose every hour balances, D = NG − TI and NG = Σ fuels, in whole MWh.

Temperature drives demand. Solar, wind, hydro and nuclear output does not depend on demand; coal follows the day's mean,
and gas (hydro for BPAT) closes the balance. Demand has daily, weekly and yearly cycles, holidays, heating, cooling and
growth. The day-ahead forecast DF has errors of a few percent that last for hours, and is too low in heat waves.

Unless `quirks` is "none", the faults of real data are injected: per series about 1 hour in 7,000 is missing (in runs of
1 to 6), 1 in 10,000 is null, 1 in 65,000 is multiplied by 100; per respondent all series are missing for 2 to 8 hours
every 3 years.

The day-ahead forecast of the next local day is known from 10:00 local time.

Revisions: of the hours younger than `revise_days`, 30% carry a preliminary value (demand off by up to 3%, interchange
off by as much, so that the balance holds; generation booked to the wrong fuel by up to 2%), and 2% a null demand, until
an age that is drawn for each hour. Older hours never change.
"""

from collections.abc import Collection
from functools import cache, lru_cache

import numpy as np
import numpy.typing as npt

from ingest.catalog import RESPONDENTS, SUB_AREAS
from ingest.columns import hour_number
from ingest.emulator.worlds.base import ABSENT, NULL, VALUE, Block
from ingest.emulator.worlds.grid import AUTHORITIES, EDGES, LINES, REGIONS, STORAGE_SPLIT, Authority, line_zone
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


AHEAD = 48  # hours: the next local day ends within these

_CODES = {
    "region-data": ("D", "DF", "NG", "TI"),
    "fuel-type-data": ("BAT", "COL", "GEO", "NG", "NUC", "OIL", "OTH", "PS", "SUN", "WAT", "WND"),
    "interchange-data": tuple(sorted({end for line in LINES for end in line} | set(EDGES.values()))),
    "region-sub-ba-data": tuple(sorted(code for areas in SUB_AREAS.values() for code in areas)),
}
_PARTIES = {  # routes whose respondents are not all of the world
    "region-sub-ba-data": tuple(sorted(SUB_AREAS)),
}
# Of a respondent, about 15 MB each: more than the authorities of the default run and of the largest region but one.
_CACHED = 32


class SyntheticWorld:
    """Generate the synthetic grid. Each respondent is made on its first use (about 0.1 s) and cached."""

    name = "synthetic"
    note = "SYNTHETIC hours made by a local emulator; not EIA data."

    def __init__(
        self, seed: int = 0, *, quirks: bool = True, revise_days: int = 14, respondents: Collection[str] = ()
    ) -> None:
        """Store the options; nothing is generated yet.

        Args:
            seed: The seed of every draw.
            quirks: Inject the faults of real data.
            revise_days: Age in days from which hours never change.
            respondents: The authorities and regions that report; empty: all. Their values do not depend on it.

        Raises:
            ValueError: The grid has no such respondent.
        """
        if unknown := sorted(set(respondents) - {*AUTHORITIES, *REGIONS}):
            raise ValueError(f"the synthetic grid has no respondent {', '.join(unknown)}")
        self._respondents = frozenset(respondents or (*AUTHORITIES, *REGIONS))
        self._seed = seed
        self._quirks = quirks
        self._revise_hours = revise_days * 24
        self._settled = lru_cache(maxsize=2 * _CACHED)(self._settled_block)
        self._series = lru_cache(maxsize=_CACHED)(self._authority_series)
        self._flow = lru_cache(maxsize=None)(self._line_flow)
        self._draws = lru_cache(maxsize=_CACHED)(self._revision_draws)

    def respondents(self, route: str) -> tuple[str, ...]:
        """Return the authorities and regions of a route, sorted."""
        return tuple(sorted(self._respondents.intersection(_PARTIES.get(route, self._respondents))))

    def codes(self, route: str) -> tuple[str, ...]:
        """Return the types, fuels, neighbours or sub-areas of a route, sorted."""
        return _CODES[route]

    def span(self, now: int) -> tuple[int, int]:
        """Return the first hour of the world and the latest one that is over at `now`."""
        return FIRST, min(now, LAST)

    def ahead(self, route: str) -> int:
        """Return 48 for the route of the day-ahead forecast."""
        return AHEAD if route == "region-data" else 0

    def settled_before(self, now: int) -> int:
        """Return the hour `revise_days` before `now`."""
        return now - self._revise_hours

    def block(self, route: str, respondent: str, start: int, end: int, now: int) -> Block | None:
        """Return the hours as they are reported at hour `now`, young ones with their preliminary values."""
        if respondent not in self._respondents or respondent not in _PARTIES.get(route, self._respondents):
            return None
        block = self._settled(route, respondent).between(start, min(end, now + self.ahead(route)))
        return _as_published(respondent, self._preliminary(route, respondent, block, now), now)

    def clean(self, respondent: str) -> tuple[Series, Series]:
        """Return the series of a respondent before quirks and revisions.

        Returns:
            (region series D DF NG TI, fuel series), each in MWh, [FIRST…LAST].
        """
        parts = [self._series(part) for part in REGIONS.get(respondent, (respondent,))]
        region, fuels = _sum_by_code([part[0] for part in parts]), _sum_by_code([part[1] for part in parts])
        if respondent == "TEX":  # differs from ERCO in one hour of the whole span, as the real one does
            hour = int(seeded(self._seed, "tex").integers(HOURS))
            region["D"][hour] += 37
            region["TI"][hour] -= 37
        return region, fuels

    def neighbours(self, respondent: str) -> Series:
        """Return the flow from a respondent to each neighbour, MWh an hour, [FIRST…LAST]; the sum is its TI."""
        members = REGIONS.get(respondent, (respondent,))
        return _sum_by_code(
            [
                {EDGES[there] if respondent in REGIONS else there: sign * self._flow(line)}
                for line in LINES
                for here, there, sign in ((*line, 1), (*line[::-1], -1))
                if here in members and there not in members
            ]
        )

    def areas(self, respondent: str) -> Series:
        """Return the demand of each sub-area, MWh, [FIRST…LAST]; the sum is the respondent's."""
        demand = self.clean(respondent)[0]["D"]
        codes = sorted(SUB_AREAS[respondent])
        sizes = np.stack(
            [
                (1 + number) * np.exp(0.08 * coloured(self._seed, f"area/{respondent}/{code}", 24))
                for number, code in enumerate(codes)
            ]
        )
        parts = np.round(demand * sizes / sizes.sum(axis=0)).astype(np.int64)
        parts[-1] += demand - parts.sum(axis=0)  # the largest closes the sum
        return dict(zip(codes, parts, strict=True))

    def _authority_series(self, code: str) -> tuple[Series, Series]:
        authority = AUTHORITIES[code]
        heat = temperature(code, authority, self._seed)
        interchange = sum(self.neighbours(code).values(), np.zeros(HOURS, np.int64))
        loads = (
            dict(zip(("D", "DF"), _demand(code, authority, heat, self._seed), strict=True)) if authority.demand else {}
        )
        generation = loads.get("D", 0) + interchange
        fuels = _dispatch(code, authority, generation, self._seed)
        there = _reporting(code)
        region, mix = ({name: values * there for name, values in part.items()} for part in (loads, fuels))
        return {**region, "NG": generation * there, "TI": interchange}, mix

    def _line_flow(self, line: tuple[str, str]) -> npt.NDArray[np.int64]:
        mean, swing, solar = LINES[line]
        name = "/".join(line)
        when = calendar(line_zone(line))
        noon = np.clip(np.cos(2 * np.pi * (when.hour - 12.5) / 24), 0, 1) * (0.8 - 0.4 * np.cos(when.season))
        daily = 0.5 * np.sin(2 * np.pi * (when.hour - 7) / 24)
        noise = 0.55 * coloured(self._seed, f"line/{name}", 9) + 0.45 * coloured(self._seed, f"lines/{name}", 200)
        flow = mean + swing * (solar * 2.2 * (noon - 0.3) + 0.3 * daily + noise)
        flow = np.round(np.clip(flow, mean - 2.5 * swing, mean + 2.5 * swing)).astype(np.int64)
        return np.where(_reporting(line[0]) & _reporting(line[1]), flow, 0)

    def _settled_block(self, route: str, respondent: str) -> Block:
        """Return every hour of a respondent as it is after the revisions, with quirks if they are on."""
        if route == "interchange-data":
            series = self.neighbours(respondent)
        elif route == "region-sub-ba-data":
            series = self.areas(respondent)
        else:
            series = self.clean(respondent)[0 if route == "region-data" else 1]
        codes = tuple(sorted(series))
        values = np.stack([series[code] for code in codes], axis=1).astype(np.int32)
        state = np.full(values.shape, VALUE, np.uint8)
        merged = np.arange(FIRST, LAST + 1) < int(STORAGE_SPLIT.astype(np.int64))
        if route == "fuel-type-data":
            state[np.ix_(merged, np.isin(codes, ("BAT", "GEO", "PS")))] = ABSENT
        if self._quirks:
            inject_quirks(values, state, seeded(self._seed, f"quirks/{route}/{_drawn_as(respondent)}"))
        state[~_reporting(respondent)] = ABSENT
        return Block(FIRST, codes, values, state)

    def _revision_draws(self, respondent: str) -> Hourly:
        """Return the uniform draws that decide each hour's revisions, [HOURS, 4]: whether, until which age, how much, null."""
        return seeded(self._seed, f"revisions/{_drawn_as(respondent)}").random((HOURS, 4))

    def _preliminary(self, route: str, respondent: str, block: Block, now: int) -> Block:
        """Return `block` with the preliminary values that its young hours have at hour `now`."""
        young = max(self.settled_before(now) + 1 - block.first, 0)
        if route not in ("region-data", "fuel-type-data") or young >= len(block.values):
            return block
        draws = self._draws(respondent)[block.first - FIRST + young : block.first - FIRST + len(block.values)]
        age = now - np.arange(block.first + young, block.first + len(block.values))
        unsettled = age < 2 + draws[:, 1] * (self._revise_hours - 2)
        values, state = block.values.copy(), block.state.copy()
        column = {code: i for i, code in enumerate(block.codes)}
        # Share: twice the largest deviation, as the draw less 0.5 lies in -0.5…0.5.
        more, less, basis, share = ("D", "TI", "D", 0.06) if route == "region-data" else ("WND", "NG", "NG", 0.04)
        if more in column and less in column:
            shift = np.round(values[young:, column[basis]] * share * (draws[:, 2] - 0.5)).astype(np.int32)
            shift[~unsettled | (draws[:, 0] >= 0.3)] = 0
            values[young:, column[more]] += shift
            values[young:, column[less]] -= shift
        if "D" in column:
            demand = state[young:, column["D"]]
            demand[unsettled & (draws[:, 3] < 0.02) & (demand == VALUE)] = NULL
        return Block(block.first, block.codes, values, state)


@cache
def _reporting(code: str) -> npt.NDArray[np.bool_]:
    """Return the hours in which a respondent or neighbour reports, bool [FIRST…LAST]."""
    one = RESPONDENTS.get(code)
    hours = np.arange(FIRST, LAST + 1)
    first = hour_number(one.since) if one and one.since else FIRST
    last = hour_number(one.until) if one and one.until else LAST
    return (hours >= first) & (hours <= last)


def _as_published(respondent: str, block: Block, now: int) -> Block:
    """Return `block` without what is not known at hour `now`: of the hours to come, all but the day-ahead forecast.

    It reaches to the end of the local day, and from 10:00 to that of the next one.
    """
    to_come = max(now + 1 - block.first, 0)
    if to_come >= len(block.values):
        return block
    zone = AUTHORITIES[REGIONS.get(respondent, (respondent,))[0]].zone
    clock = int(calendar(zone).hour[min(now + 1, LAST) - FIRST])  # the local hour that begins
    published = now + 24 - clock + (24 if clock >= 10 else 0)
    state = block.state.copy()
    state[to_come:, [code != "DF" for code in block.codes]] = ABSENT
    state[max(published + 1 - block.first, 0) :] = ABSENT
    return Block(block.first, block.codes, block.values, state)


def _drawn_as(respondent: str) -> str:
    """Return the name that seeds a respondent's draws: TEX has the quirks and revisions of ERCO."""
    return "ERCO" if respondent == "TEX" else respondent


def _sum_by_code(parts: list[Series]) -> Series:
    codes = sorted({code for part in parts for code in part})
    return {code: np.sum([part[code] for part in parts if code in part], axis=0) for code in codes}


def _demand(
    code: str, authority: Authority, heat: Hourly, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return (D, DF) in MWh."""
    when = calendar(authority.zone)
    shape = np.where(when.resting, _RESTING[when.hour], _WORKING[when.hour]) / 100
    felt = np.convolve(heat, np.full(6, 1 / 6))[:HOURS]  # buildings respond to the last six hours
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
    """Return the fuels in MWh whose sum is `need` (net generation) in every hour."""
    when = calendar(authority.zone)
    free: dict[str, Hourly] = {}  # can be curtailed when there is too much
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
        share = authority.coal * np.maximum(1 - 0.05 * when.years, 0.2)
        firm["COL"] = np.clip(share * day, 0, np.maximum(left - floor, 0))
    fuels: Series = {
        fuel: np.round(firm.get(fuel, 0.0) + free.get(fuel, 0.0)).astype(np.int64) for fuel in sorted({*firm, *free})
    }
    closing = need - sum(fuels.values(), np.zeros(HOURS, np.int64))
    fuels[authority.balance] = fuels.get(authority.balance, 0) + closing
    return fuels


def inject_quirks(values: npt.NDArray[np.int32], state: npt.NDArray[np.uint8], rng: np.random.Generator) -> None:
    """Inject the faults of real data in place: missing runs, nulls, hundredfold values, gaps of all series at once."""
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
