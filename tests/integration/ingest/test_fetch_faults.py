"""Every fault of a source: the shard equals the one fetched without faults, or fails with the right error."""

from __future__ import annotations

import copy
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ingest import fetch, http, outage
from ingest.columns import hour_number
from ingest.errors import AuthenticationError, Cancelled, SourceError, UsageError
from ingest.fetch import fetch_shard
from ingest.models import ShardResult
from tests.support.stub_server import NAMES, Bench, Reply, Stub, bench, eia_job, serve

KEY = "Se/cret-KEY-0123456789"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "BACKOFF_S", (0.005, 0.02))
    monkeypatch.setattr(outage, "PAUSE_S", (0.005, 0.02))


@pytest.fixture(scope="module")
def faultless(tmp_path_factory: pytest.TempPathFactory) -> ShardResult:
    with serve(Stub()) as url, bench(tmp_path_factory.mktemp("faultless")) as one:
        return fetch_shard(eia_job(url), one.context)


def once(offset: int, change: Any, times: int = 1) -> Any:
    """Return a script that changes the first `times` responses for the page at `offset`: to a Reply, or by a change of the body."""

    def script(query: dict[str, Any], nth: int) -> Any:
        if query["offset"] != offset or nth >= times:
            return None
        if isinstance(change, Reply):
            return change
        body = copy.deepcopy(Stub().body(query))
        changed = change(body["response"])
        return changed if isinstance(changed, Reply) else body

    return script


def drop(rows: int) -> Any:
    return lambda response: response["data"].__delitem__(slice(100, 100 + rows))


def repeat(response: dict[str, Any]) -> None:
    response["data"][50:60] = response["data"][40:50]


def nulls(response: dict[str, Any]) -> None:
    for row in response["data"][7:27]:
        row["value"] = None


def total(delta: int) -> Any:
    return lambda response: response.update(total=str(int(response["total"]) + delta))


def numbers(response: dict[str, Any]) -> None:
    response["total"] = int(response["total"])
    for row in response["data"]:
        row["value"] = float(row["value"])


def case(response: dict[str, Any]) -> None:
    for row in response["data"][::3]:
        row["respondent"], row["type"], row["respondent-name"] = "pacw", row["type"].lower(), "SOMEWHERE"


def stranger(response: dict[str, Any]) -> None:
    response["data"][3]["respondent"] = "PACE"


def outside(response: dict[str, Any]) -> None:
    response["data"][3]["period"] = "2022-12-31T23"


def cut_json(response: dict[str, Any]) -> Reply:
    return Reply(body=json.dumps({"response": response}).encode()[:-5000])


def shifted(response: dict[str, Any]) -> None:
    """Repeat rows of the previous page, as paging without a total order does: the count is right, keys occur on two pages."""
    response["data"][0:3] = [dict(row, period="2023-01-05T00") for row in response["data"][0:3]]


def overlapping(response: dict[str, Any]) -> None:
    """Begin with the last row of the page before, as after a row is inserted between two requests: the last row is lost."""
    value = str((hour_number("2023-02-22T01") * 7 + 13 * NAMES["type"].index("TI")) % 5000 - 100)
    last = {**response["data"][0], "period": "2023-02-22T01", "type": "TI", "value": value}
    response["data"][:] = [last, *response["data"][:-1]]


HTML = b"<!DOCTYPE html><html><body>Request rejected</body></html>"
INVALID = b'{"error":{"code":"API_KEY_INVALID","message":"An invalid api_key was supplied."}}'
LIMIT = b'{"error":{"code":"OVER_RATE_LIMIT","message":"You have exceeded your rate limit."}}'

