"""Evaluate control without learning on recorded regions: `python -m scripts.evaluate.control_baselines --data DIR --out FILE [--regions …]`.

DIR has series with demand and the operators' day-ahead forecast (`coordinator start --extract … --data DIR`). Rules and error
statistics are fitted on hours before 2018. In --year every completely measured week is an episode (one in --every). Each region and
policy gives one JSON line with PoP, cost and the indicators of `rl.evaluation.kpis`. `--docs` rewrites the generated tables of
docs/reference/control.md from the lines: `python -m scripts.evaluate.control_baselines --out FILE --docs`.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ingest.loader import load_series
from rl.env.dataset import Dataset, build_dataset
from rl.env.dataset_file import load as load_dataset
from rl.env.forecasts import Forecast, corrected, day_ahead, oracle, persistence, with_quantiles
from rl.env.grid import Grid
from rl.env.region import WEEK, Region, region
from rl.evaluation.kpis import LABELS, kpis
from rl.evaluation.score import Policy, ReferenceCosts, reference_costs, rollout
from rl.planning.baselines import best_peak_shaving, hour_rule, idle, peak_shaving
from rl.planning.mpc import Mpc
from rl.policy import load as load_policy
from scripts.bench.common import ROOT, append, parser, read_lines, rewrite_section

DOCS = ROOT / "docs" / "reference" / "control.md"
BEGIN, END = "<!-- baselines: begin (scripts/evaluate/control_baselines.py --docs) -->", "<!-- baselines: end -->"
# Hours from UTC to the standard time of the operator's operating days.
OFFSETS = {"PACW": -8, "ERCO": -6, "CAL": -8, "TEX": -6, "MISO": -5, "CISO": -8}
FIRST, TRAINED = "2015-07-02T08", "2018-01-01T00"  # training hours: from, to (exclusive)
HORIZON = 36  # hours
LEVELS, WEIGHTS = (0.1, 0.5, 0.9), (0.3, 0.4, 0.3)
MPC = {
    "mpc yesterday": "yesterday's hours",
    "mpc DF": "the operators' day-ahead forecast",
    "mpc DF corrected": "DF, corrected by its last errors",
    "mpc forecaster": "our forecaster's median, corrected by its last errors",
    "mpc forecaster quantiles": "the same, with quantiles of its errors",
    "mpc perfect": "the truth",
}
POLICIES = ("hour rule", "peak shaving", *MPC, "policy")


def recorded(data: Path, name: str) -> tuple[Region, NDArray[np.float64]]:
    """Load a region's demand (recordings have no generation by fuel) and its day-ahead forecast in reference peaks."""
    series = load_series(data, [name], ["D", "DF"], "2015-07-01T08", "2019-12-31T23")
    values = np.where(series.mask, series.values, np.nan).astype(float)
    one = region(name, series.hours, values[:, 0], offset=OFFSETS[name], reference_end=TRAINED)
    return one, values[:, 1] / one.peak


def forecaster(path: Path, one: Region, issued: NDArray[np.float64]) -> NDArray[np.float64]:
    """Load the medians of `coordinator forecast --table PATH`, in reference peaks, [hour]; `issued`, DF, where they are missing."""
    rows = pd.read_parquet(path, columns=["respondent", "hour", "q0.5"], filters=[("respondent", "==", one.name)])
    median = pd.Series(rows["q0.5"].to_numpy(float), rows["hour"]).reindex(one.hours.astype(np.int64)).to_numpy()
    return np.where(np.isfinite(median), median / one.peak, issued)


def weeks(data: Dataset) -> NDArray[np.int64]:
    """Return the first rows of the completely measured weeks, counted from the first local midnight.

    A week that ended in the afternoon would make every store return to rest in the peak hours.
    """
    every = np.arange(int(np.argmax(data.clock == 0)), len(data.load) - WEEK + 1, WEEK)
    return every[np.isin(every, data.starts(WEEK))]


def policies(
    grid: Grid, one: Region, issued: NDArray[np.float64], ours: NDArray[np.float64] | None, data: Dataset
) -> Iterator[tuple[str, Callable[[], Policy]]]:
    """Yield every policy for the hours of `data`, fitted before `TRAINED`. `ours`: the forecaster's medians."""
    train = build_dataset([one], [None], FIRST, TRAINED)
    yield "nothing", lambda: idle
    yield "hour rule", lambda: hour_rule(grid, train).on(data)
    yield "peak shaving", lambda: peak_shaving(data, *best_peak_shaving(grid, train, weeks(train), WEEK))
    point = day_ahead(one, issued, HORIZON)
    forecasts: dict[str, Callable[[], Forecast]] = {
        "mpc yesterday": lambda: persistence(one, HORIZON),
        "mpc DF": lambda: point,
        "mpc DF corrected": lambda: corrected(one, point, TRAINED),
        "mpc perfect": lambda: oracle(one, HORIZON),
    }
    if ours is not None:
        better = cache(lambda: corrected(one, day_ahead(one, ours, HORIZON), TRAINED))
        forecasts["mpc forecaster"] = better
        forecasts["mpc forecaster quantiles"] = lambda: with_quantiles(one, better(), TRAINED, LEVELS)
    for name, forecast in forecasts.items():

        def plan(forecast: Callable[[], Forecast] = forecast) -> Policy:
            ahead = forecast()
            return Mpc(grid, data.gather([ahead]), WEIGHTS if ahead.shape[2] > 1 else None)

        yield name, plan


