"""The emulator's application: check key, rate limit and fault of each request, respond, count, log."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from ingest.emulator import bulk, oasis
from ingest.emulator.clock import Clock
from ingest.emulator.eia import metadata
from ingest.emulator.eia.pages import Renderer, Selections, Style
from ingest.emulator.eia.query import ROUTES, BadRequest, Query, parse_params, parse_query
from ingest.emulator.faults import inject
from ingest.emulator.faults.plan import Fault, FaultPlan, FaultPlanError, Rule, Target, parse_plan
from ingest.emulator.http import responses
from ingest.emulator.http.responses import Response
from ingest.emulator.http.server import Request
from ingest.emulator.policy import Limits, Policy, Spacing
from ingest.emulator.stats import Stats, fingerprint
from ingest.emulator.worlds.base import World
from ingest.lru_cache import LruCache

_EIA = re.compile(r"/v2/electricity/rto/([a-z-]+)(/data|/facet/([a-z]+))?/?")
_BULK = re.compile(
    r"/electricity/gridmonitor/sixMonthFiles/EIA930_(BALANCE|INTERCHANGE|SUBREGION)_(\d{4})_(Jan_Jun|Jul_Dec)\.csv"
)


@dataclass(frozen=True)
class Settings:
    """Hold the server's options, beyond its world and clock."""

    seed: int = 0
    keyless: bool = False  # serve requests that bring no key
    keys: tuple[str, ...] = ()  # the only valid keys; empty: any that does not begin with INVALID
    echo_header_key: bool = False  # put a key that came in X-Api-Key into request.params, too
    limits: Limits | None = None  # EIA's; with them OASIS requires 5 s between requests
    style: Style = field(default_factory=Style)
    cache_bytes: int = 256 << 20
    faults: tuple[Rule, ...] = ()
    log: Path | None = None


@dataclass(frozen=True)
class _Parsed:
    """Hold a parsed request to the EIA API: the same URL is parsed only once."""

    query: Query | None
    params: dict[str, Any]
    key: str | None
    error: str = ""

    @property
    def page(self) -> str:
        return self.query.page if self.query else ""


