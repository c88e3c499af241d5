"""`coordinator report`: facts are collected from a data folder, a page is written, and what was found is told."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from coordinator.report.collect import control as collect_control
from coordinator.report.collect import data as collect_data
from coordinator.report.collect import ring as collect_ring
from coordinator.report.collect import training as collect_runs
from coordinator.report.model import Absent, Facts
from coordinator.report.render.html import TITLES
from coordinator.report.render.page import page
from ingest.errors import UsageError, VerificationError
from ingest.files import atomic_write

T = TypeVar("T")
Progress = Callable[[int, int], None]  # sections begun, sections in all
FIELDS = {name: "hours" if name == "coverage" else name for name in TITLES}  # section → field of Facts


def collect(data_dir: Path, progress: Progress = lambda done, total: None) -> Facts:
    """Everything that the runs left. What can't be read is absent, with its reason; nothing is guessed."""
    begun = itertools.count()

    def readable(read: Callable[[Path], T | Absent], command: str) -> T | Absent:
        """`command`: what mends a file that can't be read."""
        progress(next(begun), len(TITLES))
        try:
            return read(data_dir)
        except VerificationError as error:
            return Absent(str(error), command)

    verify, train, rollouts = (
        f"coordinator {words} --data {data_dir}" for words in ("verify", "start --train", "start --rollouts")
    )
    training = readable(collect_runs.training, train)
    control = readable(collect_control.control, rollouts)
    return Facts(
        data=data_dir.resolve().name,
        hours=readable(collect_data.hours, verify),
        extraction=readable(collect_data.extraction, verify),
        training=training,
        forecasts=readable(collect_runs.forecasts, train),
        control=control,
        ring=readable(lambda _: collect_ring.ring(), "python -m ringattn.planner"),
        provenance=readable(lambda folder: collect_data.provenance(folder, training, control), verify),
    )


def report(data_dir: Path, out: Path, progress: Progress = lambda done, total: None) -> dict[str, Any]:
    """Write the page to `out`; what it shows, by section. UsageError where there is no data folder; StorageError."""
    if not data_dir.is_dir():
        raise UsageError(
            f"{data_dir} is no folder: nothing was run there. `coordinator start --extract --data {data_dir}` makes one, "
            "or name another with --data."
        )
    content = page(facts := collect(data_dir, progress)).encode()
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
