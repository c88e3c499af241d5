"""Paging: every row once under a total order, repeats and losses without one; inclusive ends, the key's echo, X-Params."""

from __future__ import annotations

import json

import pytest
import requests

from ingest.emulator.process import Emulator
from ingest.emulator.stats import fingerprint
from tests.support.eia_client import ask, pages, query


def keys(rows: list[dict]) -> list[tuple[str, ...]]:
    return [(row["period"], row["respondent"], row["type" if "type" in row else "fueltype"]) for row in rows]


@pytest.mark.parametrize("route", ["region-data", "fuel-type-data"])
def test_total_order_gives_every_row_once(emulator: Emulator, route: str) -> None:
    rows, total = pages(emulator, route, respondent="ERCO")
    assert len(rows) == total
    assert len(set(keys(rows))) == total
    assert keys(rows) == sorted(keys(rows))


@pytest.mark.parametrize("sort", [(), ("period",)])
def test_paging_without_a_total_order_repeats_and_loses_rows(emulator: Emulator, sort: tuple[str, ...]) -> None:
    rows, total = pages(emulator, respondent="ERCO", sort=sort, length=333)
    assert len(rows) == total  # the count does not show the loss
    assert len(set(keys(rows))) < total
    again, _ = pages(emulator, respondent="ERCO", sort=sort, length=333)
    assert again == rows  # the order is drawn for the page, not for the request


def test_pinned_facet_makes_the_period_a_total_order(emulator: Emulator) -> None:
    rows, total = pages(emulator, sort=("period",), length=100, **{"facets[type][]": "D"})
    assert len(set(keys(rows))) == total == len(rows)


def test_rows_sort_by_value_descending(emulator: Emulator) -> None:
    down = {"sort[0][column]": "value", "sort[0][direction]": "desc", "facets[type][]": "D"}
    values = [int(row["value"]) for row in ask(emulator, sort=(), **down).json()["response"]["data"] if row["value"]]
    assert values == sorted(values, reverse=True)
    assert len(values) > 700


def test_page_has_the_same_bytes_each_time_with_and_without_gzip(emulator: Emulator) -> None:
    url = f"{emulator.url}/v2/electricity/rto/region-data/data/"
    plain = requests.get(url, params=query(), headers={"Accept-Encoding": "identity"}, timeout=20)
    zipped = [requests.get(url, params=query(), stream=True, timeout=20) for _ in range(2)]
    assert plain.headers.get("Content-Encoding") is None
    assert all(response.headers["Content-Encoding"] == "gzip" for response in zipped)
    wire = [response.raw.read(decode_content=False) for response in zipped]
    assert wire[0] == wire[1]
    assert len(wire[0]) < len(plain.content) / 5
    assert requests.get(url, params=query(), timeout=20).content == plain.content


def test_end_is_inclusive_and_a_date_means_its_first_hour(emulator: Emulator) -> None:
    one = {"facets[type][]": "NG"}
    short = ask(emulator, start="2024-02-01", end="2024-02-03", **one).json()["response"]["data"]
    whole = ask(emulator, start="2024-02-01T00", end="2024-02-03T23", **one).json()["response"]["data"]
    assert (short[0]["period"], short[-1]["period"]) == ("2024-02-01T00", "2024-02-03T00")
    assert len(whole) == len(short) + 23


def test_key_is_echoed_from_the_query_but_not_from_the_header(emulator: Emulator) -> None:
    url = f"{emulator.url}/v2/electricity/rto/region-data/data/"
    by_query = requests.get(url, params=query(api_key="SECRET-1"), timeout=20)
    by_header = requests.get(url, params=query(), headers={"X-Api-Key": "SECRET-2"}, timeout=20)
    assert by_query.json()["request"]["params"]["api_key"] == "SECRET-1"
    assert "SECRET-2" not in by_header.text
    assert "SECRET" not in json.dumps([emulator.stats(), emulator.requests()])
    assert {fingerprint("SECRET-1"), fingerprint("SECRET-2"), "none"} <= set(emulator.stats()["keys"])