class App:
    """Hold the state of one server. Call it with a `Request`."""

    def __init__(self, world: World, clock: Clock, settings: Settings) -> None:
        """Start with an empty cache and zero counts."""
        self._world = world
        self._clock = clock
        self._settings = settings
        self._selections = Selections(world, settings.seed)
        self._render = Renderer(world, settings.style)
        self._policy = Policy(settings.limits, settings.seed)
        self._spacing = Spacing(5.0 if settings.limits else None)
        self._faults = FaultPlan(settings.faults, settings.seed)
        self._stats = Stats(settings.log)
        self._bodies: LruCache[Response] = LruCache(settings.cache_bytes, lambda response: len(response.body))
        self._parse = lru_cache(maxsize=4096)(self._parse_eia)

    def now(self) -> float:
        """Return the emulated time, seconds since 1970-01-01T00 UTC."""
        return self._clock.now()

    def __call__(self, request: Request) -> Response:
        """Return the response to a request, and count it."""
        path, _, query = request.target.decode("latin-1").partition("?")
        if path.startswith("/_emulator/"):
            return self._control(request.method, path.removeprefix("/_emulator/"), request.body)
        if request.method not in ("GET", "HEAD"):
            return Response(405, b"")
        zipped = "gzip" in request.headers.get("accept-encoding", "")
        key, route, page, response = "none", path, "", responses.NO_SUCH_PAGE
        if match := _EIA.fullmatch(path):
            route, resource, facet = match.groups()
            parsed = self._parse(route, query, request.headers.get("x-params"), request.headers.get("x-api-key"))
            key = fingerprint(parsed.key)
            page = parsed.page if resource == "/data" else ""
            response = self._eia(route, resource, facet or "", parsed, key, zipped)
        elif path == "/oasisapi/SingleZip":
            key = "oasis"
            route, page, response = self._oasis(query)
        elif match := _BULK.fullmatch(path):
            key, route = "bulk", match[1]
            page, response = self._bulk(route, int(match[2]), match[3], zipped)
        elif path.startswith("/v2/"):
            response = responses.NOT_FOUND
        self._stats.count(self._clock.text(), path, query, key, route, page, response)
        return response

    def _parse_eia(self, route: str, query: str, header: str | None, header_key: str | None) -> _Parsed:
        key = header_key
        try:
            params = parse_params(query, header)
            if "api_key" in params:
                key = str(params["api_key"])
            elif header_key and self._settings.echo_header_key:
                params["api_key"] = header_key
            return _Parsed(parse_query(ROUTES[route], params) if route in ROUTES else None, params, key)
        except BadRequest as error:
            return _Parsed(None, {}, key, str(error))

    def _eia(self, route: str, resource: str | None, facet: str, parsed: _Parsed, key: str, zipped: bool) -> Response:
        if not parsed.key and not self._settings.keyless:
            return responses.KEY_MISSING
        valid = self._settings.keys
        if parsed.key and (parsed.key not in valid if valid else parsed.key.startswith("INVALID")):
            return responses.KEY_INVALID
        if refusal := self._policy.admit(key, self._clock.now()):
            return replace(responses.REFUSALS[refusal], fault="limit")
        if route not in ROUTES:
            return responses.NOT_FOUND
        if not resource:
            return metadata.route_metadata(self._world, route, self._clock.hour(), parsed.params)
        if resource != "/data":
            return metadata.facet_values(self._world, route, facet, parsed.params)
        if parsed.query is None:
            return responses.bad_request(parsed.error)
        return self._data(parsed.query, key, zipped)

    def _data(self, query: Query, key: str, zipped: bool) -> Response:
        fault = self._faults.next(query.target)
        now = self._clock.hour()
        if fault and fault.kind == "403-suspend" and fault.params.get("seconds"):
            self._policy.suspend(key, self._clock.now(), fault.params["seconds"], "403")
        if fault and fault.kind in inject.ON_CONTENT:
            rows, total = inject.alter_rows(fault, *self._selections.page(query, now))
            body = inject.truncate(fault, self._render(query, rows, total, odd_case=fault.kind == "case"))
            return _packed(Response(200, body, rows=len(rows), fault=fault.kind), zipped)

        def page() -> Response:
            rows, total = self._selections.page(query, now)
            return _packed(Response(200, self._render(query, rows, total), rows=len(rows)), zipped)

        open_ended = query.until is None or query.until >= self._world.settled_before(now)
        return self._cached((query, zipped, now if open_ended else 0), fault, page)

    def _oasis(self, query: str) -> tuple[str, str, Response]:
        request = oasis.parse(query)
        route, page = ("oasis", "") if isinstance(request, int) else (request.report, request.page)
        if not self._spacing.admit(self._clock.now()):
            return route, page, replace(responses.OASIS_TOO_FAST, fault="limit")
        if isinstance(request, int):
            return route, page, oasis.error_zip(request, self._clock.text())
        fault = self._faults.next(request.target)
        if fault and fault.kind == "oasis-error":
            response = oasis.error_zip(fault.params.get("code", 1001), self._clock.text())
            return route, page, replace(response, fault=fault.kind)
        now = self._clock.hour()
        moment = now if request.end >= self._world.settled_before(now) else 0
        return route, page, self._cached((request, moment), fault, lambda: oasis.respond(self._world, request, now))

    def _bulk(self, file: str, year: int, half: str, zipped: bool) -> tuple[str, Response]:
        now = self._clock.hour()
        fault = self._faults.next(Target(file, "ALL", f"{year}_{half}", f"{year}_{half}"))
        moment = now if bulk.is_open(year, half, self._world.settled_before(now)) else 0
        return f"{file}/{year}_{half}", self._cached(
            (file, year, half, zipped, moment),
            fault,
            lambda: _packed(bulk.respond(self._world, file, year, half, now), zipped),
        )

    def _cached(self, key: tuple, fault: Fault | None, make: Callable[[], Response]) -> Response:
        """Return the response from the cache or from `make`, with the faults that need no rows."""
        if fault and (response := inject.replacement(fault)):
            return response
        response = self._bodies.get(key) or self._bodies.put(key, make())
        if fault is None:
            return response
        body = inject.truncate(fault, response.body)
        return replace(response, body=body, fault=fault.kind, delivery=inject.delivery(fault))

    def _control(self, method: str, command: str, body: bytes) -> Response:
        try:
            match method, command:
                case "GET", "stats":
                    reply = {"world": self._world.name, "now": self._clock.text(), **self._stats.report(self._policy)}
                case "POST", "faults":
                    self._faults = FaultPlan(parse_plan(json.loads(body)), self._settings.seed)
                    reply = {}
                case "POST", "advance":
                    self._clock.advance(float(json.loads(body)["seconds"]))
                    reply = {"now": self._clock.text()}
                case _:
                    return responses.NO_SUCH_PAGE
        except (FaultPlanError, ValueError, KeyError, TypeError) as error:
            return responses.bad_request(f"{type(error).__name__}: {error}")
        return Response(200, json.dumps(reply).encode())


def _packed(response: Response, zipped: bool) -> Response:
    return replace(response, body=responses.gzipped(response.body), encoding="gzip") if zipped else response