RECOVERABLE = {
    "short": (once(0, drop(100)), {"short": 1}),
    "short last page": (once(5000, drop(1), 2), {"short": 2}),
    "repeated": (once(5000, repeat), {"repeated": 1}),
    "repeated over pages": (once(5000, shifted), {"repeated": 1}),
    "pages that overlap by a row": (once(5000, overlapping), {"repeated": 1}),
    "nulls": (once(0, nulls), {"nulls": 1}),
    "total high on the first page": (once(0, total(100)), {"total": 2}),
    "total low on the first page": (once(0, total(-100)), {"total": 2}),
    "total high on a later page": (once(5000, total(100)), {"total": 1}),
    "numbers": (once(0, numbers), {}),
    "case": (once(5000, case), {}),
    "stranger": (once(0, stranger), {"foreign": 1}),
    "outside": (once(0, outside), {"foreign": 1}),
    "cut JSON": (once(0, cut_json), {"json": 1}),
    "cut gzip": (once(5000, Reply(body=b"\x1f\x8b\x08\x00garbage", headers={"Content-Encoding": "gzip"})), {"json": 1}),
    "cut answer": (once(5000, Reply(body=b"{", headers={"Content-Length": "5000"})), {"reset": 1}),
    "reset": (once(0, Reply(body=None), 2), {"reset": 2}),
    "502": (once(0, Reply(502, HTML)), {"5xx": 1}),
    "404 under 500": (once(0, Reply(500, b'{"error":"Not found.","code":404}')), {"5xx": 1}),
    "error page as data": (once(0, Reply(200, b'{"error":"Not found.","code":404}')), {"json": 1}),
    "html under 200": (once(0, Reply(200, HTML)), {"html": 1}),
    "html under 403": (once(5000, Reply(403, HTML)), {"html": 1}),
    "429": (once(5000, Reply(429, LIMIT, {"Retry-After": "0"}), 3), {"429": 3}),
    "403 suspension": (once(0, Reply(403, LIMIT), 2), {"403": 2}),
    "403 that looks like a wrong key": (once(5000, Reply(403, INVALID), 7), {"403": 7}),
    "the same, before the key was accepted": (once(0, Reply(403, INVALID), 2), {"403": 2}),
}


@pytest.mark.parametrize("name", RECOVERABLE)
def test_recoverable_fault_does_not_change_the_data(name: str, tmp_path: Path, faultless: ShardResult) -> None:
    stub = Stub()
    stub.script, faults = RECOVERABLE[name]
    with serve(stub) as url, bench(tmp_path, KEY) as one:
        result = fetch_shard(eia_job(url), one.context)
    assert result.digest == faultless.digest
    assert result.piece.sha256 == faultless.piece.sha256
    assert (result.rows, result.total, result.nulls, result.gaps) == (8640, 8640, 0, ())
    assert result.faults == faults
    assert result.requests == sum(stub.asked.values())
    assert len(one.throttles) == sum(count for kind, count in faults.items() if kind in ("429", "403", "html"))
    for page in result.pages:
        assert (tmp_path / page.file.path).stat().st_size == page.file.bytes
    assert sum(page.rows for page in result.pages) == result.total


def test_stalled_response_is_retried(tmp_path: Path, faultless: ShardResult, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "READ_TIMEOUT_S", 1.5)
    stub = Stub()
    stub.script = once(5000, Reply(body=b"{}", stall_s=60.0))
    with serve(stub) as url, bench(tmp_path, KEY) as one:
        result = fetch_shard(eia_job(url), one.context)
    assert result.digest == faultless.digest
    assert result.faults["timeout"] >= 1


def always(status: int, body: bytes) -> Any:
    return lambda query, nth: Reply(status, body)


FATAL = {
    "wrong key": (always(403, INVALID), AuthenticationError, "EIA_API_KEY", 3),
    "refused": (always(400, b'{"error":"Invalid facet","code":400}'), UsageError, "Invalid facet", fetch.ATTEMPTS),
    "junk": (always(200, b"{}"), SourceError, "not a page", fetch.ATTEMPTS),
}


@pytest.mark.parametrize("name", FATAL)
def test_fatal_fault_raises_its_error(name: str, tmp_path: Path) -> None:
    stub = Stub()
    stub.script, error, text, asked = FATAL[name]
    with serve(stub) as url, bench(tmp_path, KEY) as one, pytest.raises(error, match=text) as raised:
        fetch_shard(eia_job(url), one.context)
    assert KEY not in str(raised.value)
    assert stub.asked[0] == asked
    assert not list(tmp_path.rglob("*.json.gz"))


def test_short_page_fails_the_shard_and_keeps_complete_pages(tmp_path: Path) -> None:
    stub = Stub()
    stub.script = once(5000, drop(1), 99)
    with (
        serve(stub) as url,
        bench(tmp_path) as one,
        pytest.raises(SourceError, match="page at 5000: 3639 rows") as raised,
    ):
        fetch_shard(eia_job(url), one.context)
    assert raised.value.kind == "short"
    assert [path.name[:8] for path in tmp_path.rglob("*.json.gz")] == ["00000000"]


