"""Registry of sources. A new source is one module with a `Source` class, and one line in `SOURCES`."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from ingest.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from ingest.sources.base import Source

SOURCES = {  # name in `--source` and in a shard's key → class; its module is loaded when the source is first used
    "eia": "ingest.sources.eia.Eia",
    "bulk": "ingest.sources.bulk.Bulk",
    "oasis": "ingest.sources.oasis.Oasis",
}


@cache
def get_source(name: str) -> Source:
    """Return the source called `name`; one object serves all threads.

    Raises:
        UsageError: there is no such source; near matches are named.
    """
    if name not in SOURCES:
        raise UsageError(f"unknown source {name!r}{did_you_mean([name], SOURCES)}; known: {', '.join(SOURCES)}")
    module, _, kind = SOURCES[name].rpartition(".")
    source: Source = getattr(import_module(module), kind)()
    return source
