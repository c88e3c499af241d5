"""Export: a row for each respondent and hour, units in the names, local time, and refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ingest.errors import UsageError
from ingest.export import ExportRequest, export
from ingest.grid_balance import balance
from tests.support.data_folder import build_all, commit, daily, shard


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A month of two respondents around the turn of the year; the load of PACW has a null and decimals, ERCO has no TI."""
    data = tmp_path_factory.mktemp("export") / "data"
    for start, end, hours in (("2023-12-17T00", "2023-12-31T23", 360), ("2024-01-01T00", "2024-01-15T23", 360)):
        load = daily(hours) + 0.5
        load[3] = np.nan
        commit(data, shard("PACW", start, end), {"D": load, "TI": np.arange(hours)})
        commit(data, shard("ERCO", start, end), {"D": daily(hours, 40_000, 9_000)})
    build_all(data)
    return data


def test_csv_has_a_row_for_each_respondent_and_hour(data: Path, tmp_path: Path) -> None:
    done = export(data, tmp_path / "out.csv", ExportRequest(period="2023-12-31:2024-01-01", local_time=True))
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert lines[:2] == [
        '"period_utc","period_local","respondent","D_MWh","TI_MWh"',
        '"2023-12-31T00:00:00Z","2023-12-30T18:00:00-06:00","ERCO",40000,',
    ]
    frame = pd.read_csv(tmp_path / "out.csv", parse_dates=["period_utc"])
    assert (done.rows, len(frame), done.bytes) == (96, 96, (tmp_path / "out.csv").stat().st_size)
    assert frame["period_utc"].iloc[[0, -1]].tolist() == [
        pd.Timestamp("2023-12-31T00", tz="UTC"),
        pd.Timestamp("2024-01-01T23", tz="UTC"),
    ]
    pacw = frame[frame["respondent"] == "PACW"]
    assert pacw["D_MWh"].tolist()[:2] == [3000.5, 3155.5]
    assert np.flatnonzero(pacw["D_MWh"].isna()).tolist() == [27]
    assert pacw["period_local"].iloc[0] == "2023-12-30T16:00:00-08:00"


def test_reason_tells_why_a_cell_is_empty(data: Path, tmp_path: Path) -> None:
    """Null at the source, never asked for, and a variable that ERCO lacks."""
    export(data, tmp_path / "out.csv", ExportRequest(("PACW", "ERCO"), ("D", "TI"), "2024-01", reasons=True))
    frame = pd.read_csv(
        tmp_path / "out.csv", index_col=["respondent", "period_utc"], na_values=[""], keep_default_na=False
    )
    assert list(frame.columns) == ["D_MWh", "D_reason", "TI_MWh", "TI_reason"]
    pacw = frame.loc["PACW"]
    assert pacw["D_reason"].value_counts().to_dict() == {"unasked": 384, "ok": 359, "null": 1}
    assert pacw.index[pacw["D_reason"] == "null"].tolist() == ["2024-01-01T03:00:00Z"]
    assert (pacw["D_MWh"].notna() == (pacw["D_reason"] == "ok")).all()
    assert set(frame.loc["ERCO"]["TI_reason"]) == {"unasked"}


@pytest.mark.parametrize("name", ["out.csv.gz", "out.parquet"])
def test_other_formats_hold_the_same(name: str, data: Path, tmp_path: Path) -> None:
    request = ExportRequest(("PACW",), ("d",), "2024-01")
    export(data, tmp_path / name, request)
    export(data, tmp_path / "out.csv", request)
    got = (pd.read_parquet if name.endswith("parquet") else pd.read_csv)(tmp_path / name)
    expected = pd.read_csv(tmp_path / "out.csv")
    assert list(got.columns) == ["period_utc", "respondent", "D_MWh"]
    pd.testing.assert_series_equal(got["D_MWh"], expected["D_MWh"])
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("name", "request_", "words"),
    [
        ("out.xlsx", ExportRequest(), r"choose .csv, .csv.gz, .parquet"),
        ("no/out.csv", ExportRequest(), "the folder .*/no does not exist; `mkdir -p .*/no`"),
        ("out.csv", ExportRequest(("ERCOT",)), "did you mean ERCO"),
        ("out.csv", ExportRequest(variables=("demand",)), r"--variables demand: not on disk; .*did you mean D\b"),
        ("out.csv", ExportRequest(period="2019"), "no series in 2019"),
        ("out.csv", ExportRequest(period="last year"), "--period last year"),
    ],
)
def test_request_that_cannot_be_met_is_refused(
    name: str, request_: ExportRequest, words: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=words):
        export(data, tmp_path / name, request_)
    assert list(tmp_path.iterdir()) == []


def test_advice_names_the_folder_that_has_no_series(tmp_path: Path) -> None:
    advice = f"--extract --data {tmp_path}"
    with pytest.raises(UsageError, match=advice):
        export(tmp_path, tmp_path / "out.csv", ExportRequest())
    with pytest.raises(UsageError, match=advice):
        balance(tmp_path, lambda done, total: None)
