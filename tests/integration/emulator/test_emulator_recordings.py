"""The recordings world: it serves every hour of the files and no other, as values, nulls and absent rows."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest.emulator.process import Emulator
from ingest.emulator.worlds.base import ABSENT, NULL, VALUE
from ingest.emulator.worlds.recording_files import RecordingsError, read_file
from ingest.emulator.worlds.recordings import RecordingsWorld
from tests.support.eia_client import ask, pages
from tests.support.program import Coordinator


def hour(text: str) -> int:
    return int(np.datetime64(text, "h").astype(np.int64))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "PACW.csv").write_text(
        "date_time,demand (MW),forecast demand (MW)\n2015-07-01 00:00:00,MISSING,MISSING\n"
        "2015-07-01 01:00:00,EMPTY,2032\n2015-07-01 02:00:00,2100,MISSING\n2015-07-01 03:00:00,-90964,1999\n"
    )
    return tmp_path


def test_missing_is_no_row_and_empty_is_null(folder: Path) -> None:
    block = RecordingsWorld([folder]).block("region-data", "PACW", 0, 10**6, 0)
    assert block is not None
    assert (block.first, block.codes) == (hour("2015-07-01T01"), ("D", "DF"))
    assert block.state.tolist() == [[NULL, VALUE], [VALUE, ABSENT], [VALUE, VALUE]]
    assert block.values[[1, 2], 0].tolist() == [2100, -90964]


def test_later_file_overrides_and_all_forms_are_read(folder: Path) -> None:
    times = np.array(["2015-07-01T02", "2015-07-01T02"], "datetime64[us]")
    columns = {"timestamp": times, "region": ["PACW"] * 2, "data_type": ["demand", "generation"]}
    pq.write_table(pa.table({**columns, "fuel_type": [None, "WND"], "value": [2200.0, 77.0]}), folder / "z.parquet")
    grid = "time,E_PACW_D,E_PACW_GAS,E_PACW-BPAT_ID,note\n2021-07-10T00,1.0,5.0,-3.0,x\n2021-07-10T01,2.0,,4.0,x\n"
    (folder / "E_raw.csv").write_text(grid)
    world = RecordingsWorld([folder / "PACW.csv", folder / "E_raw.csv", folder / "z.parquet"])
    demand, fuels, flows = (
        world.block(route, "PACW", 0, 10**6, 0) for route in ("region-data", "fuel-type-data", "interchange-data")
    )
    assert demand and fuels and flows
    assert demand.values[hour("2015-07-01T02") - demand.first, 0] == 2200
    assert demand.values[hour("2021-07-10T01") - demand.first, 0] == 2
    assert fuels.codes == ("NG", "WND")
    assert fuels.state[hour("2021-07-10T01") - fuels.first].tolist() == [NULL, ABSENT]
    assert flows.values[:, flows.codes.index("BPAT")].tolist() == [-3, 4]


def test_every_path_of_a_source_is_served(folder: Path, tmp_path: Path) -> None:
    """A run names each path with an option of its own; all but the last were left out without a word."""
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "ERCO.csv").write_text((folder / "PACW.csv").read_text())
    paths = [word for path in (folder, tmp_path / "more") for word in ("--recordings", str(path))]
    with Emulator("--world", "recordings", *paths) as emulator:
        for respondent in ("PACW", "ERCO"):
            rows, _ = pages(emulator, respondent=respondent, start="2015-07-01T00", end="2015-07-01T05", length=5000)
            assert len(rows) == 5, respondent


TIMES = ("2020-01-01 00:00:00", "2020-01-01 01:00:00")
START = hour("2020-01-01T00")


def read(path: Path, route: str = "region-data", respondent: str = "BPAT") -> dict[str, list[float | None]]:
    """Return the values of the first two hours of 2020 by code; None is a null."""
    block = RecordingsWorld([path]).block(route, respondent, START, START + 1, 0)
    assert block is not None
    return {
        code: [
            None if state == NULL else value
            for state, value in zip(block.state[:, i], block.values[:, i].tolist(), strict=True)
        ]
        for i, code in enumerate(block.codes)
    }


@pytest.mark.parametrize("arrow_texts", [False, True])
def test_row_without_a_fuel_is_read_with_every_pandas(arrow_texts: bool, tmp_path: Path) -> None:
    """From pandas 3 on, whose texts the option gives to earlier ones, an empty cell of texts stays a NaN: demand was dropped without a word."""
    rows = {"timestamp": ["2019-01-01T01"] * 2, "region": ["PACW"] * 2, "data_type": ["demand", "generation"]}
    pq.write_table(pa.table({**rows, "fuel_type": [None, "COL"], "value": [2500.0, 900.0]}), tmp_path / "long.parquet")
    with pd.option_context("future.infer_string", arrow_texts):
        found = {cell: values.tolist() for cell, _, values in read_file(tmp_path / "long.parquet")}
    assert found == {("region-data", "PACW", "D"): [2500.0], ("fuel-type-data", "PACW", "COL"): [900.0]}


@pytest.mark.parametrize(
    ("header", "rows", "want"),
    [
        ("date_time,demand (MW)", ("5824", "NA"), {"D": [5824, None]}),
        ("date_time,Demand (MW), forecast demand (MW)", ("5824,1", "7,2"), {"D": [5824, 7], "DF": [1, 2]}),
        ("date_time,forecast demand (MW),note,demand (MW)", ("1,x,5824", "2,y,7"), {"D": [5824, 7], "DF": [1, 2]}),
        (
            "date_time,raw demand (MW),category,cleaned demand (MW),forecast demand (MW)",
            ("99999,GLOBAL_DEM,5,1", "EMPTY,MISSING,6,2"),
            {"D": [99999, None], "DF": [1, 2]},
        ),
        ("date_time,demand (MW)", ('"5,824"', '"-1,000.25"'), {"D": [5824, -1000.25]}),
        ("date_time,demand (MW)", ("5824.6", "3000000000"), {"D": [5824.6, 3e9]}),
        ("period,respondent,type,value", ("bpat,D,5", "bpat,NG,6"), {"D": [5], "NG": [6]}),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".CSV.gz"])
def test_columns_are_found_by_name(
    tmp_path: Path, header: str, rows: tuple[str, str], want: dict[str, list[float | None]], suffix: str
) -> None:
    """Each form was refused, rounded, or broke at 2^31; a file named in lower case was served as another respondent."""
    text = "\ufeff" + "\r\n".join([header, *(f"{time},{row}" for time, row in zip(TIMES, rows, strict=True)), ""])
    content = text.encode()
    path = tmp_path / f"bpat{suffix}"
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    block = RecordingsWorld([path]).block("region-data", "BPAT", START, START + 1, 0)
    assert block is not None
    found = {
        code: [
            None if state == NULL else value
            for state, value in zip(block.state[:, i], block.values[:, i].tolist(), strict=True)
            if state != ABSENT
        ]
        for i, code in enumerate(block.codes)
    }
    assert found == want


def test_eias_own_file_is_read(tmp_path: Path) -> None:
    solar = "Net Generation (MW) from Solar"
    fuels = f"{solar},{solar} without Integrated Battery Storage"
    (tmp_path / "EIA930_BALANCE_2024_Jul_Dec.csv").write_text(
        f"Balancing Authority,Data Date,UTC Time at End of Hour,Demand Forecast (MW),Demand (MW),Demand (MW) (Adjusted),{fuels},Region\n"
        'BPAT,12/31/2019,01/01/2020 12:00:00 AM,"5,900","5,824",1,,"1,001",NW\n'
        "BPAT,12/31/2019,01/01/2020 1:00:00 AM,5,6,1,,7,NW\n"
        "AVA,12/31/2019,01/01/2020 1:00:00 AM,5,,1,,3,NW\n"
    )
    assert read(tmp_path) == {"D": [5824, 6], "DF": [5900, 5]}
    assert read(tmp_path, "fuel-type-data") == {"SUN": [1001, 7]}
    assert RecordingsWorld([tmp_path]).respondents("fuel-type-data") == ("AVA", "BPAT")


def test_eias_files_of_neighbours_and_sub_areas_are_read(tmp_path: Path) -> None:
    head, hour = "Balancing Authority,Data Date,UTC Time at End of Hour", "BPAT,12/31/2019,01/01/2020 12:00:00 AM"
    (tmp_path / "EIA930_INTERCHANGE_2019_Jul_Dec.csv").write_text(
        f'{head},Directly Interconnected Balancing Authority,Interchange (MW)\n{hour},AVA,"-1,391"\n{hour},PACW,7\n'
    )
    assert read(tmp_path, "interchange-data") == {"AVA": [-1391], "PACW": [7]}
    (tmp_path / "EIA930_SUBREGION_2019_Jul_Dec.csv").write_text(f"{head},Sub-Region,Demand (MW)\n{hour},North,5\n")
    assert read(tmp_path, "region-sub-ba-data") == {"NORTH": [5]}


def test_a_list_of_columns_in_a_folder_is_left_out_with_a_line(tmp_path: Path, coordinator: Coordinator) -> None:
    """The folder eia-grid holds one: the whole folder was refused for it. Named by itself, it is refused as before."""
    grid = tmp_path / "grid"
    grid.mkdir()
    (grid / "BPAT.csv").write_text(f"date_time,demand (MW)\n{TIMES[0]},5\n")
    (grid / "columns.csv").write_text("EBA.BPAT-ALL.D.H,EBA.AVA-ALL.D.H\n\n")
    words = ("start", "--extract", "--dry-run", "--respondents", "BPAT", "--start", "2020", "--end", "2020", "--source")
    run = coordinator(*words, f"recordings:{grid}")
    assert run.code == 0, run.stderr
    assert f"{grid}/columns.csv is left out: it has no row below its header" in run.stdout
    run = coordinator(*words, f"recordings:{grid}/columns.csv")
    assert (run.code, "no row below the header" in run.stderr) == (2, True)


def test_decimals_are_served_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "BPAT.csv"
    path.write_text(f"date_time,demand (MW)\n{TIMES[0]},5824.6\n{TIMES[1]},3000000000\n")
    with Emulator("--world", "recordings", "--recordings", str(path)) as emulator:
        rows, _ = pages(emulator, respondent="BPAT", start="2020-01-01T00", end="2020-01-01T01", length=5000)
    assert [row["value"] for row in rows] == ["5824.6", "3000000000"]


def test_parquet_with_zones_and_named_columns_is_read(tmp_path: Path) -> None:
    """PUDL's columns; a time with a zone is converted."""
    times = pa.array(np.array(TIMES, "datetime64[us]")).cast(pa.timestamp("us", "America/Los_Angeles"))
    table = {"datetime_utc": times, "balancing_authority_code_eia": ["BPAT"] * 2, "demand_reported_mwh": [5.5, None]}
    pq.write_table(pa.table(table), tmp_path / "x.parquet")
    assert read(tmp_path) == {"D": [5.5, None]}


