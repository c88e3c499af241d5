"""OASIS: windows, recorded zips, errors inside a zip, and averaging of five-minute rows."""

from __future__ import annotations

import io
import random
import zipfile
from itertools import pairwise
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest import fetch, outage
from ingest.columns import find_gaps, hour_number
from ingest.errors import SourceError, ThrottledError, UsageError
from ingest.fetch import fetch_shard
from ingest.http import HttpResponse, MinInterval
from ingest.models import FetchJob, Shard
from ingest.sources.oasis import Oasis
from tests.support.stub_server import Reply, Stub, bench, serve

RECORDED = Path(__file__).parents[3] / ".." / "shared" / "data" / "caiso-oasis"
recorded = pytest.mark.skipif(not RECORDED.is_dir(), reason="no recordings next to the project (../shared/data)")

HEADER = "INTERVALSTARTTIME_GMT,INTERVALENDTIME_GMT,TAC_AREA_NAME,XML_DATA_ITEM,MW\n"
REFUSED = "<m:ERROR>\n<m:ERR_CODE>{}</m:ERR_CODE>\n<m:ERR_DESC>No such thing</m:ERR_DESC>\n</m:ERROR>"


def job(start: str = "2023-01-01T01", end: str = "2023-01-03T00", query: str = "ENE_SLRS", url: str = "x") -> FetchJob:
    return FetchJob(Shard("oasis", query, "CISO", start, end), url)


def zipped(text: str, name: str = "20230101_ENE_SLRS_RTM_v1.csv") -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo(name), text)
    return sink.getvalue()


def line(minute: int, length: int, value: str, item: str = "X_MW") -> str:
    """Return the row of an interval that starts `minute` minutes after 2023-01-01T00 GMT."""

    def stamp(at: int) -> str:
        return f"2023-01-{1 + at // 1440:02d}T{at // 60 % 24:02d}:{at % 60:02d}:00-00:00"

    return f"{stamp(minute)},{stamp(minute + length)},CA ISO-TAC,{item},{value}\n"


def response(body: bytes, status: int = 200) -> HttpResponse:
    return HttpResponse(status, {}, body, False, "oasis.caiso.com", 0.1, "2026-01-01T00:00:00+00:00")


def test_windows_cover_the_period_once_in_31_days_at_most() -> None:
    shard = job("2023-01-01T00", "2023-12-31T23", "SLD_FCST")
    queries = [parse_qs(urlsplit(Oasis().request(shard, offset)).query) for offset in Oasis().offsets(shard, None)]
    assert len(queries) == 12
    assert queries[0]["startdatetime"] == ["20221231T23:00-0000"]  # hour-ending T00 started an hour before
    assert queries[-1]["enddatetime"] == ["20231231T23:00-0000"]
    for before, after in pairwise(queries):
        assert before["enddatetime"] == after["startdatetime"]
    assert {query["market_run_id"][0] for query in queries} == {"DAM"}


PRICES = """\
INTERVALSTARTTIME_GMT,INTERVALENDTIME_GMT,OPR_DT,OPR_HR,OPR_INTERVAL,NODE_ID_XML,NODE_ID,NODE,MARKET_RUN_ID,LMP_TYPE,XML_DATA_ITEM,PNODE_RESMRID,GRP_TYPE,POS,MW,GROUP
2023-01-01T08:00:00-00:00,2023-01-01T09:00:00-00:00,2023-01-01,1,0,{n},{n},{n},DAM,LMP,LMP_PRC,{n},ALL_APNODES,0,55.5152,1
2023-01-01T08:00:00-00:00,2023-01-01T09:00:00-00:00,2023-01-01,1,0,{n},{n},{n},DAM,MCC,LMP_CONG_PRC,{n},ALL_APNODES,0,-3.25,1
2023-01-01T09:00:00-00:00,2023-01-01T10:00:00-00:00,2023-01-01,2,0,{n},{n},{n},DAM,LMP,LMP_PRC,{n},ALL_APNODES,0,-12.61367,1
"""


def test_prices_are_asked_of_the_hubs_and_read_by_node() -> None:
    query = parse_qs(urlsplit(Oasis().request(job(query="PRC_LMP"), 0)).query)
    assert (query["queryname"], query["version"], query["market_run_id"]) == (["PRC_LMP"], ["12"], ["DAM"])
    assert query["node"] == ["TH_NP15_GEN-APND,TH_SP15_GEN-APND,TH_ZP26_GEN-APND"]
    columns = Oasis().parse(job(query="PRC_LMP"), zipped(PRICES.format(n="TH_SP15_GEN-APND"))).columns
    named = {columns.series[i][1]: float(v) for i, v in zip(columns.index, columns.value, strict=True)}
    assert named["PRC_LMP.LMP_CONG_PRC.TH_SP15_GEN-APND"] == -3.25
    assert columns.value[np.isclose(columns.value, -12.61367)].size == 1


