"""What `--source` means: which API, at which address, under which request budget, and whether an emulator is to be started."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from ingest.errors import UsageError

EIA_URL = "https://api.eia.gov"
BULK_URL = "https://www.eia.gov"
OASIS_URL = "http://oasis.caiso.com"


@dataclass(frozen=True)
class Ceiling:
    """A source's policy: sustained requests per second and how many may go at once. Sources: EIA's FAQ, CAISO's 429 notice."""

    rate: float
    burst: int


# EIA: under 9,000 requests an hour sustained and 5 a second in a burst; OASIS: one request every 5 seconds.
EIA_POLICY = Ceiling(9000 / 3600, 5)
OASIS_POLICY = Ceiling(1 / 5, 1)
KINDS = ("eia", "bulk", "oasis")


@dataclass(frozen=True)
class SourceChoice:
    """A parsed `--source`."""

    name: str  # as given
    kind: str  # "eia" | "bulk" | "oasis": which of ingest.sources reads it
    base_url: str | None  # None: the bundled emulator is started and gives it
    world: str | None = None  # the emulator's world: "synthetic" | "recordings"
    recordings: tuple[str, ...] = ()
    ceiling: Ceiling | None = None  # None: the source has no stated limit
    needs_key: bool = False


def parse_source(text: str) -> SourceChoice:
    """`synthetic`, `recordings:PATH[,PATH…]`, `eia`, `bulk`, `oasis`, or `[eia+|bulk+|oasis+]URL` → SourceChoice.

    Any other URL than the APIs' own is taken as it is: no ceiling unless `--rate` gives one. UsageError otherwise.
    """
    if text == "synthetic":
        return SourceChoice(text, "eia", None, world="synthetic")
    if text.startswith("recordings:"):
        paths = tuple(path for path in text.removeprefix("recordings:").split(",") if path)
        if not paths:
            raise UsageError("--source recordings: names no file. Give a folder or files: recordings:PATH[,PATH…].")
        return SourceChoice(text, "eia", None, world="recordings", recordings=paths)
    if text == "eia":
        return SourceChoice(text, "eia", EIA_URL, ceiling=EIA_POLICY, needs_key=True)
    if text == "bulk":
        return SourceChoice(text, "bulk", BULK_URL)
    if text == "oasis":
        return SourceChoice(text, "oasis", OASIS_URL, ceiling=OASIS_POLICY)
    kind, plus, url = text.partition("+")
    if not plus:
        kind, url = "eia", text
    address = urlsplit(url)
    if kind in KINDS and address.scheme in ("http", "https") and address.hostname:
        return SourceChoice(text, kind, url.rstrip("/"))
    raise UsageError(
        f"--source {text!r} is unknown. Use synthetic, recordings:PATH, eia, bulk, oasis, or a URL such as "
        "http://127.0.0.1:8000 (eia+URL, bulk+URL and oasis+URL name the API it speaks)."
    )
