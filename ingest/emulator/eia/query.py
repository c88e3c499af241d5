"""EIA API v2 requests: convert the parameters of the query string or `X-Params` to a checked `Query`, and echo them.

No I/O. EIA's parameters are `frequency`, `data[]`, `facets[NAME][]`, `start`, `end` (both inclusive; a date alone
means its hour 00), `sort[i][column|direction]`, `offset`, `length`. Only UTC hours are served: `local-hourly` gets a
400.
"""

import json
import re
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any
from urllib.parse import parse_qsl

import numpy as np

from ingest.emulator.faults.plan import Target
from ingest.models import DAY, is_daily
from ingest.zones import LATEST_MIDNIGHT_H

MAX_ROWS = 5000  # of a JSON response
ZONE = "timezone"  # facet and key of a daily route


@dataclass(frozen=True)
class Route:
    """Describe one route of electricity/rto."""

    id: str
    title: str
    description: str
    alias: str  # of the value column
    facets: tuple[tuple[str, str], tuple[str, str]]  # (id, description), in EIA's order
    names: tuple[str, str]  # keys of the names of the facets' values
    respondent: int = 0  # which of the facets is the respondent; the other one is the series

    @property
    def daily(self) -> bool:
        """Whether it has a value a local day, for each time zone, in place of one an hour."""
        return is_daily(self.id)

    @property
    def hourly(self) -> str:
        """The route that has its hours: itself, unless it is daily."""
        return self.id.removeprefix("daily-")

    @property
    def frequency(self) -> str:
        """The one frequency that is served."""
        return "daily" if self.daily else "hourly"

    @property
    def columns(self) -> tuple[str, ...]:
        """Keys of a row, in EIA's order, without value and value-units."""
        (first, _), (second, _) = self.facets
        zone = (ZONE, "timezone-description") if self.daily else ()
        return ("period", first, self.names[0], second, self.names[1], *zone)

    @property
    def filters(self) -> tuple[tuple[str, str], ...]:
        """All facets: (id, description)."""
        return (*self.facets, *([(ZONE, "Time zone")] if self.daily else []))

    @property
    def keys(self) -> tuple[str, str]:
        """Keys of the respondent and of the series of a row; its facets, too."""
        return self.facets[self.respondent][0], self.facets[1 - self.respondent][0]


_SOURCE = "  \n    Source: Form EIA-930\n    Product: Hourly Electric Grid Monitor"
_RESPONDENT = ("respondent", "Balancing Authority / Region")
_HOURLY: dict[str, Route] = {
    route.id: route
    for route in (
        Route(
            "region-data",
            "Hourly Demand, Demand Forecast, Generation, and Interchange",
            "Hourly demand, day-ahead demand forecast, net generation, and interchange by balancing authority."
            + _SOURCE,
            "Demand, Demand Forecast, Net Generation, or Interchange",
            (_RESPONDENT, ("type", "Metric")),
            ("respondent-name", "type-name"),
        ),
        Route(
            "fuel-type-data",
            "Hourly Generation by Energy Source",
            "Hourly net generation by balancing authority and energy source." + _SOURCE,
            "Net Generation",
            (_RESPONDENT, ("fueltype", "Energy Source")),
            ("respondent-name", "type-name"),
        ),
        Route(
            "interchange-data",
            "Hourly Interchange by Neighboring Balancing Authority",
            "Daily interchange between neighboring balancing authorities." + _SOURCE,
            "Interchange",
            (("fromba", "Balancing Authority / Region"), ("toba", "Neighboring Balancing Authority / Region")),
            ("fromba-name", "toba-name"),
        ),
        Route(
            "region-sub-ba-data",
            "Hourly Demand by Subregion",
            "Hourly demand by balancing authority subregion." + _SOURCE,
            "Demand",
            (("subba", "Subregion"), ("parent", "Balancing Authority")),
            ("subba-name", "parent-name"),
            respondent=1,
        ),
    )
}
ROUTES: dict[str, Route] = {
    **_HOURLY,
    **{
        f"daily-{name}": replace(
            route,
            id=f"daily-{name}",
            title=route.title.replace("Hourly", "Daily"),
            description=route.description.replace("Hourly", "Daily", 1),
        )
        for name, route in _HOURLY.items()
    },
}


class BadRequest(Exception):
    """The parameters can't be served; the text goes into the response's `error`, with code 400."""


@dataclass(frozen=True)
class Query:
    """Hold a checked request for rows of `route`."""

    route: str
    respondents: tuple[str, ...]  # empty: all
    codes: tuple[str, ...]  # types, fuels or neighbours; empty: all
    zones: tuple[str, ...]  # of a daily route; empty: all
    start: int | None  # hour, inclusive; of a daily route hour 00 of the day
    end: int | None
    sort: tuple[tuple[str, bool], ...]  # (column, descending)
    offset: int
    length: int
    with_values: bool
    echo: str  # `request.params` as JSON, as EIA writes it (includes a key that came in the query)

    @cached_property
    def until(self) -> int | None:
        """The last hour that the values depend on: of a daily route the last hour of the last day, in the zone where it ends last."""
        late = DAY + LATEST_MIDNIGHT_H if is_daily(self.route) else 0
        return None if self.end is None else self.end + late

    @cached_property
    def page(self) -> str:
        """Name of the requested page: the parameters without key, echo or sort."""
        codes, span = "+".join(self.codes) or "*", f"{self.target.start}..{self.target.end}"
        return f"{self.route}/{self.target.respondent}/{codes}/{span}/{self.offset}+{self.length}"

    @cached_property
    def target(self) -> Target:
        """The page as a fault rule matches it."""
        start, end = ("" if hour is None else str(np.datetime64(hour, "h")) for hour in (self.start, self.end))
        return Target(self.route, "+".join(self.respondents) or "*", start, end, self.offset)


