"""Imputation of demand: accurate from neighbours, exact from the balance, the same to the bit, and never in a series."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from ingest import impute_regression
from ingest.errors import UsageError
from ingest.impute import BALANCE, FORECAST, LONGEST, NEIGHBOURS, PROFILE, Load, departures, impute, neighbours_of
from ingest.impute_regression import _ridge, invert
from ingest.imputed import method_text, read_year, write_estimates
from ingest.loader import load_series
from ingest.quality import IMPUTED
from tests.support.data_folder import ABSENT, build_all, commit, daily, shard
from tests.support.recordings import DATA, needs_recordings

HOURS = 24 * 90
GAP = slice(1000, 1024)


def grid(hours: int = HOURS, count: int = 4) -> list[np.ndarray]:
    """Return demand of authorities under one weather, which moves over days: MWh, each with a noise of its own of 0.5 %."""
    random = np.random.default_rng(3)
    weather = np.convolve(random.normal(0, 0.02, hours + 200), np.exp(-np.arange(200) / 40), "valid")[:hours]
    return [
        np.round(daily(hours, 2000.0 * (i + 1), 400.0 * (i + 1)) * (1 + weather) * (1 + random.normal(0, 0.005, hours)))
        for i in range(count)
    ]


def hidden(values: np.ndarray, gap: slice = GAP) -> np.ndarray:
    left = values.copy()
    left[gap] = np.nan
    return left


def test_neighbours_estimate_a_day_within_a_percent() -> None:
    truth, *others = grid()
    load = Load(hidden(truth))
    alone = impute(load, {}, np.isnan(load.demand))
    both = impute(load, {str(i): other for i, other in enumerate(others)}, np.isnan(load.demand))
    errors = [np.abs(one.value[GAP] / truth[GAP] - 1).mean() for one in (alone, both)]
    assert errors[1] < 0.01 < errors[0]
    assert set(alone.code[GAP]) == {PROFILE}
    assert set(both.code[GAP]) == {PROFILE | NEIGHBOURS}
    assert np.isnan(both.value[: GAP.start]).all()
    assert not both.code[GAP.stop :].any()


def test_interval_holds_about_nine_of_ten_hours() -> None:
    truth, *others = grid()
    gaps = np.zeros(HOURS, np.bool_)
    for start in range(400, 1800, 97):
        gaps[start : start + 10] = True
    found = impute(Load(np.where(gaps, np.nan, truth)), {str(i): other for i, other in enumerate(others)}, gaps)
    inside = (found.low[gaps] <= truth[gaps]) & (truth[gaps] <= found.high[gaps])
    assert 0.8 < inside.mean() <= 1
    assert (found.low[gaps] <= found.value[gaps]).all()


def test_regression_learns_that_weather_counts_by_the_hour() -> None:
    """A demand that follows its neighbour's departures twice in the afternoon, and not at all at night: no ratio of the two is usual."""
    truth, other, *_ = grid(24 * 180)
    hours = np.arange(truth.size)
    departure = other / daily(truth.size, 4000.0, 800.0) - 1
    demand = daily(truth.size) * (1 + departure * (1 - np.cos(2 * np.pi * hours / 24)))
    gap = slice(2400, 2424)
    found = impute(Load(hidden(demand, gap)), {"other": other}, np.isnan(hidden(demand, gap)))
    assert np.abs(found.value[gap] / demand[gap] - 1).mean() < 0.008  # 0.017 without the regression
    assert set(found.code[gap]) == {PROFILE | NEIGHBOURS}


def test_error_of_a_day_is_that_of_a_fit_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(impute_regression, "OUTLYING", 1e6)  # the weights of the second fit would differ
    monkeypatch.setattr(impute_regression, "PENALTY", 1e-9)  # likewise its penalty, by the mean weight
    random = np.random.default_rng(5)
    columns = random.normal(size=(90, 6))
    truth = columns @ np.array([0.02, -0.01, 0.0, 0.03, 0.01, 0.0]) + random.uniform(-0.01, 0.01, 90)
    weights = random.uniform(0.5, 1, 90)
    fitted = _ridge(columns, truth, weights)
    assert fitted is not None
    for day in (0, 40, 89):
        without = truth.copy()
        without[day] = np.nan
        alone = _ridge(columns, without, weights)
        assert alone is not None
        assert abs(alone[day] - fitted[day]) < 1e-9 < abs(alone[day] - truth[day])
    assert _ridge(columns[:59], truth[:59], weights[:59]) is None


