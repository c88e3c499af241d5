"""Licence and citation of hours: those of their source, or of what stands in for it."""

from collections.abc import Iterable
from dataclasses import dataclass

from ingest.sources import get_source

# Hours of an emulator are not the source's: origin → licence and citation.
STAND_INS = {
    "synthetic": (
        "none needed: invented hours of a simulated grid",
        "synthetic hours of the emulator of Ring Attention Energy; no measured hour",
    ),
    "recordings": (
        "that of the recordings, which whoever serves them knows",
        "recorded files, served by the emulator of Ring Attention Energy: cite where they are from",
    ),
}


@dataclass(frozen=True, order=True)
class Terms:
    """How hours of a source may be used, and how to cite them."""

    source: str
    licence: str
    citation: str


def terms_of(source: str, origin: str) -> Terms:
    """Return the terms of hours from a source; `origin` is "synthetic", "recordings" or the server's host name."""
    if origin in STAND_INS:
        return Terms(source, *STAND_INS[origin])
    reader = get_source(source)
    return Terms(source, reader.licence, reader.citation)


def all_terms(sources: Iterable[tuple[str, str]]) -> tuple[Terms, ...]:
    """Return the terms of pairs of source and origin, each once, sorted."""
    return tuple(sorted({terms_of(source, origin) for source, origin in sources}))