def test_malformed_key_is_refused_without_quoting_it(tmp_path: Path) -> None:
    for key in ("two words", "line\nfeed", "kéy"):
        with bench(tmp_path, key) as one, pytest.raises(AuthenticationError) as raised:
            fetch_shard(eia_job("http://127.0.0.1:1"), one.context)
        assert key not in str(raised.value)


def test_endless_throttle_returns_the_shard_to_the_scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "LIMIT_S", 0.1)
    stub = Stub()
    stub.script = always(429, LIMIT)
    with serve(stub) as url, bench(tmp_path) as one, pytest.raises(SourceError) as raised:
        fetch_shard(eia_job(url), one.context)
    assert raised.value.kind == "outage"
    assert one.throttles[0] == ("429", None)


def test_cancel_while_throttled_writes_nothing(tmp_path: Path) -> None:
    stub = Stub()
    stub.script = lambda query, nth: Reply(429, LIMIT, {"Retry-After": "3600"})
    with serve(stub) as url, bench(tmp_path) as one:
        ended: list[BaseException] = []

        def run() -> None:
            try:
                fetch_shard(eia_job(url), one.context)
            except Cancelled as error:
                ended.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        while not one.throttles:
            time.sleep(0.005)
        one.context.cancelled.set()
        thread.join(timeout=5)
    assert ended
    assert not tmp_path.joinpath("raw").exists()


def test_each_request_needs_a_permit_that_may_cancel(tmp_path: Path) -> None:
    stub = Stub()
    drawn: list[str] = []

    def permit(bucket: str, check: Callable[[float], None]) -> None:
        drawn.append(bucket)
        if len(drawn) == 2:
            raise Cancelled("cancelled")

    with serve(stub) as url, bench(tmp_path) as one, pytest.raises(Cancelled):
        one.context.acquire_permit = permit
        fetch_shard(eia_job(url), one.context)
    assert drawn == ["", ""]
    assert sum(stub.asked.values()) == 1


# -- the key -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gzipped", [True, False])
def test_echoed_key_is_in_no_stored_byte(tmp_path: Path, gzipped: bool, faultless: ShardResult) -> None:
    stub = Stub()
    stub.gzip = gzipped

    def echo(query: dict[str, Any], nth: int) -> Reply:
        body = stub.body(query)
        body["request"]["params"]["api_key"] = query["key"]
        body["request"]["command"] += f"?api_key={query['key']}"
        return Reply(body=json.dumps(body).replace("/", r"\/").encode())

    stub.script = echo
    with serve(stub) as url, bench(tmp_path, KEY) as one:
        result = fetch_shard(eia_job(url), one.context)
    assert set(stub.keys) == {KEY}
    assert not any("cret" in path for path in stub.paths)
    assert result.digest == faultless.digest
    assert "cret" not in repr(result)
    _assert_no_key(tmp_path)


def _assert_no_key(folder: Path) -> None:
    stored = [path for path in folder.rglob("*") if path.is_file()]
    assert stored
    for path in stored:
        content = path.read_bytes()
        plain = http.inflate(content) if path.suffix == ".gz" else content
        assert b"KEY-0123456789" not in plain
        assert b"KEY-0123456789" not in content


def test_key_is_not_sent_to_a_redirect_target(tmp_path: Path, faultless: ShardResult) -> None:
    other, stub = Stub(), Stub()
    with serve(other) as elsewhere, serve(stub) as url, bench(tmp_path, KEY) as one:
        stub.script = once(0, Reply(302, b"", {"Location": elsewhere}))
        assert fetch_shard(eia_job(url), one.context).faults == {"status": 1}
    assert not other.paths


def test_key_in_a_redirect_is_not_repeated_by_the_error(tmp_path: Path) -> None:
    stub = Stub()
    stub.script = lambda query, nth: Reply(302, b"", {"Location": f"https://elsewhere.test/?api_key={query['key']}"})
    with serve(stub) as url, bench(tmp_path, KEY) as one, pytest.raises(SourceError, match="elsewhere") as raised:
        fetch_shard(eia_job(url), one.context)
    assert KEY not in str(raised.value)
    assert "SECRET" not in str(raised.value).upper().replace("SE/CRET", "SECRET")


# -- nulls, gaps and empty shards ----------------------------------------------------------------------------------------


