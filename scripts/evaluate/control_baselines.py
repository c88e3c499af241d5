"""Measure control on recorded regions: `python -m scripts.evaluate.control_baselines --data DIR --out FILE [--regions …] [--year …]`.

DIR has series with demand and the operators' day-ahead forecast (`coordinator start --extract … --data DIR`), of any respondents and
years. Rules and error statistics are fitted on hours before the validation year. In --year every completely measured week is an episode (one
in --every). Each region and policy gives one JSON line with PoP, cost by part and quarter, and the indicators of `rl.evaluation.kpis`.
`--docs` rewrites the generated tables of docs/reference/control.md from the lines:
`python -m scripts.evaluate.control_baselines --out FILE --docs`.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ingest.errors import IngestError
from ingest.loader import respondents_on_disk
from ingest.publication import DEFAULT, Publication
from rl.env.dataset import Dataset, build_dataset
from rl.env.dataset_file import load as load_dataset
from rl.env.forecasts import Forecast, blended, corrected, oracle, persistence, with_quantiles
from rl.env.grid import Grid
from rl.env.region import WEEK
from rl.errors import ControlError
from rl.evaluation.kpis import kpis
from rl.evaluation.score import Policy, ReferenceCosts, Trajectory, cost_parts, reference_costs, rollout
from rl.planning.baselines import PeakShaving, best_peak_shaving, hour_rule, idle, peak_shaving
from rl.planning.mpc import PathMpc
from rl.policy import load as load_policy
from scripts.bench.common import ROOT, append, parser, read_lines, rewrite_section
from scripts.evaluate.control_data import Recorded, forecaster, recorded, training_span, years_on_disk
from scripts.evaluate.control_tables import docs
from worker.control.datasets import known_ahead
from worker.control.hourly import moved, paths_of
from worker.forecast.hourly.forecasts import HourlyForecasts
from worker.forecast.hourly.table import read_hourly

DOCS = ROOT / "docs" / "reference" / "control.md"
BEGIN, END = "<!-- baselines: begin (scripts/evaluate/control_baselines.py --docs) -->", "<!-- baselines: end -->"
HORIZON = 36  # hours
LEVELS, WEIGHTS = (0.1, 0.5, 0.9), (0.3, 0.4, 0.3)
MONTHS_A_QUARTER = 3


def policies(
    grid: Grid,
    found: Sequence[Recorded],
    tables: tuple[Path | None, Path | None],
    data: Dataset,
    scale: ReferenceCosts,
    common: int = HORIZON,
) -> Iterator[tuple[str, Callable[[], Policy]]]:
    """Yield every policy for the hours of `data`, fitted before `Recorded.trained`.

    Args:
        grid: Of the fleet.
        found: The regions of `data`.
        tables: Files of the forecaster and of hourly forecasts, or None.
        data: Hours of the evaluation.
        scale: Of the evaluated weeks.
        common: Hours of a plan whose decisions are common to its paths or quantiles.
    """
    forecasts, hourly = tables
    train = build_dataset([one.region for one in found], [None] * len(found), *training_span(found))
    plans = np.stack([schedule.actions(grid) for schedule in scale.schedules], axis=-1)
    yield "nothing", lambda: idle
    yield "optimum", lambda: lambda env: plans[:, WEEK - env.hours_left]
    yield "hour rule", lambda: hour_rule(grid, train).on(data)
    yield "peak shaving", lambda: region_shaving(grid, found, data)
    points = {
        "mpc yesterday": lambda one: persistence(one.region, HORIZON),
        "mpc DF": lambda one: known_ahead(one.region, one.issued, HORIZON, one.publication),
        "mpc DF corrected": lambda one: corrected_df(one, HORIZON),
        "mpc perfect": lambda one: oracle(one.region, HORIZON),
    }
    if forecasts:
        better = cache(
            lambda one: corrected(one.region, known_ahead(one.region, medians(forecasts, one), HORIZON), one.trained)
        )
        points["mpc forecaster"] = better
        points["mpc forecaster quantiles"] = lambda one: with_quantiles(one.region, better(one), one.trained, LEVELS)
    if hourly:
        read = cache(lambda: read_hourly(hourly, found[0].publication))
        reissued = cache(lambda one: hourly_ahead(read(), one))
        points["mpc hourly"] = lambda one: reissued(one)[0]
        points["mpc paths"] = lambda one: reissued(one)[1]
    for name, forecast in points.items():

        def plan(forecast: Callable[[Recorded], Forecast] = forecast) -> Policy:
            ahead = data.gather([forecast(one) for one in found])
            return PathMpc(grid, ahead, common, WEIGHTS if ahead.shape[2] == len(WEIGHTS) else None)

        yield name, plan


def hourly_ahead(table: Mapping[str, HourlyForecasts], one: Recorded) -> tuple[Forecast, Forecast]:
    """Return the medians of the hourly table, blended with corrected DF by how both fared lately, and the paths around them."""
    median, paths = paths_of(table, one.region, HORIZON)
    better, share = blended(one.region, median, corrected_df(one, HORIZON))
    return better, moved(median, paths, better, share)


def corrected_df(one: Recorded, horizon: int) -> Forecast:
    """Return the operators' day-ahead forecast, corrected by what is known of its errors."""
    return corrected(one.region, known_ahead(one.region, one.issued, horizon, one.publication), one.trained)


