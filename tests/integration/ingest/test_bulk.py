"""EIA's six-month files: columns by name over the years, numbers, times, and damaged files."""

from __future__ import annotations

import contextlib
import gzip
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest import fetch, outage
from ingest.columns import Columns, find_gaps, hour_number, hour_text, merge
from ingest.errors import SourceError, UsageError
from ingest.fetch import fetch_shard
from ingest.models import FetchJob, Shard, ShardResult
from ingest.plan import plan_shards
from ingest.sources import bulk
from ingest.sources.base import Page
from ingest.sources.bulk import Bulk
from ingest.sources.bulk_layout import derived_of, variables_of
from tests.support.stub_server import Reply, Stub, bench, serve

GRID = Path(__file__).parents[3] / ".." / "shared" / "data" / "eia-grid"
JOB = FetchJob(Shard("bulk", "BALANCE", "ALL", "2024-07-01T00", "2024-12-31T23"), "x", ("PACW", "MISO"))

OLD = "Demand Forecast (MW)|Demand (MW)|Net Generation (MW)|Total Interchange (MW)|Demand (MW) (Adjusted)|" + "|".join(
    f"Net Generation (MW) from {fuel}"
    for fuel in ("Coal", "Hydropower and Pumped Storage", "Solar", "Coal (Imputed)", "Solar (Adjusted)")
)
NEW = "Demand Forecast (MW)|Demand (MW)|Net Generation (MW)|Total Interchange (MW)|" + "|".join(
    f"Net Generation (MW) from {fuel}"
    for fuel in (
        "Coal (Adjusted)",
        "Coal",
        "Hydropower Excluding Pumped Storage",
        "Pumped Storage",
        "Solar without Integrated Battery Storage",
        "Solar with Integrated Battery Storage",
        "Battery Storage",
        "Geothermal",
        "Green Tea",
    )
)


def table(columns: str, rows: list[tuple[str, str, list[str]]], newline: str = "\r\n", bom: bool = False) -> bytes:
    """Return a file of (balancing authority, UTC time, cells) as EIA writes it: numbers from 1,000 on in quotes."""
    header = ["Balancing Authority", "Data Date", "Hour Number", "UTC Time at End of Hour", *columns.split("|")]
    lines = [",".join(f'"{name}"' for name in header)]
    for respondent, time, cells in rows:
        quoted = [f'"{cell}"' if "," in cell else cell for cell in cells]
        lines.append(",".join([respondent, "07/01/2024", "1", time, *quoted]))
    return ("\ufeff" if bom else "").encode() + (newline.join(lines) + newline).encode()


def cells_of(plain: bytes, job: FetchJob = JOB) -> dict[tuple[str, str, str], float]:
    columns = Bulk().parse(job, gzip.compress(plain)).columns
    return {
        (hour_text(hour), *columns.series[index]): value
        for hour, index, value in zip(columns.hour, columns.index, columns.value, strict=True)
    }


def test_columns_are_found_by_name_in_both_vintages() -> None:
    assert list(variables_of(OLD.split("|")).values()) == ["DF", "D", "NG", "TI", "NG.COL", "NG.WAT", "NG.SUN"]
    assert list(variables_of(NEW.split("|")).values())[4:] == [
        "NG.COL",
        "NG.WAT",
        "NG.PS",
        "NG.SUN",
        "NG.SNB",
        "NG.BAT",
        "NG.GEO",
        "NG.GREEN_TEA",
    ]
    assert variables_of(NEW.split("|"))["Net Generation (MW) from Coal"] == "NG.COL"