def test_inverse() -> None:
    matrix = np.random.default_rng(1).normal(size=(30, 12))
    matrix = matrix.T @ matrix
    np.testing.assert_allclose(invert(matrix) @ matrix, np.eye(12), atol=1e-9)


def test_balance_gives_the_demand_itself() -> None:
    truth, other, *_ = grid()
    load = Load(hidden(truth), balance=truth.copy())
    found = impute(load, {"other": other}, np.isnan(load.demand))
    assert np.abs(found.value[GAP] / truth[GAP] - 1).max() < 0.001
    assert set(found.code[GAP]) == {PROFILE | BALANCE | NEIGHBOURS}


def test_forecast_that_is_absent_too_is_not_used() -> None:
    truth, forecast, *_ = grid()
    forecast[GAP.start : GAP.start + 12] = np.nan
    load = Load(hidden(truth), forecast)
    found = impute(load, {}, np.isnan(load.demand))
    assert found.code[GAP].tolist() == [PROFILE] * 12 + [PROFILE | FORECAST] * 12


def test_predictor_that_is_wrong_in_an_hour_does_not_decide_it() -> None:
    """A forecast of SRP in 2019 is 100 times its usual value for some hours."""
    truth, forecast, *_ = grid()
    forecast[GAP.start + 3] *= 100
    load = Load(hidden(truth), forecast)
    found = impute(load, {}, np.isnan(load.demand))
    assert abs(found.value[GAP.start + 3] / truth[GAP.start + 3] - 1) < 0.3


def test_only_wanted_hours_of_gaps_of_a_week_are_estimated() -> None:
    truth, *_ = grid()
    load = Load(hidden(hidden(truth), slice(1300, 1301 + LONGEST)))
    wanted = np.isnan(load.demand)
    wanted[GAP.start] = False
    found = impute(load, {}, wanted)
    assert np.flatnonzero(found.code).tolist() == list(range(GAP.start + 1, GAP.stop))


def test_gap_at_the_end_and_short_series() -> None:
    truth, *others = grid()
    load = Load(hidden(truth, slice(HOURS - 5, HOURS)))
    found = impute(load, {"other": others[0]}, np.isnan(load.demand))
    assert np.abs(found.value[-5:] / truth[-5:] - 1).max() < 0.1
    nothing = np.full(48, np.nan)
    assert not impute(Load(nothing), {"other": nothing}, np.isnan(nothing)).code.any()


def test_neighbours_are_those_of_the_same_weather() -> None:
    first, second, third, fourth = grid()
    alien = np.round(daily(HOURS) * (1 + np.random.default_rng(9).normal(0, 0.03, HOURS)))
    found = {"a": first, "b": second, "c": third, "d": fourth, "x": alien, "none": np.full(HOURS, np.nan)}
    names = neighbours_of("a", {name: departures(Load(values)) for name, values in found.items()})
    assert set(names[:3]) == {"b", "c", "d"}
    assert "none" not in names


def test_methods_are_named() -> None:
    assert method_text(PROFILE | NEIGHBOURS) == "profile+neighbours"
    assert method_text(0) == ""


def folder_with_gaps(data_dir: Path, order: int = 1, years: tuple[int, ...] = (2024,)) -> Path:
    """Make a folder of three authorities, of which two lack hours of demand."""
    codes = ["PACW", "ERCO", "MISO"][::order]
    for year in years:
        for code, demand in zip(codes, grid(24 * 60, 3)[::order], strict=True):
            one = shard(code, f"{year}-01-01T00", f"{year}-02-29T23" if year == 2024 else f"{year}-03-01T23")
            values = np.resize(demand, one.hours)
            if code != "MISO":
                values[700 + len(code) : 720] = ABSENT
                values[900:903] = np.nan
            commit(data_dir, one, {"D": values, "DF": np.round(np.resize(demand, one.hours) * 1.01)})
    build_all(data_dir)
    return data_dir


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.parquet"))}


def test_two_builds_give_the_same_bytes_and_the_series_stay(tmp_path: Path) -> None:
    """0 cells differ between a folder and one that was built in another order."""
    first, second = folder_with_gaps(tmp_path / "a"), folder_with_gaps(tmp_path / "b", -1)
    series = content(first / "series")
    done = write_estimates(first)
    assert done.cells == 2 * (16 + 3)
    assert sorted(content(first / "imputed")) == ["ERCO/2024.parquet", "PACW/2024.parquet"]
    write_estimates(second)
    assert content(second / "imputed") == content(first / "imputed")
    assert content(first / "series") == series


