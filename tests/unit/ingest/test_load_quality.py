"""The outlier rule on demand and its forecast: flat runs, bad spells, steps and spikes are marked; storms are kept."""

from __future__ import annotations

import numpy as np
import pytest

from ingest.quality import OK, OUTLIER, SUSPECT, judge
from tests.support.data_folder import daily
from tests.support.recordings import RESPONDENTS, needs_recordings, year_of

DAYS = 120
START = 60 * 24  # of every fault
# Public values of the storm hours (EIA-930 by way of the field report): authority, usual demand of the hours before, MWh, hours below 0.3 × the
# usual value, their lowest and highest, hours of the fall and of the recovery.
STORMS = {
    "CPLW, Helene, 2024-09-27T14": (287, 33, 47, 92, 6, 60),
    "TAL, Michael, 2018-10-10T20": (301, 27, 65, 123, 4, 72),
    "HST, Irma, 2017-09-10T14": (60, 24, 1, 24, 10, 48),
    "FPC, Irma, 2017-09-11T14": (5967, 6, 1735, 2012, 14, 60),
    "FPL, Irma, 2017-09-11T01": (14162, 3, 2360, 4896, 12, 96),
    "JEA, Irma, 2017-09-11T15": (1478, 2, 469, 488, 12, 48),
}


def load(level: float = 1000.0, days: int = DAYS) -> np.ndarray:
    """Return days of demand with a daily shape of ± 25 %, and noise of 1 %, MWh."""
    noise = np.random.default_rng(7).normal(0, 0.01, 24 * days)
    return np.round(daily(24 * days, level, 0.25 * level) * (1 + noise))


def codes(values: np.ndarray, other: np.ndarray | None = None, variable: str = "D") -> np.ndarray:
    columns = {variable: values}
    if other is not None:
        columns["DF" if variable == "D" else "D"] = other
    return judge(columns)[variable]


def storm(usual: float, hours: int, low: float, high: float, fall: int, recovery: int) -> np.ndarray:
    """Return demand with a storm: it falls from the usual value, stays between `low` and `high`, and recovers."""
    values = load(usual)
    share = np.concatenate([np.linspace(0, 1, fall + 2)[1:-1], np.ones(hours), np.linspace(1, 0, recovery + 2)[1:-1]])
    bottom = np.interp(np.arange(share.size), [fall, fall + hours / 2, fall + hours], [high, low, high])
    own = slice(START, START + share.size)
    values[own] = np.round(share * bottom + (1 - share) * values[own])
    return values


@pytest.mark.parametrize("name", STORMS)
def test_storm_hours_are_kept(name: str) -> None:
    values = storm(*STORMS[name])
    lowest = values[START:].argmin() + START
    assert values[lowest] < 0.4 * STORMS[name][0]
    assert not (codes(values) == OUTLIER).any()


def test_deep_storm_hours_are_flagged() -> None:
    values = storm(*STORMS["TAL, Michael, 2018-10-10T20"])
    deep = values < 0.25 * 301
    assert (codes(values)[deep] == SUSPECT).all()


def test_fall_within_an_hour_is_masked_unless_the_forecast_has_it_too() -> None:
    values = load()
    spell = slice(START, START + 12)
    values[spell] = np.round(0.25 * values[spell])
    assert (codes(values)[spell] == OUTLIER).all()
    assert (codes(values, np.round(1.05 * values))[spell] == SUSPECT).all()
    assert (codes(values, load())[spell] == OUTLIER).all()
    values[spell] = np.round(0.01 * values[spell])
    assert (codes(values, values)[spell] == OUTLIER).all()  # a fault of both, as CENT's on 2018-08-28


@pytest.mark.parametrize("variable", ["D", "DF", "D.ZONJ"])
def test_flat_run_is_masked_from_its_third_hour(variable: str) -> None:
    """LDWP reported 175 MWh for 324 hours in a row from 2024-06-27T20, SWPP 29,849 for 96."""
    values = load()
    values[START : START + 96] = values[START]
    got = codes(values, variable=variable)
    assert (got[START + 2 : START + 96] == OUTLIER).all()
    assert (got[START : START + 2] == SUSPECT).all()


@pytest.mark.parametrize(("equal", "code"), [(4, OK), (5, SUSPECT), (11, SUSPECT)])
def test_short_run_is_at_most_suspect(equal: int, code: int) -> None:
    values = load()
    values[START : START + equal] = np.median(values[START : START + equal])
    got = codes(values)
    assert set(got[START + 2 : START + equal]) == {code}
    assert not (got == OUTLIER).any()


def test_level_load_may_repeat_its_value() -> None:
    """OVEC's demand is a plant's own, within a few MWh of 30 all year: equal hours are no fault."""
    values = np.full(24 * DAYS, 30.0)
    values[::7] += 1.0
    values[START : START + 20] = 30.0
    assert (codes(values) == OK).mean() > 0.99


