"""Bodies of the EIA API: recorded pages, every spelling of a value, and invalid pages."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ingest.columns import hour_number, hour_text
from ingest.errors import AuthenticationError, SourceError, ThrottledError
from ingest.http import HttpResponse
from ingest.models import FetchJob, Shard
from ingest.sources.eia import Eia, scrub

RECORDED = Path(__file__).parents[3] / ".." / "shared" / "data" / "eia-responses"
recorded = pytest.mark.skipif(not RECORDED.is_dir(), reason="no recordings next to the project (../shared/data)")


def job(route: str, start: str, end: str) -> FetchJob:
    return FetchJob(Shard("eia", route, "PACW", start, end), "http://127.0.0.1")


def response(plain: bytes, status: int = 200) -> HttpResponse:
    return HttpResponse(status, {}, plain, False, "api.eia.gov", 0.1, "2026-01-01T00:00:00+00:00")


def body(rows: list[dict[str, Any]], total: Any = None, **more: Any) -> bytes:
    return json.dumps({"response": {"total": len(rows) if total is None else total, "data": rows}, **more}).encode()


def row(period: str, code: str = "D", value: Any = "1", respondent: str = "PACW") -> dict[str, Any]:
    return {"period": period, "respondent": respondent, "type": code, "type-name": "x", "value": value}


def parse(plain: bytes, start: str = "2023-01-01T00", end: str = "2023-01-31T23") -> Any:
    return Eia().parse(job("region-data", start, end), gzip.compress(plain))


@recorded
@pytest.mark.parametrize(
    ("name", "route", "rows", "total"),
    [
        ("eia_oregon_demand_0_200", "region-data", 169, 169),
        ("eia_oregon_renewable_0_200", "fuel-type-data", 845, 845),
        ("raw_loader_demand_test_0_200", "fuel-type-data", 725, 725),
        ("eia_demand_PACW_2024-01-01_to_2024-03-31_20250710_114015", "fuel-type-data", 5000, 10805),
        ("eia_generation_PACW_2024-02-15_to_2024-03-30_20250710_161238", "fuel-type-data", 5000, 5285),
    ],
)
def test_recorded_pages_are_parsed(name: str, route: str, rows: int, total: int) -> None:
    content = json.loads((RECORDED / f"{name}.json").read_text())
    plain = json.dumps(content.get("api_response", content)).encode()
    whole = job(route, "2023-01-01T00", "2024-12-31T23")
    stored, page = Eia().receive(whole, response(plain), "no-such-key")
    assert (page.rows, page.total, page.api_version) == (rows, total, "2.1.8")
    assert Eia().parse(whole, stored).columns.keys().tolist() == page.columns.keys().tolist()
    # A page is complete when it has every row up to the limit or the end; truncated ones lack their tail.
    assert Eia().expected_rows(0, total) == rows
    assert (len(Eia().offsets(whole, total)) > 1) == (total > rows)
    want = {
        (one["period"], one.get("type") or one["fueltype"]): one["value"]
        for one in json.loads(plain)["response"]["data"]
    }
    got = page.columns
    for hour, index, value in zip(got.hour, got.index, got.value, strict=True):
        assert float(want[hour_text(hour), got.series[index][1].removeprefix("NG.")]) == value


@recorded
def test_recorded_errors_are_recognised() -> None:
    invalid = (RECORDED / "eia_collector_demand_0_403.json").read_bytes()
    with pytest.raises(AuthenticationError, match="API_KEY_INVALID"):
        Eia().receive(job("region-data", "2023-01-01T00", "2023-01-01T01"), response(invalid, 403), None)
    missing = (RECORDED / "eia_oregon_comprehensive_2_500.json").read_bytes()
    with pytest.raises(SourceError) as raised:
        Eia().receive(job("region-data", "2023-01-01T00", "2023-01-01T01"), response(missing, 500), None)
    assert raised.value.kind == "5xx"


def test_request_sorts_in_total_order_and_has_no_key() -> None:
    query = parse_qs(urlsplit(Eia().request(job("fuel-type-data", "2019-01-01T00", "2019-12-31T23"), 5000)).query)
    assert [query[f"sort[{i}][column]"] for i in range(3)] == [["period"], ["respondent"], ["fueltype"]]
    assert {query[f"sort[{i}][direction]"][0] for i in range(3)} == {"asc"}
    assert (query["end"], query["offset"], query["length"]) == (["2019-12-31T23"], ["5000"], ["5000"])
    assert query["data[0]"] == ["value"]
    assert not [name for name in query if "key" in name]


def test_403_is_a_throttle_unless_it_names_the_key() -> None:
    for plain in (b'{"error":{"code":"OVER_RATE_LIMIT"}}', b"<html>suspended</html>", b""):
        with pytest.raises(ThrottledError):
            Eia().receive(job("region-data", "2023-01-01T00", "2023-01-01T01"), response(plain, 403), "k")


number = st.one_of(st.integers(-(10**7), 10**7), st.floats(-1e7, 1e7, allow_nan=False))
spelling = st.one_of(st.none(), number, number.map(str))


@settings(max_examples=60)
@given(
    st.dictionaries(
        st.tuples(st.integers(0, 743), st.sampled_from(["D", "DF", "NG", "TI"])), st.tuples(spelling, st.booleans())
    )
)
def test_every_spelling_of_a_row_parses_to_the_same_value(cells: dict[tuple[int, str], tuple[Any, bool]]) -> None:
    first = hour_number("2023-01-01T00")
    rows = [
        row(hour_text(first + hour), code.lower() if lower else code, value, "pacw" if lower else "PACW")
        for (hour, code), (value, lower) in cells.items()
    ]
    page = parse(body(rows, total=str(len(rows))))
    assert (page.rows, page.total) == (len(rows), len(rows))
    got = {
        (int(hour) - first, page.columns.series[index][1]): value
        for hour, index, value in zip(page.columns.hour, page.columns.index, page.columns.value, strict=True)
    }
    assert got.keys() == cells.keys()
    for cell, (value, _) in cells.items():
        assert np.isnan(got[cell]) if value is None else got[cell] == float(value)


def test_equal_row_is_kept_once_and_counted() -> None:
    """Names and case may differ: EIA's differ between its routes for the same code."""
    page = parse(body([row("2023-01-01T00"), {**row("2023-01-01T00", "d"), "type-name": "Load"}]))
    assert (page.rows, page.total, len(page.columns), page.duplicates) == (2, 2, 1, 1)


