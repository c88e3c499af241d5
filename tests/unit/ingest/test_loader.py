"""Loading series as arrays: shapes, masks, imputation, and errors."""

from __future__ import annotations

import re
import shutil
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_array_equal

from ingest.errors import UsageError, VerificationError
from ingest.loader import load_series
from ingest.periods import Moment
from ingest.quality import REASONS
from tests.support.data_folder import ABSENT, build_all, commit, daily, shard


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PACW in the last days of 2023 and the first of 2024, with BAT from 2024 on; ERCO in 2024 alone."""
    data = tmp_path_factory.mktemp("data")
    load = daily(24 * 30)
    load[10], load[20:23], load[100:140], load[310] = np.nan, ABSENT, ABSENT, 90_000.0
    commit(data, shard(start="2023-12-02T00", end="2023-12-31T23"), {"D": daily(24 * 30), "TI": np.arange(720.0)})
    commit(data, shard(start="2024-01-01T00", end="2024-01-30T23"), {"D": load, "TI": np.arange(720.0) - 300})
    commit(data, shard(route="fuel-type-data", start="2024-01-01T00", end="2024-01-30T23"), {"BAT": np.full(720, -5.0)})
    commit(data, shard("ERCO", "2024-01-01T00", "2024-01-30T23"), {"D": daily(720, 40_000, 9_000)})
    build_all(data)
    return data


def test_shapes_names_and_hours(folder: Path) -> None:
    got = load_series(folder, ["PACW", "ERCO"], ["D"], "2024-01-01T00", "2024-01-30T23")
    assert got.values.shape == got.mask.shape == got.reason.shape == (720, 2)
    assert (got.values.dtype, got.mask.dtype) == (np.float32, np.bool_)
    assert got.names == ("PACW.D", "ERCO.D")
    assert got.hours[0] == np.datetime64("2024-01-01T00")
    assert set(np.diff(got.hours).astype(int).tolist()) == {3600}
    assert_array_equal(got.values[:, 1], daily(720, 40_000, 9_000).astype(np.float32))


def test_one_code_and_days_are_accepted_as_the_command_line_accepts_them(folder: Path) -> None:
    """`'CAL'` was read as C, A and L; `'cal'` and a day were refused."""
    one = load_series(folder, "pacw", "D", "2024-01-01", "2024-01-02")
    same = load_series(folder, ["PACW"], ["D"], "2024-01-01T00", "2024-01-02T23")
    assert one.names == same.names
    assert_array_equal(one.values, same.values)


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (date(2024, 1, 1), date(2024, 1, 2)),
        (datetime(2024, 1, 1), datetime(2024, 1, 2, 23)),
        (datetime(2023, 12, 31, 18, tzinfo=timezone(timedelta(hours=-6))), pd.Timestamp("2024-01-03", tz="Etc/GMT-1")),
        (pd.Timestamp("2024-01-01"), np.datetime64("2024-01-02")),
        (np.datetime64("2024-01-01T00:00:00.000000000"), "2024-01-02"),
    ],
)
def test_bounds_may_be_dates_and_times(folder: Path, start: Moment, end: Moment) -> None:
    got = load_series(folder, "ERCO", "d", start, end)
    assert got.hours[[0, -1]].tolist() == [datetime(2024, 1, 1), datetime(2024, 1, 2, 23)]
    assert got.names == ("ERCO.D",)


def test_frame_has_utc_index_units_and_local_time(folder: Path) -> None:
    series = load_series(folder, ["PACW", "ERCO"], ["D"], "2024-01-01T00", "2024-01-30T23")
    frame = series.to_frame(local_time=True)
    assert list(frame.columns) == ["PACW.D", "ERCO.D", "PACW.local_time", "ERCO.local_time"]
    assert (str(frame.index.dtype), frame.index.name) == ("datetime64[ns, UTC]", "period")
    assert frame.index[0] == pd.Timestamp("2024-01-01T00", tz="UTC")
    assert frame.attrs == {"units": {"PACW.D": "MWh", "ERCO.D": "MWh"}, "period": "end of the hour, UTC"}
    assert_array_equal(frame[["PACW.D", "ERCO.D"]].to_numpy(), series.values)
    assert str(frame["ERCO.local_time"].iloc[0]) == "2023-12-31 18:00:00-06:00"
    assert str(frame["PACW.local_time"].iloc[0]) == "2023-12-31 16:00:00-08:00"
    assert list(series.to_frame().columns) == ["PACW.D", "ERCO.D"]


def test_masked_cells_are_nan_with_a_reason(folder: Path) -> None:
    got = load_series(folder, ["PACW"], ["D"], "2024-01-01T00", "2024-01-30T23")
    why = {hour: REASONS[got.reason[hour, 0]] for hour in (10, 20, 310, 311)}
    assert why == {10: "null", 20: "missing", 310: "outlier", 311: "ok"}
    assert_array_equal(np.isnan(got.values), ~got.mask)
    assert int((~got.mask).sum()) == 1 + 3 + 40 + 1
    assert not got.imputed.any()


def test_period_across_the_turn_of_the_year(folder: Path) -> None:
    got = load_series(folder, ["PACW"], ["TI", "NG.BAT"], "2023-12-31T22", "2024-01-01T01")
    assert_array_equal(got.values[:, 0], np.array([718, 719, -300, -299], np.float32))
    assert_array_equal(got.mask[:, 1], [False, False, True, True])
    assert REASONS[got.reason[0, 1]] == "missing"


def test_linear_imputation_fills_and_marks_short_gaps_only(folder: Path) -> None:
    got = load_series(folder, ["PACW"], ["D"], "2024-01-01T00", "2024-01-30T23", impute="linear")
    assert np.flatnonzero(got.imputed[:, 0]).tolist() == [10, 20, 21, 22, 310]
    left, right = got.values[19, 0], got.values[23, 0]
    assert got.values[20, 0] == pytest.approx(left + (right - left) / 4)
    assert np.isnan(got.values[100:140, 0]).all()
    assert not got.mask[10, 0]


def test_week_imputation_takes_the_same_hour_a_week_away(folder: Path) -> None:
    got = load_series(folder, ["PACW"], ["D"], "2024-01-01T00", "2024-01-30T23", impute="week")
    plain = daily(720)
    assert_array_equal(got.values[:, 0], plain.astype(np.float32))
    assert int(got.imputed.sum()) == 45


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((["PACV"], ["D"], "2024-01-01T00", "2024-01-02T00"), "PACW"),
        ((["PACW"], ["NG.BATT"], "2024-01-01T00", "2024-01-02T00"), r"did you mean NG\.BAT"),
        ((["PACW"], ["NG.GEO"], "2024-01-01T00", "2024-01-02T00"), r"\(NG\.GEO was not extracted.*--routes all"),
        (
            (["PACW"], ["D"], "2022-01-01T00", "2024-01-02T00"),
            r"for 2022.*there are 2023, 2024.*--start 2022 --end 2022",
        ),
        ((["PACW"], ["D"], "2024-01-02T00", "2024-01-01T00"), "ends before"),
        ((["PACW"], ["D"], "2 January 2024", "2024-01-03"), "YYYY-MM-DDTHH"),
        ((["PACW"], ["D"], datetime(2024, 1, 1, 3, 30), "2024-01-03"), "whole hour"),
        ((["PACW"], ["D"], 2024, "2024-01-03"), r'2024 is a number: write it in quotes, "2024"'),
        ((["PACW"], ["D"], np.int64(2024), "2024-01-03"), r'2024 is a number: write it in quotes, "2024"'),
        ((["PACW"], ["D"], None, "2024-01-03"), "None is no text, date"),
        ((["PACW"], [1], "2024-01-01", "2024-01-02"), r'variables \[1\]: write codes as text, e.g. "D"'),
        ((["PACW"], None, "2024-01-01", "2024-01-02"), 'variables None: write codes as text, e.g. "D"'),
        ((None, ["D"], "2024-01-01", "2024-01-02"), 'respondents None: write codes as text, e.g. "PACW"'),
        (([], ["D"], "2024-01-01", "2024-01-02"), r"respondents \[\]: no code is named"),
        ((["PACW"], [], "2024-01-01", "2024-01-02"), r"variables \[\]: no code is named"),
        ((" , ", ["D"], "2024-01-01", "2024-01-02"), "respondents ' , ': no code is named"),
        ((["pacv"], ["D"], "2024-01-01", "2024-01-02"), r"unknown respondent PACV \(did you mean PACW"),
        ((["pacificorp"], ["D"], "2024-01-01", "2024-01-02"), "did you mean PACE or PACW"),
        ((["BPAT"], ["D"], "2024-01-01", "2024-01-02"), "start --extract --data .* --respondents BPAT"),
        ((["PACE"], ["D"], "2024-01-01", "2024-01-02"), "no series of PACE in [^ ]*: there are ERCO, PACW; run"),
        ((["PACW"], ["ng.batt"], "2024-01-01", "2024-01-02"), r"did you mean NG\.BAT"),
        ((["PACW"], ["demand"], "2024-01-01", "2024-01-02"), r"did you mean D\b"),
        ((["PACW"], ["battery"], "2024-01-01", "2024-01-02"), r"did you mean NG\.BAT"),
    ],
)
def test_absent_data_is_named_with_the_available(folder: Path, arguments: tuple, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        load_series(folder, *arguments)


def test_what_is_no_folder_is_named_as_such(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r'data_dir 123 is no folder: write its path as text, e.g. "data"'):
        load_series(123, "PACW", "D", "2024", "2024")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"there is no folder .*/nodata: .* --data .*/nodata --respondents PACW`"):
        load_series(tmp_path / "nodata", "PACW", "D", "2024", "2024")


def test_empty_folder_and_damaged_file_are_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(UsageError, match="there is none"):
        load_series(tmp_path, ["PACW"], ["D"], "2024-01-01T00", "2024-01-02T00")
    wide = tmp_path / "series" / "PACW" / "2024" / "wide.parquet"
    wide.parent.mkdir(parents=True)
    wide.write_bytes((folder / "series/PACW/2024/wide.parquet").read_bytes()[:500])
    with pytest.raises(VerificationError, match="verify"):
        load_series(tmp_path, ["PACW"], ["D"], "2024-01-01T00", "2024-01-02T00")


def test_series_of_another_version_is_refused_by_one_line(folder: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(folder, tmp_path / "data"))
    about = data / "series/PACW/2024/series.json"
    about.write_text(about.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(
        UsageError, match=r"series.json is of format 2; this version reads 1. `mv .*` and extract again"
    ):
        load_series(data, "PACW", "D", "2024-01-01", "2024-01-02")


def test_documented_loader_example_runs(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = (Path(__file__).resolve().parents[3] / "docs" / "reference" / "data.md").read_text()
    lines = next(one for one in re.findall(r"```python\n(.*?)```", document, flags=re.DOTALL) if "load_series" in one)
    data = Path(shutil.copytree(folder, tmp_path / "data"))
    for respondent in ("PACW", "ERCO"):
        commit(data, shard(respondent, "2024-01-01T00", "2024-01-30T23", generation=1), {"DF": daily(720)})
    build_all(data)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(lines, names)
    assert names["series"].values.shape == (336, 4)
    assert names["series"].names == ("PACW.D", "PACW.DF", "ERCO.D", "ERCO.DF")
