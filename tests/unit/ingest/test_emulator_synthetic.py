"""The synthetic world: every hour balances, forecast errors are realistic, quirks are rare, revisions settle."""

from __future__ import annotations

import numpy as np
import pytest

from ingest.columns import hour_number, hour_text
from ingest.emulator.worlds.base import ABSENT, NULL, VALUE
from ingest.emulator.worlds.grid import AUTHORITIES, DETAILED, LINES, REGIONS
from ingest.emulator.worlds.synthetic import SyntheticWorld
from ingest.emulator.worlds.weather import FIRST, HOURS, calendar, federal_holidays, seeded, summer_time

NOW = int(np.datetime64("2026-06-24T06", "h").astype(np.int64))
DEFAULT = ("PACW", "ERCO", "CAL", "TEX", "MISO")


@pytest.fixture(scope="module")
def world() -> SyntheticWorld:
    return SyntheticWorld(0)


@pytest.fixture(scope="module")
def plain() -> SyntheticWorld:
    return SyntheticWorld(0, quirks=False)


@pytest.mark.parametrize("code", [*DETAILED, "CAL", "TEX"])
def test_every_hour_balances_in_whole_mwh(world: SyntheticWorld, code: str) -> None:
    region, fuels = world.clean(code)
    assert np.array_equal(region["D"], region["NG"] - region["TI"])
    assert np.array_equal(region["NG"], sum(fuels.values(), np.zeros(HOURS, np.int64)))
    if code != "TEX":  # its one different hour is in D and TI, not in a line
        assert np.array_equal(region["TI"], sum(world.neighbours(code).values(), np.zeros(HOURS, np.int64)))
    assert region["D"].min() > 0
    for fuel in set(fuels) - {"BAT", "PS", "SUN"}:  # storage charges, and panels draw a little at night
        assert fuels[fuel].min() >= 0, fuel


@pytest.mark.parametrize(
    "codes",
    [
        ("YAD", "PNM", "SWPW"),
        pytest.param((*AUTHORITIES, *REGIONS), marks=pytest.mark.long),
    ],
    ids=["a few", "all"],
)
def test_every_authority_balances_on_four_routes(plain: SyntheticWorld, codes: tuple[str, ...]) -> None:
    """Among them those that only generate, and one that reports since 2026-06."""
    world, settled = plain, NOW - 15 * 24
    for code in codes:

        def total(route: str, code: str = code) -> np.ndarray:
            block = world.block(route, code, FIRST, settled, NOW)
            assert block is not None
            return np.where(block.state == VALUE, block.values, 0).sum(axis=1)

        block = world.block("region-data", code, FIRST, settled, NOW)
        assert block is not None
        region = {name: block.values[:, column] for column, name in enumerate(block.codes)}
        demand = region.get("D", np.zeros(len(block.values), np.int32))
        assert np.array_equal(demand, region["NG"] - region["TI"])
        assert np.array_equal(total("fuel-type-data"), region["NG"])
        if code != "TEX":
            assert np.array_equal(total("interchange-data"), region["TI"])
        if code in world.respondents("region-sub-ba-data"):
            assert np.array_equal(total("region-sub-ba-data"), demand)
        assert (block.state[:, 0] == VALUE).any()


def test_each_line_is_an_antisymmetric_pair(plain: SyntheticWorld) -> None:
    for here, there in (("PNM", "WACM"), ("DUK", "YAD")):
        assert (here, there) in LINES
        blocks = [plain.block("interchange-data", code, NOW - 9000, NOW - 8000, NOW) for code in (here, there)]
        out, back = (block.series(other) for block, other in zip(blocks, (there, here), strict=True) if block)
        assert out
        assert out == {hour: -value for hour, value in back.items()}