@pytest.mark.parametrize(
    ("times", "values", "words"),
    [
        (("2020-01-01 00:30:00",), ("1",), "2020-01-01 00:30:00.* is not the end of an hour; give the ends of hours"),
        (tuple(f"2020-01-01 00:{q}:00" for q in ("00", "15", "30", "45")), "1234", "about 4 rows an hour: average"),
        (TIMES[:1] * 2, ("1", "2"), "two rows of BPAT D for 2020-01-01T00: 1 and 2"),
        (TIMES[:1], ("inf",), "INF of BPAT D 2020-01-01T00 is not a value"),
        (TIMES[:1], ("1e300",), "1E300 of BPAT D 2020-01-01T00"),
        (TIMES[:1], ("many",), "'MANY' of BPAT D 2020-01-01T00 is not a number"),
        (("yesterday",), ("1",), "'date_time' is not a time, e.g. 'yesterday'"),
    ],
)
def test_what_is_no_hourly_value_is_refused_by_name(
    tmp_path: Path, times: tuple[str, ...], values: tuple[str, ...], words: str
) -> None:
    """All but the last two were served: the last quarter of an hour, a floored time, the last of two rows, -2147483648."""
    path = tmp_path / "BPAT.csv"
    path.write_text("\n".join(["date_time,demand (MW)", *map(",".join, zip(times, values, strict=True)), ""]))
    with pytest.raises(RecordingsError, match=rf"BPAT\.csv: .*{words}"):
        RecordingsWorld([path])


