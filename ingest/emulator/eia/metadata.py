"""EIA's metadata answers: a route without `/data`, and `/facet/{id}` with its values."""

from __future__ import annotations

from typing import Any

import numpy as np

from ingest.emulator.eia.pages import API_VERSION
from ingest.emulator.eia.query import ROUTES, php_json
from ingest.emulator.http.responses import NOT_FOUND, Answer
from ingest.emulator.worlds.base import World
from ingest.emulator.worlds.grid import FUEL_NAMES, TYPE_NAMES, respondent_name


def route_metadata(world: World, route: str, now: int, params: dict[str, Any]) -> Answer:
    """What a route has: facets, frequencies, period, value column."""
    spec = ROUTES[route]
    first, last = (str(np.datetime64(hour, "h")) for hour in world.span(now))
    response = {
        "id": spec.id,
        "name": spec.title,
        "description": f"{spec.description}\n    {world.note}",
        "frequency": [
            {
                "id": "hourly",
                "alias": "hourly (UTC)",
                "description": "One data point for each hour in UTC time.",
                "query": "H",
                "format": 'YYYY-MM-DD"T"HH24',
            }
        ],
        "facets": [{"id": name, "description": text} for name, text in spec.facets],
        "data": {"value": {"aggregation-method": "SUM", "alias": spec.alias, "units": "megawatthours"}},
        "startPeriod": first,
        "endPeriod": last,
        "defaultDateFormat": 'YYYY-MM-DD"T"HH24',
        "defaultFrequency": "hourly",
    }
    return _answer(response, f"/v2/electricity/rto/{route}/", params)


def facet_values(world: World, route: str, facet: str, params: dict[str, Any]) -> Answer:
    """The values of one facet."""
    who, what = (name for name, _ in ROUTES[route].facets)
    if facet == who:
        values = {code: respondent_name(code) for code in world.respondents(route)}
    elif facet == what:
        names = {"type": TYPE_NAMES, "fueltype": FUEL_NAMES}.get(what, {})
        values = {code: names.get(code, respondent_name(code)) for code in world.codes(route)}
    else:
        return NOT_FOUND
    response = {"totalFacets": len(values), "facets": [{"id": code, "name": name} for code, name in values.items()]}
    return _answer(response, f"/v2/electricity/rto/{route}/facet/{facet}/", params)


def _answer(response: dict[str, Any], command: str, params: dict[str, Any]) -> Answer:
    body = {"response": response, "request": {"command": command, "params": params}, "apiVersion": API_VERSION}
    return Answer(200, php_json(body).encode())