def test_long_bad_spell_is_masked_and_the_good_hours_within_are_kept() -> None:
    """SE reported 353 to 895 MWh for 600 hours from 2015-08-01 (usual 25,000); the 48 good hours between them were masked."""
    values = load(25000)
    spell = np.arange(START, START + 648)
    good = spell[300:348]
    bad = np.setdiff1d(spell, good)
    values[bad] = np.random.default_rng(1).integers(353, 895, bad.size)
    got = codes(values)
    assert (got[bad] == OUTLIER).all()
    assert not (got[good] == OUTLIER).any()


def test_spell_of_moderate_size_between_two_steps_is_suspect() -> None:
    values = load()
    spell = slice(START, START + 30)
    values[spell] = np.round(0.65 * values[spell])
    got = codes(values)
    assert (got[spell] == SUSPECT).mean() > 0.9
    assert not (got == OUTLIER).any()


def test_small_spike_is_suspect_unless_the_forecast_has_it_too() -> None:
    values = load()
    values[START] = np.round(1.15 * values[START])
    assert codes(values)[START] == SUSPECT
    assert codes(values, load())[START] == SUSPECT
    assert codes(values, values + 1)[START] == OK


def test_hours_between_many_bad_ones_are_suspect() -> None:
    values = load()
    region = slice(START, START + 96)
    values[START : START + 96 : 4] = 0.0
    got = codes(values)
    assert (got[START : START + 96 : 4] == OUTLIER).all()
    assert (got[region] != OK).mean() > 0.95
    assert (got[: START - 48] == OK).mean() > 0.99


def test_zero_is_masked_where_the_authority_has_demand() -> None:
    """NYIS 2019 and CISO-VEA 2020; small authorities too, whose zeros lie within 50 MWh of the usual value."""
    values = load(45)
    values[START] = 0.0
    assert codes(values)[START] == OUTLIER
    assert not codes(np.zeros(24 * DAYS)).any()


def test_ordinary_demand_is_hardly_ever_flagged() -> None:
    assert (codes(load(days=365)) != OK).mean() < 0.001


@needs_recordings
@pytest.mark.parametrize(
    ("respondent", "first", "hours", "usual"),
    [
        ("TAL", "2016-09-02T07", 19, 250),  # Hermine
        ("TAL", "2018-10-10T20", 27, 301),  # Michael
        ("HST", "2017-09-10T14", 24, 60),  # Irma
        ("FPC", "2017-09-11T14", 6, 5967),
        ("FPL", "2017-09-11T01", 4, 14162),
        ("JEA", "2017-09-11T15", 2, 1478),
    ],
)
def test_real_storms_are_kept(respondent: str, first: str, hours: int, usual: float) -> None:
    values, got = recorded(respondent, first, hours)
    assert values.min() < 0.55 * usual
    assert not (got == OUTLIER).any()


@needs_recordings
@pytest.mark.parametrize(
    ("respondent", "variable", "first", "hours"),
    [
        ("SWPP", "D", "2019-11-25T09", 94),  # 29,849 in a row
        ("LDWP", "D", "2018-04-18T18", 145),
        ("SE", "D", "2015-08-02T00", 24),  # of four weeks at 353 to 895
        ("SE", "DF", "2018-08-02T00", 24),  # of three months at 700 to 1,790
    ],
)
def test_real_nonsense_is_masked(respondent: str, variable: str, first: str, hours: int) -> None:
    values, got = recorded(respondent, first, hours, variable)
    assert (got[~np.isnan(values)] == OUTLIER).all()


def recorded(respondent: str, first: str, hours: int, variable: str = "D") -> tuple[np.ndarray, np.ndarray]:
    """Return hours of a recorded series and their codes."""
    vintage = "2020_Oct" if respondent in RESPONDENTS else "2020_Oct_more"
    start, _, columns = year_of(respondent, int(first[:4]), vintage)
    finite = {name: np.where(np.isinf(column), np.nan, column) for name, column in columns.items()}
    at = int((np.datetime64(first) - np.datetime64(start)).astype(int))
    return finite[variable][at : at + hours], judge(finite)[variable][at : at + hours]


@needs_recordings
@pytest.mark.long
@pytest.mark.timeout(900)
def test_documented_evaluation_is_current() -> None:
    """The counts of 2022 and 2023 in docs/benchmarks/outliers.jsonl, whose tables docs/reference/outliers.md shows."""
    from scripts.bench.common import read_lines
    from scripts.evaluate import outliers  # here: scipy's statistics take a second to load

    documented = [line for line in read_lines(outliers.OUT) if line.get("period") == "2022-2023"]
    assert outliers.score("2022-2023", outliers.JUDGED, forecast=False) == documented
    assert outliers.table(documented, "2022-2023") in outliers.DOCS.read_text()
