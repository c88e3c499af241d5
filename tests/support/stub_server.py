"""A small EIA server with scripted responses, for tests that control the response to each request."""

from __future__ import annotations

import gzip
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from ingest.columns import hour_number, hour_text
from ingest.http import make_session
from ingest.models import FetchJob, Shard
from ingest.outage import Wait
from ingest.page_request import FetchContext

NAMES = {"type": ("D", "DF", "NG", "TI"), "fueltype": ("COL", "NG", "SUN", "WND")}


_ROWS: dict[Any, list[dict[str, Any]]] = {}


@dataclass
class Reply:
    """The scripted response to a request; `body` None closes the connection with a reset."""

    status: int = 200
    body: bytes | None = b""
    headers: dict[str, str] = field(default_factory=dict)
    stall_s: float = 0.0


Script = Callable[[dict[str, Any], int], Reply | dict[str, Any] | None]
"""(parsed query, number of earlier requests of this page) → a Reply, a changed body, or None for the normal response."""


class Stub:
    """`script` decides each response; `asked` counts requests by offset; `missing` and `nulls` are (hour, code) cells."""

    def __init__(self) -> None:
        self.script: Script = lambda query, nth: None
        self.asked: Counter[int] = Counter()
        self.keys: list[str | None] = []
        self.paths: list[str] = []
        self.missing: set[tuple[str, str]] = set()
        self.nulls: set[tuple[str, str]] = set()
        self.gzip = True
        self.world = "synthetic"
        self.rendered: dict[Any, bytes] = {}
        self.lock = threading.Lock()
        self.released = threading.Event()  # ends every stall when the server closes

    def rows(self, query: dict[str, Any]) -> list[dict[str, Any]]:
        facet = "fueltype" if "fuel-type-data" in query["path"] else "type"
        key = (facet, query["respondent"], query["start"], query["end"], frozenset(self.missing), frozenset(self.nulls))
        if key not in _ROWS:
            _ROWS[key] = self._rows(facet, query)
        return _ROWS[key]

    def _rows(self, facet: str, query: dict[str, Any]) -> list[dict[str, Any]]:
        first, last = hour_number(query["start"]), hour_number(query["end"])
        return [
            {
                "period": period,
                "respondent": query["respondent"],
                "respondent-name": "Somewhere",
                facet: code,
                "type-name": code.title(),
                "value": None if (period, code) in self.nulls else str((hour * 7 + 13 * i) % 5000 - 100),
                "value-units": "megawatthours",
            }
            for hour in range(first, last + 1)
            for period in [hour_text(hour)]
            for i, code in enumerate(NAMES[facet])
            if (period, code) not in self.missing
        ]

    def body(self, query: dict[str, Any]) -> dict[str, Any]:
        rows = self.rows(query)
        page = rows[query["offset"] : query["offset"] + query["length"]]
        return {
            "response": {"total": str(len(rows)), "dateFormat": "x", "frequency": "hourly", "data": page},
            "request": {"command": query["path"], "params": {}},
            "apiVersion": "2.1.8",
        }

    def answer(self, path: str, key: str | None) -> Reply:
        parts = urlsplit(path)
        given = parse_qs(parts.query)
        query: dict[str, Any] = {name: values[0] for name, values in given.items()}
        query["path"], query["offset"], query["length"] = parts.path, int(query["offset"]), int(query["length"])
        query["respondent"], query["key"] = query["facets[respondent][]"], key
        with self.lock:
            nth = self.asked[query["offset"]]
            self.asked[query["offset"]] += 1
            self.keys.append(key)
            self.paths.append(path)
        told = self.script(query, nth)
        if isinstance(told, Reply):
            return told
        if told is not None:
            return Reply(body=json.dumps(told, separators=(",", ":")).encode())
        with self.lock:
            known = (path, frozenset(self.missing), frozenset(self.nulls))
            if known not in self.rendered:
                self.rendered[known] = json.dumps(self.body(query), separators=(",", ":")).encode()
            return Reply(body=self.rendered[known])


@contextmanager
def serve(stub: Stub) -> Iterator[str]:
    """Run `stub` on an ephemeral port of loopback and yield its base URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            reply = stub.answer(self.path, self.headers.get("X-Api-Key"))
            stub.released.wait(reply.stall_s)
            body = reply.body
            if body is None:
                self.close_connection = True
                return
            self.send_response(reply.status)
            if stub.gzip and "Content-Encoding" not in reply.headers and "gzip" in self.headers["Accept-Encoding"]:
                body = gzip.compress(body, 1, mtime=0)
                self.send_header("Content-Encoding", "gzip")
            self.send_header("X-Emulator-World", stub.world)
            if "Content-Length" not in reply.headers:
                self.send_header("Content-Length", str(len(body)))
            else:
                self.close_connection = True  # the length is wrong, so nothing else may follow on this connection
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        stub.released.set()
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass
class Bench:
    """A fetch context and its reports: `throttles` (kind, retry_after), `progress` sums and each change of the `waits`."""

    context: FetchContext
    throttles: list[tuple[str, float | None]]
    progress: list[int]
    waits: list[Wait | None]


@contextmanager
def bench(data_dir: Path, key: str | None = None, connections: int = 5) -> Iterator[Bench]:
    throttles: list[tuple[str, float | None]] = []
    progress = [0, 0]
    waits: list[Wait | None] = []
    lock = threading.Lock()

    def add(rows: int, requests: int) -> None:
        with lock:
            progress[0] += rows
            progress[1] += requests

    with ThreadPoolExecutor(connections) as pool:
        context = FetchContext(
            data_dir=data_dir,
            api_key=key,
            accepted_by=set(),
            pool=pool,
            connections=threading.Semaphore(5),
            session=make_session(connections),
            acquire_permit=lambda bucket, check: None,
            on_throttle=lambda bucket, kind, after: throttles.append((kind, after)),
            on_progress=add,
            on_wait=waits.append,
            cancelled=threading.Event(),
        )
        yield Bench(context, throttles, progress, waits)


def eia_job(url: str, route: str = "region-data", start: str = "2023-01-01T00", end: str = "2023-03-31T23") -> FetchJob:
    return FetchJob(Shard("eia", route, "PACW", start, end), url)
