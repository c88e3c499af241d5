"""EIA's metadata responses: a route without `/data`, and `/facet/{id}` with its values."""

from typing import Any

import numpy as np

from ingest.emulator.eia.pages import API_VERSION
from ingest.emulator.eia.query import ROUTES, php_json
from ingest.emulator.http.responses import NOT_FOUND, Response
from ingest.emulator.worlds.base import World
from ingest.emulator.worlds.grid import respondent_name, series_name


def route_metadata(world: World, route: str, now: int, params: dict[str, Any]) -> Response:
    """Return the description of a route: facets, frequencies, period, value column."""
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
    return _respond(response, f"/v2/electricity/rto/{route}/", params)


def facet_values(world: World, route: str, facet: str, params: dict[str, Any]) -> Response:
    """Return the values of one facet, or EIA's "not found"."""
    respondent, series = ROUTES[route].keys
    if facet not in (respondent, series):
        return NOT_FOUND
    codes = world.respondents(route) if facet == respondent else world.codes(route)
    values = [
        {"id": code, "name": series_name(route, code) if facet == series else respondent_name(code)} for code in codes
    ]
    response = {"totalFacets": len(values), "facets": values}
    return _respond(response, f"/v2/electricity/rto/{route}/facet/{facet}/", params)


def _respond(response: dict[str, Any], command: str, params: dict[str, Any]) -> Response:
    body = {"response": response, "request": {"command": command, "params": params}, "apiVersion": API_VERSION}
    return Response(200, php_json(body).encode())
