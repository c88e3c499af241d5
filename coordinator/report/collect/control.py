"""Read a control training from its folder: result, curves, metrics of its report, and a week per region replayed with its policy."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from coordinator.report.collect.training import curve, metric_lines, read_json
from coordinator.report.model import Absent, Control, Floats, Week
from ingest.errors import VerificationError, quoted
from rl.arrays import load as load_arrays
from rl.env.dataset import Dataset
from rl.env.dataset_file import load
from rl.env.grid import Grid
from rl.env.region import WEEK
from rl.errors import ControlError
from rl.evaluation.score import rollout
from rl.planning.optimum import optimum
from rl.policy import Mlp, from_bytes

CURVES = (
    "losses/cost",
    "charts/episodic_return",
    "charts/mean_cost",
)  # metrics of an algorithm, most informative first


def control(data_dir: Path) -> Control | Absent:
    """Return the training in DATA/control.

    Raises:
        VerificationError: A file is damaged.
    """
    run = data_dir / "control"
    lines, skipped = metric_lines(run / "metrics.jsonl", "version")
    result, about = read_json(run / "result.json"), read_json(run / "tables.json")
    if not lines and not result:
        return Absent("no control policy was trained here", f"coordinator start --rollouts --data {quoted(data_dir)}")
    name = next((one for one in CURVES if any(one in line for line in lines)), "")
    try:
        weeks = _weeks(run, result, about) if result else ()
        history = _history(run)
    except (ControlError, OSError) as error:
        raise VerificationError(f"control: {error}") from error
    report = run / str(result.get("report", "report.md"))
    intro, tables = markdown(report.read_text("utf-8") if report.exists() else "")
    return Control(
        result=result,
        pops=result.get("test_pop", {}),
        history=history,
        curve=(name, *curve(lines, "version", name)),
        weeks=weeks,
        intro=intro,
        tables=tables,
        known=str(about.get("known", "")),
        verified=(run / "proved.json").exists(),
        skipped=skipped,
    )


def _history(run: Path) -> tuple[Floats, Floats]:
    """Return the versions evaluated on the validation year, from the learner's newest state."""
    if not (run / "state.pack").exists():
        return np.array([]), np.array([])
    meta, _ = load_arrays(run / "state.pack")
    return curve(meta.get("history", []), "version", "pop")


def _weeks(run: Path, result: Mapping[str, Any], about: Mapping[str, Any]) -> tuple[Week, ...]:
    """Return the week with the highest load of each region's test year; no week if the dataset is gone (the next run rebuilds it)."""
    sha256 = str(about.get("tables", {}).get("test", ""))
    if not (run / "tables" / f"{sha256}.table").exists():
        return ()
    table = load(run, sha256)
    path = run / str(result["policy"])
    policy = from_bytes(path.read_bytes(), str(path))
    return tuple(
        _week(table, policy, region, float(about["peaks"][region]), start)
        for region in range(len(table.regions))
        if (start := highest(table, region)) is not None
    )


def highest(table: Dataset, region: int) -> int | None:
    """Return the first row of the week with the region's highest load.

    Weeks are counted from the region's first local midnight; only weeks without a missing hour are considered.
    """
    first, last = table.spans[region]
    midnight = first + int(np.argmax(table.clock[first:last] == 0))
    weeks = np.arange(midnight, last - WEEK + 1, WEEK)
    whole = weeks[np.isin(weeks, table.starts(WEEK))]
    return max(map(int, whole), key=lambda row: (float(table.load[row : row + WEEK].max()), -row), default=None)


def _week(table: Dataset, policy: Mlp, region: int, peak: float, start: int) -> Week:
    grid = Grid()
    trace = rollout(grid, table, policy, np.array([start]), WEEK)
    load = trace.load[:, 0]
    best = optimum(grid, load, float(trace.previous_load[0]))
    number = (start - table.spans[region][0]) // WEEK + 1
    stores = {store.name: power * peak for store, power in zip(grid.stores, trace.power[:, :, 0].T, strict=True)}
    return Week(
        region=table.regions[region],
        start=f"week {number} of the test year",
        load=load * peak,
        policy=trace.residual[:, 0] * peak,
        optimum=(load - best.power.sum(axis=0) - best.shed) * peak,
        stores=stores | {"shed": trace.shed[:, 0] * peak},
    )


def markdown(text: str) -> tuple[str, dict[str, tuple[tuple[str, ...], ...]]]:
    """Return the first paragraph of a report in Markdown, and the tables below its second-level headings."""
    blocks = [block.strip() for block in re.split(r"\n\s*\n", text)]
    intro = next((block for block in blocks if block and block[0] not in "#|!"), "")
    tables: dict[str, tuple[tuple[str, ...], ...]] = {}
    heading = ""
    for block in blocks:
        if block.startswith("## "):
            heading = block.removeprefix("## ").strip()
        elif block.startswith("|") and heading:
            tables[heading] = _rows(block.splitlines())
    return intro, tables


def _rows(lines: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Return the cells of a Markdown table, without the line below its header."""
    cells = [tuple(cell.strip() for cell in line.strip().strip("|").split("|")) for line in lines]
    return tuple(row for row in cells if not all(set(cell) <= set("-: ") for cell in row))