def parse_params(query: str, header: str | None) -> dict[str, Any]:
    """Return the parameters as nested dicts and lists, in order of arrival; those of `X-Params` override the query's.

    Raises:
        BadRequest: The header is not a JSON object.
    """
    params: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        node, keys = params, _keys(name)
        for key in keys[:-1]:
            key = key or str(len(node))
            child = node.setdefault(key, {})
            node = child if isinstance(child, dict) else node.setdefault(key + "[]", {})
        node[keys[-1] or str(len(node))] = value
    params = _listed(params)
    if header:
        try:
            more = json.loads(header)
        except ValueError:
            more = None
        if not isinstance(more, dict):
            raise BadRequest("Invalid X-Params header provided. It must be a JSON object.")
        params |= {name: value for name, value in more.items() if value is not None}
    return params


def _keys(name: str) -> list[str]:
    head, bracket, rest = name.partition("[")
    return [head, *re.findall(r"\[?([^\[\]]*)\]", bracket + rest)] if bracket else [head]


def _listed(node: Any) -> Any:
    """Convert dicts whose keys are all numbers to lists, as PHP's json_encode does."""
    if not isinstance(node, dict):
        return node
    if node and all(key.isdigit() for key in node):
        return [_listed(value) for value in node.values()]
    return {key: _listed(value) for key, value in node.items()}


def php_json(value: Any) -> str:
    """Return compact JSON with `/` escaped, as EIA's server writes it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).replace("/", "\\/")


def parse_query(route: Route, params: dict[str, Any]) -> Query:
    """Check `params` against the parameters of `route`.

    Returns:
        The request, with `length` capped at MAX_ROWS.

    Raises:
        BadRequest: A parameter is wrong; the text names it.
    """
    frequency = params.get("frequency", route.frequency)
    if not route.daily and frequency == "local-hourly":
        raise BadRequest("Frequency 'local-hourly' is not served by this emulator. Ask for 'hourly' (UTC).")
    if frequency != route.frequency:
        raise BadRequest(
            f"Invalid frequency '{frequency}' provided. The only valid frequencies are '{route.frequency}'."
        )
    data = _many(params.get("data", []))
    if wrong := [name for name in data if name != "value"]:
        raise BadRequest(f"Invalid data '{wrong[0]}' provided. The only valid data are 'value'.")
    names = tuple(facet for facet, _ in route.filters)
    facets = params.get("facets", {})
    if not isinstance(facets, dict):
        raise BadRequest("Invalid facets provided. They must be named, as in facets[respondent][]=PACW.")
    if unknown := [name for name in facets if name not in names]:
        known = ", ".join(f"'{name}'" for name in names)
        raise BadRequest(f"Invalid facet '{unknown[0]}' provided. The only valid facets are {known}.")
    respondents, codes, zones = (tuple(dict.fromkeys(_many(facets.get(name, [])))) for name in (*route.keys, ZONE))
    length = min(_count(params, "length", MAX_ROWS), MAX_ROWS)
    return Query(
        route=route.id,
        respondents=respondents,
        codes=codes,
        zones=zones,
        start=_hour(params, "start"),
        end=_hour(params, "end"),
        sort=_sort(params.get("sort", []), (*route.columns, "value")),
        offset=_count(params, "offset", 0),
        length=length,
        with_values="value" in data,
        echo=php_json(params),
    )


def _many(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


def _count(params: dict[str, Any], name: str, default: int) -> int:
    text = str(params.get(name, default))
    if not text.isdigit():
        raise BadRequest(f"Invalid {name} '{text}' provided. It must be a whole number, 0 or more.")
    return int(text)


def _hour(params: dict[str, Any], name: str) -> int | None:
    text = params.get(name)
    if text is None or text == "":
        return None
    if not re.fullmatch(r"\d{4}(-\d\d(-\d\d(T\d\d(:\d\d){0,2})?)?)?", str(text)):
        raise BadRequest(f"Invalid {name} '{text}' provided. Use YYYY-MM-DDTHH.")
    try:
        return int(np.datetime64(str(text)).astype("datetime64[h]").astype(np.int64))
    except ValueError:
        raise BadRequest(f"Invalid {name} '{text}' provided. There is no such hour.") from None


def _sort(value: Any, columns: tuple[str, ...]) -> tuple[tuple[str, bool], ...]:
    order = []
    for item in value if isinstance(value, list) else [value]:
        if not isinstance(item, dict) or "column" not in item:
            raise BadRequest("Invalid sort provided. Use sort[0][column] and sort[0][direction].")
        direction = str(item.get("direction", "asc")).lower()
        if item["column"] not in columns:
            raise BadRequest(f"Invalid sort column '{item['column']}' provided.")
        if direction not in ("asc", "desc"):
            raise BadRequest(f"Invalid sort direction '{item['direction']}' provided. Use 'asc' or 'desc'.")
        order.append((item["column"], direction == "desc"))
    return tuple(order)