def run(args: argparse.Namespace) -> None:
    """Append the lines of every region."""
    grid = Grid()
    for name in args.regions.split(","):
        one, issued = recorded(args.data, name)
        data = build_dataset(
            [one], [None], f"{args.year}-01-01T00", f"{args.year + 1}-01-01T00" if args.year < 2019 else "2019-12-31T23"
        )
        starts = weeks(data)[:: args.every]
        scale = reference_costs(grid, data, starts, WEEK)
        ours = forecaster(args.forecaster, one, issued) if args.forecaster else None
        for policy_name, make in policies(grid, one, issued, ours, data):
            if args.only and policy_name not in args.only.split(","):
                continue
            evaluate(args, grid, data, scale, starts, make(), name=name, policy_name=policy_name, peak=one.peak)


def evaluate(
    args: argparse.Namespace,
    grid: Grid,
    data: Dataset,
    scale: ReferenceCosts,
    starts: NDArray[np.int64],
    policy: Policy,
    *,
    name: str,
    policy_name: str,
    peak: float,
) -> None:
    """Evaluate a policy in the weeks from `starts` on, and append its line."""
    began = time.perf_counter()
    trace = rollout(grid, data, policy, starts, WEEK)
    line = {
        "region": name,
        "year": args.year,
        "policy": policy_name,
        "pop": scale.pop(trace.cost.sum(axis=0)),
        "weeks": len(starts),
        "horizon": HORIZON,
        "saving_optimum": float((scale.idle - scale.optimum).sum() / scale.idle.sum()),
        "seconds": time.perf_counter() - began,
        "kpis": {k: v if isinstance(v, dict) else float(v) for k, v in asdict(kpis(grid, trace, peak)).items()},
    }
    append(line, args.out)
    print(f"{name} {args.year} {policy_name}: PoP {line['pop']:.3f} ({line['seconds']:.0f} s)", flush=True)


def learned(args: argparse.Namespace) -> None:
    """Append the lines of the policy that `coordinator start --rollouts` wrote to --control, in its test year."""
    grid, about = Grid(), json.loads((args.control / "tables.json").read_text())
    data, policy = load_dataset(args.control, about["tables"]["test"]), load_policy(args.control / "policy.npz")
    every = data.starts(WEEK)
    result = json.loads((args.control / "result.json").read_text())
    for name, pops in result["test_pop"].items():
        append({"region": name, "year": args.year, "whole_year": pops, "version": result["version"]}, args.out)
    for name, peak, (first, last) in zip(data.regions, about["peaks"], data.spans, strict=True):
        own = np.arange(first + int(np.argmax(data.clock[first:last] == 0)), last - WEEK + 1, WEEK)
        starts = own[np.isin(own, every)][:: args.every]
        scale = reference_costs(grid, data, starts, WEEK)
        evaluate(args, grid, data, scale, starts, policy, name=name, policy_name="policy", peak=peak)


def docs(lines: list[dict]) -> str:
    """Return the generated tables."""
    latest = {(line["region"], line["year"], line["policy"]): line for line in lines if "policy" in line}
    parts = []
    for year in sorted({key[1] for key in latest}):
        regions = [name for name in OFFSETS if (name, year, "nothing") in latest]
        rows = {
            policy: [latest[r, year, policy]["pop"] if (r, year, policy) in latest else None for r in regions]
            for policy in POLICIES
        }
        text = [f"| {year} | " + " | ".join(regions) + " | mean |", "|---" * (len(regions) + 2) + "|"]
        text += [pop_row(policy, pops) for policy, pops in rows.items()]
        for label, key in (("saving of the optimum, % of cost", "saving_optimum"), ("weeks", "weeks")):
            values = [latest[r, year, "nothing"][key] for r in regions]
            cells = [f"{100 * v:.2f}" if key == "saving_optimum" else str(v) for v in values]
            text.append(f"| *{label}* | " + " | ".join(cells) + " | |")
        parts.append("\n".join(text))
        parts.extend(kpi_table(latest, name, year) for name in regions if name == "ERCO")
    whole = {line["region"]: line["whole_year"] for line in lines if "whole_year" in line}
    if whole:
        parts.insert(1, whole_table(whole))
    ablation = [line for line in lines if "known" in line]
    if ablation:
        parts.insert(2, ablation_table(ablation))
    return "\n\n".join(parts)


