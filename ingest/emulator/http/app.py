"""The emulator's decisions: a request in, an answer out. Key, limits, fault, page; each request is counted and logged."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ingest.emulator import bulk, oasis
from ingest.emulator.clock import Clock
from ingest.emulator.eia import metadata
from ingest.emulator.eia.pages import Periods, Rows, Selections, Style, render
from ingest.emulator.eia.query import ROUTES, BadRequest, Query, parse_params, parse_query
from ingest.emulator.faults import inject
from ingest.emulator.faults.plan import Fault, FaultPlan, FaultPlanError, Rule, Target, parse_plan
from ingest.emulator.http import responses
from ingest.emulator.http.responses import Answer
from ingest.emulator.http.server import Request
from ingest.emulator.policy import Limits, Policy, Spacing
from ingest.emulator.stats import Stats, fingerprint
from ingest.emulator.worlds.base import World
from ingest.lru_cache import LruCache

_EIA = re.compile(r"/v2/electricity/rto/([a-z-]+)(/data|/facet/([a-z]+))?/?")
_BULK = re.compile(r"/electricity/gridmonitor/sixMonthFiles/EIA930_BALANCE_(\d{4})_(Jan_Jun|Jul_Dec)\.csv")


@dataclass(frozen=True)
class Settings:
    """What the server is asked to be, beyond its world and clock."""

    seed: int = 0
    keyless: bool = False  # serve requests that bring no key
    keys: tuple[str, ...] = ()  # the only valid keys; empty: any that does not begin with INVALID
    echo_header_key: bool = False  # put a key that came in X-Api-Key into request.params, too
    limits: Limits | None = None  # EIA's; with them OASIS wants 5 s between requests
    style: Style = field(default_factory=Style)
    cache_bytes: int = 256 << 20
    faults: tuple[Rule, ...] = ()
    log: Path | None = None


@dataclass(frozen=True)
class _Parsed:
    """A request for EIA rows, once read: the same URL is read only once."""

    query: Query | None
    error: str
    params: dict[str, Any]
    key: str | None
    page: str = ""
    target: Target | None = None


class App:
    """One server's state. Call it with a `Request`."""

    def __init__(self, world: World, clock: Clock, settings: Settings) -> None:
        self._world = world
        self._clock = clock
        self._settings = settings
        self._selections = Selections(world, settings.seed)
        self._periods = Periods(*world.span(1 << 40))
        self._policy = Policy(settings.limits, settings.seed)
        self._spacing = Spacing(5.0 if settings.limits else None)
        self._faults = FaultPlan(settings.faults, settings.seed)
        self._stats = Stats(settings.log)
        self._bodies: LruCache[Answer] = LruCache(settings.cache_bytes, lambda answer: len(answer.body))
        self._parse = lru_cache(maxsize=4096)(self._read)

    def now(self) -> float:
        """Emulated time, seconds since 1970-01-01T00 UTC."""
        return self._clock.now()

    def __call__(self, request: Request) -> Answer:
        """Answer one request."""
        path, _, query = request.target.decode("latin-1").partition("?")
        if path.startswith("/_emulator/"):
            return self._control(request.method, path.removeprefix("/_emulator/"), request.body)
        if request.method not in ("GET", "HEAD"):
            return responses.Answer(405, b"")
        zipped = "gzip" in request.headers.get("accept-encoding", "")
        if match := _EIA.fullmatch(path):
            header = request.headers.get("x-params")
            parsed = self._parse(match[1], query, header, request.headers.get("x-api-key"))
            key = fingerprint(parsed.key)
            page = parsed.page if match[2] == "/data" else ""
            answer = self._eia(match[1], match[2] or "", match[3], parsed, key, zipped)
            self._stats.count(self._clock.text(), path, query, key, match[1], page, answer)
        elif path == "/oasisapi/SingleZip":
            route, page, answer = self._oasis(query)
            self._stats.count(self._clock.text(), path, query, "oasis", route, page, answer)
        elif match := _BULK.fullmatch(path):
            page, answer = self._bulk(int(match[1]), match[2], zipped)
            self._stats.count(self._clock.text(), path, query, "bulk", "BALANCE", page, answer)
        else:
            answer = responses.NOT_FOUND if path.startswith("/v2/") else responses.NO_SUCH_PAGE
            self._stats.count(self._clock.text(), path, query, "none", path, "", answer)
        return answer

    def _read(self, route: str, query: str, header: str | None, header_key: str | None) -> _Parsed:
        key = header_key
        try:
            params = parse_params(query, header)
            if "api_key" in params:
                key = str(params["api_key"])
            elif header_key and self._settings.echo_header_key:
                params["api_key"] = header_key
            if route not in ROUTES:
                return _Parsed(None, "", params, key)
            asked = parse_query(ROUTES[route], params)
            return _Parsed(asked, "", params, key, asked.page, _target(asked))
        except BadRequest as error:
            return _Parsed(None, str(error), {}, key)

    def _eia(self, route: str, what: str, facet: str | None, parsed: _Parsed, key: str, zipped: bool) -> Answer:
        if not parsed.key and not self._settings.keyless:
            return responses.KEY_MISSING
        if parsed.key and not self._valid(parsed.key):
            return responses.KEY_INVALID
        refused = self._policy.admit(key, self._clock.now())
        if refused:
            return replace(responses.REFUSALS[refused], fault="limit")
        if route not in ROUTES:
            return responses.NOT_FOUND
        if what == "":
            return metadata.route_metadata(self._world, route, self._clock.hour(), parsed.params)
        if what != "/data":
            return metadata.facet_values(self._world, route, facet or "", parsed.params)
        if parsed.query is None or parsed.target is None:
            return responses.bad_request(parsed.error)
        return self._rows(parsed.query, parsed.target, key, zipped)

    def _valid(self, key: str) -> bool:
        return key in self._settings.keys if self._settings.keys else not key.startswith("INVALID")

    def _rows(self, query: Query, target: Target, key: str, zipped: bool) -> Answer:
        fault = self._faults.next(target)
        if fault and fault.kind == "403-suspend" and fault.params.get("seconds"):
            self._policy.suspend(key, self._clock.now(), fault.params["seconds"], "403")
        if fault and (answer := inject.instead(fault)):
            return answer
        now = self._clock.hour()
        if fault and (fault.kind in inject.ON_ROWS or fault.kind == "truncated"):
            rows, total = inject.on_rows(fault, *self._selections.page(query, now))
            body = inject.cut_content(fault, self._render(query, rows, total, odd_case=fault.kind == "case"))
            return _packed(Answer(200, body, rows=len(rows), fault=fault.kind), zipped)
        moment = now if query.end is None or query.end >= self._world.settled_before(now) else 0
        which = (query, zipped, moment)
        answer = self._bodies.get(which) or self._bodies.put(which, self._page(query, zipped, now))
        return replace(answer, fault=fault.kind, delivery=inject.delivery(fault)) if fault else answer

    def _page(self, query: Query, zipped: bool, now: int) -> Answer:
        rows, total = self._selections.page(query, now)
        return _packed(Answer(200, self._render(query, rows, total), rows=len(rows)), zipped)

    def _render(self, query: Query, rows: Rows, total: int, odd_case: bool = False) -> bytes:
        return render(query, rows, total, self._periods, self._settings.style, self._world.note, odd_case)

    def _oasis(self, query: str) -> tuple[str, str, Answer]:
        ask = oasis.parse(query)
        route = ask.query if isinstance(ask, oasis.Ask) else "oasis"
        page = ask.page if isinstance(ask, oasis.Ask) else ""
        if not self._spacing.admit(self._clock.now()):
            return route, page, replace(responses.OASIS_TOO_FAST, fault="limit")
        if not isinstance(ask, oasis.Ask):
            return route, page, oasis.error_zip(ask, self._clock.text())
        fault = self._faults.next(Target(ask.query, "CISO", oasis.hour_text(ask.start), oasis.hour_text(ask.end), 0))
        if fault and fault.kind == "oasis-error":
            answer = oasis.error_zip(fault.params.get("code", 1001), self._clock.text())
            return route, page, replace(answer, fault=fault.kind)
        now = self._clock.hour()
        moment = now if ask.end >= self._world.settled_before(now) else 0
        return route, page, self._file((ask, moment), fault, lambda: oasis.answer(self._world, ask, now))

    def _bulk(self, year: int, half: str, zipped: bool) -> tuple[str, Answer]:
        page = f"BALANCE/{year}_{half}"
        now = self._clock.hour()
        fault = self._faults.next(Target("BALANCE", "ALL", f"{year}_{half}", f"{year}_{half}", 0))
        return page, self._file(
            (year, half, zipped, now if bulk.is_open(year, half, self._world.settled_before(now)) else 0),
            fault,
            lambda: _packed(bulk.answer(self._world, year, half, now), zipped),
        )

    def _file(self, key: tuple, fault: Fault | None, make: Callable[[], Answer]) -> Answer:
        """An answer that has no rows for a fault to change."""
        if fault and (answer := inject.instead(fault)):
            return answer
        answer = self._bodies.get(key) or self._bodies.put(key, make())
        if fault is None:
            return answer
        return replace(
            answer, body=inject.cut_content(fault, answer.body), fault=fault.kind, delivery=inject.delivery(fault)
        )

    def _control(self, method: str, what: str, body: bytes) -> Answer:
        try:
            if (method, what) == ("GET", "stats"):
                report = {"world": self._world.name, "now": self._clock.text(), **self._stats.report(self._policy)}
                return Answer(200, json.dumps(report).encode())
            if (method, what) == ("POST", "faults"):
                self._faults = FaultPlan(parse_plan(json.loads(body)), self._settings.seed)
                return Answer(200, b"{}")
            if (method, what) == ("POST", "advance"):
                self._clock.advance(float(json.loads(body)["seconds"]))
                return Answer(200, json.dumps({"now": self._clock.text()}).encode())
        except (FaultPlanError, ValueError, KeyError, TypeError) as error:
            return responses.bad_request(f"{type(error).__name__}: {error}")
        return responses.NO_SUCH_PAGE


def _target(query: Query) -> Target:
    start, end = ("" if hour is None else str(np.datetime64(hour, "h")) for hour in (query.start, query.end))
    return Target(query.route, "+".join(query.who) or "*", start, end, query.offset)


def _packed(answer: Answer, zipped: bool) -> Answer:
    return replace(answer, body=responses.gzipped(answer.body), encoding="gzip") if zipped else answer