@pytest.mark.parametrize("code", DEFAULT)
def test_forecast_error_has_a_realistic_size_and_memory(world: SyntheticWorld, code: str) -> None:
    region, _ = world.clean(code)
    error = (region["DF"] - region["D"]) / region["D"]
    assert 0.015 < np.abs(error).mean() < 0.05
    assert np.corrcoef(error[:-1], error[1:])[0, 1] > 0.7


@pytest.mark.parametrize("code", ["ERCO", "CAL"])
def test_forecast_is_too_low_in_heat_waves(world: SyntheticWorld, code: str) -> None:
    region, _ = world.clean(code)
    error = (region["DF"] - region["D"]) / region["D"]
    top = region["D"] > np.quantile(region["D"], 0.999)
    assert error[top].mean() < error.mean() - 0.005


def test_demand_has_daily_weekly_and_yearly_cycles(world: SyntheticWorld) -> None:
    region, fuels = world.clean("ERCO")
    when = calendar(-6)
    by_hour = [region["D"][when.hour == hour].mean() for hour in range(24)]
    assert np.argmax(by_hour) in range(14, 20)
    assert np.argmin(by_hour) in range(2, 6)
    assert region["D"][~when.resting].mean() > 1.02 * region["D"][when.resting].mean()
    assert fuels["SUN"][(when.hour < 4) | (when.hour > 21)].max() <= 0
    assert fuels["SUN"][when.hour == 12].mean() > 0.3 * fuels["SUN"].max()
    july, april = (np.abs(when.season - 2 * np.pi * day / 365) < 0.2 for day in (200, 100))
    assert region["D"][july].mean() > 1.2 * region["D"][april].mean()


def test_region_is_the_sum_of_its_authorities(world: SyntheticWorld) -> None:
    for line in ("D", "NG"):
        assert (world.clean("CAL")[0][line] > world.clean("CISO")[0][line]).all()
        assert np.count_nonzero(world.clean("TEX")[0][line] != world.clean("ERCO")[0][line]) <= 1
    assert np.count_nonzero(world.clean("TEX")[0]["D"] != world.clean("ERCO")[0]["D"]) == 1


def test_fuels_match_the_real_systems(world: SyntheticWorld) -> None:
    before, after = (int(np.datetime64(day, "h").astype(np.int64)) for day in ("2023-06-01", "2025-06-01"))

    def fuels(code: str, hour: int) -> set[str]:
        block = world.block("fuel-type-data", code, hour, hour + 200, NOW)
        assert block is not None
        return {name for i, name in enumerate(block.codes) if (block.state[:, i] != ABSENT).any()}

    assert sum(len(fuels(code, before)) for code in DEFAULT) == 35
    assert fuels("CAL", before) == {"COL", "NG", "NUC", "OIL", "OTH", "SUN", "WAT", "WND"}
    assert fuels("CAL", after) - fuels("CAL", before) == {"BAT", "GEO"}
    assert fuels("MISO", after) - fuels("MISO", before) == {"BAT", "PS"}


def test_seed_determines_the_world_in_any_request_order(world: SyntheticWorld) -> None:
    other, third = SyntheticWorld(0), SyntheticWorld(1)
    other.block("fuel-type-data", "ERCO", 0, NOW, NOW)
    for route in ("region-data", "fuel-type-data", "interchange-data"):
        ours, theirs, different = (one.block(route, "PACW", 0, NOW, NOW) for one in (world, other, third))
        assert ours and theirs and different
        assert np.array_equal(ours.values, theirs.values)
        assert np.array_equal(ours.state, theirs.state)
        assert not np.array_equal(ours.values, different.values)