def test_x_params_header_equals_the_query(emulator: Emulator) -> None:
    params = {
        "frequency": "hourly",
        "data": ["value"],
        "facets": {"respondent": ["PACW"], "type": ["D", "TI"]},
        "start": "2024-01-01T00",
        "end": "2024-01-02T23",
        "sort": [{"column": "period", "direction": "asc"}, {"column": "type", "direction": "asc"}],
        "offset": 10,
        "length": 20,
    }
    url = f"{emulator.url}/v2/electricity/rto/region-data/data/"
    header = requests.get(url, headers={"X-Params": json.dumps(params)}, timeout=20).json()
    plain = query(end="2024-01-02T23", sort=("period", "type"), offset=10, length=20)
    both = requests.get(url, params=[*plain.items(), *(("facets[type][]", c) for c in ["D", "TI"])], timeout=20).json()
    assert header["response"] == both["response"]
    assert header["request"]["params"] == params
    assert len(header["response"]["data"]) == 20
    assert requests.get(url, headers={"X-Params": "{"}, timeout=20).status_code == 400


def test_missing_data_column_or_unknown_facet_value(emulator: Emulator) -> None:
    row = ask(emulator, **{"data[0]": "value"}).json()["response"]["data"][0]
    bare = query()
    del bare["data[0]"]
    url = f"{emulator.url}/v2/electricity/rto/region-data/data/"
    names = requests.get(url, params=bare, timeout=20).json()["response"]["data"][0]
    assert set(row) - set(names) == {"value", "value-units"}
    empty = ask(emulator, respondent="NOPE")
    assert empty.status_code == 200
    assert empty.json()["response"]["total"] == "0"
    assert empty.json()["response"]["data"] == []


def test_long_response_ends_at_5000_rows_with_a_warning(emulator: Emulator) -> None:
    body = ask(emulator, end="2024-12-31T23", length=9000).json()
    assert len(body["response"]["data"]) == 5000 < int(body["response"]["total"])
    assert body["warnings"][0]["warning"] == "incomplete return"
    assert "warnings" not in ask(emulator, end="2024-12-31T23", length=100).json()
    beyond = ask(emulator, offset=int(body["response"]["total"]), end="2024-12-31T23").json()
    assert beyond["response"]["data"] == []


def test_other_api_versions_write_numbers_and_echo_the_header_key() -> None:
    with Emulator("--total", "int", "--values", "number", "--quirks", "none", "--echo-header-key") as emulator:
        url = f"{emulator.url}/v2/electricity/rto/region-data/data/"
        body = requests.get(url, params=query(), headers={"X-Api-Key": "SECRET-3"}, timeout=20).json()
        assert "SECRET" not in json.dumps([emulator.stats(), emulator.requests()])
    response = body["response"]
    assert body["request"]["params"]["api_key"] == "SECRET-3"
    assert response["total"] == len(response["data"]) == 31 * 24 * 4
    assert {type(row["value"]) for row in response["data"]} == {int}


def test_stats_count_each_page(emulator: Emulator) -> None:
    before = emulator.stats()
    for _ in range(3):
        ask(emulator, start="2021-05-01T00", end="2021-05-02T23")
    ask(emulator, start="2021-05-01T00", end="2021-05-02T23", offset=5)
    after = emulator.stats()
    page = "region-data/PACW/*/2021-05-01T00..2021-05-02T23"
    assert after["pages"][f"{page}/0+5000"] == after["served"][f"{page}/0+5000"] == 3
    assert after["pages"][f"{page}/5+5000"] == 1
    assert after["requests"] == before["requests"] + 4
    assert [line["page"] for line in emulator.requests()[-4:]] == [f"{page}/0+5000"] * 3 + [f"{page}/5+5000"]


def test_clock_adds_hours_and_revises_only_young_ones() -> None:
    with Emulator("--now", "2024-01-20T00") as emulator:
        old, young = (
            {"start": "2023-12-01T00", "end": "2023-12-31T23"},
            {"start": "2024-01-07T00", "end": "2024-01-31T23"},
        )
        before = ask(emulator, **old).content, ask(emulator, **young).json()["response"]["data"]
        assert emulator.stats()["now"].startswith("2024-01-20T00")
        emulator.advance(5 * 24 * 3600)
        after = ask(emulator, **old).content, ask(emulator, **young).json()["response"]["data"]
    assert before[0] == after[0]
    last = [max(row["period"] for row in rows if row["type"] != "DF") for rows in (before[1], after[1])]
    assert last == ["2024-01-20T00", "2024-01-25T00"]
    seen = {(row["period"], row["type"]): row["value"] for row in after[1]}
    assert any(seen[row["period"], row["type"]] != row["value"] for row in before[1])