@pytest.mark.parametrize("bom", [True, False])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("07/01/2024 11:00:00 AM", "07/01/2024 12:00:00 PM"),
        ("7/1/2024 11:00:00 AM", "7/1/2024 12:00:00 PM"),
        ("07/01/2024 11:00", "07/01/2024 12:00"),
        ("2024-07-01 11:00:00", "2024-07-01T12:00:00"),
    ],
)
def test_numbers_times_and_nulls_are_parsed(first: str, second: str, bom: bool) -> None:
    plain = table(
        OLD,
        [
            ("PACW", first, ["1,060", "2,345,678", "-1,000", "", "9", "5", "-7", "", "1", "1"]),
            ("PACW", second, ["990", "", "642", "0", "9", "", "6", "", "1", "1"]),
            ("ERCO", first, ["1"] * 10),
        ],
        bom=bom,
    )
    cells = cells_of(plain)
    a, b = "2024-07-01T11", "2024-07-01T12"
    nan = float("nan")
    want = {
        (a, "PACW", "DF"): 1060.0,
        (b, "PACW", "DF"): 990.0,
        (a, "PACW", "D"): 2345678.0,
        (b, "PACW", "D"): nan,
        (a, "PACW", "NG"): -1000.0,
        (b, "PACW", "NG"): 642.0,
        (a, "PACW", "TI"): nan,
        (b, "PACW", "TI"): 0.0,
        (a, "PACW", "NG.COL"): 5.0,
        (b, "PACW", "NG.COL"): nan,
        (a, "PACW", "NG.WAT"): -7.0,
        (b, "PACW", "NG.WAT"): 6.0,
    }  # NG.SUN is empty in every hour: not reported
    assert cells.keys() == want.keys()
    assert all(cells[cell] == value or (np.isnan(value) and np.isnan(cells[cell])) for cell, value in want.items())


@pytest.mark.skipif(not GRID.is_dir(), reason="no recordings next to the project (../shared/data)")
def test_sample_of_a_real_file_is_parsed() -> None:
    real = replace(JOB, shard=replace(JOB.shard, start="2020-07-01T00", end="2020-12-31T23"), respondents=("AEC",))
    plain = (GRID / "balance_file.csv").read_bytes()
    page = Bulk().parse(real, gzip.compress(plain))
    assert (page.rows, page.total) == (9, 9)
    cells = cells_of(plain, real)
    assert {variable for _, _, variable in cells} == {"DF", "D", "NG", "TI", "NG.COL", "NG.NG", "NG.WAT", "NG.OTH"}
    assert cells["2020-07-01T06", "AEC", "DF"] == 1060
    assert cells["2020-07-01T06", "AEC", "D"] == 497
    assert cells["2020-07-01T13", "AEC", "NG"] == 634
    assert cells["2020-07-01T14", "AEC", "NG.NG"] == 503


@pytest.mark.skipif(not GRID.is_dir(), reason="no recordings next to the project (../shared/data)")
def test_sample_of_a_real_interchange_file_is_parsed() -> None:
    shard = Shard("bulk", "INTERCHANGE", "ALL", "2022-01-01T00", "2022-06-30T23")
    cells = cells_of((GRID / "interchange_file.csv").read_bytes(), FetchJob(shard, "x", ("AECI",)))
    assert len(cells) == 9
    assert cells["2022-01-01T07", "AECI", "ID.MISO"] == -391
    assert cells["2022-01-01T08", "AECI", "ID.TVA"] == 231


def test_sub_areas_are_lines_of_their_authority() -> None:
    """The header's spelling of "Sub-Region" varies; a code of PNM has small letters."""
    for name in ("Sub-Region", "Subregion"):
        head = f'"Balancing Authority","Data Date","Hour Number","{name}","Demand (MW)","UTC Time at End of Hour"'
        lines = [
            head,
            "PNM,07/01/2024,1,Frep,11,07/01/2024 8:00:00 AM",
            'PNM,07/01/2024,1,PNM,"1,100",07/01/2024 8:00:00 AM',
        ]
        lines += ["CISO,07/01/2024,1,PGAE,,07/01/2024 8:00:00 AM", "CISO,07/01/2024,2,PGAE,7,07/01/2024 9:00:00 AM"]
        job = replace(JOB, shard=replace(JOB.shard, route="SUBREGION"), respondents=("CISO", "PNM", "PACW"))
        cells = cells_of("\n".join([*lines, ""]).encode(), job)
        assert {cell: value for cell, value in cells.items() if value == value} == {
            ("2024-07-01T08", "PNM", "D.FREP"): 11,
            ("2024-07-01T08", "PNM", "D.PNM"): 1100,
            ("2024-07-01T09", "CISO", "D.PGAE"): 7,
        }
        page = Bulk().parse(job, gzip.compress("\n".join([*lines, ""]).encode()))
        assert set(Bulk().spans(job, page.columns)) == {"CISO", "PNM"}  # PACW has no sub-area, so no gap