@pytest.mark.parametrize(
    ("plain", "kind"),
    [
        (body([row("2023-01-01T00", value="1"), row("2023-01-01T00", value="2")]), "repeated"),
        (body([row("2023-01-01T00"), row("2023-01-01T01"), row("2023-01-01T00")]), "repeated"),  # not in a total order
        (body([row("2022-12-31T23")]), "foreign"),
        (body([row("2023-02-01T00")]), "foreign"),
        (body([row("2023-01-01")]), "foreign"),
        (body([row("2023-01-01T00", respondent="PACE")]), "foreign"),
        (body([row("2023-01-01T00", value="MISSING")]), "json"),
        (body([row("2023-01-01T00", value="1,060")]), "json"),
        (body([row("2023-01-01T00", value="nan")]), "json"),
        (body([row("2023-01-01T00", value="inf"), row("2023-01-01T01", value=None)]), "json"),
        (body([row("2023-01-01T00", value=True)]), "json"),
        (body([{"period": "2023-01-01T00", "respondent": "PACW", "type": "D"}]), "json"),  # requested without data[0]
        (body([row("2023-01-01T00")], total=-1), "json"),
        (body([row("2023-01-01T00")], total="many"), "json"),
        (body([row("2023-01-01T00")])[:-2], "json"),
        (b'{"error":"Not found.","code":404}', "json"),
        (b"<html></html>", "json"),
        (b"", "json"),
    ],
)
def test_invalid_page_raises_its_fault_kind(plain: bytes, kind: str) -> None:
    with pytest.raises(SourceError) as raised:
        parse(plain)
    assert raised.value.kind == kind


def test_truncated_stored_page_is_refused() -> None:
    stored = gzip.compress(body([row(f"2023-01-01T{hour:02d}", value=str(hour * 999)) for hour in range(24)]))
    for length in range(len(stored)):
        with pytest.raises(SourceError):
            Eia().parse(job("region-data", "2023-01-01T00", "2023-01-31T23"), stored[:length])


@settings(max_examples=200)
@example([(10_000, ord("5"))])  # an hour becomes that of the row before it: an equal repeat, kept once and counted
@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4))
def test_damaged_page_is_a_source_error_or_a_valid_page(damage: list[tuple[int, int]]) -> None:
    plain = bytearray(body([row(f"2023-01-01T{hour:02d}") for hour in range(24)]))
    for at, byte in damage:
        plain[at % len(plain)] = byte
    try:
        page = parse(bytes(plain))
    except SourceError:
        return
    assert page.rows == len(page.columns) + page.duplicates == 24


@settings(max_examples=60)
@given(
    key=st.text('abcXYZ0189/+=-_\\"', min_size=6, max_size=40),
    around=st.binary(max_size=20),
    times=st.integers(0, 3),
)
def test_scrub_removes_every_spelling_of_the_key(key: str, around: bytes, times: int) -> None:
    quoted = json.dumps(key)[1:-1]
    plain = around.join([key.encode(), quoted.encode(), quoted.replace("/", r"\/").encode()] * times)
    clean = scrub(plain, key)
    assert key.encode() not in clean or key in "REDACTED"
    if key.encode() not in plain and quoted.encode() not in plain:
        assert clean is plain
