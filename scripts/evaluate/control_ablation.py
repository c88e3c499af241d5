"""Measure the value of forecasts for control: `python -m scripts.evaluate.control_ablation --data DIR --forecaster FILE --out LINES [--kinds …]`.

Each kind of foreknowledge gives one policy, trained the same way (`rl.algorithms.pathwise`, one member, all regions) and evaluated in
the weeks of --year of every region (one in --every). Kinds: none; persistence; DF; DF corrected by its errors; DF re-issued every hour; our forecaster, corrected;
that with the spread of its quantiles; that with its embedding; the truth. Each kind, seed and region appends one JSON line. DIR and
FILE are those of control_baselines.py.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ingest.loader import respondents_on_disk
from rl.algorithms.base import train
from rl.algorithms.pathwise import PathwiseGradient, Settings
from rl.distributed.runner import JobRunner
from rl.env.dataset import Dataset, build_dataset
from rl.env.forecasts import Forecast, blended, corrected, oracle, persistence
from rl.env.grid import Grid
from rl.env.region import WEEK, Region
from rl.evaluation.score import reference_costs, rollout
from rl.policy import Mlp, from_bytes
from scripts.bench.common import append, parser
from scripts.evaluate.control_baselines import HORIZON
from scripts.evaluate.control_data import Recorded, forecaster, recorded, training_span, years_on_disk
from worker.control.datasets import GROWTH, known_ahead, store_dataset
from worker.control.hourly import reissued

Array = NDArray[np.float64]
LOW, HIGH = "q0.1", "q0.9"


def embedding(path: Path, one: Region) -> NDArray[np.float32]:
    """Return the embedding of each hour's day, forecast the day before, [hour, dimension]; 0 where it is missing."""
    rows = pd.read_parquet(path, columns=["respondent", "hour", "embedding"], filters=[("respondent", "==", one.name)])
    values = np.stack(rows["embedding"].to_list())
    place = np.searchsorted(one.hours.astype(np.int64), rows["hour"].to_numpy())
    out = np.zeros((len(one.hours), values.shape[1]), np.float32)
    out[place] = values
    return out


def known(kind: str, path: Path, found: Recorded) -> Forecast | None:
    """Return the forecast of a kind of foreknowledge, the point forecast first."""
    one = found.region
    if kind == "none":
        return None
    if kind == "persistence":
        return persistence(one, HORIZON)
    if kind == "truth":
        return oracle(one, HORIZON)
    issued = found.issued
    if kind == "hourly":
        demand = np.where(one.known, one.load, np.nan) * one.peak
        ahead = reissued(one, demand, issued * one.peak, HORIZON)
        return blended(one, ahead, corrected(one, known_ahead(one, issued, HORIZON), found.trained))[0]
    if not kind.startswith("DF"):
        medians = forecaster(path, one)
        issued = np.where(np.isfinite(medians), medians, issued)
    point = known_ahead(one, issued, HORIZON)
    if kind == "DF":
        return point
    better = corrected(one, point, found.trained)
    if kind != "quantiles":
        return better
    spread = np.nan_to_num(forecaster(path, one, HIGH) - forecaster(path, one, LOW))
    return np.concatenate([better, known_ahead(one, spread, HORIZON)], axis=2)


def dataset_of(
    kind: str, path: Path, grid: Grid, span: tuple[str, str], found: Sequence[Recorded], growths: tuple[float, ...]
) -> Dataset:
    """Build a dataset of the regions from `span`'s first hour to its end, once for each of `growths`, a factor of load and forecast."""
    regions, forecasts, extra = [], [], []
    for each in found:
        one, ahead = each.region, known(kind, path, each)
        more = embedding(path, one) if kind == "embedding" else np.zeros((len(one.hours), 0))
        for growth in growths:
            regions.append(replace(one, load=one.load * growth))
            forecasts.append(None if ahead is None else ahead * np.float32(growth))
            extra.append(more)
    made = build_dataset(regions, forecasts, *span, grid)
    pairs = zip(extra, made.origins, made.spans, strict=True)
    more = np.concatenate([e[origin : origin + last - first] for e, origin, (first, last) in pairs])
    names_more = tuple(f"embedding {i}" for i in range(more.shape[1]))
    features = np.concatenate([made.features, more], axis=1).astype(np.float32)
    return replace(made, features=features, feature_names=(*made.feature_names, *names_more))


def train_policy(grid: Grid, made: Dataset, settings: Settings) -> Mlp:
    """Train a policy on a dataset in this process."""
    with tempfile.TemporaryDirectory() as folder:
        sha256 = store_dataset(Path(folder), made)
        contents: dict[str, bytes] = {}
        runner = JobRunner(Path(folder), lambda wanted: from_bytes(contents[wanted]), grid)
        algorithm = PathwiseGradient(sha256, runner.env(sha256, settings.num_envs, settings.episode_hours), settings)

        def do(job: object) -> dict[str, NDArray]:
            names = (job.policy, job.m, job.v)  # type: ignore[attr-defined]
            contents.update(zip(names, algorithm.contents(), strict=True))
            return runner.run(job)  # type: ignore[arg-type]

        return train(algorithm, do)


def run(args: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Append the lines of every kind."""
    grid = Grid()
    names = args.regions.split(",") if args.regions else respondents_on_disk(args.data)
    found = [recorded(args.data, name, args.year or years_on_disk(args.data, name)[-1]) for name in names]
    training = training_span(found)
    for kind in args.kinds.split(","):
        made = dataset_of(kind, args.forecaster, grid, training, found, (1.0, GROWTH))
        settings = Settings(iterations=args.steps // 100, members=1, seed=args.seed)
        policy = train_policy(grid, made, settings)
        for each in found:
            data = dataset_of(kind, args.forecaster, grid, each.test, [each], (1.0,))
            starts = data.episodes(WEEK, args.every)
            cost = rollout(grid, data, policy, starts, WEEK).cost.sum(axis=0)
            pop = reference_costs(grid, data, starts, WEEK).pop(cost)
            line = {
                "known": kind,
                "seed": args.seed,
                "region": each.region.name,
                "year": int(each.test[0][:4]),
                "pop": pop,
            }
            append(line | {"weeks": len(starts), "steps": args.steps}, args.out)
            say(f"{kind} {each.region.name}: PoP {pop:.3f}")


def main() -> None:
    """Run the kinds of `--kinds`."""
    command = parser(__doc__)
    command.add_argument("--data", type=Path, required=True, help="data folder with the series of the regions")
    command.add_argument(
        "--forecaster", type=Path, required=True, help="Parquet file of `coordinator forecast --table`"
    )
    command.add_argument("--out", type=Path, required=True, help="file of JSON lines to append to")
    command.add_argument(
        "--kinds", default="none,persistence,DF,DF corrected,hourly,forecaster,quantiles,embedding,truth"
    )
    command.add_argument("--regions", help="respondents, separated by commas; all on disk by default")
    command.add_argument("--year", type=int, help="year to evaluate; the last on disk by default")
    command.add_argument("--steps", type=int, default=1500, help="steps of Adam")
    command.add_argument("--every", type=int, default=1, help="use one week in so many")
    command.add_argument("--seed", type=int, default=0)
    run(command.parse_args(), lambda text: print(text, flush=True))


if __name__ == "__main__":
    main()