def test_imputed_and_adjusted_values_are_variables_beside_the_reported_ones() -> None:
    columns = "Demand Forecast (MW)|Demand (MW)|Net Generation (MW)|Total Interchange (MW)|Demand (MW) (Imputed)|Demand (MW) (Adjusted)"
    fuels = "|Net Generation (MW) from Solar without Integrated Battery Storage (Adjusted)"
    fuels += "|Net Generation (MW) from Solar witho Integrated Battery Storage (Adjusted)|Net Generation (MW) from Coal (Adjusted)"
    plain = table(columns + fuels, [("PACW", "07/01/2024 9:00:00 AM", ["1", "2", "3", "4", "5", "6", "7", "8", "9"])])
    job = replace(JOB, shard=replace(JOB.shard, route="ADJUSTED"))
    found = {variable: value for (_, _, variable), value in cells_of(plain, job).items()}
    assert found == {"imputed.D": 5, "adjusted.D": 6, "adjusted.NG.SUN": 7, "adjusted.NG.SNB": 8, "adjusted.NG.COL": 9}
    assert set(cells_of(plain)) == {("2024-07-01T09", "PACW", name) for name in ("DF", "D", "NG", "TI")}
    assert Bulk().request(job, 0).endswith("/EIA930_BALANCE_2024_Jul_Dec.csv")
    old = table(OLD.replace("Solar (Adjusted)", "Solar witho Integrated Battery Storage (Adjusted)"), [])
    assert "adjusted.NG.SUN" in derived_of(old.decode().splitlines()[0].replace('"', "").split(",")).values()


def test_first_files_of_sub_areas_are_of_2018() -> None:
    shards = plan_shards("bulk", ("CISO",), (2017, 2018, 2019), ("SUBREGION", "INTERCHANGE"))
    assert min(shard.start for shard in shards if shard.route == "SUBREGION") == "2018-07-01T00"
    assert min(shard.start for shard in shards if shard.route == "INTERCHANGE") == "2016-07-01T00"


GOOD = table(OLD, [("PACW", f"07/01/2024 {hour}:00:00 AM", ["1"] * 10) for hour in range(7, 12)])


@pytest.mark.parametrize(
    ("plain", "kind"),
    [
        (GOOD[:-12], "csv"),
        (GOOD.replace(b"UTC Time at End of Hour", b"UTC"), "csv"),
        (GOOD.replace(b"07/01/2024 8:00:00 AM", b"07/01/2024 8:30:00 AM"), "csv"),
        (GOOD.replace(b"07/01/2024 8:00:00 AM", b"yesterday"), "csv"),
        (GOOD.replace(b"07/01/2024 8:00:00 AM,1", b"07/01/2024 8:00:00 AM,many"), "csv"),
        (GOOD.replace(b"8:00:00 AM,1", b"9:00:00 AM,2"), "repeated"),
        (GOOD.replace(b"07/01/2024 8:00", b"07/01/2023 8:00"), "foreign"),
    ],
)
def test_invalid_file_raises_its_fault_kind(plain: bytes, kind: str) -> None:
    with pytest.raises(SourceError) as raised:
        Bulk().parse(JOB, gzip.compress(plain))
    assert raised.value.kind == kind


def test_names_in_lower_case_and_words_for_nulls_are_read() -> None:
    """One `N/A` or `-` made the whole file unusable, and so did a header in lower case."""
    header, _, lines = GOOD.partition(b"\r\n")
    lower = header.lower() + b"\r\n" + lines.replace(b"7:00:00 AM,1,1,1", b"7:00:00 AM,N/A,-,NA")
    cells = cells_of(lower)
    assert cells.keys() == cells_of(GOOD).keys()
    assert [np.isnan(cells["2024-07-01T07", "PACW", name]) for name in ("DF", "D", "NG", "TI")] == [True] * 3 + [False]


