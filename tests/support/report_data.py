"""Make a data folder with the files of every stage in seconds: one respondent, two years, invented values."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from coordinator.report.collect.training import QUANTILES
from ingest.columns import hour_number
from rl.arrays import to_bytes as arrays_bytes
from rl.env.dataset import build_dataset
from rl.env.dataset_file import path_of
from rl.env.dataset_file import to_bytes as dataset_bytes
from rl.env.forecasts import day_ahead
from rl.env.grid import Grid
from rl.env.region import synthetic
from rl.env.vector import VectorGridEnv
from rl.policy import init_mlp, to_bytes
from tests.support.data_folder import ABSENT, build_all, commit, daily, shard

WEIGHTS = "ab" * 32
HOLE = 30  # hours without a row, from hour 1000 of 2024


def extracted(data: Path) -> Path:
    """Write demand and forecast of PACW with a gap; the last two weeks were fetched again and one hour was restated."""
    for year in (2023, 2024):
        one = shard("PACW", f"{year}-01-01T00", f"{year}-12-31T23")
        load = daily(one.hours)
        if year == 2024:
            load[1000 : 1000 + HOLE] = ABSENT
        exports = {"TI": daily(one.hours, -100.0)} if year == 2024 else {}
        commit(data, one, {"D": load, "DF": daily(one.hours, 3100.0), **exports})
    december = shard("PACW", "2024-12-01T00", "2024-12-31T23", route="fuel-type-data")
    commit(data, december, {"WAT": daily(december.hours, 900.0), "PS": np.full(december.hours, -50.0)})
    again = replace(shard("PACW", "2024-12-18T00", "2024-12-31T23"), generation=1)
    first = hour_number("2024-12-18T00") - hour_number("2024-01-01T00")
    load = daily(first + again.hours)[first:]
    load[5] += 7
    commit(data, again, {"D": load})
    build_all(data)
    return data


def trained(data: Path) -> Path:
    """Write a finished training and its table of forecasts: the operators' are 100 MWh too high, the forecaster's 50."""
    run = data / "train"
    run.mkdir()
    lines: list[dict[str, object]] = []
    for step in range(1, 41):
        lines.append({"step": step, "loss": 1 / step, "tokens_per_s": 1000.0 + step, "ranks": 2})
        if step % 20 == 0:
            lines.append({"step": step, "skill": step / 100, "skills": {"PACW": step / 100}, "coverage_80": 0.8})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = {"steps": 40, "validation_skill": 0.4, "sha256": WEIGHTS, "reference": "DF"}
    (run / "result.json").write_text(json.dumps(result))
    (run / "config.json").write_text(json.dumps({"seed": 5, "train": "", "validate": ""}))
    (run / "proved.json").write_text("{}")
    hours = np.arange(hour_number("2024-01-01T00"), hour_number("2024-12-31T23") + 1)
    demand = daily(len(hours))
    columns = {
        "respondent": pa.array(["PACW"] * len(hours)).dictionary_encode(),
        "hour": pa.array(hours),
        "demand": pa.array(demand.astype(np.float32)),
        "operator": pa.array((demand + 100).astype(np.float32)),
    }
    spread = np.linspace(-150, 150, len(QUANTILES))
    columns |= {
        name: pa.array((demand + 50 + add).astype(np.float32)) for name, add in zip(QUANTILES, spread, strict=True)
    }
    (data / "control").mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), data / "control" / f"forecasts-{WEIGHTS[:16]}.parquet")
    return data


def backtested(data: Path) -> Path:
    """Write the verdict on a backtest of two months, a tenth better than the operators."""
    figures = {"hours": 744, "mae": 90.0, "skill": 0.1, "coverage": {"80%": 0.79}}
    parts = {"horizon": {"13–24 h": figures | {"p": 0.2}, "25–38 h": figures | {"p": 1e-9}}}
    parts["month"] = {"2024-01": figures, "2024-02": figures | {"skill": None}}
    line = {"mae": 90.0, "over": {"DF": {"mae": 100.0, "skill": 0.1, "p": 0.003}}, "parts": parts}
    counted = figures | {"better": 1, "of": 1}
    mean = {"respondents": ["PACW"], "over": {"DF": {"skill": 0.1, "better": 1, "of": 1}}}
    mean |= {"parts": parts | {"horizon": {"13–24 h": counted | {"better": 0}, "25–38 h": counted}}}
    verdict = {"model": "q", "period": ["2024-01-01T09", "2024-03-01T08"], "peeks": False, "mean": mean}
    verdict |= {"respondents": {"PACW": line | {"coverage": figures["coverage"]}}}
    (data / "backtest").mkdir()
    (data / "backtest" / "linear.json").write_text(json.dumps(verdict))
    return data


def controlled(data: Path) -> Path:
    """Write a finished control training of an invented region, with a policy that does almost nothing."""
    run = data / "control"
    run.mkdir(exist_ok=True)
    region, issued = synthetic()
    made = build_dataset([region], [day_ahead(region, issued, 6)], "2018-01-01T00", "2018-03-01T00", Grid())
    sha256, content = dataset_bytes(made)
    path_of(run, sha256).parent.mkdir()
    path_of(run, sha256).write_bytes(content)
    grid = Grid()
    names = VectorGridEnv(grid, made, 1, 1).observation_names
    zeros, ones = np.zeros(len(names), np.float32), np.ones(len(names), np.float32)
    policy = init_mlp(names, zeros, ones, len(grid.stores) + 1, 8, np.random.default_rng(0))
    (run / "policy.npz").write_bytes(to_bytes(policy))
    about = {"tables": {"test": sha256}, "peaks": [4000.0], "renewable": [], "known": "the operators' forecast"}
    (run / "tables.json").write_text(json.dumps(about))
    pops = {"SYNTHETIC": {"hour rule": 0.4, "mpc": 0.7, "policy": 0.6, "mpc perfect": 0.9}}
    result = {"test_pop": pops, "policy": "policy.npz", "sha256": "cd" * 32, "report": "report.md"}
    (run / "result.json").write_text(json.dumps(result))
    (run / "proved.json").write_text("{}")
    history = [{"version": version, "pop": 0.1 * version} for version in range(4)]
    (run / "state.pack").write_bytes(arrays_bytes({"history": history}, {"first": np.zeros(1, np.uint8)}))
    lines = [{"version": version, "losses/cost": 100.0 - version} for version in range(1, 4)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    numbers = "## SYNTHETIC\n\n| 4 weeks | nothing | policy |\n|---|---|---|\n| peak, MW | 4,000 | 3,900 |\n"
    (run / "report.md").write_text(
        f"# Grid control: report\n\nKnown ahead: what operators said, by `pathwise`.\n\n{numbers}"
    )
    return data
