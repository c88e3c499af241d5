"""The report of a control training: PoP by region with its gaps, a week's dispatch, the learning curve, numbers for users of a grid."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingest.files import atomic_write
from rl.env.dataset import Dataset
from rl.env.grid import Grid
from rl.env.region import WEEK
from rl.evaluation.kpis import LABELS as LABELS_OF_KPIS
from rl.evaluation.kpis import kpis
from rl.evaluation.score import Gaps, Trajectory, gaps, rollout
from rl.planning.baselines import idle as do_nothing
from rl.planning.optimum import optimum
from rl.policy import Mlp

REPORT = "report.md"
SHOWN = ("hour rule", "mpc", "clone", "policy", "mpc perfect")
GAPS = (("policy", "tab:orange"), ("forecast", "tab:red"), ("horizon", "tab:gray"))
LABELS = {"mpc": "MPC on the same forecast", "mpc perfect": "MPC, all known", "clone": "clone", "policy": "policy"}


@dataclass(frozen=True)
class EvaluationResult:
    """What a training found out in the test year."""

    grid: Grid
    table: Dataset
    starts: NDArray[np.int64]  # [week] first row
    policy: Mlp
    costs: Mapping[str, NDArray[np.float64]]  # policy → [week] $ per MW of reference peak
    nothing: NDArray[np.float64]  # [week]
    optimum: NDArray[np.float64]  # [week]
    history: Sequence[tuple[int, float]]  # version, PoP on the validation year
    best: int  # version
    about: Mapping[str, Any]  # what was proved of the tables
    algorithm: str
    settings: Mapping[str, Any]

    def weeks_of(self, region: int) -> NDArray[np.int64]:
        """Which of the weeks judged are in a region, by number: indices into `starts`, [week]."""
        first, last = self.table.spans[region]
        return np.flatnonzero((self.starts >= first) & (self.starts < last))

    def pop(self, name: str, region: int) -> float:
        """PoP of a policy in a region; NaN where nothing can be saved."""
        own = self.weeks_of(region)
        saving = float((self.nothing[own] - self.optimum[own]).sum())
        return float((self.nothing[own] - self.costs[name][own]).sum()) / saving if saving > 0 else float("nan")


def write(found: EvaluationResult, folder: Path) -> dict[str, dict[str, float]]:
    """Report and pictures; PoP by region and policy."""
    regions = found.table.regions
    names = [name for name in SHOWN if name in found.costs]
    pops = {r: {name: found.pop(name, i) for name in names} for i, r in enumerate(regions)}
    members = {
        r: [found.pop(name, i) for name in found.costs if name.startswith("member")] for i, r in enumerate(regions)
    }
    pictures = {"pop.png": _bars(found, pops), "learning.png": _curve(found)}
    numbers = []
    for i, name in enumerate(regions):
        trace, idle = (rollout(found.grid, found.table, p, _starts(found, i), WEEK) for p in (found.policy, do_nothing))
        pictures[f"week-{name}.png"] = _week(found, i, trace)
        numbers.append(_numbers(found, i, idle, trace))
    for name, content in pictures.items():
        atomic_write(folder / name, content)
    atomic_write(folder / REPORT, _text(found, pops, members, numbers).encode())
    return {r: row | {f"member {i}": pop for i, pop in enumerate(members[r])} for r, row in pops.items()}


def _starts(found: EvaluationResult, region: int) -> NDArray[np.int64]:
    return found.starts[found.weeks_of(region)]


def _text(
    found: EvaluationResult,
    pops: Mapping[str, Mapping[str, float]],
    members: Mapping[str, Sequence[float]],
    numbers: Sequence[str],
) -> str:
    about = found.about
    lines = [
        "# Grid control: report",
        "",
        f"Series: {', '.join(about['origins'])}. Known ahead: {about['known']}. Net load is demand less wind and solar in {', '.join(about['renewable']) or 'no region'}, "
        "demand alone elsewhere. Test year: the last one on disk, which nothing was chosen on; one week in "
        f"{found.settings['every']}, {len(found.starts)} weeks. PoP: share of the saving of the perfect-foresight optimum. "
        f"Policy: version {found.best} of {found.history[-1][0]} (`{found.algorithm}`), the best of the validation year.",
        "",
        "| PoP | " + " | ".join(pops) + " | mean |",
        "|---" * (len(pops) + 2) + "|",
    ]
    for name in next(iter(pops.values())):
        values = [row[name] for row in pops.values()]
        cells = " | ".join(f"{value:.3f}" for value in values)
        lines.append(f"| {LABELS.get(name, name)} | {cells} | {float(np.nanmean(values)):.3f} |")
    alone = list(members.values())
    if alone[0]:
        cells = " | ".join(f"{np.mean(each):.3f} ± {np.std(each):.3f}" for each in alone)
        mean = np.mean(alone, axis=0)
        lines.append(f"| its {len(mean)} members, each alone | {cells} | {mean.mean():.3f} ± {mean.std():.3f} |")
    split = _gaps(pops)
    for name in ("horizon", "forecast", "policy") if split else ():
        parts = [getattr(one, name) for one in split]
        cells = " | ".join(f"{value:.3f}" for value in parts)
        lines.append(f"| *gap: {name}* | {cells} | {float(np.nanmean(parts)):.3f} |")
    lines += ["", "![PoP](pop.png)", "", "![Learning](learning.png)", ""]
    for name, text in zip(pops, numbers, strict=True):
        lines += [f"## {name}", "", text, "", f"![A week](week-{name}.png)", ""]
    return "\n".join(lines)


def _gaps(pops: Mapping[str, Mapping[str, float]]) -> list[Gaps]:
    """By region; none where the plans that they are measured by were not asked for."""
    if not all({"mpc", "mpc perfect"} <= set(row) for row in pops.values()):
        return []
    return [gaps(row["mpc perfect"], row["mpc"], row["policy"]) for row in pops.values()]


def _numbers(found: EvaluationResult, region: int, idle: Trajectory, trace: Trajectory) -> str:
    """Some of `rl.evaluation.kpis`, without control and with the policy."""
    peak = float(found.about["peaks"][region])
    before, after = (asdict(kpis(found.grid, one, peak)) for one in (idle, trace))
    lines = [f"| {len(trace.starts)} weeks | nothing | policy |", "|---|---|---|"]
    lines += [
        f"| {label} | {before[key] * unit:,.4g} | {after[key] * unit:,.4g} |"
        for key, (label, unit) in LABELS_OF_KPIS.items()
    ]
    return "\n".join(lines)


# -- pictures -------------------------------------------------------------------------------------------------------------


def _bars(found: EvaluationResult, pops: Mapping[str, Mapping[str, float]]) -> bytes:
    """PoP of the policy, stacked with the gaps that are left to 1, a bar a region; the baselines as marks."""
    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
    x = np.arange(len(pops))
    parts = _gaps(pops)
    bottom = np.array([row["policy"] for row in pops.values()])
    axis.bar(x, bottom, 0.55, color="tab:blue", label="policy")
    for name, color in GAPS if parts else ():
        # Where the policy does better than planning on its forecast, so much of the forecast's gap is closed.
        closed = [min(0.0, part.policy) if name == "forecast" else 0.0 for part in parts]
        height = np.array([max(0.0, getattr(part, name) + less) for part, less in zip(parts, closed, strict=True)])
        axis.bar(x, height, 0.55, bottom=bottom, color=color, alpha=0.6, label=f"gap: {name}")
        bottom = bottom + height
    for name, mark in (("hour rule", "v"), ("mpc", "s"), ("clone", "o")):
        values = [row.get(name, np.nan) for row in pops.values()]
        axis.plot(x, values, mark, color="black", markerfacecolor="white", label=LABELS.get(name, name))
    axis.set(
        xticks=x,
        xticklabels=list(pops),
        title=_data(found),
        ylabel="PoP, test year",
        ylim=(min(0.0, float(axis.get_ylim()[0])), None),
    )
    axis.grid(alpha=0.3, axis="y")
    figure.legend(loc="outside right center", fontsize=8)
    return _png(plt, figure)


def _curve(found: EvaluationResult) -> bytes:
    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
    versions, pops = zip(*found.history, strict=True)
    axis.plot(versions, pops, "o-", color="tab:blue")
    axis.axvline(found.best, color="tab:green", linestyle="--", label=f"best: version {found.best}")
    axis.set(xlabel="version (0: where it started)", ylabel="PoP, validation year", title=_data(found))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return _png(plt, figure)


def _week(found: EvaluationResult, region: int, trace: Trajectory) -> bytes:
    """The week with the highest load: net load without control, with the policy and in the optimum; what the stores do."""
    plt = _pyplot()
    worst = int(np.argmax(trace.load.max(axis=0)))
    load, peak = trace.load[:, worst], float(found.about["peaks"][region]) / 1e3
    best = optimum(found.grid, load, float(trace.previous_load[worst]))
    hours = np.arange(WEEK)
    figure, (above, below) = plt.subplots(2, 1, figsize=(9, 5), sharex=True, layout="constrained")
    above.plot(hours, load * peak, color="black", linewidth=1, label="net load")
    above.plot(hours, trace.residual[:, worst] * peak, color="tab:blue", label="with the policy")
    optimal = load - best.power.sum(axis=0) - best.shed
    above.plot(hours, optimal * peak, color="tab:orange", linestyle="--", linewidth=1, label="optimum")
    above.set(
        ylabel="GW",
        title=f"{found.table.regions[region]}: the week with the highest load of the test weeks; {_data(found)}",
    )
    for store, power in zip(found.grid.stores, trace.power[:, :, worst].T, strict=True):
        below.step(hours, power * peak, where="post", label=store.name)
    below.step(hours, trace.shed[:, worst] * peak, where="post", label="shed")
    below.set(ylabel="GW into the grid", xlabel="hour of the week, from local midnight")
    for axis in (above, below):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, ncols=4)
    return _png(plt, figure)


def _data(found: EvaluationResult) -> str:
    """Said on every picture: made-up series must never pass for measured ones."""
    return f"series: {', '.join(found.about['origins'])}"


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _png(plt: Any, figure: Any) -> bytes:
    sink = io.BytesIO()
    figure.savefig(sink, dpi=110, format="png")
    plt.close(figure)
    return sink.getvalue()
