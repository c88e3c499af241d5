"""The respondents as a list: code, name, kind, time zone, first and last hour, routes; built in, or as the API's facets gave them.

A list of the API is kept as `catalog.json` in a data folder, whose extractions then take its codes too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from ingest.catalog import BALANCING_AUTHORITY, RESPONDENTS, SUB_AREAS, Respondent
from ingest.console import printable
from ingest.errors import VerificationError
from ingest.files import atomic_write
from ingest.models import is_daily
from ingest.routes import EIA_ROUTES

FILE = "catalog.json"
BOTH = "+daily"  # in a table
BUILT_IN = "built-in table (EIA's facet values of June 2026)"


@dataclass(frozen=True)
class CatalogEntry:
    """One respondent."""

    code: str
    name: str
    kind: str  # BALANCING_AUTHORITY | REGION
    zone: str  # IANA; "" where it is unknown
    first: str  # first hour that the source has, UTC, YYYY-MM-DDTHH; "" where it is unknown
    last: str  # last hour, likewise; "" also where it still reports
    routes: tuple[str, ...]
    sub_areas: tuple[str, ...] = ()


@dataclass(frozen=True)
class CatalogListing:
    """All respondents, and where the list is from."""

    origin: str
    as_of: str  # hour of the answers, by the source's clock; "" for the built-in table
    entries: tuple[CatalogEntry, ...]
    new: tuple[str, ...] = ()  # codes that the built-in table lacks
    gone: tuple[str, ...] = ()  # codes of the built-in table that the source lacks


def built_in(zones: Mapping[str, str]) -> CatalogListing:
    """Return the table that this version knows; `zones`: code → IANA zone."""
    entries = [
        CatalogEntry(
            code,
            one.name,
            one.kind,
            zones.get(code, ""),
            one.since,
            one.until,
            tuple(name for name, route in EIA_ROUTES.items() if route.respondents is None or code in route.respondents),
            tuple(sorted(SUB_AREAS.get(code, ()))),
        )
        for code, one in sorted(RESPONDENTS.items())
    ]
    return CatalogListing(BUILT_IN, "", tuple(entries))


def from_facets(
    table: CatalogListing,
    facets: Mapping[str, Mapping[str, str]],
    hours: Mapping[str, tuple[str, str]],
    origin: str,
    as_of: str,
) -> CatalogListing:
    """Return what a source's answers say; kinds, zones and sub-areas come from a table where it has them.

    Args:
        table: the built-in list.
        facets: route → code → name of the route's respondents.
        hours: code → first and last hour.
        origin: the source's address.
        as_of: hour of the answers.
    """
    known = {entry.code: entry for entry in table.entries}
    names = {code: name for one in facets.values() for code, name in one.items()}
    entries = []
    for code in sorted(names):
        routes = tuple(route for route, codes in facets.items() if code in codes)
        first, last = hours.get(code, ("", ""))
        base = known.get(code, CatalogEntry(code, "", BALANCING_AUTHORITY, "", "", "", ()))
        entries.append(replace(base, name=names[code] or base.name, first=first, last=last, routes=routes))
    new, gone = sorted(names.keys() - known.keys()), sorted(known.keys() - names.keys())
    return CatalogListing(origin, as_of, tuple(entries), tuple(new), tuple(gone))


def save(data_dir: Path, listing: CatalogListing) -> Path:
    """Write a list into a data folder, and return its path; the disk's errors are raised as StorageError."""
    path = data_dir / FILE
    atomic_write(path, msgspec.json.format(msgspec.json.encode(listing), indent=1))
    return path


def respondents_of(data_dir: Path) -> dict[str, Respondent]:
    """Return the respondents of the built-in table, and those that the list in a data folder adds.

    Raises:
        VerificationError: the list is damaged.
    """
    path = data_dir / FILE
    try:
        listing = msgspec.json.decode(path.read_bytes(), type=CatalogListing)
    except FileNotFoundError:
        return RESPONDENTS
    except (OSError, ValueError) as error:
        raise VerificationError(f"can't read {path}: {error}; run `coordinator catalog` again, or remove it") from error
    added = {entry.code: Respondent(entry.name, entry.kind) for entry in listing.entries if entry.code in listing.new}
    return {**RESPONDENTS, **added}


def _routes(names: tuple[str, ...]) -> str:
    """Return routes as words; where each hourly one has its daily twin, `BOTH` stands for the twins."""
    hourly = [name for name in names if not is_daily(name)]
    daily = [name for name in names if is_daily(name)]
    twins = {f"daily-{name}" for name in hourly} == set(daily)
    words = [name.removesuffix("-data") for name in (hourly if twins else names)]
    return " ".join([*words, BOTH] if twins and daily else words)


def describe(listing: CatalogListing) -> str:
    """Return the list as a table, and a line about its origin."""
    head = ("code", "kind", "zone", "first hour", "last hour", "routes", "name")
    rows = [
        (
            entry.code,
            "authority" if entry.kind == BALANCING_AUTHORITY else entry.kind,
            entry.zone or "unknown",
            entry.first or "…",
            entry.last or "…",
            _routes(entry.routes),
            entry.name,
        )
        for entry in listing.entries
    ]
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    ]
    where = f"{len(rows)} respondents, from the {listing.origin}; `coordinator catalog --source eia` asks EIA, also for the hours"
    if listing.as_of:
        where = f"{len(rows)} respondents at {listing.as_of} UTC, from {listing.origin}"
    lines.append(where)
    lines.append(f"{BOTH}: the daily routes of the same names too")
    if listing.new:
        lines.append(f"not in the built-in table: {', '.join(listing.new)}")
    if listing.gone:
        lines.append(f"in the built-in table only: {', '.join(listing.gone)}")
    return "\n".join(map(printable, lines))
