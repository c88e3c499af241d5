"""The recordings world: it serves every hour of the files and no other, as values, nulls and absent rows."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest.emulator.process import Emulator
from ingest.emulator.worlds.base import ABSENT, NULL, VALUE
from ingest.emulator.worlds.recordings import RecordingsError, RecordingsWorld
from tests.support.eia_client import ask, pages


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