def test_null_repeated_by_the_source_is_accepted(tmp_path: Path, faultless: ShardResult) -> None:
    stub = Stub()
    stub.nulls = {("2023-01-02T03", "D"), ("2023-01-02T04", "DF")}
    with serve(stub) as url, bench(tmp_path) as one:
        result = fetch_shard(eia_job(url), one.context)
    assert (result.nulls, result.faults, result.gaps) == (2, {}, ())
    assert stub.asked == {0: 2, 5000: 1}
    assert result.digest != faultless.digest


@pytest.mark.parametrize("at", [40, 4999])  # within a page, and as the last row of one and the first of the next
def test_row_that_the_source_has_twice_is_kept_once(at: int, tmp_path: Path, faultless: ShardResult) -> None:
    """It was asked for five times, and made its shard impossible for ever."""
    stub = Stub()
    own = stub.rows

    def doubled(query: dict[str, Any]) -> list[dict[str, Any]]:
        rows = own(query)
        return [*rows[: at + 1], *rows[at:]]

    stub.rows = doubled  # type: ignore[method-assign]
    with serve(stub) as url, bench(tmp_path) as one:
        result = fetch_shard(eia_job(url), one.context)
    assert (result.rows, result.total, result.duplicates) == (8641, 8641, 1)
    assert result.faults["duplicate"] == 1
    assert (result.digest, result.gaps) == (faultless.digest, ())
    assert stub.asked == ({0: 2, 5000: 1} if at < 4999 else {0: 2, 5000: 2})


def test_missing_hours_are_gaps_and_the_end_is_probed(tmp_path: Path) -> None:
    stub = Stub()
    stub.missing = {("2023-01-01T00", "D"), ("2023-02-01T10", "TI"), ("2023-02-01T11", "TI"), ("2023-03-31T23", "NG")}
    with serve(stub) as url, bench(tmp_path) as one:
        result = fetch_shard(eia_job(url), one.context)
    assert [(gap.variable, gap.start, gap.end, gap.hours) for gap in result.gaps] == [
        ("D", "2023-01-01T00", "2023-01-01T00", 1),
        ("NG", "2023-03-31T23", "2023-03-31T23", 1),
        ("TI", "2023-02-01T10", "2023-02-01T11", 2),
    ]
    assert [(page.offset, page.rows) for page in result.pages] == [(0, 5000), (5000, 3636), (8636, 0)]
    assert stub.asked == {0: 1, 5000: 1, 8636: 1}


def test_probe_finds_a_total_that_is_too_low(tmp_path: Path) -> None:
    stub = Stub()

    def low(query: dict[str, Any], nth: int) -> dict[str, Any]:
        body = stub.body(query)
        body["response"]["total"] = "8600"
        if query["offset"] == 5000:
            del body["response"]["data"][3600:]
        return body

    stub.script = low
    with serve(stub) as url, bench(tmp_path) as one, pytest.raises(SourceError, match="page at 8600") as raised:
        fetch_shard(eia_job(url), one.context)
    assert raised.value.kind == "total"


def test_empty_response_is_confirmed_and_is_one_gap(tmp_path: Path) -> None:
    stub = Stub()
    stub.rows = lambda query: []  # type: ignore[method-assign]
    with serve(stub) as url, bench(tmp_path) as one:
        result = fetch_shard(eia_job(url), one.context)
    assert (result.rows, result.total, result.requests) == (0, 0, 2)
    assert [(gap.variable, gap.hours) for gap in result.gaps] == [("*", 2160)]


def test_single_empty_response_is_not_accepted(tmp_path: Path, faultless: ShardResult) -> None:
    stub = Stub()
    stub.script = once(0, lambda response: response.update(total=0, data=[]))
    with serve(stub) as url, bench(tmp_path) as one:
        assert fetch_shard(eia_job(url), one.context).digest == faultless.digest


def test_progress_sums_rows_and_requests(tmp_path: Path) -> None:
    with serve(Stub()) as url, bench(tmp_path) as one:
        result = fetch_shard(eia_job(url), one.context)
    assert one.progress == [result.rows, result.requests]
    assert isinstance(one, Bench)


def test_retry_after_date_is_relative_to_the_response_date() -> None:
    """The local clock may have jumped."""
    headers = {"Retry-After": "Wed, 01 Jan 2020 00:01:00 GMT", "Date": "Wed, 01 Jan 2020 00:00:00 GMT"}
    assert http.retry_after(headers) == 60.0
    assert http.retry_after({"Retry-After": "7"}) == 7.0
    assert http.retry_after(headers | {"Retry-After": "soon"}) is None
