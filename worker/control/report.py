"""Text report of a control training: share of the optimal saving (PoP) by region with its gaps, and key figures of the grid.

`coordinator report` shows the same result with pictures: PoP by region, the learning curve, and a week's dispatch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingest.catalog import distinct
from ingest.files import atomic_write
from rl.env.dataset import Dataset
from rl.env.grid import Grid
from rl.env.region import WEEK
from rl.evaluation.kpis import LABELS as LABELS_OF_KPIS
from rl.evaluation.kpis import kpis
from rl.evaluation.score import Gaps, gaps, rollout
from rl.planning.baselines import idle as do_nothing
from rl.policy import Mlp

REPORT = "report.md"
SHOWN = ("hour rule", "mpc", "clone", "policy", "mpc perfect")
LABELS = {"mpc": "MPC on the same forecast", "mpc perfect": "MPC, all known", "clone": "clone", "policy": "policy"}


@dataclass(frozen=True)
class EvaluationResult:
    """Result of a training on the test year.

    Attributes:
        grid: The simulated grid.
        table: Dataset of the test year.
        starts: First row of each evaluated week, [week].
        policy: The best policy.
        costs: By name of a policy, [week], $ per MW of reference peak.
        nothing: Costs without control, [week].
        optimum: Costs of the perfect-foresight optimum, [week].
        history: Version and its PoP on the validation year.
        best: Version of `policy`.
        about: The `DatasetResult` as plain data.
        algorithm: Name of the algorithm.
        settings: The `ControlConfig` as plain data.
    """

    grid: Grid
    table: Dataset
    starts: NDArray[np.int64]
    policy: Mlp
    costs: Mapping[str, NDArray[np.float64]]
    nothing: NDArray[np.float64]
    optimum: NDArray[np.float64]
    history: Sequence[tuple[int, float]]
    best: int
    about: Mapping[str, Any]
    algorithm: str
    settings: Mapping[str, Any]

    def weeks_of(self, region: int) -> NDArray[np.int64]:
        """Return the indices into `starts` of the weeks of a region, given by its number; [week]."""
        first, last = self.table.spans[region]
        return np.flatnonzero((self.starts >= first) & (self.starts < last))

    def pop(self, name: str, region: int) -> float:
        """Return the PoP of a policy in a region, given by its number; NaN where nothing can be saved."""
        own = self.weeks_of(region)
        saving = float((self.nothing[own] - self.optimum[own]).sum())
        return float((self.nothing[own] - self.costs[name][own]).sum()) / saving if saving > 0 else float("nan")


def write(found: EvaluationResult, folder: Path) -> dict[str, dict[str, float]]:
    """Write `report.md` to a folder.

    Returns:
        PoP by region and policy.
    """
    regions = found.table.regions
    names = [name for name in SHOWN if name in found.costs]
    pops = {r: {name: found.pop(name, i) for name in names} for i, r in enumerate(regions)}
    members = {
        r: [found.pop(name, i) for name in found.costs if name.startswith("member")] for i, r in enumerate(regions)
    }
    numbers = [_numbers(found, i) for i in range(len(regions))]
    atomic_write(folder / REPORT, _text(found, pops, members, numbers).encode())
    return {r: row | {f"member {i}": pop for i, pop in enumerate(members[r])} for r, row in pops.items()}


def _text(
    found: EvaluationResult,
    pops: Mapping[str, Mapping[str, float]],
    members: Mapping[str, Sequence[float]],
    numbers: Sequence[str],
) -> str:
    about = found.about
    counted = [name in distinct(pops) for name in pops]  # TEX is ERCO: a mean counts it once
    lines = [
        "# Grid control: report",
        "",
        f"Series: {', '.join(about['origins'])}. Forecast: {about['known']}. Net load is demand less wind and solar in "
        f"{', '.join(about['renewable']) or 'no region'}, demand alone elsewhere. Test year: the last one on disk, used for "
        f"no choice; one week in {found.settings['every']}, {len(found.starts)} weeks. PoP: share of the saving of the "
        f"perfect-foresight optimum. Policy: version {found.best} of {found.history[-1][0]} (`{found.algorithm}`), the best "
        "of the validation year.",
        "",
        "| PoP | " + " | ".join(pops) + " | mean |",
        "|---" * (len(pops) + 2) + "|",
    ]
    for name in next(iter(pops.values())):
        values = [row[name] for row in pops.values()]
        cells = " | ".join(f"{value:.3f}" for value in values)
        lines.append(f"| {LABELS.get(name, name)} | {cells} | {float(np.nanmean(np.compress(counted, values))):.3f} |")
    alone = list(members.values())
    if alone[0]:
        cells = " | ".join(f"{np.mean(each):.3f} ± {np.std(each):.3f}" for each in alone)
        mean = np.mean(np.compress(counted, alone, axis=0), axis=0)
        lines.append(f"| its {len(mean)} members, each alone | {cells} | {mean.mean():.3f} ± {mean.std():.3f} |")
    split = _gaps(pops)
    for name in ("horizon", "forecast", "policy") if split else ():
        parts = [getattr(one, name) for one in split]
        cells = " | ".join(f"{value:.3f}" for value in parts)
        lines.append(f"| *gap: {name}* | {cells} | {float(np.nanmean(np.compress(counted, parts))):.3f} |")
    for name, text in zip(pops, numbers, strict=True):
        lines += ["", f"## {name}", "", text]
    return "\n".join([*lines, ""])


def _gaps(pops: Mapping[str, Mapping[str, float]]) -> list[Gaps]:
    """Return the gaps by region; none where the baselines that they are measured by were not evaluated."""
    if not all({"mpc", "mpc perfect"} <= set(row) for row in pops.values()):
        return []
    return [gaps(row["mpc perfect"], row["mpc"], row["policy"]) for row in pops.values()]


def _numbers(found: EvaluationResult, region: int) -> str:
    """Return a table of `rl.evaluation.kpis` of a region, without control and with the policy."""
    starts, peak = found.starts[found.weeks_of(region)], float(found.about["peaks"][region])
    runs = (rollout(found.grid, found.table, policy, starts, WEEK) for policy in (do_nothing, found.policy))
    before, after = (asdict(kpis(found.grid, run, peak)) for run in runs)
    lines = [f"| {len(starts)} weeks | nothing | policy |", "|---|---|---|"]
    lines += [
        f"| {label} | {before[key] * unit:,.4g} | {after[key] * unit:,.4g} |"
        for key, (label, unit) in LABELS_OF_KPIS.items()
    ]
    return "\n".join(lines)