def test_equal_rows_count_once_and_nothing_is_named(tmp_path: Path) -> None:
    path = tmp_path / "BPAT.csv"
    path.write_text(f"date_time,demand (MW)\n{TIMES[0]},5\n{TIMES[0]},5\n{TIMES[1]},6\n")
    assert read(path) == {"D": [5, 6]}
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(RecordingsError, match=r"empty\.csv: the file is empty"):
        RecordingsWorld([tmp_path / "empty.csv"])
    (tmp_path / "outer" / "inner").mkdir(parents=True)
    with pytest.raises(RecordingsError, match=r"name a folder in it: inner"):
        RecordingsWorld([tmp_path / "outer"])


def test_unreadable_recording_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("time,colour\n2020-01-01,blue\n")
    with pytest.raises(RecordingsError, match=r"x\.csv"):
        RecordingsWorld([tmp_path])


def test_every_recorded_demand_hour_is_served(recorded: Path) -> None:
    source = recorded / "eia-demand" / "2020_Oct" / "PACW.csv"
    with Emulator("--world", "recordings", "--recordings", str(source)) as emulator:
        rows, total = pages(emulator, respondent="PACW", start="2015-07-01T00", end="2019-12-31T23", length=5000)
        response = ask(emulator, respondent="PACW")
        assert response.headers["X-Emulator-World"] == emulator.world == "recordings"
    assert len(rows) == total
    served = {(row["period"], row["type"]): row["value"] for row in rows}
    sentinels = {"MISSING": 0, "EMPTY": 0}
    with source.open() as file:
        for line in csv.DictReader(file):
            period = line["date_time"][:13].replace(" ", "T")
            for kind, text in (("D", line["demand (MW)"]), ("DF", line["forecast demand (MW)"])):
                if text in sentinels:
                    sentinels[text] += 1
                if text == "MISSING":
                    assert (period, kind) not in served
                else:
                    assert served.pop((period, kind)) == (None if text == "EMPTY" else text)
    assert not served
    assert min(sentinels.values()) > 300


def test_parquet_recording_keeps_its_missing_hours(recorded: Path) -> None:
    world = RecordingsWorld([recorded / "eia-2019", recorded / "eia-grid" / "E_raw_2021-07-10_2021-07-20.csv"])
    block = world.block("region-data", "PACW", hour("2019-01-01T00"), hour("2019-12-31T23"), 0)
    assert block is not None
    there = block.state[:, block.codes.index("D")] == VALUE
    assert 8760 - np.count_nonzero(there) == 161
    assert "PACW" in world.respondents("interchange-data")
