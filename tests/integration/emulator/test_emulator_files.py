"""Compare OASIS zips and the six-month bulk files with recordings, and their hours with the same world's EIA rows."""

from __future__ import annotations

import csv
import io
import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
import requests

from ingest.emulator import bulk
from ingest.emulator.eia.query import ROUTES
from ingest.emulator.process import Emulator
from tests.support.eia_client import ask

BULK = "/electricity/gridmonitor/sixMonthFiles/EIA930_BALANCE_{}.csv"


@pytest.fixture(scope="module")
def plain() -> Iterator[Emulator]:
    with Emulator("--quirks", "none") as running:
        yield running


def oasis(emulator: Emulator, name: str, market: str, **more: str) -> requests.Response:
    params = {"queryname": name, "market_run_id": market, "resultformat": "6", "version": "1"}
    params |= {"startdatetime": "20230101T00:00-0000", "enddatetime": "20230102T23:59-0000", **more}
    return requests.get(f"{emulator.url}/oasisapi/SingleZip", params=params, timeout=20)


def unzipped(content: bytes) -> tuple[str, str]:
    archive = zipfile.ZipFile(io.BytesIO(content))
    assert len(archive.namelist()) == 1
    return archive.namelist()[0], archive.read(archive.namelist()[0]).decode()


def test_ene_slrs_matches_the_recorded_layout(plain: Emulator, recorded: Path) -> None:
    name, text = unzipped((recorded / "caiso-oasis" / "caiso_california_comprehensive_3_200.zip").read_bytes())
    response = oasis(plain, "ENE_SLRS", "RTM")
    our_name, ours = unzipped(response.content)
    assert response.headers["Content-Type"] == "application/x-zip-compressed"
    assert re.sub(r"RTM_\d+", "RTM", our_name).split("_")[:5] == re.sub(r"RTM_\d+", "RTM", name).split("_")[:5]
    theirs, mine = (list(csv.DictReader(io.StringIO(part))) for part in (text, ours))
    assert list(mine[0]) == list(theirs[0])

    def key(row: dict[str, str]) -> tuple[str, ...]:
        return tuple(value for column, value in row.items() if column not in ("MW", "GROUP"))

    assert {key(row) for row in mine} == {key(row) for row in theirs if row["TAC_ZONE_NAME"] == "Caiso_Totals"}
    assert [key(row) for row in mine] != sorted(key(row) for row in mine)  # unordered


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"queryname": "SLD_RTO"}, 1001),
        ({"market_run_id": "NONE"}, 1001),
        ({"startdatetime": "2024-01-01T00:00-0000"}, 1002),
        ({"enddatetime": "20230301T00:00-0000"}, 1004),
        ({"startdatetime": "20300101T00:00-0000", "enddatetime": "20300102T00:00-0000"}, 1000),
    ],
)
def test_oasis_error_is_a_zip_under_200(emulator: Emulator, more: dict[str, str], code: int) -> None:
    response = oasis(emulator, "SLD_FCST", "DAM", **more)
    assert response.status_code == 200
    assert response.headers["Content-Disposition"] == "inline; filename=INVALID_REQUEST.xml.zip;"
    name, text = unzipped(response.content)
    assert name == "INVALID_REQUEST.xml"
    assert f"<m:ERR_CODE>{code}</m:ERR_CODE>" in text


@pytest.mark.parametrize(("code", "file"), [(1001, "collector_comprehensive_3"), (1002, "collector_comprehensive_5")])
def test_error_zip_matches_the_recorded_bytes(plain: Emulator, recorded: Path, code: int, file: str) -> None:
    _, theirs = unzipped((recorded / "caiso-oasis" / f"caiso_{file}_200.zip").read_bytes())
    plain.set_faults([{"kind": "oasis-error", "params": {"code": code}}])
    _, ours = unzipped(oasis(plain, "ENE_SLRS", "DAM").content)
    assert "OASISReport" not in unzipped(oasis(plain, "ENE_SLRS", "DAM").content)[1]
    time = re.compile(r"<m:TimeDate>[\d:T.-]+Z</m:TimeDate>")
    assert time.search(ours)
    assert time.sub("", ours) == time.sub("", theirs)


def test_oasis_serves_the_same_hours_as_eia(emulator: Emulator) -> None:
    window = {"startdatetime": "20240310T08:00-0000", "enddatetime": "20240311T07:00-0000"}  # spring forward
    rows = list(csv.DictReader(io.StringIO(unzipped(oasis(emulator, "SLD_FCST", "DAM", **window).content)[1])))
    whole = {row["INTERVALENDTIME_GMT"][:13]: row for row in rows if row["TAC_AREA_NAME"] == "CA ISO-TAC"}
    eia = ask(emulator, respondent="CISO", start="2024-03-10T09", end="2024-03-11T07", **{"facets[type][]": "DF"})
    expected = {row["period"]: row["value"] for row in eia.json()["response"]["data"] if row["value"]}
    assert {period: f"{float(row['MW']):.0f}" for period, row in whole.items()} == expected
    assert sorted(int(row["OPR_HR"]) for row in whole.values()) == list(range(1, len(whole) + 1))
    assert {row["OPR_DT"] for row in rows} == {"2024-03-10"}
    kinds = csv.DictReader(io.StringIO(unzipped(oasis(emulator, "SLD_REN_FCST", "ACTUAL", **window).content)[1]))
    assert {row["RENEWABLE_TYPE"] for row in kinds} == {"Solar", "Wind"}


