"""Whether a data folder is one that this version reads: asked before a command opens it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from ingest.errors import UsageError


def _formats(data_dir: Path) -> Iterator[int | None]:
    """Yield the format of one manifest of each folder below `manifests`; None where it is unreadable."""
    for folder in (data_dir / "manifests", *(data_dir / "manifests").rglob("*/")):
        if (path := min(folder.glob("*.json"), default=None)) is not None:
            try:
                yield json.loads(path.read_bytes()).get("format", 1)  # the first format did not name itself
            except (OSError, ValueError, AttributeError):
                yield None


def check_folder(data_dir: Path) -> None:
    """UsageError where a file stands in the folder's place, or its manifests are of another version's format."""
    if data_dir.exists() and not data_dir.is_dir():
        raise UsageError(f"{data_dir} is a file, not a data folder: name another with --data.")
    if not (found := list(_formats(data_dir))):
        return
    from ingest.manifest import FORMAT  # here and below, since it takes half a second to load

    if other := [number for number in found if number not in (None, FORMAT)]:
        raise UsageError(
            f"{data_dir} holds manifests of format {other[0]}; this version reads {FORMAT}. `mv {data_dir} {data_dir}.old` and "
            "extract again, or install the version that wrote it."
        )


def check_series(data_dir: Path) -> None:
    """UsageError where a stage that works on series would find none."""
    from ingest.manifest import build_results

    if not any(True for _ in build_results(data_dir)):
        raise UsageError(
            f"{data_dir} has no series to train on. `coordinator start --extract --data {data_dir}` makes them, or name another "
            "with --data."
        )
