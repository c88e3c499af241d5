"""Check that a data folder's format is supported, before a command opens it."""

import json
from collections.abc import Iterator
from pathlib import Path

from ingest.errors import UsageError, quoted
from ingest.files import visible
from ingest.models import MANIFEST_FORMAT


def _formats(data_dir: Path) -> Iterator[int | None]:
    """Yield the format of one manifest of each folder below `manifests`; None where it is unreadable."""
    for folder in (data_dir / "manifests", *(data_dir / "manifests").rglob("*/")):
        if (path := min(visible(folder.glob("*.json"), folder), default=None)) is not None:
            try:
                yield json.loads(path.read_bytes()).get("format", 1)  # the first format has no such key
            except (OSError, ValueError, AttributeError):
                yield None


def check_folder(data_dir: Path) -> None:
    """Check the path and the format of its manifests.

    Raises:
        UsageError: the path is a file, or its manifests have the format of another version.
    """
    if data_dir.exists() and not data_dir.is_dir():
        raise UsageError(f"{data_dir} is a file, not a data folder: name another with --data.")
    if other := [number for number in _formats(data_dir) if number not in (None, MANIFEST_FORMAT)]:
        raise UsageError(
            f"{data_dir} holds manifests of format {other[0]}; this version reads {MANIFEST_FORMAT}. "
            f"`mv {quoted(data_dir)} {quoted(f'{data_dir}.old')}` and extract again, or install the version that wrote it."
        )


def check_there(data_dir: Path) -> None:
    """Check that there is a data folder.

    Raises:
        UsageError: there is none.
    """
    if not data_dir.is_dir():
        raise UsageError(
            f"there is no folder {data_dir}: nothing was run there. `coordinator start --extract --data {quoted(data_dir)}` creates one; "
            "or name another with --data."
        )


def check_series(data_dir: Path) -> None:
    """Check that there is at least one series.

    Raises:
        UsageError: there is none.
    """
    from ingest.manifest import build_results  # here, because it takes half a second to load

    if not any(True for _ in build_results(data_dir)):
        raise UsageError(
            f"{data_dir} has no series. Run `coordinator start --extract --data {quoted(data_dir)}` to make them, or "
            "name another folder with --data."
        )