def test_bulk_header_of_2020_matches_and_columns_drift(recorded: Path) -> None:
    with (recorded / "eia-grid" / "balance_file.csv").open(newline="") as file:
        assert bulk.header(2020, "Jul_Dec") == next(csv.reader(file))
    assert len(bulk.header(2019, "Jul_Dec")) == 26
    assert len(bulk.header(2024, "Jul_Dec")) > 60
    assert "Net Generation (MW) from Hydropower Excluding Pumped Storage" in bulk.header(2024, "Jul_Dec")
    assert "Net Generation (MW) from Hydropower and Pumped Storage" in bulk.header(2024, "Jan_Jun")


@pytest.mark.parametrize("half", ["2023_Jul_Dec", "2024_Jul_Dec"])
def test_bulk_file_has_the_same_hours_as_eia(emulator: Emulator, half: str) -> None:
    content = requests.get(emulator.url + BULK.format(half), timeout=60).content
    assert content.startswith(b"\xef\xbb\xbf") == (half == "2024_Jul_Dec")
    rows = list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"))))
    authorities = Counter(row["Balancing Authority"] for row in rows)
    assert not {"CAL", "TEX"} & set(authorities)
    assert len(set(authorities.values())) == 1  # 184 local days each, autumn's long one included
    assert authorities["CISO"] == 184 * 24 + 1
    year = half[:4]
    days = Counter(row["Data Date"] for row in rows if row["Balancing Authority"] == "CISO")
    assert sorted(set(days.values())) == [24, 25]
    theirs = {}
    for row in rows:
        if row["Balancing Authority"] == "CISO":
            ending = datetime.strptime(row["UTC Time at End of Hour"], "%m/%d/%Y %I:%M:%S %p")
            theirs[ending.strftime("%Y-%m-%dT%H")] = row
    span = {"start": f"{year}-07-01T08", "end": f"{int(year) + 1}-01-01T08"}
    assert len(theirs) == authorities["CISO"]
    columns = {"D": "Demand (MW)", "DF": "Demand Forecast (MW)", "TI": "Total Interchange (MW)"}
    for kind, column in columns.items():
        body = ask(emulator, respondent="CISO", **span, **{"facets[type][]": kind}).json()["response"]
        ours = {row["period"]: row["value"] for row in body["data"] if row["value"] is not None}
        assert ours == {period: row[column].replace(",", "") for period, row in theirs.items() if row[column]}


@pytest.mark.parametrize(
    ("file", "route", "who", "code", "column"),
    [
        ("INTERCHANGE", "interchange-data", "PACW", "Directly Interconnected Balancing Authority", "Interchange (MW)"),
        ("SUBREGION", "region-sub-ba-data", "CISO", "Sub-Region", "Demand (MW)"),
    ],
)
def test_files_of_neighbours_and_sub_areas_have_the_same_hours_as_eia(
    emulator: Emulator, file: str, route: str, who: str, code: str, column: str
) -> None:
    content = requests.get(emulator.url + BULK.replace("BALANCE", file).format("2024_Jan_Jun"), timeout=60).content
    rows = [row for row in csv.DictReader(io.StringIO(content.decode())) if row["Balancing Authority"] == who]
    theirs = {}
    for row in rows:
        ending = datetime.strptime(row["UTC Time at End of Hour"], "%m/%d/%Y %I:%M:%S %p")
        theirs[ending.strftime("%Y-%m-%dT%H"), row[code]] = row[column].replace(",", "")
    names = ROUTES[route].keys
    span = {"start": "2024-03-01T00", "end": "2024-03-03T23", "data[0]": "value", "api_key": "any"}
    params = {**span, f"facets[{names[0]}][]": who}
    body = requests.get(f"{emulator.url}/v2/electricity/rto/{route}/data/", params=params, timeout=60).json()[
        "response"
    ]
    ours = {(row["period"], row[names[1]]): row["value"] for row in body["data"] if row["value"] is not None}
    assert len(ours) == 72 * len({other for _, other in ours}) - sum(
        (period, other) not in ours for period in {p for p, _ in ours} for other in {o for _, o in ours}
    )
    assert ours.items() <= theirs.items()
    if file == "INTERCHANGE":
        assert {row["DIBA_Region"] for row in rows} <= {"NW", "CAL"}


def test_half_year_outside_the_world_is_not_found(emulator: Emulator) -> None:
    assert requests.get(emulator.url + BULK.format("2031_Jan_Jun"), timeout=20).status_code == 404
