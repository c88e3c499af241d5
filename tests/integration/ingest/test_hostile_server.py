"""A server that attacks by size, by time or by what it says: every fetch ends in a named error, within its bounds, or on cancel."""

from __future__ import annotations

import gzip
import io
import json
import threading
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ingest import fetch, http, outage
from ingest.errors import Cancelled, SourceError, UsageError
from ingest.fetch import fetch_shard
from ingest.http import get, inflate, make_session, retry_after
from ingest.models import MAX_VARIABLES, FetchJob, Shard
from ingest.sources.bulk import HEADER_LIMIT, Bulk
from ingest.sources.eia import Eia
from ingest.sources.oasis import MAX_MEMBERS, Oasis
from ingest.transfer_limits import Transfer
from tests.support.hostile_server import FLOODS, SLOW, Hostility, endless_status_line, hostile
from tests.support.stub_server import Reply, Stub, bench, eia_job, serve

Act = Callable[[Hostility], None]
KEY = "Se/cret-KEY-0123456789-0123456789-0123456"
HANG_S = 20.0  # only a hang takes longer
OASIS = FetchJob(Shard("oasis", "SLD_FCST", "CISO", "2023-01-01T00", "2023-01-31T23"), "http://127.0.0.1:1")
BULK = FetchJob(Shard("bulk", "BALANCE", "ALL", "2023-01-01T00", "2023-06-30T23"), "http://127.0.0.1:1", ("PACW",))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "BACKOFF_S", (0.005, 0.02))
    monkeypatch.setattr(outage, "PAUSE_S", (0.005, 0.02))


def exchange(url: str, deadline_s: float = 60.0, cancelled: threading.Event | None = None) -> None:
    def check(transfer: Transfer) -> None:
        if cancelled is not None and cancelled.is_set():
            raise Cancelled("cancelled")

    get(make_session(1), url, {}, deadline_s=deadline_s, check=check)


# -- size ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("act", FLOODS)
def test_response_without_end_is_cut_at_the_wire_limit(act: Act) -> None:
    tracemalloc.start()
    try:
        with hostile(act) as url, pytest.raises(SourceError, match="more than 16 MiB") as raised:
            exchange(url)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert raised.value.kind == "size"
    assert peak < 4 * http.WIRE_LIMIT


def test_endless_status_line_is_refused() -> None:
    with hostile(endless_status_line) as url, pytest.raises(SourceError) as raised:
        exchange(url)
    assert raised.value.kind == "reset"


def test_wire_limit_counts_just_over_and_admits_just_under(monkeypatch: pytest.MonkeyPatch) -> None:
    def body(size: int) -> Act:
        return lambda peer: peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b" " * size)

    def fetch_with(limit: int, size: int) -> int:
        with hostile(body(size)) as url:
            session = make_session(1)
            check = lambda transfer: None  # noqa: E731 - nothing ends this request
            return len(get(session, url, {}, deadline_s=60, check=check, wire_limit=limit).body)

    assert fetch_with(100_000, 99_000) == 99_000
    with pytest.raises(SourceError, match="more than"):
        fetch_with(100_000, 100_000)


# -- time and cancellation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("act", SLOW)
def test_deadline_covers_headers_and_body(act: Act) -> None:
    began = time.monotonic()
    with hostile(act) as url, pytest.raises(SourceError) as raised:
        exchange(url, deadline_s=0.3)
    assert raised.value.kind == "timeout"
    assert time.monotonic() - began < HANG_S


@pytest.mark.parametrize("act", SLOW)
def test_cancel_ends_any_read(act: Act, tmp_path: Path) -> None:
    ended: list[BaseException] = []
    reached = threading.Event()

    def acted(peer: Hostility) -> None:
        reached.set()
        act(peer)

    with hostile(acted) as url, bench(tmp_path) as one:

        def run() -> None:
            try:
                fetch_shard(eia_job(url), one.context)
            except Cancelled as error:
                ended.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        assert reached.wait(HANG_S)
        one.context.cancelled.set()
        thread.join(HANG_S)
    assert ended


# -- what the server says --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("total", [10**12, 10**9])
def test_total_beyond_hours_and_variables_is_refused(tmp_path: Path, total: int) -> None:
    stub = Stub()

    def lie(query: dict[str, Any], nth: int) -> dict[str, Any]:
        body = stub.body(query)
        body["response"]["total"] = str(total)
        return body

    stub.script = lie
    with serve(stub) as url, bench(tmp_path) as one, pytest.raises(SourceError, match="2160 hours") as raised:
        fetch_shard(eia_job(url), one.context)
    assert raised.value.kind == "total"
    assert stub.asked == {0: fetch.ATTEMPTS}


def test_largest_total_that_hours_allow_is_asked_in_bounded_requests() -> None:
    job = eia_job("http://127.0.0.1:1", start="2024-01-01T00", end="2024-12-31T23")
    assert len(Eia().offsets(job, job.shard.hours * MAX_VARIABLES)) == 900


def page_of(variables: int) -> bytes:
    rows = [{"period": "2023-01-01T00", "respondent": "PACW", "type": f"V{n}", "value": "1"} for n in range(variables)]
    return gzip.compress(json.dumps({"response": {"total": len(rows), "data": rows}}).encode())


