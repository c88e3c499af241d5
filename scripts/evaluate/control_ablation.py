"""Measure the value of forecasts for control: `python -m scripts.evaluate.control_ablation --data DIR --forecaster FILE --out LINES [--kinds …]`.

Each kind of foreknowledge gives one policy, trained the same way (`rl.algorithms.pathwise`, one member, all regions) and evaluated in
the weeks of 2019 of every region (one in --every). Kinds: none; persistence; DF; DF corrected by its errors; our forecaster, corrected;
that with the spread of its quantiles; that with its embedding; the truth. Each kind, seed and region appends one JSON line. DIR and
FILE are those of control_baselines.py.
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rl.algorithms.base import train
from rl.algorithms.pathwise import PathwiseGradient, Settings
from rl.distributed.runner import JobRunner
from rl.env.dataset import Dataset, build_dataset
from rl.env.forecasts import Forecast, corrected, day_ahead, oracle, persistence
from rl.env.grid import Grid
from rl.env.region import WEEK, Region
from rl.evaluation.score import reference_costs, rollout
from rl.policy import Mlp, from_bytes
from scripts.bench.common import append, parser
from scripts.evaluate.control_baselines import (
    FIRST,
    HORIZON,
    OFFSETS,
    TRAINED,
    forecaster,
    recorded,
    weeks,
)
from worker.control.datasets import GROWTH, store_dataset

Array = NDArray[np.float64]
TEST = ("2019-01-01T00", "2019-12-31T23")
LOW, HIGH = "q0.1", "q0.9"


def quantile(path: Path, one: Region, column: str) -> Array:
    """Return a quantile of the forecaster in reference peaks, [hour]; NaN where it is missing."""
    rows = pd.read_parquet(path, columns=["respondent", "hour", column], filters=[("respondent", "==", one.name)])
    values = pd.Series(rows[column].to_numpy(float), rows["hour"]).reindex(one.hours.astype(np.int64)).to_numpy()
    return values / one.peak


def embedding(path: Path, one: Region) -> NDArray[np.float32]:
    """Return the embedding of each hour's day, forecast the day before, [hour, dimension]; 0 where it is missing."""
    rows = pd.read_parquet(path, columns=["respondent", "hour", "embedding"], filters=[("respondent", "==", one.name)])
    values = np.stack(rows["embedding"].to_list())
    place = np.searchsorted(one.hours.astype(np.int64), rows["hour"].to_numpy())
    out = np.zeros((len(one.hours), values.shape[1]), np.float32)
    out[place] = values
    return out


def known(kind: str, path: Path, one: Region, issued: Array) -> Forecast | None:
    """Return the forecast of a kind of foreknowledge, the point forecast first."""
    if kind == "none":
        return None
    if kind == "persistence":
        return persistence(one, HORIZON)
    if kind == "truth":
        return oracle(one, HORIZON)
    point = day_ahead(one, issued if kind.startswith("DF") else forecaster(path, one, issued), HORIZON)
    if kind == "DF":
        return point
    better = corrected(one, point, TRAINED)
    if kind != "quantiles":
        return better
    spread = np.nan_to_num(quantile(path, one, HIGH) - quantile(path, one, LOW))
    return np.concatenate([better, day_ahead(one, spread, HORIZON)], axis=2)


def dataset_of(
    kind: str, args: argparse.Namespace, grid: Grid, start: str, end: str, names: list[str], growths: tuple[float, ...]
) -> Dataset:
    """Build a dataset of the regions, once for each of `growths`, a factor of load and forecast."""
    regions, forecasts, extra = [], [], []
    for name in names:
        one, issued = recorded(args.data, name)
        ahead = known(kind, args.forecaster, one, issued)
        more = embedding(args.forecaster, one) if kind == "embedding" else np.zeros((len(one.hours), 0))
        for growth in growths:
            regions.append(replace(one, load=one.load * growth))
            forecasts.append(None if ahead is None else ahead * np.float32(growth))
            extra.append(more)
    made = build_dataset(regions, forecasts, start, end, grid)
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
    grid, names = Grid(), list(OFFSETS)
    for kind in args.kinds.split(","):
        made = dataset_of(kind, args, grid, FIRST.replace("07-02", "09-01"), TRAINED, names, (1.0, GROWTH))
        settings = Settings(iterations=args.steps // 100, members=1, seed=args.seed)
        policy = train_policy(grid, made, settings)
        for name in names:
            data = dataset_of(kind, args, grid, *TEST, [name], (1.0,))
            starts = weeks(data)[:: args.every]
            pop = reference_costs(grid, data, starts, WEEK).pop(
                rollout(grid, data, policy, starts, WEEK).cost.sum(axis=0)
            )
            line = {"known": kind, "seed": args.seed, "region": name, "year": 2019, "pop": pop}
            line |= {"weeks": len(starts), "steps": args.steps}
            append(line, args.out)
            say(f"{kind} {name}: PoP {pop:.3f}")


def main() -> None:
    """Run the kinds of `--kinds`."""
    command = parser(__doc__)
    command.add_argument("--data", type=Path, required=True, help="data folder with the series of the regions")
    command.add_argument(
        "--forecaster", type=Path, required=True, help="Parquet file of `coordinator forecast --table`"
    )
    command.add_argument("--out", type=Path, required=True, help="file of JSON lines to append to")
    command.add_argument("--kinds", default="none,persistence,DF,DF corrected,forecaster,quantiles,embedding,truth")
    command.add_argument("--steps", type=int, default=1500, help="steps of Adam")
    command.add_argument("--every", type=int, default=1, help="use one week in so many")
    command.add_argument("--seed", type=int, default=0)
    run(command.parse_args(), lambda text: print(text, flush=True))


if __name__ == "__main__":
    main()