@pytest.mark.long
def test_any_number_of_workers_gives_the_same_bytes(tmp_path: Path) -> None:
    data_dir = folder_with_gaps(tmp_path, years=(2023, 2024))
    written = []
    for workers in (1, 2, 3):
        write_estimates(data_dir, workers)
        written.append(content(data_dir / "imputed"))
    assert written[1:] == written[:1] * 2


def test_loader_fills_what_is_asked_and_gives_intervals(tmp_path: Path) -> None:
    data_dir = folder_with_gaps(tmp_path)
    plain = load_series(data_dir, ["PACW"], ["D", "DF"], "2024-01-01", "2024-02-29")
    full = load_series(data_dir, ["PACW"], ["D", "DF"], "2024-01-01", "2024-02-29", impute="neighbours")
    filled = full.imputed[:, 0]
    assert filled.sum() == 19
    assert full.low is not None and full.high is not None and full.imputation is not None
    assert (full.low[filled, 0] <= full.values[filled, 0]).all() and (
        full.values[filled, 0] <= full.high[filled, 0]
    ).all()
    assert (full.reason[filled, 0] == IMPUTED).all()
    assert not full.mask[filled, 0].any()
    assert np.isnan(full.low[~filled]).all()
    np.testing.assert_array_equal(full.values[~filled], plain.values[~filled])
    write_estimates(data_dir)
    table = pq.read_table(data_dir / "imputed" / "PACW" / "2024.parquet").to_pandas()
    np.testing.assert_array_equal(table["imputed"].to_numpy(np.float32), full.values[filled, 0])
    assert set(table["imputation"]) <= {"profile+forecast+neighbours", "profile+forecast", "profile+neighbours"}


def test_region_is_no_neighbour_of_its_member(tmp_path: Path) -> None:
    """TEX equals ERCO in every hour that both have: hidden hours would show it without error, missing ones need not."""
    demand = grid(24 * 60, 1)[0]
    for code, gap in (("ERCO", slice(700, 710)), ("TEX", slice(900, 910))):
        one = shard(code, "2024-01-01T00", "2024-02-29T23")
        commit(tmp_path, one, {"D": hidden(demand, gap)})
    build_all(tmp_path)
    loads = read_year(tmp_path / "series", 2024)
    assert set(loads.estimate("ERCO.D").code[700:710]) == {PROFILE}
    assert set(loads.estimate("TEX.D").code[900:910]) == {PROFILE | NEIGHBOURS}


def test_estimates_of_repaired_series_go(tmp_path: Path) -> None:
    write_estimates(folder_with_gaps(tmp_path))
    one = shard("ERCO", "2024-01-01T00", "2024-02-29T23", generation=1)
    commit(tmp_path, one, {"D": np.resize(grid(24 * 60, 3)[1], one.hours), "DF": daily(one.hours)})
    build_all(tmp_path)
    write_estimates(tmp_path)
    assert sorted(content(tmp_path / "imputed")) == ["PACW/2024.parquet"]


def test_no_series_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no series in"):
        write_estimates(tmp_path)


@needs_recordings
@pytest.mark.long
def test_recorded_balance_leaves_little_error() -> None:
    """A day of July 2021 hidden from each of 39 authorities over 1 GW: with their NG and TI, and with demand alone."""
    table = pd.read_csv(DATA / "eia-grid" / "E_raw_2021-07-10_2021-07-20.csv", index_col=0)
    codes = [name.split("_")[1] for name in map(str, table) if name.startswith("E_") and name.endswith("_D")]
    demand = {code: table[f"E_{code}_D"].to_numpy(float) for code in codes}
    all_departures = {code: departures(Load(values)) for code, values in demand.items()}
    hours = np.zeros(len(table), np.bool_)
    hours[100:124] = True
    errors = []
    for code, truth in demand.items():
        if np.nanmedian(truth) > 1000 and {f"E_{code}_NG", f"E_{code}_TI"} <= set(table):
            balance = (table[f"E_{code}_NG"] - table[f"E_{code}_TI"]).to_numpy(float)
            neighbours = {other: demand[other] for other in neighbours_of(code, all_departures)}
            loads = Load(hidden(truth, slice(100, 124)), balance=balance), Load(hidden(truth, slice(100, 124)))
            found = [impute(load, neighbours, hours).value[hours] for load in loads]
            errors.append([np.abs(value / truth[hours] - 1).mean() for value in found])
    with_balance, without = np.median(errors, axis=0)
    assert len(errors) == 39
    assert with_balance < 0.0005
    assert without < 0.03
