"""`coordinator report`: collect facts from a data folder, write the page, and describe the result."""

import hashlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from coordinator.report.collect import backtests, control, data, grid, training
from coordinator.report.model import Absent, Facts
from coordinator.report.render.page import TITLES, page
from coordinator.server.folder_lock import running_command
from ingest.console import printable
from ingest.data_folder import check_there
from ingest.errors import StorageError, VerificationError, quoted
from ingest.files import atomic_write

T = TypeVar("T")
Progress = Callable[[int, int], None]  # sections begun, sections in all


def collect(data_dir: Path, progress: Progress = lambda done, total: None) -> Facts:
    """Return everything that the runs left in a data folder. An unreadable part is absent, with the reason; nothing is guessed."""
    begun = itertools.count()

    def readable(read: Callable[[Path], T | Absent], command: str) -> T | Absent:
        """Return a part, or the reason why it can't be read and the `command` that repairs it."""
        progress(next(begun), len(TITLES))
        try:
            return read(data_dir)
        except VerificationError as error:
            return Absent(str(error), command, damaged=True)

    verify, fetch, train, rollouts, backtest = (
        f"coordinator {words} --data {quoted(data_dir)}"
        for words in (
            "verify",
            "start --extract",
            "start --train",
            "start --rollouts",
            "backtest --from YYYY-MM --to YYYY-MM",
        )
    )
    found = readable(grid.regions, verify)
    trained = readable(training.training, train)
    controlled = readable(control.control, rollouts)
    return Facts(
        data=data_dir.resolve().name,
        running=running_command(data_dir),
        demand=found,
        duration=grid.having(found, "30 days of demand in a year", "duration", fetch),
        mix=grid.having(found, "generation by fuel", "mix", fetch),
        operators=grid.having(found, "an operator's day-ahead demand forecast (DF)", "error", fetch),
        interchange=grid.having(found, "total interchange (TI)", "exports", fetch),
        coverage=readable(data.hours, verify),
        extraction=readable(data.extraction, verify),
        training=trained,
        forecasts=readable(training.forecasts, train),
        backtests=readable(backtests.backtests, backtest),
        control=controlled,
        provenance=readable(lambda folder: data.provenance(folder, trained, controlled), verify),
    )


def report(data_dir: Path, out: Path, progress: Progress = lambda done, total: None) -> dict[str, Any]:
    """Write the HTML report of a data folder.

    Args:
        data_dir: A data folder.
        out: File to write.
        progress: Called with the number of sections begun and of all sections.

    Returns:
        Path, size and checksum of the page, by section whether it has content, and what is wrong with files that can't be read.

    Raises:
        UsageError: There is no data folder.
        StorageError: The file cannot be written.
    """
    check_there(data_dir)
    facts = collect(data_dir, progress)
    content = page(facts).encode()
    try:
        atomic_write(out, content)
    except StorageError as error:
        raise StorageError(f"{str(error).partition(';')[0]}; name another file with --out") from error
    return {
        "report": str(out),
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "sections": {name: _presence(getattr(facts, name)) for name in TITLES},
        "damaged": sorted({one.reason for name in TITLES if _is_damaged(one := getattr(facts, name))}),
    }


def _is_damaged(found: object) -> bool:
    return isinstance(found, Absent) and found.damaged


def _presence(found: object) -> dict[str, Any]:
    if isinstance(found, Absent):
        return {"there": False, "why": found.reason, "command": found.command}
    return {"there": True}


def describe(made: dict[str, Any]) -> str:
    """Return the result of `report` as text."""
    lines = [made["report"]]
    for name, one in made["sections"].items():
        state = "present" if one["there"] else f"absent: {one['why']}; `{one['command']}`"
        lines.append(f"  {TITLES[name].lower():<28}{state}")
    return "\n".join(map(printable, lines))
