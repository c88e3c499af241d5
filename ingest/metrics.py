"""Read the metrics of a training, one JSON object a line, in a file that a killed process, a full disk or a user may have damaged.

A line that is no JSON object, or has no number where its key belongs, is skipped by every reader.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ingest.files import atomic_write

_DECODER = json.JSONDecoder(parse_constant=lambda name: None)  # Python writes NaN, which is no JSON: no number


def figures_of(line: bytes) -> dict[str, Any] | None:
    """Return the figures of a line; None: it is no JSON object."""
    try:
        figures = _DECODER.decode(line.decode())
    except (ValueError, RecursionError):
        return None
    return figures if isinstance(figures, dict) else None


def number_of(figures: Mapping[str, Any], key: str) -> float | None:
    """Return a figure that is a finite number; None: it is none, or is missing."""
    value = figures.get(key)
    known = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return float(value) if known and value is not None else None


def read_metrics(path: Path, key: str) -> tuple[list[dict[str, Any]], int]:
    """Return the whole lines that have a number under `key`, and how many others there are; ([], 0) if the file does not exist.

    Raises:
        OSError: The file can't be read.
    """
    try:
        lines = path.read_bytes().split(b"\n")[:-1]  # the last one may be half written
    except FileNotFoundError:
        return [], 0
    lines = [line for line in lines if line.strip()]
    found = [figures for line in lines if (figures := figures_of(line)) and number_of(figures, key) is not None]
    return found, len(lines) - len(found)


def keep_until(path: Path, key: str, last: int) -> None:
    """Remove the lines whose number under `key` is above `last`, because a run repeats them, and lines without one."""
    if not path.exists():
        return
    kept = [
        line
        for line in path.read_bytes().split(b"\n")
        if (figures := figures_of(line)) and (at := number_of(figures, key)) is not None and at <= last
    ]
    atomic_write(path, b"".join(line + b"\n" for line in kept))