def test_two_columns_of_one_fuel_are_joined() -> None:
    """Of `Solar` and `Solar without …` the first counted, also where it was empty: the fuel was gone without a word."""
    columns = OLD + "|Net Generation (MW) from Solar without Integrated Battery Storage"
    times = ("07/01/2024 7:00:00 AM", "07/01/2024 8:00:00 AM")
    cells = ["1", "1", "1", "1", "1", "1", "1"]
    rows = [
        ("PACW", time, [*cells, solar, "", "", split])
        for time, solar, split in zip(times, ("5", ""), ("", "6"), strict=True)
    ]
    assert [value for (_, _, name), value in cells_of(table(columns, rows)).items() if name == "NG.SUN"] == [5, 6]


def test_equal_line_is_kept_once_and_counted() -> None:
    """One repeated line of one authority made the file unusable for all."""
    lines = GOOD.split(b"\r\n")
    page = Bulk().parse(JOB, gzip.compress(b"\r\n".join([*lines[:3], lines[1], *lines[3:]])))
    assert (page.rows, page.total, page.duplicates) == (6, 6, 1)
    assert cells_of(GOOD).keys() == {
        (hour_text(hour), *page.columns.series[i])
        for hour, i in zip(page.columns.hour, page.columns.index, strict=True)
    }


def test_file_is_read_in_blocks_with_each_time_parsed_once_and_its_values_held_about_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every block of 4 MiB parsed its thousands of times again, and the values of a file were there four times at once."""
    hours = [hour_text(hour_number("2024-07-02T00") + i).replace("T", " ") + ":00:00" for i in range(1000)]
    names = [f"B{i}" for i in range(20)]
    rows = [(name, time, [str(i)] * 10) for name in names for i, time in enumerate(hours)]
    stored = gzip.compress(table(OLD, rows), 1)
    job = replace(JOB, respondents=tuple(names))
    parsed: list[str] = []
    hour = bulk._hour

    def counted(text: str) -> int:
        parsed.append(text)
        return hour(text)

    monkeypatch.setattr(bulk, "BLOCK", 1 << 17)
    monkeypatch.setattr(bulk, "_hour", counted)
    tracemalloc.start()
    try:
        columns = Bulk().parse(job, stored).columns
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(columns) == len(rows) * 7
    assert sorted(parsed) == sorted(hours)
    assert (
        peak < 6 * columns.value.nbytes
    )  # they are 15 times as much otherwise; 2 times leave as values, hours and series


def test_files_of_a_worker_are_parsed_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to four leases of a worker each held the values of a file: 1.5 GB."""
    parse, waits = bulk._parse, []

    def noted(job: FetchJob, stored: bytes) -> Page:
        waits.append(not bulk.Bulk.exclusive.acquire(blocking=False))
        return parse(job, stored)

    monkeypatch.setattr(bulk, "_parse", noted)
    stored = gzip.compress(GOOD)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: Bulk().parse(JOB, stored), range(4)))
        with pytest.raises(SourceError):
            Bulk().parse(JOB, stored[:-20])
        Bulk().parse(JOB, stored)  # a damaged file lets the next one in
    assert waits == [True] * 6


def test_file_without_a_line_of_the_respondents_is_read() -> None:
    for plain in (table(OLD, []), table(OLD, [("ERCO", "07/01/2024 11:00", ["1"] * 10)])):
        page = Bulk().parse(JOB, gzip.compress(plain))
        assert (len(page.columns), page.columns.series, page.duplicates) == (0, (), 0)


def test_truncated_stored_file_is_refused() -> None:
    stored = gzip.compress(GOOD, mtime=0)
    for length in range(0, len(stored), 7):
        with pytest.raises(SourceError):
            Bulk().parse(JOB, stored[:length])


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4))
def test_damaged_file_is_a_source_error_or_a_valid_file(damage: list[tuple[int, int]]) -> None:
    plain = bytearray(GOOD)
    for at, byte in damage:
        plain[at % len(plain)] = byte
    with contextlib.suppress(SourceError):
        Bulk().parse(JOB, gzip.compress(bytes(plain)))


