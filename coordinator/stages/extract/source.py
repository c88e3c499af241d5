"""Parse `--source`: which source of `ingest.sources`, at which address, under which rate limit, and whether an emulator is started."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from ingest.errors import UsageError
from ingest.sources import SOURCES, get_source
from ingest.sources.base import RateLimit


@dataclass(frozen=True)
class SourceChoice:
    """A parsed `--source`."""

    name: str  # as given
    kind: str  # a name in ingest.sources.SOURCES: the source that reads it
    base_url: str | None  # None: the bundled emulator is started and gives it
    world: str | None = None  # the emulator's world: "synthetic" | "recordings"
    recordings: tuple[str, ...] = ()
    rate_limit: RateLimit | None = None  # None: the source states no limit
    needs_key: bool = False

    @property
    def public(self) -> bool:
        """Whether this is the source's public API, whose first hour is known."""
        return self.base_url == get_source(self.kind).url

    @property
    def origin(self) -> str:
        """The origin of every hour: the bundled emulator's world, or the host of a public API that does not redirect; else ""."""
        return self.world or (urlsplit(self.base_url or "").hostname or "" if self.public and self.needs_key else "")


def parse_source(text: str) -> SourceChoice:
    """Parse `synthetic`, `recordings:PATH[,PATH…]`, a name in `ingest.sources.SOURCES` (near matches are named), or `[NAME+]URL`.

    A URL that is not the source's public API has no rate limit unless `--rate` gives one.

    Returns:
        The choice.

    Raises:
        UsageError: the text has another form.
    """
    if text == "synthetic":
        return SourceChoice(text, "eia", None, world="synthetic")
    if text.startswith("recordings:"):
        paths = tuple(path for path in text.removeprefix("recordings:").split(",") if path)
        if not paths:
            raise UsageError("--source recordings: names no file. Give a folder or files: recordings:PATH[,PATH…].")
        if absent := [path for path in paths if not Path(path).exists()]:
            raise UsageError(f"--source recordings: no such file or folder: {', '.join(absent)}. Check the path.")
        return SourceChoice(text, "eia", None, world="recordings", recordings=paths)
    if text in SOURCES:
        source = get_source(text)
        return SourceChoice(text, text, source.url, rate_limit=source.rate_limit, needs_key=source.uses_key)
    if text == "auto" or text.startswith("auto+"):
        raise UsageError(
            f"--source {text} belongs to `coordinator start --extract`, which divides the hours between eia and bulk. Name one "
            "of them here."
        )
    kind, plus, url = text.partition("+")
    if not plus:
        kind, url = "eia", text
    address = urlsplit(url)
    if kind in SOURCES and address.scheme in ("http", "https") and address.hostname:
        return SourceChoice(text, kind, url.rstrip("/"))
    raise UsageError(
        f"--source {text!r} is unknown. Use synthetic, recordings:PATH, auto, {', '.join(SOURCES)}, or a URL such as "
        f"http://127.0.0.1:8000 ({', '.join(f'{name}+URL' for name in SOURCES)} name the API it speaks)."
    )