def medians(path: Path, one: Recorded) -> NDArray[np.float64]:
    """Return the forecaster's medians, [hour]; DF where they are missing."""
    found = forecaster(path, one.region)
    return np.where(np.isfinite(found), found, one.issued)


def region_shaving(grid: Grid, found: Sequence[Recorded], data: Dataset) -> Policy:
    """Return peak shaving whose marks and gain are chosen region by region."""
    parts: list[PeakShaving] = []
    for one, (first, last) in zip(found, data.spans, strict=True):
        train = build_dataset([one.region], [None], one.first, one.trained)
        start, end = (str(one.region.hours[data.origins[len(parts)]] + at) for at in (0, last - first))
        own = build_dataset([one.region], [None], start, end)
        parts.append(peak_shaving(own, *best_peak_shaving(grid, train, train.episodes(WEEK), WEEK)))
    return PeakShaving(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("high", "low", "gain")))


def run(args: argparse.Namespace) -> None:
    """Append the lines of every region and policy."""
    grid = Grid()
    names = args.regions.split(",") if args.regions else list(respondents_on_disk(args.data))
    year = args.year or min(years_on_disk(args.data, name)[-1] for name in names)
    publication = Publication.parse(args.publication)
    found = [recorded(args.data, name, year, publication) for name in names]
    # Where the load of the hour before is not published, planners take a forecast of it.
    late = [corrected_df(one, 1) if one.region.lag else None for one in found]
    data = build_dataset([one.region for one in found], late, *found[0].test)
    scale = reference_costs(grid, data, data.episodes(WEEK, args.every), WEEK)
    peaks = [one.region.peak for one in found]
    for name, make in policies(grid, found, (args.forecaster, args.hourly), data, scale, args.common):
        if not args.only or name in args.only.split(","):
            about = {"year": year, "every": args.every, "policy": name}
            about |= {"publication": str(publication)} if publication != DEFAULT else {}
            evaluate(grid, data, scale, make, about, peaks, args.out)


def evaluate(
    grid: Grid,
    data: Dataset,
    scale: ReferenceCosts,
    make: Callable[[], Policy],
    about: Mapping[str, object],
    peaks: Sequence[float],
    out: Path,
) -> None:
    """Evaluate a policy in the weeks of `scale`, all regions at once, and append a line for each region."""
    began = time.perf_counter()
    everywhere = rollout(grid, data, make(), scale.starts, WEEK)
    seconds = (time.perf_counter() - began) / len(peaks)
    for region, peak, (first, last) in zip(data.regions, peaks, data.spans, strict=True):
        own = (scale.starts >= first) & (scale.starts < last)
        trace, costs = everywhere.of(own), scale.of(own)
        line = {
            "region": region,
            **about,
            "pop": costs.pop(trace.cost.sum(axis=0)),
            "weeks": int(own.sum()),
            "horizon": HORIZON,
            "saving_optimum": float((costs.idle - costs.optimum).sum() / costs.idle.sum()),
            "seconds": seconds,
            "quarters": quarters(data, costs, trace, peak),
            "parts": {name: float(part.sum() * peak) for name, part in cost_parts(grid, trace).items()},
            "kpis": {k: v if isinstance(v, dict) else float(v) for k, v in asdict(kpis(grid, trace, peak)).items()},
        }
        append(line, out)
        print(f"{region} {about['year']} {about['policy']}: PoP {line['pop']:.3f} ({seconds:.0f} s)", flush=True)


