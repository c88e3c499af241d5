"""`coordinator catalog`: the built-in table, and one that an API's facets give, whose codes an extraction then takes."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from coordinator.cli.catalog import listing_of
from ingest.catalog import RESPONDENTS, check_respondents
from ingest.catalog_listing import built_in, describe, respondents_of
from ingest.errors import AuthenticationError, SourceError, UsageError, VerificationError
from ingest.zones import ZONES
from tests.support.program import Coordinator

NAMES = {"PACW": "PacifiCorp West", "CISO": "California ISO", "XNEW": "A new authority", "NSB": "New Smyrna Beach"}
HOURS = {"PACW": ("2019-01-01T00", "2026-06-24T06"), "CISO": ("2019-01-01T00", "2026-06-24T06")}
HOURS |= {"XNEW": ("2026-06-20T00", "2026-06-24T06"), "NSB": ("2019-01-01T00", "2020-01-08T23")}


class Api:
    """A small EIA API: facets, and the first rows by time. The first page has no row of XNEW, the last one none of NSB."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.refusals = 0
        self.key = "a-key-of-forty-characters-or-nearly-so"

    def answer(self, target: str, key: str | None) -> tuple[int, dict[str, Any]]:
        self.asked.append(target)
        if key != self.key:
            return 403, {"error": {"code": "API_KEY_INVALID"}}
        if self.refusals:
            self.refusals -= 1
            return 403, {}
        path, query = urlsplit(target).path, parse_qs(urlsplit(target).query)
        if "/facet/" in path:
            codes = ["CISO"] if "sub-ba" in path else list(NAMES)
            return 200, {"response": {"facets": [{"id": code, "name": NAMES[code]} for code in codes]}}
        end = query["sort[0][direction]"] == ["desc"]
        codes = query.get("facets[respondent][]") or [code for code in NAMES if code != ("NSB" if end else "XNEW")]
        return 200, {"response": {"data": [{"respondent": code, "period": HOURS[code][end]} for code in codes]}}


@pytest.fixture
def api() -> Iterator[tuple[Api, str]]:
    held = Api()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, document = held.answer(self.path, self.headers.get("X-Api-Key"))
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield held, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def silent(done: int, total: int) -> None:
    """Show no progress."""


def test_built_in_table_has_zone_kind_and_routes_of_each_code(tmp_path: Path) -> None:
    listing = listing_of(tmp_path, "synthetic", None, silent)
    found = {entry.code: entry for entry in listing.entries}
    assert set(found) == set(RESPONDENTS)
    assert len(found["CISO"].routes) == 8 and len(found["PACW"].routes) == 6
    assert (found["SWPW"].first, found["OVEC"].last) == ("2026-06-01T00", "2018-12-01T05")
    assert all(entry.zone == ZONES[code] for code, entry in found.items())
    assert "from the built-in table" in describe(listing)
    line = next(line for line in describe(listing).splitlines() if line.startswith("PACW "))
    assert "  region fuel-type interchange +daily  " in line
    assert not list(tmp_path.iterdir())


def test_facets_give_new_codes_and_hours_and_an_extraction_takes_them(
    api: tuple[Api, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, coordinator: Coordinator
) -> None:
    held, url = api
    held.refusals = 1  # a throttle is waited out
    monkeypatch.setenv("EIA_API_KEY", held.key)
    data = tmp_path / "data"
    data.mkdir()
    listing = listing_of(data, url, None, silent)
    assert [(entry.code, entry.first, entry.last) for entry in listing.entries] == [
        (code, *HOURS[code]) for code in sorted(HOURS)
    ]
    assert listing.new == ("XNEW",)
    assert {"OVEC", "ERCO"} <= set(listing.gone)
    assert len(held.asked) == 8 + 2 + 2 + 1  # facets, ends, XNEW's first and NSB's last hour, the refused one
    assert not any(held.key in target for target in held.asked)
    assert held.key not in (data / "catalog.json").read_text()
    assert set(respondents_of(data)) == {*RESPONDENTS, "XNEW"}
    run = coordinator("start", "--extract", "--dry-run", "--respondents", "XNEW", "--start", "2026", "--end", "2026")
    assert run.code == 0, run.stderr
    assert "eia/region-data/XNEW/2026" in run.stdout
    with pytest.raises(UsageError, match="coordinator catalog"):
        check_respondents(["XNEW"])


def test_wrong_key_no_api_and_a_damaged_list_are_refused(
    api: tuple[Api, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.sources.eia_facets.BACKOFF_S", (0.0, 0.0))
    monkeypatch.setenv("EIA_API_KEY", "another-key-of-forty-characters-or-so")
    with pytest.raises(AuthenticationError, match="API_KEY_INVALID"):
        listing_of(tmp_path, api[1], None, silent)
    monkeypatch.setenv("EIA_API_KEY", api[0].key)
    monkeypatch.setattr(Api, "answer", lambda self, target, key: (200, {"response": {}}))
    with pytest.raises(SourceError, match="no list of facets"):
        listing_of(tmp_path, api[1], None, silent)
    (tmp_path / "catalog.json").write_text("{")
    with pytest.raises(VerificationError, match="coordinator catalog"):
        respondents_of(tmp_path)


def test_a_listing_is_the_table_where_nothing_was_asked() -> None:
    assert built_in({}).as_of == ""
    assert built_in({}).entries[0].zone == ""
