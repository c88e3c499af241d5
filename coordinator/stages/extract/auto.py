"""`--source auto`: EIA's six-month files for old hours of authorities, its API for fresh hours and for regions.

The API is also asked for the last week of the files, so that both sources give it: `ingest.cross_check` compares them. Without a key
the files give all hours that they have, and regions are left out.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from coordinator.stages.extract.plan import MAX_NAMED, ExtractOptions, published
from ingest.asked import latest_hour
from ingest.catalog import REGION, check_respondents, expand_groups
from ingest.catalog_listing import respondents_of
from ingest.columns import hour_number, hour_text
from ingest.errors import UsageError
from ingest.models import format_hour
from ingest.plan import DEFAULT_END, choose_routes
from ingest.sources import get_source

OVERLAP_H = 7 * 24  # that both sources give
SETTLED = timedelta(days=30)  # after its end, until a file counts as old
FILES = {  # route of the API → of the files
    "region-data": "BALANCE",
    "fuel-type-data": "BALANCE",
    "interchange-data": "INTERCHANGE",
    "region-sub-ba-data": "SUBREGION",
}


def is_auto(source: str) -> bool:
    """Return whether `--source` is `auto`, or `auto+URL` for one server that gives both."""
    return source == "auto" or source.startswith("auto+http")


def options_of(settings: Mapping[str, Any]) -> list[ExtractOptions]:
    """Return the options of the extractions that `--source auto` stands for, in order.

    Raises:
        UsageError: an unknown respondent or route, or nothing is left to ask for.
    """
    url = settings["source"].removeprefix("auto").removeprefix("+")
    keyed = bool(url or os.environ.get("EIA_API_KEY", "").strip())
    parts, notes = split(settings, datetime.now(UTC), url=url, keyed=keyed)
    named = {name.lower() for name in settings["routes"]}
    if "all" in named:  # a route that a part has none of is refused only where it was named
        named |= {FILES[name].lower() for name in named & FILES.keys()}
        for part in parts:
            source = part["source"].partition("+")[0]
            offered = published(source, part["routes"], part["respondents"])
            lacking = [route for route in part["routes"] if route not in offered and route.lower() not in named]
            part["routes"] = tuple(route for route in part["routes"] if route not in lacking)
            codes = ", ".join(part["respondents"][:MAX_NAMED]) + ", …" * (len(part["respondents"]) > MAX_NAMED)
            notes += tuple(f"{source} {route} is not published for {codes}" for route in lacking)
    options = [ExtractOptions.from_settings({**settings, **part}) for part in parts]
    return [replace(options[0], notes=(*notes, *options[0].notes)), *options[1:]]


def split(
    settings: Mapping[str, Any], now: datetime, *, url: str, keyed: bool
) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """Return the settings of each extraction, and a line for what is left out. No I/O but the list of respondents.

    Args:
        settings: of the command line.
        now: aware.
        url: of the server that gives both, or "" for EIA's own.
        keyed: whether the API can be asked.

    Raises:
        UsageError: an unknown respondent or route, or nothing is left to ask for.
    """
    start, end = settings["start"], settings["end"] or (latest_hour("eia", now) if settings["update"] else DEFAULT_END)
    known = respondents_of(settings["data"])
    respondents, _ = expand_groups(settings["respondents"], start, end, lambda code: True, known)
    check_respondents(respondents, known)
    routes = choose_routes("eia", settings["routes"])
    if daily := [route for route in routes if route not in FILES]:
        raise UsageError(
            f"--source auto has hourly routes only, and EIA's files no {', '.join(daily)}. Fetch daily values with --source eia, into "
            "the same folder."
        )
    regions = tuple(code for code in respondents if known[code].kind == REGION)
    authorities = tuple(code for code in respondents if code not in regions)
    files = tuple(dict.fromkeys(FILES[route] for route in routes))
    turn = hour_number(_last_turn(now))  # first hour that no old file has
    old_end = min(hour_number(end), turn - 1) if keyed else hour_number(end)
    bulk, api = (f"{kind}+{url}" if url else kind for kind in ("bulk", "eia"))
    parts: list[dict[str, Any]] = []
    if authorities and hour_number(start) <= old_end:
        span = {"start": start, "end": hour_text(old_end)}
        parts.append({"source": bulk, "respondents": authorities, "routes": files, **span})
    fresh = max(start, hour_text(turn - OVERLAP_H), get_source("eia").first_hour)
    if keyed and authorities and fresh <= end:
        parts.append({"source": api, "respondents": authorities, "routes": routes, "start": fresh, "end": end})
    if keyed and regions:
        parts.append({"source": api, "respondents": regions, "routes": routes, "start": start, "end": end})
    notes: tuple[str, ...] = ()
    if not keyed and regions:
        notes = (f"EIA_API_KEY is not set: the regions {', '.join(regions)} are left out, which only the API has",)
    if not parts:
        raise UsageError(
            "--source auto: nothing to ask for. Set EIA_API_KEY for regions and fresh hours, or name authorities."
        )
    return parts, notes


def _last_turn(now: datetime) -> str:
    """Return the first hour after the last half-year that is old."""
    settled = now - SETTLED
    return format_hour(datetime(settled.year, 7 if settled.month > 6 else 1, 1, tzinfo=UTC))