def test_file_name_follows_its_half_year() -> None:
    assert Bulk().request(JOB, 0).endswith("/EIA930_BALANCE_2024_Jul_Dec.csv")
    first_half = replace(JOB, shard=replace(JOB.shard, start="2019-01-01T00", end="2019-06-30T23"))
    assert Bulk().request(first_half, 0).endswith("/EIA930_BALANCE_2019_Jan_Jun.csv")
    with pytest.raises(UsageError, match="January to June"):
        Bulk().request(replace(JOB, shard=replace(JOB.shard, end="2024-12-30T23")), 0)


def test_hours_that_a_file_lacks_at_its_ends_are_gaps() -> None:
    """A respondent that begins late or stops: the hours before and after were never named."""
    hours = np.arange(hour_number("2024-07-10T00"), hour_number("2024-09-01T00"), dtype=np.int32)
    columns = Columns((("PACW", "D"),), hours, np.zeros(len(hours), np.int32), np.ones(len(hours)))

    def edges(job: FetchJob) -> list[tuple[str, str]]:
        return [
            (gap.start, gap.end) for gap in find_gaps(columns, Bulk().spans(job, columns)) if gap.respondent == "PACW"
        ]

    # Of the hours beside the file's own only those that every zone has in it.
    assert edges(JOB) == [("2024-07-01T09", "2024-07-09T23"), ("2024-09-01T00", "2025-01-01T04")]
    # The file before what was asked for: of its last hours only.
    assert edges(replace(JOB, gaps_from="2025-01-01T00")) == [("2025-01-01T00", "2025-01-01T04")]
    assert edges(replace(JOB, gaps_from="2025-01-01T06")) == []


class BulkStub(Stub):
    plain = b""
    spoilt: Any = None

    def answer(self, path: str, key: str | None) -> Reply:
        self.paths.append(path)
        self.keys.append(key)
        if self.spoilt and len(self.paths) <= 2:
            return Reply(body=self.spoilt, headers={"Content-Length": str(len(self.plain))})
        return Reply(body=self.plain)


@pytest.mark.parametrize("gzipped", [True, False])
def test_file_is_stored_compressed_with_named_gaps(
    tmp_path: Path, gzipped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "BACKOFF_S", (0.005, 0.02))
    monkeypatch.setattr(outage, "PAUSE_S", (0.005, 0.02))
    stub = BulkStub()
    stub.gzip = gzipped
    first = hour_number("2024-07-01T08")

    def stamp(hour: int) -> str:
        text = hour_text(hour)
        clock = int(text[11:])
        return f"{text[5:7]}/{text[8:10]}/{text[:4]} {clock % 12 or 12}:00:00 {'AM' if clock < 12 else 'PM'}"

    rows = [
        (name, stamp(first + i), [f"{1000 + i:,}"] * 10)
        for name in ("PACW", "ERCO", "MISO")
        for i in range(184 * 24)
        if (name, i) not in {("PACW", 5), ("PACW", 6)}
    ]
    stub.plain = table(OLD, rows)

    def fetched(folder: str, job: FetchJob) -> ShardResult:
        with bench(tmp_path / folder, "KEY-0123456789") as one:
            return fetch_shard(job, one.context)

    with serve(stub) as url:
        job = replace(JOB, base_url=url, respondents=("PACW", "MISO", "CISO"))
        result = fetched("a", job)
        again = fetched("a", job)
        stub.paths.clear()
        stub.spoilt = stub.plain[:-4000]
        recovered = fetched("b", job)
    assert set(stub.keys) == {None}
    assert (result.rows, result.total) == (len(rows), len(rows))
    assert (again.requests, again.reused, again.digest) == (0, 1, result.digest)
    assert recovered.digest == result.digest
    assert recovered.faults
    assert {(gap.respondent, gap.variable, gap.start, gap.hours) for gap in result.gaps} == {
        *(("PACW", variable, "2024-07-01T13", 2) for variable in variables_of(OLD.split("|")).values()),
        ("CISO", "*", "2024-07-01T00", 4416),
    }
    stored = (tmp_path / "a" / result.pages[0].file.path).read_bytes()
    assert gzip.decompress(stored) == stub.plain
    columns = merge([Bulk().parse(job, stored).columns])[0]
    assert columns.hour.max() == first + 184 * 24 - 1  # local dates: the last hours are in the next half
