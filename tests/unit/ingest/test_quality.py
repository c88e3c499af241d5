"""The outlier rule: what it masks, what passes, and independence of the order of variables."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.quality import OUTLIER, SUSPECT, judge
from tests.support.data_folder import daily
from tests.support.recordings import needs_recordings, year_of

DAYS = 60
ROOT = Path(__file__).resolve().parents[3]


def masked(variable: str, values: np.ndarray, **others: np.ndarray) -> list[int]:
    return marked(OUTLIER, variable, values, **others)


def suspect(variable: str, values: np.ndarray, **others: np.ndarray) -> list[int]:
    return marked(SUSPECT, variable, values, **others)


def marked(code: int, variable: str, values: np.ndarray, **others: np.ndarray) -> list[int]:
    return np.flatnonzero(judge({variable: values, **others})[variable] == code).tolist()


def test_plain_load_has_no_outliers() -> None:
    assert masked("D", daily(24 * DAYS)) == []


@settings(max_examples=60)
@given(
    st.integers(0, 24 * DAYS - 1),
    st.sampled_from([100.0, 10.0, 4.0, 0.0, 0.1, -1.0]),
    st.sets(st.integers(0, 24 * DAYS - 1), max_size=200),
)
def test_single_wrong_hour_is_masked_alone(hour: int, factor: float, holes: set[int]) -> None:
    values = daily(24 * DAYS)
    values[sorted(holes - {hour})] = np.nan
    values[hour] *= factor
    assert masked("D", values) == [hour]


def test_run_of_wrong_hours_is_masked_completely() -> None:
    values = daily(24 * DAYS)
    values[700:730] *= 0.2
    values[900:904] *= 20
    assert masked("D", values) == [*range(700, 730), *range(900, 904)]


def test_cold_snap_and_rolling_blackout_pass() -> None:
    values = daily(24 * DAYS)
    values[700:760] = np.round(values[700:760] * 1.7)
    values[730:745] = np.round(values[730:745] * 0.6)
    assert masked("D", values) == []


def test_legal_negative_values_pass() -> None:
    load = daily(24 * DAYS)
    pumping = np.where(np.arange(load.size) % 24 < 6, -800.0, 500.0)
    sun = np.where(np.arange(load.size) % 24 < 12, 900.0, -3.0)
    exchange = np.round(1500 * np.cos(np.arange(load.size) / 7))
    judged = judge({"D": load, "NG.WAT": pumping, "NG.SUN": sun, "TI": exchange})
    assert not any(codes.any() for codes in judged.values())


def test_generation_spikes_and_impossible_runs_are_masked() -> None:
    load = daily(24 * DAYS)
    sun = np.where(np.arange(load.size) % 24 < 12, 200.0, 0.0)
    sun[103] = 1338.0
    other = np.full(load.size, 20.0)
    other[600:610] = 2500.0  # ten hours, 125 times its peak and most of the respondent's level
    judged = judge({"D": load, "NG.SUN": sun, "NG.OTH": other})
    assert np.flatnonzero(judged["NG.SUN"]).tolist() == [103]
    assert np.flatnonzero(judged["NG.OTH"]).tolist() == list(range(600, 610))


def test_absent_values_and_short_series_have_no_outliers() -> None:
    assert masked("D", np.full(48, np.nan)) == []
    assert masked("NG.SUN", np.array([0.0, 0.0, 5.0])) == []
    assert judge({}) == {}


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_variable_order_does_not_change_the_mask(seed: int) -> None:
    random = np.random.default_rng(seed)
    columns = {
        name: np.round(daily(24 * 30) * random.lognormal(0, 0.3, 24 * 30)) for name in ("D", "NG", "TI", "NG.WND")
    }
    forward = judge(columns)
    backward = judge(dict(reversed(columns.items())))
    assert all((forward[name] == backward[name]).all() for name in columns)


@needs_recordings
@pytest.mark.parametrize("respondent", ["ERCO", "TEX", "MISO"])
def test_real_storms_and_heat_waves_pass(respondent: str) -> None:
    """January 2018's bomb cyclone, the polar vortex of 2019, and every August peak of ERCOT."""
    for year in range(2015, 2020):
        judged = judge(finite(year_of(respondent, year)[2]))
        assert not any((codes == OUTLIER).any() for codes in judged.values()), year


@needs_recordings
@pytest.mark.parametrize(
    ("respondent", "hour", "value"),
    [
        ("PACW", "2016-11-15T21", 3340061),
        ("PACW", "2016-11-16T03", -90964),
        ("PACW", "2017-01-18T05", 1),
        ("CAL", "2019-12-20T00", 5719),
        ("CISO", "2019-02-13T18", 14012),  # a digit lost: its neighbours are 24,590 and 23,928
    ],
)
def test_real_outliers_are_masked(respondent: str, hour: str, value: float) -> None:
    first, _, columns = year_of(respondent, int(hour[:4]))
    at = int((np.datetime64(hour) - np.datetime64(first)).astype(int))
    assert columns["D"][at] == value
    assert judge(finite(columns))["D"][at] == OUTLIER


def finite(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.where(np.isinf(column), np.nan, column) for name, column in columns.items()}


@needs_recordings
def test_documented_outlier_table_is_current() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "evaluate" / "outlier_table.py"))
    assert script["text"]() in (ROOT / "docs" / "reference" / "data.md").read_text()