def test_quirks_are_rare_and_optional(world: SyntheticWorld) -> None:
    end = NOW - 15 * 24
    clean = SyntheticWorld(0, quirks=False)
    missing = nulls = outliers = cells = np.int64(0)
    for code in DEFAULT:
        faulty, plain = (one.block("region-data", code, FIRST, end, NOW) for one in (world, clean))
        assert faulty and plain
        assert (plain.state == VALUE).all()
        cells += np.int64(faulty.state.size)
        missing += np.count_nonzero(faulty.state == ABSENT)
        nulls += np.count_nonzero(faulty.state == NULL)
        outliers += np.count_nonzero((faulty.values == 100 * plain.values) & (plain.values != 0))
    assert 0.00003 < missing / cells < 0.001
    assert 0.00003 < nulls / cells < 0.0005
    assert 0.000003 < outliers / cells < 0.0001


def test_young_hours_are_revised_until_settled_and_stay_balanced() -> None:
    world = SyntheticWorld(0, quirks=False)
    start = NOW - 20 * 24
    now = [world.block("region-data", "ERCO", start, NOW, NOW + day * 24) for day in range(16)]
    fuels = [world.block("fuel-type-data", "ERCO", start, NOW, NOW + day * 24) for day in range(16)]
    final = world.clean("ERCO")[0]["D"][start - FIRST : NOW - FIRST + 1]
    changed = []
    for block, mix in zip(now, fuels, strict=True):
        assert block and mix
        demand, generation, interchange = (block.values[:, block.codes.index(code)] for code in ("D", "NG", "TI"))
        assert np.array_equal(demand, generation - interchange)
        assert np.array_equal(generation, mix.values.sum(axis=1))
        changed.append(np.count_nonzero(demand != final))
    assert changed[0] > 30
    assert changed == sorted(changed, reverse=True)
    assert changed[-1] == 0
    assert np.array_equal(now[0].values[: 6 * 24], now[-1].values[: 6 * 24])  # type: ignore[union-attr]
    assert (now[0].state == NULL).any() and (now[-1].state == VALUE).all()  # type: ignore[union-attr]
    later = world.block("region-data", "ERCO", NOW + 1, NOW + 48, NOW)
    assert later is not None  # of the hours to come only the day-ahead forecast is served
    assert {later.codes[column] for column in np.nonzero(later.state)[1]} == {"DF"}


def test_daylight_saving_follows_the_us_rule() -> None:
    hours = np.array(["2024-03-10T09", "2024-03-10T10", "2024-11-03T08", "2024-11-03T09"], "datetime64[h]")
    assert summer_time(hours, -8).tolist() == [False, True, True, False]


def test_federal_holidays_match_the_holidays_package() -> None:
    holidays = pytest.importorskip("holidays")
    theirs = {day for day in holidays.country_holidays("US", years=range(2018, 2028)) if day.year in range(2019, 2027)}
    ours = {day for day in federal_holidays(range(2018, 2028)).tolist() if day.year in range(2019, 2027)}
    assert ours == theirs


def test_named_generators_are_independent() -> None:
    assert seeded(0, "a").random() != seeded(0, "b").random() != seeded(1, "b").random()
    assert seeded(3, "a").random() == seeded(3, "a").random()


def test_forecast_of_tomorrow_is_served_from_ten_local(world: SyntheticWorld) -> None:
    """A follower asks for it, and forecasts correct it: the emulator had no hour after the present one."""

    def ahead(now: str, route: str = "region-data") -> dict[str, str]:
        hour = hour_number(now)
        block = world.block(route, "PACW", hour - 5, hour + 48, hour)
        assert block is not None
        last = {code: np.flatnonzero(block.state[:, i] != ABSENT) for i, code in enumerate(block.codes)}
        return {code: hour_text(block.first + int(there[-1])) for code, there in last.items() if there.size}

    assert ahead("2026-06-24T16") == {
        "D": "2026-06-24T16",
        "DF": "2026-06-25T07",
        "NG": "2026-06-24T16",
        "TI": "2026-06-24T16",
    }
    assert ahead("2026-06-24T17")["DF"] == "2026-06-26T07"  # 10:00 in Portland
    assert set(ahead("2026-06-24T17", "fuel-type-data").values()) == {"2026-06-24T17"}
