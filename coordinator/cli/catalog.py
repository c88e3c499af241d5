"""`coordinator catalog`: the respondents, from an EIA API where `--source` is one, else from the built-in table."""

import os
from collections.abc import Callable
from math import isinf
from pathlib import Path

from coordinator.stages.extract.source import parse_source
from coordinator.stages.extract.stage import check_key
from ingest.catalog_listing import CatalogListing, built_in, save
from ingest.sources.eia_facets import FacetClient
from ingest.zones import ZONES


def listing_of(data_dir: Path, source: str, rate: float | None, progress: Callable[[int, int], None]) -> CatalogListing:
    """Return the respondents; those of an API are written to the data folder.

    Args:
        data_dir: the data folder.
        source: as `--source`.
        rate: requests a second; None: the source's policy.
        progress: called with the number of answers so far, and 0: their number is not known before.

    Raises:
        AuthenticationError: the API needs a key, and none that could be one is set, or it rejects the key.
        SourceError: the API gives no usable answer.
    """
    choice = parse_source(source)
    table = built_in(ZONES)
    if choice.kind != "eia" or choice.base_url is None:
        return table
    key = os.environ.get("EIA_API_KEY", "").strip()
    if choice.needs_key:
        check_key(key)
    limit = rate or (choice.rate_limit.rate if choice.rate_limit else 0.0)
    pause_s = 0.0 if not limit or isinf(limit) else 1 / limit
    found = FacetClient(choice.base_url, key, pause_s, lambda answers: progress(answers, 0)).listing(table)
    save(data_dir, found)
    return found