def pop_row(label: str, pops: Sequence[float | None]) -> str:
    """Return a row of a table of PoPs, with their mean if none is missing."""
    cells = [f"{pop:.3f}" if pop is not None else "not run" for pop in pops]
    found = [pop for pop in pops if pop is not None]
    mean = f"{float(np.mean(found)):.3f}" if len(found) == len(pops) else "of all only"
    return f"| {label} | " + " | ".join([*cells, mean]) + " |"


def whole_table(whole: Mapping[str, Mapping[str, float]]) -> str:
    """Return the table of the policy and its members in all weeks of the test year."""
    regions = [name for name in OFFSETS if name in whole]
    text = ["| every week | " + " | ".join(regions) + " | mean |", "|---" * (len(regions) + 2) + "|"]
    named = [name for name in next(iter(whole.values())) if not name.startswith("member")]
    text += [pop_row(name, [whole[r].get(name) for r in regions]) for name in named]
    members = np.array([[pop for name, pop in whole[r].items() if name.startswith("member")] for r in regions])
    if members.size:
        cells = [f"{each.mean():.3f} ± {each.std():.3f}" for each in (*members, members.mean(axis=0))]
        text.append(f"| its {members.shape[1]} members (seeds), each alone | " + " | ".join(cells) + " |")
    return "\n".join(text)


def ablation_table(lines: list[dict]) -> str:
    """Return the table of one member a kind of foreknowledge; means over seeds."""
    kinds = list(dict.fromkeys(line["known"] for line in lines))
    seeds = len({line["seed"] for line in lines})
    regions = [name for name in OFFSETS if any(line["region"] == name for line in lines)]
    steps = lines[-1]["steps"]
    text = [f"| known ahead ({steps} steps, {seeds} seed{'s'[: seeds > 1]}) | " + " | ".join(regions) + " | mean |"]
    text.append("|---" * (len(regions) + 2) + "|")
    for kind in kinds:
        own = [[line["pop"] for line in lines if (line["known"], line["region"]) == (kind, r)] for r in regions]
        text.append(pop_row(kind, [float(np.mean(pops)) if pops else None for pops in own]))
    return "\n".join(text)


def kpi_table(latest: dict[tuple[str, int, str], dict], name: str, year: int) -> str:
    """Return the table of some of a region's indicators, one column a policy."""
    wanted = ("nothing", "hour rule", "mpc DF", "mpc forecaster quantiles", "policy")
    shown = [policy for policy in wanted if (name, year, policy) in latest]
    numbers = {policy: latest[name, year, policy]["kpis"] for policy in shown}
    rows = [f"| {name} {year} | " + " | ".join(shown) + " |", "|---" * (len(shown) + 1) + "|"]
    for key, (label, unit) in LABELS.items():
        rows.append(f"| {label} | " + " | ".join(f"{numbers[p][key] * unit:,.4g}" for p in shown) + " |")
    rows += [
        f"| cycles of {store} | " + " | ".join(f"{numbers[p]['cycles'][store]:,.4g}" for p in shown) + " |"
        for store in numbers["nothing"]["cycles"]
    ]
    return "\n".join(rows)


def main() -> None:
    """Evaluate the regions, or a finished training, or rewrite the documentation."""
    command = parser(__doc__)
    command.add_argument("--data", type=Path, help="data folder with the series of the regions")
    command.add_argument("--out", type=Path, required=True, help="file of JSON lines to append to")
    command.add_argument("--forecaster", type=Path, help="Parquet file of `coordinator forecast --table`")
    command.add_argument(
        "--control", type=Path, help="folder DATA/control of a finished training: evaluate only its policy"
    )
    command.add_argument("--regions", default=",".join(OFFSETS))
    command.add_argument("--year", type=int, default=2018)
    command.add_argument("--every", type=int, default=1, help="use one week in so many")
    command.add_argument("--only", help="evaluate only these policies, separated by commas")
    command.add_argument(
        "--docs", action="store_true", help="only rewrite the tables of docs/reference/control.md from --out"
    )
    args = command.parse_args()
    if args.docs:
        rewrite_section(DOCS, BEGIN, END, docs(read_lines(args.out)))
    elif args.control:
        learned(args)
    elif args.data is None:
        command.error("--data is missing. `coordinator start --extract … --data DIR` makes such a folder.")
    else:
        run(args)


if __name__ == "__main__":
    main()