def test_page_of_many_variables_is_refused_over_the_bound() -> None:
    job = eia_job("http://127.0.0.1:1")
    assert Eia().parse(job, page_of(MAX_VARIABLES)).rows == MAX_VARIABLES
    for count in (MAX_VARIABLES + 1, 5000):
        with pytest.raises(SourceError, match="variables"):
            Eia().parse(job, page_of(count))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("inf", http.MAX_RETRY_AFTER_S),
        ("1e999", http.MAX_RETRY_AFTER_S),
        ("99999999999", http.MAX_RETRY_AFTER_S),
        ("Fri, 31 Dec 9999 23:59:59 GMT", http.MAX_RETRY_AFTER_S),
        ("-inf", 0.0),
        ("-5", 0.0),
        ("nan", None),
        ("soon", None),
        ("3600", 3600.0),
    ],
)
def test_retry_after_is_bounded(text: str, seconds: float | None) -> None:
    assert retry_after({"Retry-After": text}) == seconds


def test_infinite_retry_after_ends_with_the_throttle_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "LIMIT_S", 0.1)
    stub = Stub()
    stub.script = lambda query, nth: Reply(429, b"", {"Retry-After": "inf"})
    began = time.monotonic()
    with serve(stub) as url, bench(tmp_path) as one, pytest.raises(SourceError) as raised:
        fetch_shard(eia_job(url), one.context)
    assert raised.value.kind == "outage"
    assert time.monotonic() - began < HANG_S


# -- bombs -----------------------------------------------------------------------------------------------------------------


def test_gzip_members_are_bounded_and_linear() -> None:
    empty = gzip.compress(b"")
    assert inflate(empty * (http.MEMBERS_LIMIT - 1) + gzip.compress(b"x")) == b"x"
    began = time.monotonic()
    with pytest.raises(SourceError, match="gzip members"):
        inflate(empty * 300_000)
    assert time.monotonic() - began < HANG_S


def bulk_file(*, header_padding: int = 0, value: str = "1") -> bytes:
    names = "Balancing Authority,UTC Time at End of Hour,Demand Forecast (MW),Demand (MW),Net Generation (MW),Total Interchange (MW)"
    padding = "," + "x" * header_padding if header_padding else ""
    row = f"PACW,01/01/2023 09:00:00 AM,1,{value},1,1" + (",1" if header_padding else "")
    return gzip.compress(f"{names}{padding}\n{row}\n".encode())


def test_bulk_header_line_is_bounded() -> None:
    assert Bulk().parse(BULK, bulk_file(header_padding=1000)).rows == 1
    with pytest.raises(SourceError, match="header line") as raised:
        Bulk().parse(BULK, bulk_file(header_padding=HEADER_LIMIT))
    assert raised.value.kind == "csv"


@pytest.mark.parametrize("value", ["inf", "-inf", "1e999", "nan"])
def test_bulk_value_that_is_not_finite_is_refused(value: str) -> None:
    with pytest.raises(SourceError, match="finite"):
        Bulk().parse(BULK, bulk_file(value=value))


def oasis_zip(variables: int = 1, members: int = 1, value: str = "1") -> bytes:
    head = "INTERVALSTARTTIME_GMT,INTERVALENDTIME_GMT,XML_DATA_ITEM,TAC_AREA_NAME,MW\n"
    interval = "2023-01-01T00:00:00-00:00,2023-01-01T01:00:00-00:00"
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for member in range(members):
            rows = "".join(f"{interval},I{member},V{n},{value}\n" for n in range(variables))
            archive.writestr(f"{member}.csv", head + rows)
    return content.getvalue()


def test_oasis_names_and_files_are_bounded() -> None:
    assert Oasis().parse(OASIS, oasis_zip(MAX_VARIABLES)).rows == MAX_VARIABLES
    for count in (MAX_VARIABLES + 1, 200_000):
        with pytest.raises(SourceError, match="variables"):
            Oasis().parse(OASIS, oasis_zip(count))
    assert Oasis().parse(OASIS, oasis_zip(members=MAX_MEMBERS)).rows == MAX_MEMBERS
    with pytest.raises(SourceError, match="files"):
        Oasis().parse(OASIS, oasis_zip(members=MAX_MEMBERS + 1))


@pytest.mark.parametrize("value", ["inf", "-inf", "1e999"])
def test_oasis_value_that_is_not_finite_is_refused(value: str) -> None:
    with pytest.raises(SourceError, match="finite"):
        Oasis().parse(OASIS, oasis_zip(value=value))


# -- the key, and control characters -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", range(120, 161, 5))
def test_no_part_of_an_echoed_key_is_in_a_cut_excerpt(tmp_path: Path, before: int) -> None:
    stub = Stub()
    stub.script = lambda query, nth: Reply(400, b"x" * before + KEY.encode())
    with serve(stub) as url, bench(tmp_path, KEY) as one, pytest.raises(UsageError) as raised:
        fetch_shard(eia_job(url), one.context)
    assert "Se/c" not in str(raised.value)


def test_key_and_control_characters_do_not_reach_origin(tmp_path: Path) -> None:
    stub = Stub()
    stub.world = f"world\x1b[2J {KEY}"
    with serve(stub) as url, bench(tmp_path, KEY) as one:
        origin = fetch_shard(eia_job(url), one.context).origin
    assert KEY not in origin
    assert origin.isprintable()


def test_control_characters_of_a_body_are_escaped(tmp_path: Path) -> None:
    stub = Stub()
    stub.script = lambda query, nth: Reply(400, b"\x1b]0;title\x07\x1b[2J\xc2\x9b 70 of 70 shards verified")
    with serve(stub) as url, bench(tmp_path) as one, pytest.raises(UsageError) as raised:
        fetch_shard(eia_job(url), one.context)
    assert str(raised.value).isprintable()