def quarters(data: Dataset, scale: ReferenceCosts, trace: Trajectory, peak: float) -> list[dict[str, float]]:
    """Return, for every quarter in which a week begins, the number of weeks and their costs in $: nothing, optimum, policy."""
    quarter, found = data.month[trace.starts] // MONTHS_A_QUARTER, []
    costs = {"idle": scale.idle, "optimum": scale.optimum, "cost": trace.cost.sum(axis=0)}
    for one in np.unique(quarter):
        own = quarter == one
        sums = {name: float(cost[own].sum() * peak) for name, cost in costs.items()}
        found.append({"quarter": int(one) + 1, "weeks": int(own.sum()), **sums})
    return found


def learned(args: argparse.Namespace) -> None:
    """Append the lines of the policy that `coordinator start --rollouts` wrote to --control, in its test year."""
    grid, made = Grid(), json.loads((args.control / "tables.json").read_text())
    data, policy = load_dataset(args.control, made["tables"]["test"]), load_policy(args.control / "policy.npz")
    result = json.loads((args.control / "result.json").read_text())
    for name, pops in result["test_pop"].items():
        append({"region": name, "year": args.year, "whole_year": pops, "version": result["version"]}, args.out)
    scale = reference_costs(grid, data, data.episodes(WEEK, args.every), WEEK)
    about = {"year": args.year, "every": args.every, "policy": "policy"}
    evaluate(grid, data, scale, lambda: policy, about, made["peaks"], args.out)


def main() -> None:
    """Evaluate the regions, or a finished training, or rewrite the documentation."""
    command = parser(__doc__)
    command.add_argument("--data", type=Path, help="data folder with the series of the regions")
    command.add_argument("--out", type=Path, required=True, help="file of JSON lines to append to")
    command.add_argument("--forecaster", type=Path, help="Parquet file of `coordinator forecast --table`")
    command.add_argument("--hourly", type=Path, help="Parquet file of `coordinator forecast --hourly … --paths 20`")
    command.add_argument("--common", type=int, default=HORIZON, help="hours of a plan that are common to its paths")
    command.add_argument(
        "--control", type=Path, help="folder DATA/control of a finished training: evaluate only its policy"
    )
    command.add_argument("--regions", help="respondents, separated by commas; all on disk by default")
    command.add_argument("--year", type=int, help="year to evaluate; the last on disk by default")
    command.add_argument(
        "--publication",
        default=str(DEFAULT),
        help="when actual values and DF are known: day-before, deadline, 1h,-1T10,local",
    )
    command.add_argument("--every", type=int, default=1, help="use one week in so many")
    command.add_argument("--only", help="evaluate only these policies, separated by commas")
    command.add_argument(
        "--docs", action="store_true", help="only rewrite the tables of docs/reference/control.md from --out"
    )
    args = command.parse_args()
    if args.docs:
        rewrite_section(DOCS, BEGIN, END, docs(read_lines(args.out)))
    elif args.control:
        if args.year is None:
            command.error("--year is missing: the test year of the training, the last on disk")
        learned(args)
    elif args.data is None:
        command.error("--data is missing. `coordinator start --extract … --data DIR` makes such a folder.")
    else:
        try:
            run(args)
        except (IngestError, ControlError) as error:
            command.error(str(error))


if __name__ == "__main__":
    main()