def test_metered_load_is_a_route_with_the_name_of_its_report() -> None:
    query = parse_qs(urlsplit(Oasis().request(job(query="SLD_FCST_ACTUAL"), 0)).query)
    assert (query["queryname"], query["market_run_id"], query["version"]) == (["SLD_FCST"], ["ACTUAL"], ["1"])
    page = Oasis().parse(job(query="SLD_FCST_ACTUAL"), zipped(HEADER + line(60, 60, "5.0", "SYS_FCST_ACT_MW")))
    assert page.columns.series == (("CISO", "SLD_FCST.SYS_FCST_ACT_MW.CA ISO-TAC"),)


@recorded
def test_recorded_schedules_become_hours() -> None:
    page = Oasis().parse(job(), (RECORDED / "caiso_california_comprehensive_3_200.zip").read_bytes())
    assert (page.rows, page.total) == (38592, 38592)
    assert len(page.columns) == 48 * 67
    assert not find_gaps(page.columns, Oasis().spans(job(), page.columns))
    index = page.columns.series.index(("CISO", "ENE_SLRS.ISO_TOT_EXP_MW.Caiso_Totals"))
    first = page.columns.value[(page.columns.index == index) & (page.columns.hour == hour_number("2023-01-01T01"))]
    with zipfile.ZipFile(RECORDED / "caiso_california_comprehensive_3_200.zip") as archive:
        text = archive.read(archive.namelist()[0]).decode()
    want = [
        float(row.split(",")[11])
        for row in text.splitlines()
        if row.startswith("2023-01-01T00:") and "ISO_TOT_EXP_MW" in row
    ]
    assert len(want) == 12
    assert first == pytest.approx([sum(want) / 12])


@recorded
def test_recorded_refusals_and_throttle_are_recognised() -> None:
    for path in RECORDED.glob("*.zip"):
        if path.stat().st_size < 1000:
            with pytest.raises(SourceError, match=r"OASIS error 100[12]") as raised:
                Oasis().receive(job(), response(path.read_bytes()), None)
            assert raised.value.kind == "refused"
    page = (RECORDED / "caiso_collector_comprehensive_1_429.html").read_bytes()
    for status in (429, 200):
        with pytest.raises(ThrottledError):
            Oasis().receive(job(), response(page, status), None)


@settings(max_examples=40)
@given(st.lists(st.integers(-5000, 90000), min_size=36, max_size=36), st.randoms(use_true_random=False))
def test_unordered_five_minute_rows_average_to_hours(values: list[int], shuffler: random.Random) -> None:
    lines = [line(5 * i, 5, str(value)) for i, value in enumerate(values)]
    lines += [line(60 * i, 60, str(values[i]), "Y_MW") for i in range(3)]
    shuffler.shuffle(lines)
    columns = Oasis().parse(job(), zipped(HEADER + "".join(lines))).columns
    assert columns.series == (("CISO", "ENE_SLRS.X_MW.CA ISO-TAC"), ("CISO", "ENE_SLRS.Y_MW.CA ISO-TAC"))
    assert (columns.hour[columns.index == 0] - hour_number("2023-01-01T01")).tolist() == [0, 1, 2]
    assert columns.value[columns.index == 0] == pytest.approx([np.mean(values[i : i + 12]) for i in (0, 12, 24)])
    assert columns.value[columns.index == 1].tolist() == values[:3]


def test_incomplete_hour_is_a_gap_and_empty_value_a_null() -> None:
    lines = [line(5 * i, 5, "" if i == 30 else "7") for i in range(48) if i != 14]
    columns = Oasis().parse(job(), zipped(HEADER + "".join(lines))).columns
    assert (columns.hour - hour_number("2023-01-01T01")).tolist() == [0, 2, 3]
    assert np.isnan(columns.value).tolist() == [False, True, False]


def test_equal_rows_and_intervals_are_kept_once_and_counted() -> None:
    """The same row twice, and an hour beside its own twelve intervals: nothing contradicts anything."""
    twice = Oasis().parse(job(), zipped(HEADER + line(0, 60, "1") * 2 + line(60, 60, "") * 2))
    assert (twice.rows, len(twice.columns), twice.duplicates) == (4, 2, 2)
    both = Oasis().parse(job(), zipped(HEADER + line(0, 60, "7") + "".join(line(5 * i, 5, "7") for i in range(12))))
    assert (both.columns.value.tolist(), both.duplicates) == ([7.0], 12)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (zipped(HEADER + line(0, 60, "1"))[:-30], "zip"),
        (b"junk", "zip"),
        (zipped("nothing", "readme.txt"), "zip"),
        (zipped("A,B\n1,2\n"), "csv"),
        (zipped(HEADER + line(0, 60, "many")), "csv"),
        (zipped(HEADER + "2023-01-01T00:00:00-00:00,2023-"), "csv"),
        (zipped(HEADER + "yesterday,today,A,B,1\n"), "csv"),
        (zipped(HEADER + line(0, 60, "1") + line(0, 60, "2")), "repeated"),
        (zipped(HEADER + line(0, 60, "8") + "".join(line(5 * i, 5, "7") for i in range(12))), "repeated"),
        (zipped(HEADER + line(2880, 60, "1")), "foreign"),
        (zipped(REFUSED.format("1001"), "INVALID_REQUEST.xml"), "refused"),
        (zipped(REFUSED.format("1015"), "INVALID_REQUEST.xml"), "zip"),
    ],
)
def test_invalid_zip_raises_its_fault_kind(content: bytes, kind: str) -> None:
    with pytest.raises(SourceError) as raised:
        Oasis().parse(job(), content)
    assert raised.value.kind == kind


