"""`coordinator report`: facts are collected from a data folder, a page is written, and what was found is told."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from coordinator.report import collect_control, collect_data, collect_ring, collect_runs
from coordinator.report.facts import Absent, Facts
from coordinator.report.page import page
from coordinator.report.parts import TITLES
from ingest.errors import ProofError, UsageError
from ingest.store import atomic_write

T = TypeVar("T")
FIELDS = {name: "hours" if name == "coverage" else name for name in TITLES}  # section → field of Facts


def collect(data_dir: Path) -> Facts:
    """Everything that the runs left. What can't be read is absent, with its reason; nothing is guessed."""
    training = _readable(collect_runs.training, data_dir)
    control = _readable(collect_control.control, data_dir)
    return Facts(
        data=data_dir.resolve().name,
        hours=_readable(collect_data.hours, data_dir),
        extraction=_readable(collect_data.extraction, data_dir),
        training=training,
        forecasts=_readable(collect_runs.forecasts, data_dir),
        control=control,
        ring=_readable(lambda _: collect_ring.ring(), data_dir),
        provenance=_readable(lambda folder: collect_data.provenance(folder, training, control), data_dir),
    )


def _readable(read: Callable[[Path], T | Absent], data_dir: Path) -> T | Absent:
    try:
        return read(data_dir)
    except ProofError as error:
        return Absent(str(error), f"coordinator verify --data {data_dir}")


def report(data_dir: Path, out: Path) -> dict[str, Any]:
    """Write the page to `out`; what it shows, by section. UsageError where there is no data folder; StorageError."""
    if not data_dir.is_dir():
        raise UsageError(
            f"{data_dir} is no folder: nothing was run there. `coordinator start --extract --data {data_dir}` makes one, "
            "or name another with --data."
        )
    facts = collect(data_dir)
    content = page(facts).encode()
    out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(out, content)
    return {
        "report": str(out),
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "sections": {name: _told(getattr(facts, FIELDS[name])) for name in TITLES},
    }


def _told(found: object) -> dict[str, Any]:
    if isinstance(found, Absent):
        return {"there": False, "why": found.why, "command": found.command}
    return {"there": True}


def describe(made: dict[str, Any]) -> str:
    """What `report` gave, as text."""
    lines = [made["report"]]
    for name, one in made["sections"].items():
        said = "there" if one["there"] else f"not there: {one['why']}; `{one['command']}`"
        lines.append(f"  {TITLES[name].lower():<12}{said}")
    return "\n".join(lines)
