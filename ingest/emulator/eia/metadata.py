"""EIA's metadata responses: a route without `/data`, and `/facet/{id}` with its values."""

from typing import Any

import numpy as np

from ingest.emulator.eia.pages import API_VERSION
from ingest.emulator.eia.query import ROUTES, ZONE, php_json
from ingest.emulator.http.responses import NOT_FOUND, Response
from ingest.emulator.worlds.base import World
from ingest.emulator.worlds.grid import respondent_name, series_name
from ingest.routes import EIA_ZONES


def route_metadata(world: World, route: str, now: int, params: dict[str, Any]) -> Response:
    """Return the description of a route: facets, frequencies, period, value column."""
    spec = ROUTES[route]
    unit, form, letter = ("D", "YYYY-MM-DD", "D") if spec.daily else ("h", 'YYYY-MM-DD"T"HH24', "H")
    first, last = (str(np.datetime64(hour, "h").astype(f"datetime64[{unit}]")) for hour in world.span(now))
    response = {
        "id": spec.id,
        "name": spec.title,
        "description": f"{spec.description}\n    {world.note}",
        "frequency": [
            {
                "id": spec.frequency,
                "alias": "daily" if spec.daily else "hourly (UTC)",
                "description": f"One data point for each {'day' if spec.daily else 'hour in UTC time'}.",
                "query": letter,
                "format": form,
            }
        ],
        "facets": [{"id": name, "description": text} for name, text in spec.filters],
        "data": {"value": {"aggregation-method": "SUM", "alias": spec.alias, "units": "megawatthours"}},
        "startPeriod": first,
        "endPeriod": last,
        "defaultDateFormat": form,
        "defaultFrequency": spec.frequency,
    }
    return _respond(response, f"/v2/electricity/rto/{route}/", params)


def facet_values(world: World, route: str, facet: str, params: dict[str, Any]) -> Response:
    """Return the values of one facet, or EIA's "not found"."""
    spec = ROUTES[route]
    respondent, _ = spec.keys
    if facet not in (name for name, _ in spec.filters):
        return NOT_FOUND
    if facet == ZONE:
        named = {zone: zone for zone in sorted(EIA_ZONES.values())}
    elif facet == respondent:
        named = {code: respondent_name(code) for code in world.respondents(spec.hourly)}
    else:
        named = {code: series_name(spec.hourly, code) for code in world.codes(spec.hourly)}
    values = [{"id": code, "name": name} for code, name in named.items()]
    response = {"totalFacets": len(values), "facets": values}
    return _respond(response, f"/v2/electricity/rto/{route}/facet/{facet}/", params)


def _respond(response: dict[str, Any], command: str, params: dict[str, Any]) -> Response:
    body = {"response": response, "request": {"command": command, "params": params}, "apiVersion": API_VERSION}
    return Response(200, php_json(body).encode())