def test_flipped_byte_is_detected_or_harmless() -> None:
    whole = zipped(HEADER + "".join(line(60 * i, 60, str(i * i)) for i in range(24)))
    values = Oasis().parse(job(), whole).columns.value.tolist()
    for at in range(len(whole)):
        try:
            page = Oasis().parse(job(), whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        except SourceError:
            continue
        assert page.columns.value.tolist() == values


def test_no_data_is_an_empty_page() -> None:
    page = Oasis().parse(job(), zipped(REFUSED.format("1000"), "INVALID_REQUEST.xml"))
    assert (page.rows, len(page.columns)) == (0, 0)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 20)), max_size=30))
def test_requests_to_one_host_keep_the_minimum_interval(arrivals: list[tuple[str, float]]) -> None:
    interval, now, sent = MinInterval(), 0.0, {"a": [-5.0], "b": [-5.0]}
    for host, pause in arrivals:
        now += pause
        at = now + interval.reserve(host, 5.0, now)
        assert at - sent[host][-1] >= 5.0 - 1e-9
        assert at <= max(now, sent[host][-1] + 5.0) + 1e-9
        sent[host].append(at)


def test_shard_of_windows_recovers_from_errors_and_throttles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "BACKOFF_S", (0.005, 0.02))
    monkeypatch.setattr(outage, "PAUSE_S", (0.005, 0.02))
    stub = OasisStub()
    with serve(stub) as url, bench(tmp_path / "a", "KEY-0123456789") as one:
        clean = fetch_shard(job("2023-01-01T01", "2023-02-10T00", url=url), one.context)
    assert (clean.rows, clean.total, clean.gaps, len(clean.pages)) == (960, 960, (), 2)
    assert stub.keys == [None, None]
    assert all(page.file.path.endswith(".zip") for page in clean.pages)
    stub.spoilt = [
        Reply(429, b"<html><body><p>CAISO Acceptable Use Policy Violation.</p></body></html>"),
        Reply(200, zipped(REFUSED.format("1001"), "INVALID_REQUEST.xml")),
        Reply(200, b"<html>busy</html>"),
        Reply(200, zipped("")[:50]),
    ]
    with serve(stub) as url, bench(tmp_path / "b") as one:
        recovered = fetch_shard(job("2023-01-01T01", "2023-02-10T00", url=url), one.context)
        assert recovered.digest == clean.digest
        assert recovered.faults == {"429": 1, "html": 1, "refused": 1, "zip": 1}
        again = fetch_shard(job("2023-01-01T01", "2023-02-10T00", url=url), one.context)
        assert (again.requests, again.digest) == (0, clean.digest)
    stub.spoilt = [Reply(200, zipped(REFUSED.format("1001"), "INVALID_REQUEST.xml"))] * 99
    with serve(stub) as url, bench(tmp_path / "c") as one, pytest.raises(UsageError, match="No such thing"):
        fetch_shard(job("2023-01-01T01", "2023-02-10T00", url=url), one.context)


class OasisStub(Stub):
    """Serves hourly rows of the requested window; `spoilt` replies come first."""

    spoilt: tuple[Reply, ...] | list[Reply] = ()

    def answer(self, path: str, key: str | None) -> Reply:
        query = parse_qs(urlsplit(path).query)
        with self.lock:
            self.keys.append(key)
            if self.spoilt:
                return list.pop(self.spoilt, 0)  # type: ignore[arg-type]
        first, last = (
            hour_number(f"{text[:4]}-{text[4:6]}-{text[6:11]}")
            for text in (query["startdatetime"][0], query["enddatetime"][0])
        )
        origin = hour_number("2023-01-01T00")
        rows = []
        for hour in range(first, last):
            day, clock = divmod(hour - origin, 24)
            begin = f"2023-{1 + day // 31:02d}-{1 + day % 31:02d}T{clock:02d}:00:00-00:00"
            day, clock = divmod(hour + 1 - origin, 24)
            end = f"2023-{1 + day // 31:02d}-{1 + day % 31:02d}T{clock:02d}:00:00-00:00"
            rows.append(f"{begin},{end},A,X_MW,{hour % 97}\n")
        return Reply(body=zipped(HEADER + "".join(rows)))
